"""Successive halving: all trials train a ninth of their updates, the best third of them a third, and the best third of those all.

These are the rungs and shares of ASHA (Li et al. 2020, https://arxiv.org/abs/1810.05934). A rung is compared when it is complete,
so that no trial is promoted too early: the same ones are, however many trials run at the same time.
"""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

KEEP = 3  # one trial of this number is promoted
RUNGS = (1 / KEEP**2, 1 / KEEP, 1.0)  # shares of a trial's updates


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a trial is.

    Attributes:
        scores: At each rung that it has reached, numbers to compare, larger ones better.
        is_over: True if it has ended, at whatever rung: by early stopping, or because it failed.
        has_failed: True if its loss was not finite, or if its settings cannot be used: it is worse than all others.
    """

    scores: tuple[tuple[float, ...], ...] = ()
    is_over: bool = False
    has_failed: bool = False


def choose_next(
    standings: Sequence[Standing], num_trials: int, rungs: Sequence[float], running: Container[int] = ()
) -> tuple[int, int] | None:
    """Returns the trial to run next, and the rung to run it to; None if nothing is left to run, or not before a trial ends that
    runs.

    A trial of the number `len(standings)` is a new one. The place of one that failed goes to the next best.
    """
    members = list(range(max(num_trials, len(standings))))
    for rung in range(len(rungs)):
        is_complete = True
        for number in members:
            if number >= len(standings):
                return number, rung
            if len(standings[number].scores) <= rung and not standings[number].is_over:
                if number not in running:
                    return number, rung
                is_complete = False
        if not is_complete:
            return None
        num_kept = max(1, len(members) // KEEP)
        members = [number for number in rank(standings, members, rung) if not standings[number].has_failed][:num_kept]
    return None


def rank(standings: Sequence[Standing], members: Sequence[int], rung: int) -> list[int]:
    """Returns the trials from the best to the worst at a rung; those without a score last, and of equal ones the earlier first.

    A trial that ended before has the scores of its end. nan is worse than any number.
    """

    def key(number: int) -> tuple[bool, list[float], int]:
        scores = standings[number].scores
        reached = scores[min(rung, len(scores) - 1)] if scores else ()
        return (
            not reached or standings[number].has_failed,
            [math.inf if math.isnan(score) else -score for score in reached],
            number,
        )

    return sorted(members, key=key)
