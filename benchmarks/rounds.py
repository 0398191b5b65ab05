"""Rounds of competitors: their order, their medians, and where a benchmark that was stopped continues."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SAME = ("commit", "code", "machine", "job", "processes")  # what an earlier call must have had, to be continued

Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def continue_result(path: Path, result: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Returns what a results file holds, if it is a part of this benchmark with fewer rounds; else `result`, which has none."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    is_same = bool(earlier) and all(earlier.get(key) == result.get(key) for key in SAME)
    if is_same and earlier["rounds"] < rounds and list(earlier["runs"]) == list(result["runs"]):
        print(f"{path.name} has {earlier['rounds']} of {rounds} rounds", flush=True)
        continued: dict[str, Any] = earlier
        return continued
    return result


def order_competitors(names: Sequence[str], round_number: int) -> list[str]:
    """Returns the order of the competitors in a round. It rotates by one in each round, and cold always runs before warm."""
    shift = round_number % len(names)
    order = [*names[shift:], *names[:shift]]
    if "cold" in order and "warm" in order:
        first, second = sorted((order.index("cold"), order.index("warm")))
        order[first], order[second] = "cold", "warm"
    return order


def compute_medians(runs: Runs, key: str) -> dict[str, float]:
    """Returns the median of a figure for each competitor."""
    return {name: round(statistics.median(run[key] for run in rounds), 2) for name, rounds in runs.items()}


def add_run(result: dict[str, Any], name: str, run: dict[str, Any]) -> None:
    """Adds the run of a competitor to a result, and prints it."""
    result["runs"][name].append(run)
    result["load"].append(run["load"])
    clocks = f"{run['seconds']:7.1f} s  {run['command_seconds']:7.1f} s from command to model"
    memory = f"metric {run['accuracies'][-1]:.4f}  {run['peak_memory_mb']:,.0f} MB"
    print(f"{result['data']}  round {result['rounds'] + 1}  {name:<9} {clocks}  {memory}", flush=True)


def end_round(result: dict[str, Any], seconds: float) -> None:
    """Counts a round, and takes the medians again."""
    result["rounds"] += 1
    result["medians"] = compute_medians(result["runs"], "seconds")
    result["command_medians"] = compute_medians(result["runs"], "command_seconds")
    print(f"{result['data']}  round {result['rounds']} took {seconds:.0f} s", flush=True)
