"""The file of a sweep: how many trials, and from which values each setting is drawn.

trials: 8
train.learning_rate: {log_uniform: [1e-5, 1e-3]}
freeze.layers: {int_uniform: [2, 5]}
train.schedule: {choice: [linear, cosine]}
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_finetune.choosing.trials import make_trial
from hf_finetune.config.sections import RunConfig
from hf_finetune.config.values import convert_option, format_value
from hf_finetune.config.yaml_files import read_yaml
from hf_finetune.system.errors import InputError

KINDS = ("log_uniform", "uniform", "int_uniform", "choice")
OPTIONS = {"trials": 8, "halving": True}
WAYS = "{log_uniform: [low, high]}, {uniform: [low, high]}, {int_uniform: [low, high]} or {choice: [...]}"
DIGITS = 3  # significant digits of a number that is drawn

# Settings that say what trials are compared by, or where they lie
SAME_FOR_ALL = (
    "name",
    "output_dir",
    "task.kind",
    "evaluation.",
    "checkpoint.",
    "tracking.",
    "hub.",
    "run.",
    "cache.",
    "data.dataset",
    "data.subset",
    "data.train",
    "data.validation",
    "data.test",
)


@dataclass(frozen=True, kw_only=True)
class Values:
    """The values that a setting is drawn from. items: low and high, or all choices."""

    kind: str
    items: tuple[Any, ...]

    def draw(self, generator: np.random.Generator) -> Any:
        """Returns one of them at random."""
        if self.kind == "choice":
            return self.items[int(generator.integers(len(self.items)))]
        low, high = self.items
        if self.kind == "int_uniform":
            return int(generator.integers(low, high + 1))
        if self.kind == "log_uniform":
            return self.round(math.exp(generator.uniform(math.log(low), math.log(high))))
        return self.round(generator.uniform(low, high))

    def round(self, value: float) -> float:
        """Returns a number between low and high as it is written and read again."""
        low, high = self.items
        return min(max(float(f"{value:.{DIGITS}g}"), low), high)


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a sweep tries.

    Attributes:
        trials: The number of trials.
        halving: True to leave the worse trials early.
        space: The values of each setting by its dotted key.
    """

    trials: int
    halving: bool
    space: Mapping[str, Values]

    def to_dict(self) -> dict[str, Any]:
        """Returns the search as plain values, without the number of trials, which may be raised later."""
        return {"halving": self.halving} | {
            f"{key}.{values.kind}": list(values.items) for key, values in self.space.items()
        }


def read_search(path: str, base: RunConfig) -> Search:
    """Reads the file of a sweep, and checks its keys and values by the settings of all trials.

    Raises InputError for a wrong key or value.
    """
    given = read_yaml(path, "--search")
    options = {key: given.pop(key, default) for key, default in OPTIONS.items()}
    if type(options["trials"]) is not int or options["trials"] < 1:
        raise InputError(f"{path}: trials ({format_value(options['trials'])}): must be a whole number of at least 1")
    if not isinstance(options["halving"], bool):
        raise InputError(f"{path}: halving ({format_value(options['halving'])}): must be true or false")
    space = dict(read_values(path, key, value) for key, value in given.items())
    if not space:
        raise InputError(
            f"{path}: names no setting to search; write such as train.learning_rate: {{log_uniform: [1e-5, 1e-3]}}"
        )
    if len(space) < len(given):
        raise InputError(f"{path}: gives a setting twice; give it one of {WAYS}")
    search = Search(trials=options["trials"], halving=options["halving"], space=space)
    check_space(path, search, base)
    return search


def read_values(path: str, key: str, given: Any) -> tuple[str, Values]:
    """Returns the setting and its values of `SECTION.KEY.KIND: [...]`. Raises InputError."""
    setting, _, kind = key.rpartition(".")
    if kind not in KINDS or not setting:
        near = difflib.get_close_matches(kind, KINDS, n=1) if setting and isinstance(given, list) else []
        hint = (
            f"did you mean {near[0]}?" if near else f"must be {WAYS}; one value for all trials is a setting, as --{key}"
        )
        raise InputError(f"{path}: {key} ({format_value(given)}): {hint}")
    where = f"{path}: {setting}: {kind} ({format_value(given)})"
    if not isinstance(given, list) or not given:
        raise InputError(f"{where}: must be a list of at least one value")
    if kind == "choice":
        return setting, Values(kind=kind, items=tuple(given))
    numbers = [convert_option(f"{setting}.{kind}", value) for value in given]
    wanted = (int,) if kind == "int_uniform" else (int, float)
    if len(numbers) != 2 or not all(type(number) in wanted and math.isfinite(number) for number in numbers):
        raise InputError(
            f"{where}: must be two {'whole numbers' if kind == 'int_uniform' else 'numbers'}: low and high"
        )
    if not numbers[0] < numbers[1]:
        raise InputError(f"{where}: low must be below high")
    if kind == "log_uniform" and numbers[0] <= 0:
        raise InputError(f"{where}: low must be above 0")
    return setting, Values(kind=kind, items=tuple(numbers if kind == "int_uniform" else map(float, numbers)))


def check_space(path: str, search: Search, base: RunConfig) -> None:
    """Raises InputError if a setting does not exist, cannot have one of its values, or must be the same in all trials."""
    for key, values in search.space.items():
        if key.startswith(SAME_FOR_ALL):
            raise InputError(f"{path}: {key}: must be the same in all trials, which are compared with each other")
        if key == "seed" and not (base.data.validation or base.data.dataset):
            raise InputError(
                f"{path}: seed: also draws the validation rows, and trials are compared on the same ones; give data.validation"
            )
        for value in values.items:
            make_trial(base, "trial", {key: value})


def draw(search: Search, seeds: Sequence[int]) -> dict[str, Any]:
    """Returns settings at random. They depend on the seeds alone."""
    generator = np.random.default_rng(list(seeds))
    return {key: values.draw(generator) for key, values in search.space.items()}
