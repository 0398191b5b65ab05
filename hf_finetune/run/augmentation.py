"""Training rows that a function of one's own changes in each epoch (train.augment)."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_finetune.data.features import Features, make_features
from hf_finetune.data.table import Table, check_texts, describe_value
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Task
from hf_finetune.tasks.own_functions import name_own_function

NUM_CHECKED = 8  # rows for which the function is called twice, to see that it returns the same row


@dataclass(frozen=True, kw_only=True)
class RowFunction:
    """The user's function augment(row, seed, epoch), which returns the row for an epoch.

    `row` is a dict of the columns that the task reads, `seed` a whole number that differs from row to row and from run to run
    with another seed, `epoch` counts from 1. The function must return the same row for the same arguments, so that all
    processes train on the same rows, and a resumed run on those of an undisturbed one.

    Args:
        function: The user's function.
        name: The setting with the function's name, for errors.
        seed: The seed of the run.
        table: The training rows as they are.
    """

    function: Callable[..., Any]
    name: str
    seed: int
    table: Table

    def check(self) -> None:
        """Raises InputError if the function does not return the same row when it is called again, on the first rows."""
        for row in range(min(NUM_CHECKED, len(self.table))):
            if self.change_row(row, 1) != self.change_row(row, 1):
                raise InputError(
                    f"{self.name}: returned two different rows for {self.table.where(row)}, although row, seed and epoch "
                    "were the same; draw random numbers from a generator of your own, random.Random(f'{seed} {epoch}')"
                )

    def change_row(self, row: int, epoch: int) -> dict[str, Any]:
        """Returns the row that the function makes of a row for an epoch. InputError if it has other columns."""
        before = {name: values[row] for name, values in self.table.columns.items()}
        seed = int(np.random.SeedSequence([self.seed, 3, row]).generate_state(1)[0])
        columns = ", ".join(before)
        with name_own_function(f"{self.name} for {self.table.where(row)}, which has the columns {columns}"):
            after = self.function(copy.deepcopy(before), seed, epoch)  # it may change a list in place
        if not isinstance(after, Mapping) or after.keys() != before.keys():
            got = describe_value(after, "a dict")
            if isinstance(after, Mapping):
                got = f"the columns {', '.join(map(str, after)) or 'none'}"
            raise InputError(
                f"{self.name}: returned {got} for {self.table.where(row)}; it must return a dict with the columns {columns}"
            )
        return dict(after)

    def change_table(self, epoch: int) -> Table:
        """Returns the training rows of an epoch, whose texts and labels are not checked yet."""
        rows = [self.change_row(row, epoch) for row in range(len(self.table))]
        return self.table.with_columns({name: [row[name] for row in rows] for name in self.table.columns})


class AugmentedFeatures:
    """The training features of each epoch, made of the rows that the user's function returns for it."""

    def __init__(self, augment: RowFunction, task: Task, features: Features, tokenizer: Any, max_length: int) -> None:
        """Encodes nothing yet.

        Args:
            augment: Changes the rows.
            task: Encodes the rows.
            features: Those of the rows as they are.
            tokenizer: The tokenizer of the run.
            max_length: Longest input in tokens.
        """
        self.augment, self.task, self.num_features = augment, task, len(features)
        self.tokenizer, self.max_length = tokenizer, max_length
        self.epoch, self.features = 0, features  # the epoch of the features that are kept; 0 for the rows as they are

    def __call__(self, epoch: int) -> Features:
        """Returns the features of an epoch, counted from 1. Those of the last call are kept."""
        if epoch != self.epoch:
            self.features, self.epoch = self.encode(epoch), epoch
        return self.features

    def describe(self) -> dict[str, Any] | None:
        """Returns the epoch of the features that are kept, and their digest, for a checkpoint; None before the first epoch."""
        return {"epoch": self.epoch, "digest": self.features.fingerprint()} if self.epoch else None

    def check_unchanged(self, saved: dict[str, Any] | None) -> None:
        """Raises InputError if the function returns other rows than when a checkpoint was saved. saved: its describe()."""
        if saved is not None and self(saved["epoch"]).fingerprint() != saved["digest"]:
            raise InputError(
                f"{self.augment.name}: returns other rows for epoch {saved['epoch']} than those that the checkpoint was trained "
                "on; restore the function, or choose another name"
            )

    def encode(self, epoch: int) -> Features:
        """Returns the features of an epoch. InputError if there are more or fewer than of the rows as they are."""
        table = self.augment.change_table(epoch)
        check_texts(table, self.task.columns.spec)
        arrays = self.task.encoding.tokenize(table, self.tokenizer, self.max_length)
        features = make_features(arrays, self.task.encoding.labels(table, arrays))
        if len(features) != self.num_features:
            raise InputError(
                f"{self.augment.name}: the rows of epoch {epoch} give {len(features):,} features, and "
                f"{self.num_features:,} without it, so the number of updates would change; keep the rows about as long, or set "
                "data.max_length higher"
            )
        return features
