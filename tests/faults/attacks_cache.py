"""The writers of the caches: activations, encoded text, tables, and what removes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from support import encoded, entries, tiny
from support.fault_attack import Attack

from faults.tools import Tools
from hf_finetune.cache import listing, store
from hf_finetune.config.recipes import read_defaults
from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import load_task
from hf_finetune.data import column_writer, encoding, examples, sources, table_store
from hf_finetune.data.features import Array
from hf_finetune.data.table import Table, TableBuilder

# What a killed process, or a disk that removes nothing, leaves of a table: `cache prune` removes it
LEFT = (".writing-*", ".writing-*/*", "given.arrow", "rows.arrow.before")


def list_attacks(tools: Tools) -> list[Attack]:
    """The attacks on the caches."""
    return [
        Attack(name="activations", write=capture, read=read_activations),
        Attack(name="damaged activations", prepare=capture_damaged, write=capture, read=read_activations),
        Attack(name="pruning", prepare=fill_cache, write=prune, read=read_cache),
        Attack(name="encoded text", write=encode, read=lambda place: {}, goes_on=True),
        Attack(name="half of an encoded text", prepare=encode_half, write=encode, read=lambda place: {}, goes_on=True),
        Attack(name="table", write=read_table, read=lambda place: {}, goes_on=True, leaves=LEFT),
        Attack(
            name="damaged table",
            prepare=damage_table,
            write=read_table,
            read=lambda place: {},
            goes_on=True,
            leaves=LEFT,
        ),
        Attack(
            name="converted examples",
            write=lambda place: convert(tools, place),
            read=lambda place: {},
            goes_on=True,
            leaves=LEFT,
        ),
    ]


# --- activations ----------------------------------------------------------------------------------------------------


def make_entry(place: Path) -> store.Entry:
    """An entry of made-up rows."""
    return entries.make_entry(place / "activations")


def capture(place: Path) -> None:
    """Completes the entry as a run does."""
    entry = make_entry(place)
    with store.lock_entry(entry.root, entry.key):
        entries.build(entry)


def capture_damaged(place: Path) -> None:
    """A complete entry with a flipped bit."""
    capture(place)
    entries.flip(make_entry(place).folder / store.ACTIVATIONS, 7)


def read_activations(place: Path) -> dict[str, Any]:
    """What is wrong with the entry, if it counts as complete."""
    entry = make_entry(place)
    if not entry.is_complete():
        return {}
    return {"damage": listing.find_damage(entries.get_only_entry(entry.root))}


# --- pruning --------------------------------------------------------------------------------------------------------


def fill_cache(place: Path) -> None:
    """An entry of each kind, and what killed processes left."""
    capture(place)
    encode(place)
    read_table(place)
    for kind in listing.KINDS.values():
        (place / kind.subfolder / ".removing-1").mkdir(parents=True, exist_ok=True)
        (place / kind.subfolder / ".removing-1" / "file").write_text("left")
        (place / kind.subfolder / f"{'0' * 32}.lock").touch()


def prune(place: Path) -> None:
    """Empties the cache."""
    listing.prune_entries(place, max_bytes=None, older_than_seconds=-10.0)


def read_cache(place: Path) -> dict[str, Any]:
    """What is wrong with each entry that is there."""
    return {entry.kind: str(listing.find_damage(entry)) for entry in listing.list_all_entries(place)}


# --- encoded text ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextEncoder:
    """An Encoder of a text without labels."""

    rows_are_independent: ClassVar[bool] = True
    name: str = "text"

    def encoded_columns(self) -> tuple[str, ...]:
        return ("text",)

    def encoding_settings(self) -> dict[str, Any]:
        return {}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        return encoding.tokenize([table.columns["text"]], tokenizer, max_length)

    def join(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {}

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Any:
        return np.zeros(len(table))


TABLE = Table(columns={"text": encoded.TEXTS[0]}, files=["made.csv"] * 25, lines=list(range(1, 26)))


def encode(place: Path) -> tuple[Any, list[str]]:
    """Encodes 25 rows in three parts."""
    said: list[str] = []
    tokenizer = encoded.make_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "ROWS_IN_PART", 10)
        features = encoding.encode(TextEncoder(), TABLE, tokenizer, 12, root=place, workers=1, say=said.append)
    arrays = {**features.inputs, "offsets": features.offsets}
    return {name: np.asarray(array).tolist() for name, array in arrays.items()}, said


def encode_half(place: Path) -> None:
    """An entry whose last line was cut off."""
    encode(place)
    (path,) = place.glob("encoded/*/parts.jsonl")
    path.write_bytes(path.read_bytes()[:-20])


# --- tables ---------------------------------------------------------------------------------------------------------


def to_values(table: Table) -> tuple[Any, list[str]]:
    """A table as plain values, and the notes on the disk."""
    notes = [note for note in table.notes if "in memory" in note]
    return {name: list(column) for name, column in table.columns.items()}, notes


def fill(builder: TableBuilder) -> dict[str, Any]:
    """Adds rows. Those after the first twenty have another column."""
    for number in range(40):
        if number == 20:
            builder.add_columns(["late"])
        builder.add([f"text {number}", f"{number % 3}", *["late"] * (number >= 20)], "made.csv", number + 1)
    return {"warnings": ["a warning"]}


def read_table(place: Path) -> tuple[Any, list[str]]:
    """Reads a table through the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column_writer, "ROWS_IN_CHUNK", 7)
        return to_values(table_store.open_or_build(place, ["parts"], ("text", "label"), fill))


def damage_table(place: Path) -> None:
    """A table with a flipped bit."""
    read_table(place)
    entries.flip(next(place.glob("tables/*/rows.arrow")), 300)


QUESTIONS = [
    {"question": f"what {number}", "option1": "a", "option2": f"b {number}", "answer": "B"} for number in range(9)
]


def convert(tools: Tools, place: Path) -> tuple[Any, list[str]]:
    """Reads rows with other columns than the task's own."""
    path = tools.folder / "questions.jsonl"
    if not path.exists():
        tiny.write_jsonl(path, QUESTIONS)
    config = RunConfig.from_settings({**read_defaults("choose"), "model.backbone": "none", "data.train": [str(path)]})
    spec = load_task("choose").make_columns(config).spec
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SMALLEST_STORED", 1)
        patch.setattr(examples, "ROWS_AT_ONCE", 2)
        return to_values(sources.read_table(config.data.train, config.data, "data.train", spec, root=place))
