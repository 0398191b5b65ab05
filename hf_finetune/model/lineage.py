"""What a model was made from: the pretrained model at the beginning, and the runs that trained it.

Export records it in the model's config, and a run that begins from the model reads it.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a model was made from.

    Args:
        base: The pretrained model at the beginning: a Hub id or folder.
        runs: Name and task of each run that trained it, the first run first.
        token_limit: Longest input of the base model's tokenizer in tokens. Each run records its own limit in its tokenizer
            (data.max_length), which does not bind the next run. None if no run has trained the model.
    """

    base: str
    runs: tuple[tuple[str, str], ...] = ()
    token_limit: int | None = None

    def add_run(self, name: str, task: str, token_limit: int) -> dict[str, Any]:
        """Returns the entries of the model's config that record the lineage after a run.

        token_limit: Of the tokenizer before the run, for the first run.
        """
        runs = [*self.runs, (name, task)]
        return {
            "base_model": self.base,
            "runs": [{"name": name, "task": task} for name, task in runs],
            "token_limit": self.token_limit or token_limit,
        }

    @contextlib.contextmanager
    def other_random_numbers(self) -> Iterator[None]:
        """Until the block ends, torch draws other numbers than in the runs that trained the model, whose seed may be the same.

        The features of a trained model agree with the head that its run drew at the beginning. The same numbers again would be
        that head, with its rows at the same places. A function of torch's seed and the number of runs.
        """
        if not self.runs:
            yield
            return
        seed = np.random.SeedSequence([torch.initial_seed(), len(self.runs)]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed) % 2**63)
            yield

    def describe(self) -> str:
        """Returns the runs that trained the model, "" if there are none."""
        return ", then ".join(f"{name} ({task})" for name, task in self.runs)


UNKNOWN = Lineage(base="")


def read_lineage(hf_config: Any, location: str) -> Lineage:
    """Returns the lineage that a transformers config records; of a model that no run has trained, the location itself.

    A config may hold anything under our key. What is not as we write it counts as the record of another version.
    """
    recorded = getattr(hf_config, "hf_finetune", None)
    if not isinstance(recorded, dict):
        return Lineage(base=location)
    base, runs, limit = (recorded.get(key) for key in ("base_model", "runs", "token_limit"))
    if not isinstance(base, str) or not isinstance(runs, list) or not isinstance(limit, int):
        return Lineage(base=location, runs=(("an earlier run", "of another version"),))
    named = [(str(run.get("name")), str(run.get("task"))) for run in runs if isinstance(run, dict)]
    return Lineage(base=base, runs=tuple(named), token_limit=limit)
