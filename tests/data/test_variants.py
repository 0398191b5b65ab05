"""One table in many files: what means the same gives the same features, bit for bit; what means something else is seen."""

import csv
import gzip
import io
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support import tiny

from hf_finetune.config.loading import load_config
from hf_finetune.config.tasks import load_task
from hf_finetune.data.features import Features
from hf_finetune.data.sources import read_table
from hf_finetune.data.splits import load_splits
from hf_finetune.export.predict import make_features
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Task

TOKENIZER = tiny.make_tokenizer()
WORDS = st.sampled_from(
    [*tiny.FILLER, "café", 'quo"te', "a,b", "x;y", "tab\tulator", "new\nline", "it's", "#tag", "日本"]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)
LABELS = {
    "words": st.sampled_from(["pos", "neg", "très"]),
    "integers": st.integers(0, 12),
    "booleans": st.booleans(),
    "fractions": st.sampled_from([0.5, 1.25, 3.0, -2.75]),
    "lists": st.lists(st.sampled_from(["a", "b", "c"]), max_size=3, unique=True).map(sorted),
}
Rows = list[tuple[str, Any]]


@st.composite
def make_tables(draw: st.DrawFn) -> Rows:
    """Draws rows of a text and a label, all labels of one kind and at least two different."""
    labels = LABELS[draw(st.sampled_from(sorted(LABELS)))]
    rows = draw(st.lists(st.tuples(TEXTS, labels), min_size=4, max_size=10))
    assume(len({json.dumps(label) for _, label in rows}) >= 2)
    assume(not isinstance(rows[0][1], float) or any(label != int(label) for _, label in rows))
    return rows


# --- files that mean the same ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A way to write a table: the name of the file, its bytes, and the settings that reading needs, if any."""

    name: str
    write: Callable[[list[dict[str, Any]]], bytes]
    settings: tuple[tuple[str, Any], ...] = ()


def as_text(value: Any) -> str:
    """Returns a value as pandas writes it into csv."""
    return str(value)


def write_delimited(rows: list[dict[str, Any]], delimiter: str, quoting: int, line_end: str) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=line_end)  # type: ignore[arg-type]
    writer.writerow(rows[0])
    writer.writerows([as_text(value) for value in row.values()] for row in rows)
    return file.getvalue()


def write_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pandas.DataFrame(rows).to_parquet(file)
    return file.getvalue()


def make_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def delimited(
    name: str, delimiter: str, quoting: int = csv.QUOTE_ALL, encoding: str = "utf-8", line_end: str = "\n"
) -> Variant:
    settings = (("data.encoding", [encoding]),) if encoding == "utf-16" else ()
    return Variant(name, lambda rows: write_delimited(rows, delimiter, quoting, line_end).encode(encoding), settings)


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def dump_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(dump(row) + b"\n" for row in rows)


VARIANTS = [
    Variant("a.jsonl", dump_lines),
    Variant("a.jsonl", lambda rows: dump_lines(rows).replace(b"\n", b"\r\n")),
    Variant("a.jsonl", lambda rows: b"\xef\xbb\xbf" + dump_lines(rows)),
    Variant("a.jsonl", lambda rows: b"".join(json.dumps(row).encode() + b"\n\n" for row in rows)),
    Variant("a.jsonl.gz", lambda rows: gzip.compress(dump_lines(rows))),
    Variant("a.json", dump),
    Variant("a.json", lambda rows: json.dumps(rows, indent=2).encode()),
    Variant("a.json", lambda rows: dump({"data": rows})),
    Variant("a.json", lambda rows: dump(make_columns(rows))),
    Variant(
        "a.json", lambda rows: dump({name: dict(enumerate(column)) for name, column in make_columns(rows).items()})
    ),
    Variant("a.parquet", write_parquet),
    delimited("a.csv", ","),
    delimited("a.csv", ";"),
    delimited("a.csv", "|"),
    delimited("a.csv", "\t"),
    delimited("a.csv", ",", csv.QUOTE_MINIMAL),
    delimited("a.csv", ",", line_end="\r\n"),
    delimited("a.csv", ",", encoding="utf-8-sig"),
    delimited("a.csv", ";", encoding="utf-16"),
    delimited("a.tsv", "\t"),
    Variant("a.csv.gz", lambda rows: gzip.compress(write_delimited(rows, ",", csv.QUOTE_ALL, "\n").encode())),
]


def respell(label: Any, number: int) -> Any:
    """Returns a label in another way to write it that means the same in every file."""
    if isinstance(label, str):
        return (label, f" {label}", f"{label} ", unicodedata.normalize("NFD", label))[number % 4]
    if isinstance(label, int) and not isinstance(label, bool):
        return (label, float(label))[number % 2]
    return label


def read_features(path: Path, **changes: Any) -> tuple[Task, Features]:
    """Returns the task and the features of a file, as a run makes them."""
    settings_ = {"task.kind": "classify", "model.backbone": "none", "data.train": [str(path)], **changes}
    config = load_config(settings_)
    task_class = load_task("classify")
    table = read_table(config.data.train, config.data, "data.train", task_class.make_columns(config).spec)
    task = task_class.from_table(config, table)
    arrays = task.encoding.tokenize(table, TOKENIZER, 16)
    return task, make_features(arrays, task.encoding.labels(table, arrays))


def describe(task: Task, features: Features) -> tuple[Any, ...]:
    return task.problem, task.label_names, features.fingerprint()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variants")


EXAMPLES = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@EXAMPLES
@given(
    rows=make_tables(),
    variant=st.sampled_from(VARIANTS),
    order=st.sampled_from([("text", "label"), ("label", "text"), ("id", "label", "text")]),
    spelling=st.booleans(),
)
def test_what_means_the_same_gives_the_same_features(
    folder: Path, rows: Rows, variant: Variant, order: Sequence[str], spelling: bool
) -> None:
    plain = folder / "plain.jsonl"
    plain.write_bytes(dump_lines([{"text": text, "label": label} for text, label in rows]))
    expected = describe(*read_features(plain))
    named = [{"text": text, "label": label, "id": number} for number, (text, label) in enumerate(rows)]
    if spelling:
        named = [{**row, "label": respell(row["label"], number)} for number, row in enumerate(named)]
    path = folder / variant.name
    path.write_bytes(variant.write([{name: row[name] for name in order} for row in named]))
    assert describe(*read_features(path, **dict(variant.settings))) == expected


@EXAMPLES
@given(rows=make_tables(), seed=st.integers(0, 3))
def test_the_order_of_rows_changes_nothing_but_the_order_of_features(folder: Path, rows: Rows, seed: int) -> None:
    paths = folder / "one.jsonl", folder / "other.jsonl"
    for path, ordered in zip(paths, (rows, rows[seed:] + rows[:seed]), strict=True):
        path.write_bytes(dump_lines([{"text": text, "label": label} for text, label in ordered]))
    (task, features), (other_task, other) = map(read_features, paths)
    assert (other_task.problem, other_task.label_names) == (task.problem, task.label_names)
    count = len(rows)
    for row in range(count):
        there = (row - seed) % count if seed < count else row
        inputs, labels = (
            part.inputs["input_ids"][part.offsets[number] : part.offsets[number + 1]].tolist()
            for part, number in ((features, row), (other, there))
        )
        assert inputs == labels


# --- files that mean something else ------------------------------------------------------------------------------------


def change_text(rows: Rows) -> Rows:
    return [(rows[0][0] + " cat", rows[0][1]), *rows[1:]]


def drop_row(rows: Rows) -> Rows:
    return rows[1:]


def repeat_row(rows: Rows) -> Rows:
    return [*rows, rows[0]]


def change_label(rows: Rows) -> Rows:
    other = next(label for _, label in rows if label != rows[0][1])
    return [(rows[0][0], other), *rows[1:]]


def upper_label(rows: Rows) -> Rows:
    """Another label by its case, which is said but not the same."""
    return [(rows[0][0], "POS"), *((text, "pos" if isinstance(label, str) else label) for text, label in rows[1:])]


def drop_label(rows: Rows) -> Rows:
    return [(rows[0][0], None), *rows[1:]]


@EXAMPLES
@given(
    rows=make_tables(),
    change=st.sampled_from([change_text, drop_row, repeat_row, change_label, upper_label, drop_label]),
)
def test_what_means_something_else_is_seen(folder: Path, rows: Rows, change: Callable[[Rows], Rows]) -> None:
    before, after = folder / "before.jsonl", folder / "after.jsonl"
    for path, content in ((before, rows), (after, change(rows))):
        path.write_bytes(dump_lines([{"text": text, "label": label} for text, label in content]))
    expected = describe(*read_features(before))
    try:
        task, features = read_features(after)
    except InputError:  # which is seen too
        return
    assert describe(task, features) != expected
    if change is upper_label and "pos" in task.label_names:
        table = read_table(
            (str(after),),
            load_config({"task.kind": "classify", "model.backbone": "none", "data.train": [str(after)]}).data,
            "",
        )
        assert any("POS" in warning for warning in task.encoding.find_warnings({"train": table}))


def test_decimals_of_parquet_are_the_numbers_of_other_files(folder: Path) -> None:
    frame = pandas.DataFrame(
        {"text": ["a cat", "a dog", "a cat"], "label": [Decimal("11.00"), Decimal("0.00"), Decimal("2.00")]}
    )
    frame.to_parquet(folder / "decimal.parquet")
    (folder / "floats.csv").write_text("text,label\na cat,11.0\na dog,0.0\na cat,2.0\n")
    task, features = read_features(folder / "decimal.parquet")
    assert task.label_names == ("0", "2", "11")
    assert describe(task, features) == describe(*read_features(folder / "floats.csv"))


def test_splits_do_not_depend_on_the_kind_of_file(folder: Path) -> None:
    rows = [{"text": f"text {number}", "label": ("pos", "neg")[number % 2]} for number in range(60)]
    (folder / "s.jsonl").write_bytes(dump_lines(rows))
    (folder / "s.csv").write_text(write_delimited(rows, ";", csv.QUOTE_MINIMAL, "\n"))
    texts = []
    for name in ("s.jsonl", "s.csv"):
        config = load_config({"task.kind": "classify", "model.backbone": "none", "data.train": [str(folder / name)]})
        splits = load_splits(config.data, 1, load_task("classify").make_columns(config).spec)
        texts.append({split: list(table.columns["text"]) for split, table in splits.tables().items()})
    assert texts[0] == texts[1]
