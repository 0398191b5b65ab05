"""From tables to splits, features, batches and batch plans.

A feature is one encoded row: one sequence of tokens, or several (the choices of a question). A long document gives several
features. All features of a split lie in flat arrays with offsets (no padding), so that a batch is one gather. The order of
features is a pure function of (size, seed, epoch).

N features, S sequences, T tokens.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hf_finetune.config import DataConfig, check
from hf_finetune.errors import InputError
from hf_finetune.formats import is_table
from hf_finetune.sources import Table, TableForm, has_fractions, labelled_texts, read_hub_dataset, read_table

if TYPE_CHECKING:
    import torch

    from hf_finetune.tasks import Task

SPLITS = ("train", "validation", "test")
IGNORED = -100  # a label that no loss counts, as torch's cross_entropy has it
MODEL_INPUTS = ("input_ids", "token_type_ids")
GROUPED_BATCHES = 50  # batches in a window that is sorted by length; transformers' LengthGroupedSampler has 50 too


# --- splits ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The tables of a run. `notes` say what was carved out of what."""

    train: Table
    validation: Table
    test: Table | None
    notes: tuple[str, ...] = ()

    def tables(self) -> dict[str, Table]:
        """The splits there are."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: table for split, table in named.items() if table is not None}


def load_splits(config: DataConfig, seed: int, form: TableForm | None = None) -> Splits:
    """Reads all splits, and carves the missing ones out of training: stratified, seeded, equal texts together; or, where the
    form says so, in order from the end."""
    form = form or labelled_texts(config)
    if config.dataset is not None:
        given = read_hub_dataset(config, form)
    else:
        given = {
            split: read_table(getattr(config, split), config, f"data.{split}", form)
            for split in SPLITS
            if getattr(config, split)
        }
    train = given.pop("train")
    fractions = {
        split: getattr(config, f"{split}_fraction")
        for split in ("validation", "test")
        if split not in given and getattr(config, f"{split}_fraction") > 0
    }
    notes: list[str] = []
    if fractions:
        kept, carved = carve(train, form, fractions, seed)
        for split, rows in carved.items():
            check(
                len(rows) > 0,
                f"data.{split}_fraction",
                fractions[split],
                f"takes none of the {len(train)} training rows",
            )
            given[split] = train.take(rows)
            how = "from the end" if form.in_order else f"stratified, seed {seed}" if form.strata else f"seed {seed}"
            notes.append(f"{split}: {len(rows)} of the {len(train)} training rows, {how}")
        train = train.take(kept)
    check(len(train) > 0, "data.train", list(config.train), "leaves no row to train on")
    check("validation" in given, "data.validation_fraction", config.validation_fraction, "leaves no validation split")
    if config.max_train_examples is not None and config.max_train_examples < len(train):
        order = np.arange(len(train)) if form.in_order else np.random.default_rng([seed, 1]).permutation(len(train))
        train = train.take(sorted(order[: config.max_train_examples].tolist()))
    return Splits(
        train=train,
        validation=given["validation"],
        test=given.get("test"),
        notes=tuple(notes),
    )


def carve(
    table: Table, form: TableForm, fractions: Mapping[str, float], seed: int
) -> tuple[list[int], dict[str, list[int]]]:
    """Rows kept, and rows of each new split.

    Stratified: each label gives its share, rounded so that the totals come out; every label keeps at least one row in
    training. Rows with the same text go the same way, so that no test text was trained on. In order: each file gives its end.
    """
    texts = [group_key(table, form, row) for row in range(len(table))]
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        groups[text].append(row)
    labels: Sequence[Any] = table.columns[form.strata] if form.strata else table.files if form.in_order else []
    whole = not labels or has_fractions(labels)  # numbers to predict are one stratum
    by_label: dict[str, list[list[int]]] = defaultdict(list)
    for rows in groups.values():
        by_label["" if whole else stratum(labels[rows[0]])].append(rows)
    generator = np.random.default_rng([seed, 0])
    carved: dict[str, list[int]] = {split: [] for split in fractions}
    kept: list[int] = []
    owed = dict.fromkeys(fractions, 0.0)
    for label in sorted(by_label):
        members = by_label[label]
        order = members[::-1] if form.in_order else [members[i] for i in generator.permutation(len(members))]
        for split, fraction in fractions.items():
            owed[split] += fraction * len(members)
            fair = math.ceil(fraction * len(members))  # what labels of one row could not give is not taken from others
            share = min(int(owed[split] + 0.5), fair, len(order) - 1)
            owed[split] = min(owed[split] - share, 1.0)
            carved[split] += [row for rows in order[:share] for row in rows]
            order = order[share:]
        kept += [row for rows in order for row in rows]
    if not whole:
        bring_back_labels(labels, kept, carved, groups=groups, texts=texts)
    return sorted(kept), {split: sorted(rows) for split, rows in carved.items()}


def group_key(table: Table, form: TableForm, row: int) -> tuple[str, ...]:
    """What rows that stay in one split have in common."""
    if not form.together:
        return (str(row),)
    values = (table.columns[name][row] for name in form.together)
    return tuple(value if isinstance(value, str) else json.dumps(value, default=str) for value in values)


def bring_back_labels(
    labels: Sequence[Any],
    kept: list[int],
    carved: Mapping[str, list[int]],
    *,
    groups: Mapping[tuple[str, ...], list[int]],
    texts: Sequence[tuple[str, ...]],
) -> None:
    """Moves rows back to `kept` until it has every label: one of a list, or of equal texts with several labels, may
    have gone whole."""

    def of(row: int) -> set[str]:
        label = labels[row]
        return set(map(str, label)) if isinstance(label, (list, tuple)) else {stratum(label)}

    known = {name for row in kept for name in of(row)}
    for rows in carved.values():
        for row in sorted(rows):
            if not of(row) <= known and row in rows:
                together = groups[texts[row]]
                kept += together
                known |= {name for member in together for name in of(member)}
                rows[:] = [other for other in rows if other not in together]


def stratum(label: Any) -> str:
    """What a row is stratified by: its label, as the task names it (1.0 is 1); lists are one stratum for all."""
    if isinstance(label, (list, tuple, dict)):
        return ""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


# --- features -------------------------------------------------------------------------------------------------------


class StoredStates(Protocol):
    """What gives the hidden states of rows."""

    def gather(self, rows: "np.ndarray[Any, Any]", mask: "np.ndarray[Any, Any]") -> "torch.Tensor":
        """[B, T, H] states of the rows, of any value where the mask [B, T] is false."""


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Rows of different lengths, one after the other. values: [sum of lengths]. offsets: [N + 1]."""

    values: "np.ndarray[Any, Any]"
    offsets: "np.ndarray[Any, Any]"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> "np.ndarray[Any, Any]":
        """One of them."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    def padded(self, rows: "np.ndarray[Any, Any]", fill: int, width: int | None = None) -> "np.ndarray[Any, Any]":
        """[B, longest, or `width`] of these rows, `fill` behind their ends."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        columns = np.arange(int(lengths.max()) if width is None else width)
        mask = columns[None, :] < lengths[:, None]
        return np.where(mask, self.values[np.where(mask, starts[:, None] + columns[None, :], 0)], fill)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Encoded rows.

    inputs: what the tokenizer gives a token (input_ids, token_type_ids), each [T] int32. offsets: [S + 1] tokens of the
    sequences. labels: [N, ...], Ragged [N], or None where nothing is known to be right. num_truncated: rows that were longer
    than data.max_length and lost something. rows: [N + 1] sequences of the features; None where each has one. examples: [N]
    rows of the table; None where each row gave one. extras: what else the task's tokenize() returned. states: hidden states
    at the boundary of the frozen prefix, where they are stored, by sequence.
    """

    inputs: dict[str, "np.ndarray[Any, Any]"]
    offsets: "np.ndarray[Any, Any]"
    labels: "np.ndarray[Any, Any] | Ragged | None"
    num_truncated: int
    rows: "np.ndarray[Any, Any] | None" = None
    examples: "np.ndarray[Any, Any] | None" = None
    extras: Mapping[str, "np.ndarray[Any, Any]"] = field(default_factory=dict)
    states: StoredStates | None = None

    def __len__(self) -> int:
        return self.num_sequences if self.rows is None else len(self.rows) - 1

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.offsets) - 1

    @property
    def sequence_lengths(self) -> "np.ndarray[Any, Any]":
        """Tokens of each sequence, [S]."""
        return np.diff(self.offsets)

    @property
    def lengths(self) -> "np.ndarray[Any, Any]":
        """Tokens of each feature's longest sequence, [N]."""
        longest = self.sequence_lengths
        return longest if self.rows is None else np.maximum.reduceat(longest, self.rows[:-1])

    @property
    def num_tokens(self) -> "np.ndarray[Any, Any]":
        """Tokens of each feature, [N]."""
        return self.sequence_lengths if self.rows is None else np.diff(self.offsets[self.rows])

    def sequences(self, rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Numbers of the sequences of these features, in their order."""
        if self.rows is None:
            return rows
        return np.concatenate([np.arange(self.rows[row], self.rows[row + 1]) for row in rows])

    def counts(self, rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Sequences of each of these features, [B]."""
        return np.ones(len(rows), dtype=np.int64) if self.rows is None else np.diff(self.rows)[rows]

    def labels_of(self, rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any] | None":
        """Labels [B, ...] of these features, padded with IGNORED where they are ragged."""
        if self.labels is None:
            return None
        return self.labels.padded(rows, IGNORED) if isinstance(self.labels, Ragged) else self.labels[rows]

    def example_of(self, row: int) -> int:
        """The row of the table that a feature was made of."""
        return row if self.examples is None else int(self.examples[row])

    def fingerprint(self) -> str:
        """Digest of all that training sees of these rows."""
        digest = hashlib.sha256()
        ragged = (self.labels.values, self.labels.offsets) if isinstance(self.labels, Ragged) else (self.labels,)
        for array in (*self.inputs.values(), self.offsets, *ragged, self.rows):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def make_features(
    arrays: Mapping[str, "np.ndarray[Any, Any]"], labels: "np.ndarray[Any, Any] | Ragged | None"
) -> Features:
    """Features of what a task's tokenize() returned: input_ids (and token_type_ids), offsets, truncated; where they are not
    one each, rows and examples; all else are extras."""
    known = (*MODEL_INPUTS, "offsets", "truncated", "rows", "examples")
    return Features(
        inputs={name: arrays[name] for name in MODEL_INPUTS if name in arrays},
        offsets=arrays["offsets"],
        labels=labels,
        num_truncated=int(arrays["truncated"]),
        rows=arrays.get("rows"),
        examples=arrays.get("examples"),
        extras={name: array for name, array in arrays.items() if name not in known},
    )


def encode(task: "Task", table: Table, tokenizer: Any, max_length: int, *, has_labels: bool = True) -> Features:
    """Features of a table. What the task's tokenize() returns is kept on disk under HF_FINETUNE_CACHE, by the columns that it
    reads, its settings, the tokenizer and max_length."""
    folder = cache_dir() / "encoded" / encoding_key(task, table, tokenizer, max_length)
    if (encoded := read_encoded(folder)) is None:
        write_encoded(folder, task.tokenize(table, tokenizer, max_length))
        encoded = read_encoded(folder)
    assert encoded is not None  # it was just written
    return make_features(encoded, task.labels(table, encoded) if has_labels else None)


def read_encoded(folder: Path) -> dict[str, "np.ndarray[Any, Any]"] | None:
    """The arrays of a cache entry, the long ones as memory maps; None where it is missing or damaged."""
    try:
        names = (folder / "done").read_text(encoding="utf-8").split()
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names} or None
    except (OSError, ValueError, EOFError):  # of a disk that lost power, or a hand in the cache
        return None


def cache_dir() -> Path:
    """Where things that can be made again are kept: HF_FINETUNE_CACHE, else ~/.cache/hf_finetune."""
    return Path(os.environ.get("HF_FINETUNE_CACHE") or Path.home() / ".cache" / "hf_finetune")


def encoding_key(task: "Task", table: Table, tokenizer: Any, max_length: int) -> str:
    """Digest of everything the encoding depends on; the tokenizer by the bytes of its saved files."""
    import transformers

    if tokenizer.is_fast:  # its files hold the padding and truncation of its last call, which encoding sets anew
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    digest = hashlib.sha256(f"2 {task.name} {transformers.__version__} {max_length}".encode())
    digest.update(json.dumps(task.encoding_settings()).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.read_bytes())
    for column in task.encoded_columns():
        digest.update(json.dumps(table.columns[column], default=str).encode())
    for file, rows in groupby(table.files):  # some tasks join the lines of a text file
        digest.update(f"{sum(1 for _ in rows)} {is_table(Path(file))} ".encode())
    return digest.hexdigest()[:32]


def tokenize(texts: Sequence[Sequence[str]], tokenizer: Any, max_length: int) -> dict[str, "np.ndarray[Any, Any]"]:
    """Flat token arrays, offsets, and how many rows were cut."""
    flat: dict[str, list[Any]] = defaultdict(list)
    lengths: list[int] = []
    truncated = 0
    for start in range(0, len(texts[0]), 1000):
        chunk = [list(column[start : start + 1000]) for column in texts]
        encoded = tokenizer(*chunk, truncation=True, max_length=max_length, return_attention_mask=False)
        lengths += [len(ids) for ids in encoded["input_ids"]]
        for name in ("input_ids", "token_type_ids"):
            if name in encoded:
                flat[name].append(np.concatenate([np.asarray(ids, dtype=np.int32) for ids in encoded[name]]))
        truncated += count_truncated(encoded, tokenizer, chunk, max_length)
    arrays = {name: np.concatenate(parts) for name, parts in flat.items()}
    return {
        **arrays,
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "truncated": np.array(truncated),
    }


def count_truncated(encoded: Any, tokenizer: Any, texts: list[list[str]], max_length: int) -> int:
    """How many rows lost tokens. The fast tokenizers keep what they cut; for the others, rows that fill max_length are
    encoded once more with one token more."""
    if encoded.encodings is not None:
        return sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    full = [index for index, ids in enumerate(encoded["input_ids"]) if len(ids) == max_length]
    if not full:
        return 0
    longer = tokenizer(
        *[[column[index] for index in full] for column in texts], truncation=True, max_length=max_length + 1
    )
    return sum(len(ids) > max_length for ids in longer["input_ids"])


def write_encoded(folder: Path, arrays: Mapping[str, "np.ndarray[Any, Any]"]) -> None:
    """Writes the arrays beside `folder` and renames them into place; a folder is there whole or not at all."""
    temporary = folder.with_name(f".writing-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / "done").write_text(" ".join(arrays), encoding="utf-8")
        if read_encoded(folder) is None:  # else another run was faster, and may be reading
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    except OSError as error:
        if read_encoded(folder) is None:
            raise InputError(
                f"{folder.parent}: the encoded text cannot be kept there ({error.strerror or error}); "
                "set HF_FINETUNE_CACHE to a folder with room"
            ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward takes. B features, S sequences of T tokens with padding.

    rows: [B] numbers of the features. sequences: [S] numbers of their sequences. counts: [B] sequences of each feature.
    inputs: what the model is called with, input_ids and attention_mask (and token_type_ids) [S, T] int64. labels: [B, ...] or
    None. states: [S, T, H], where the features have stored ones.
    """

    rows: "np.ndarray[Any, Any]"
    sequences: "np.ndarray[Any, Any]"
    counts: "np.ndarray[Any, Any]"
    inputs: dict[str, "torch.Tensor"]
    labels: "torch.Tensor | None"
    states: "torch.Tensor | None" = None

    def to(self, device: "torch.device") -> "Batch":
        """The batch on the device; copied beside the computation where that is a GPU."""

        def move(tensor: "torch.Tensor | None") -> "torch.Tensor | None":
            if tensor is None or device.type != "cuda":
                return tensor if tensor is None else tensor.to(device)
            return tensor.pin_memory().to(device, non_blocking=True)

        moved: dict[str, Any] = {name: move(tensor) for name, tensor in self.inputs.items()}
        return replace(self, inputs=moved, labels=move(self.labels), states=move(self.states))


def collate(features: Features, rows: "np.ndarray[Any, Any]", pad_token_id: int) -> Batch:
    """The padded batch of these features."""
    import torch

    sequences = features.sequences(rows)
    starts = features.offsets[sequences]
    lengths = features.offsets[sequences + 1] - starts
    columns = np.arange(int(lengths.max()))
    mask = columns[None, :] < lengths[:, None]
    positions = np.where(mask, starts[:, None] + columns[None, :], 0)
    arrays = {
        name: np.where(mask, flat[positions], pad_token_id if name == "input_ids" else 0).astype(np.int64)
        for name, flat in features.inputs.items()
    } | {"attention_mask": mask.astype(np.int64)}
    labels = features.labels_of(rows)
    return Batch(
        rows=rows,
        sequences=sequences,
        counts=features.counts(rows),
        inputs={name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
        labels=None if labels is None else torch.from_numpy(np.ascontiguousarray(labels)),
        states=None if features.states is None else features.states.gather(sequences, mask),
    )


# --- batch plans ----------------------------------------------------------------------------------------------------


def plan_epoch(lengths: "np.ndarray[Any, Any]", batch_size: int, seed: int, epoch: int) -> list["np.ndarray[Any, Any]"]:
    """The batches of an epoch, each an array of row numbers; every row once. Law 2: a pure function of its arguments.

    Rows of like length meet in a batch (sorted within windows of 50 batches of a random order), the batches come in
    random order, and the one that is not full comes last.
    """
    generator = np.random.default_rng([seed, 2, epoch])
    order = generator.permutation(len(lengths))
    num_full = len(order) // batch_size * batch_size
    window = GROUPED_BATCHES * batch_size
    batches: list[np.ndarray[Any, Any]] = []
    for start in range(0, num_full, window):
        rows = order[start : min(start + window, num_full)]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += np.split(rows, len(rows) // batch_size)
    batches = [batches[index] for index in generator.permutation(len(batches))]
    return [*batches, order[num_full:]] if num_full < len(order) else batches


@dataclass(frozen=True, kw_only=True)
class MicroBatchLimit:
    """The most that one forward on one process takes. tokens: counted with padding; one row always fits."""

    rows: int
    tokens: int | None = None

    def split(
        self,
        ordered: "np.ndarray[Any, Any]",
        lengths: "np.ndarray[Any, Any]",
        counts: "np.ndarray[Any, Any] | None" = None,
    ) -> list["np.ndarray[Any, Any]"]:
        """Pieces of rows that go longest first. counts: sequences of each row; one if not given."""
        pieces, begin = [], 0
        while begin < len(ordered):
            count = self.rows
            if self.tokens is not None:
                room = self.tokens // max(1, int(lengths[ordered[begin]]))  # sequences
                taken = ordered[begin : begin + count]
                sequences = np.cumsum(np.ones(len(taken)) if counts is None else counts[taken])
                count = max(1, int((sequences <= room).sum()))
            pieces.append(ordered[begin : begin + count])
            begin += count
        return pieces


def share_batch(
    rows: "np.ndarray[Any, Any]",
    lengths: "np.ndarray[Any, Any]",
    limit: MicroBatchLimit,
    process: int,
    num_processes: int,
    counts: "np.ndarray[Any, Any] | None" = None,
) -> list["np.ndarray[Any, Any]"]:
    """The micro-batches of one process for one update: the same number on each, some perhaps empty.

    Rows go by length, so that micro-batches pad little, and are dealt so that each process has the same work.
    """
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    pieces = limit.split(ordered, lengths, counts)
    rounds = -(-len(pieces) // num_processes)
    pieces += [ordered[:0]] * (rounds * num_processes - len(pieces))
    return pieces[process::num_processes]


def evaluation_batches(lengths: "np.ndarray[Any, Any]", batch_size: int) -> list["np.ndarray[Any, Any]"]:
    """All rows in length order, longest first, in batches that do not depend on the number of processes."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
