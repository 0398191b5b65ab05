"""Arbitrary settings, files and paths give a result or an InputError, in time, and write nothing else.

config/test_loading.py and data/test_formats.py fuzz one setting and one reader at a time. Here a file and a command line are
combined, good files are damaged, and the folder is compared before and after.
"""

import functools
import gzip
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support import tiny

from hf_finetune.config.loading import SECTIONS, config_from_dict, get_setting_types, load_config, to_yaml
from hf_finetune.config.sections import RENAMED, DataConfig, RunConfig, to_dict
from hf_finetune.config.tasks import load_task
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table
from hf_finetune.export.materialize import materialize
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_files import predict_file
from hf_finetune.system.errors import InputError

DEFAULTS = {"task.kind": "classify", "model.backbone": "backbone", "data.train": ["train.csv"]}
TYPES = get_setting_types(load_task("classify").Settings)
fuzz = functools.partial(settings, deadline=None, derandomize=True, database=None)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]  # a hang is a failure, not a wait


def read_files(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every file under a folder, hidden files too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- settings -------------------------------------------------------------------------------------------------------


def load_or_error(*words: str) -> RunConfig | str:
    """Returns the config of a command line, or the text of its InputError. A config equals itself after a round trip."""
    try:
        config = load_config(DEFAULTS, words)
    except InputError as error:
        return str(error)
    assert config_from_dict(to_dict(config)) == config
    assert config_from_dict(yaml.safe_load(to_yaml(config))) == config
    return config


# Without line ends that PyYAML does not read back as it wrote them, and without what UTF-8 cannot encode
characters = st.characters(exclude_characters="\x85\u2028\u2029", exclude_categories=("Cs",))
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.dates(), st.datetimes(),
                  st.text(characters, max_size=6), st.binary(max_size=6))  # fmt: skip
keys = st.one_of(st.sampled_from(sorted({*TYPES, *SECTIONS, *RENAMED, "epoch", "layers"})), st.text(characters, max_size=4),
                 st.integers(), st.none(), st.booleans())  # fmt: skip
nested = st.recursive(
    plain,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)
argument_lists = st.lists(
    st.one_of(
        st.sampled_from([f"--{key}" for key in (*TYPES, *SECTIONS)] + ["--debug", "--train.epochs=2"]),
        st.text(characters, max_size=8).filter(lambda word: word not in ("--help", "-h")),
    ),
    max_size=4,
)


@fuzz(max_examples=200)
@given(key=st.sampled_from(sorted({*TYPES, *SECTIONS})), value=nested, words=argument_lists)
def test_any_file_with_any_argument_lists_it_gives_a_config_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any, words: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "settings"
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    for content in (value, {key: value}):
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        before = read_files(folder)
        load_or_error("--config", str(path), *words)
        assert read_files(folder) == before


GOOD_FILE = to_yaml(
    config_from_dict(DEFAULTS | {"freeze.unfreeze": [{"epoch": 2, "layers": "1/2"}], "data.text_columns": ["a", "ü"]})
).encode()


def test_a_good_file_with_any_bytes_in_it_gives_a_config_or_an_input_error(tmp_path: Path) -> None:
    path, outcomes = tmp_path / "config.yaml", {RunConfig: 0, str: 0}

    @fuzz(max_examples=250)
    @given(index=st.integers(0, len(GOOD_FILE)), removed=st.integers(0, 9), added=st.binary(max_size=6))
    @example(index=0, removed=0, added=b"\xef\xbb\xbf")
    @example(index=0, removed=0, added=b"\0")
    def run(index: int, removed: int, added: bytes) -> None:
        path.write_bytes(GOOD_FILE[:index] + added + GOOD_FILE[index + removed :])
        outcomes[type(load_or_error("--config", str(path)))] += 1

    run()
    assert min(outcomes.values()) > 20, outcomes
    assert set(read_files(tmp_path)) == {"config.yaml"}


stages = st.one_of(
    nested,
    st.fixed_dictionaries(
        {
            "epoch": st.one_of(st.integers(-1, 9), plain),
            "layers": st.one_of(st.integers(-3, 9), st.sampled_from(["all", "2/3", "1/0", "3/2"]), plain),
        },
        optional={"more": plain},
    ),
)
good_stages = st.dictionaries(st.integers(2, 9), st.sampled_from([3, 0, -1, "all", "1/2"]), max_size=3).map(
    lambda layers: [{"epoch": epoch, "layers": layers[epoch]} for epoch in sorted(layers)]
)


def test_any_unfreezing_gives_stages_in_order_or_an_input_error(tmp_path: Path) -> None:
    path, taken = tmp_path / "config.yaml", []

    @fuzz(max_examples=200)
    @given(value=st.one_of(stages, st.lists(stages, max_size=3), good_stages))
    @example(value=[{"epoch": True, "layers": 1}])
    @example(value=[{"epoch": 2, "layers": True}])
    @example(value=[{"epoch": 2, "layers": [1]}])
    def run(value: Any) -> None:
        path.write_text(yaml.safe_dump({"freeze": {"unfreeze": value}}), encoding="utf-8")
        typed = yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("...\n").strip()
        for config in (load_or_error("--config", str(path)), load_or_error(f"--freeze.unfreeze={typed}")):
            if isinstance(config, str):
                continue
            epochs = [stage["epoch"] for stage in config.freeze.unfreeze]
            assert epochs == sorted(set(epochs))
            for epoch in range(12):
                assert config.freeze.at(epoch).unfreeze == ()
            taken.append(len(epochs))

    run()
    assert {1, 2} <= set(taken)


def alias_bomb(depth: int) -> str:
    """Returns a YAML list of a few hundred characters that stands for 10**depth numbers."""
    lists = [f"&a{level} [{','.join([f'*a{level - 1}'] * 10)}]" for level in range(1, depth)]
    return f"[&a0 [1,1,1,1,1,1,1,1,1,1], {', '.join(lists)}]"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("key", ["seed", "data.train", "freeze.unfreeze", "freeze.patterns", "nope"])
def test_aliases_of_aliases_are_refused_before_they_are_expanded(tmp_path: Path, key: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"{key}: {alias_bomb(12)}")
    assert load_or_error("--config", str(path)) == f"{path}: not YAML: its aliases stand for more than 100,000 values"
    if key in ("data.train", "freeze.unfreeze"):
        assert "must be a list" in str(load_or_error(f"--{key}={alias_bomb(12)}"))


@pytest.mark.timeout(20)
def test_mappings_of_aliases_are_refused_too(tmp_path: Path) -> None:
    lines = [
        "train:",
        "  k0: &a0 {a: 1, b: 1}",
        *(f"  k{i}: &a{i} {{a: *a{i - 1}, b: *a{i - 1}}}" for i in range(1, 60)),
    ]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    assert "aliases stand for more than" in str(load_or_error("--config", str(tmp_path / "config.yaml")))


def test_an_alias_that_means_something_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {train: &files [a.csv, b.csv], test: *files}")
    config = load_or_error("--config", str(tmp_path / "config.yaml"))
    assert isinstance(config, RunConfig)
    assert config.data.test == ("a.csv", "b.csv")


# --- data -----------------------------------------------------------------------------------------------------------

CONFIG = DataConfig(train=("unused",))


def parquet(**columns: Any) -> bytes:
    """Returns the bytes of a parquet file of these columns."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


GOOD: dict[str, bytes] = {
    ".csv": b'text,label\na cat,x\n"a ""big""\n dog",y\n',
    ".tsv": b"text\tlabel\na cat\tx\na dog\ty\n",
    ".json": b'[{"text": "a cat", "label": 1},\n {"text": "\\u00fc", "label": [1, null]}]',
    ".jsonl": b'{"text": "a cat", "label": 1}\n\n{"text": "dog", "label": {"a": 1.5}}\n',
    ".parquet": parquet(text=["a cat", "a dog", "über"] * 5, label=["x", "y", None] * 5),
}
ENCODINGS = ["utf-8", "latin-1", "utf-16", "utf-32-be", "utf-7", "idna", "punycode", "unicode_escape", "undefined", "rot13",
             "base64", "zlib", "cp037", "hz", "mbcs", "", "\0", "a b", "é", "x" * 5000]  # fmt: skip
edits = st.lists(  # position (as a share of the file), number of bytes that are removed, bytes that are added
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=5)), max_size=4
)


def edit(raw: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """Makes these changes one after the other, and returns the bytes."""
    for share, removed, added in changes:
        index = int(share * len(raw))
        raw = raw[:index] + added + raw[index + removed :]
    return raw


@pytest.mark.parametrize("zipped", ["", "before", "after"])
@pytest.mark.parametrize("ending", GOOD)
def test_a_damaged_file_gives_rows_or_an_input_error(tmp_path: Path, ending: str, zipped: str) -> None:
    """The file is damaged before it is compressed, or after."""
    if zipped and ending == ".parquet":
        return  # refused because of its name
    path, outcomes = tmp_path / f"rows{ending}{'.gz' if zipped else ''}", {"rows": 0, "errors": 0}

    @fuzz(max_examples=200 if ending == ".parquet" else 120)
    @given(changes=edits, encodings=st.lists(st.sampled_from(ENCODINGS), min_size=1, max_size=2), labels=st.booleans())
    @example(changes=[], encodings=["utf-8"], labels=True)
    def run(changes: list[tuple[float, int, bytes]], encodings: list[str], labels: bool) -> None:
        raw = edit(GOOD[ending], changes if zipped != "after" else [])
        raw = gzip.compress(raw, mtime=0) if zipped else raw
        raw = edit(raw, changes) if zipped == "after" else raw
        path.write_bytes(raw)
        try:
            table = read_table(
                [str(path)], replace(CONFIG, encoding=tuple(encodings)), "data.train", needs_labels=labels
            )
        except InputError as error:
            table, message = None, str(error)
        if table is None:
            outcomes["errors"] += 1
            assert str(path) in message or "data.encoding" in message
        else:
            outcomes["rows"] += 1
            assert_usable(table, path)
        assert read_files(tmp_path) == {path.name: raw}

    run()
    assert min(outcomes.values()) > 0, outcomes


def assert_usable(table: Table, path: Path) -> None:
    """Every row has a text that a tokenizer takes and an origin that an error can name."""
    assert len(table) > 0
    assert {len(values) for values in table.columns.values()} == {len(table)}
    for row, text in enumerate(table.columns["text"]):
        assert text.encode()
        assert table.where(row).startswith(str(path))


NOT_UTF_8 = pyarrow.Array.from_buffers(
    pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
)
ODD_COLUMNS: dict[str, Any] = {
    "not UTF-8": NOT_UTF_8,
    "date of a year that Python does not have": pyarrow.array([2**30, 1], pyarrow.date32()),
    "time of a year that Python does not have": pyarrow.array([2**62, 1], pyarrow.timestamp("us")),
    "duration too long": pyarrow.array([2**62, 1], pyarrow.duration("s")),
    "no such time zone": pyarrow.array([1, 2], pyarrow.timestamp("us", tz="Mars/Olympus")),
    "date": pyarrow.array([date(2024, 1, 1), None]),
    "nested": pyarrow.array([{"a": [1]}, None]),
    "map": pyarrow.array([[("a", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int32())),
    "bytes": pyarrow.array([b"\xff", b"a"]),
    "dictionary": pyarrow.array(["a", "b"]).dictionary_encode(),
}
UNREADABLE = list(ODD_COLUMNS)[:4]


@pytest.mark.parametrize("kind", ODD_COLUMNS)
@pytest.mark.parametrize("column", ["text", "label", "other"])
def test_a_parquet_column_of_any_type_gives_rows_or_an_input_error(tmp_path: Path, kind: str, column: str) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet(**({"text": ["a", "b"], "label": ["x", "y"]} | {column: ODD_COLUMNS[kind]})))
    try:
        assert_usable(read_table([str(path)], CONFIG, "data.train"), path)
    except InputError as error:
        message = str(error)
        assert message.startswith(str(path))
    else:
        message = ""
    is_error = kind in UNREADABLE and column != "other"  # a column that is not used is not read
    assert message.startswith(f"{path}:1: {column!r} holds a value that cannot be read: ") == is_error


@fuzz(max_examples=80)
@given(content=st.binary(max_size=30), label=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), max_size=8),
       encoding=st.sampled_from(ENCODINGS))  # fmt: skip
def test_a_class_folder_of_any_bytes_gives_rows_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, label: str, encoding: str
) -> None:
    folder = tmp_path_factory.mktemp("classes")
    inside = folder / f"x{label}"
    inside.mkdir()
    (inside / "1.txt").write_bytes(content)
    try:
        table = read_table([str(folder)], replace(CONFIG, encoding=(encoding,)), "data.train")
    except InputError as error:
        table, message = None, str(error)
    if table is None:
        assert str(folder) in message or "data.encoding" in message
    else:
        assert table.columns["label"] == [inside.name]
        assert_usable(table, folder)
    assert list(read_files(folder).values()) == [content]


LOCATIONS = ["", ".", "/", "~", "\0", "a" * 5000, "package://", "package://os", "package://json/x", "package:///",
             "package://a.b/c", "package://json/#sha256=", "[", "**", "http://127.0.0.1/x.csv", "s3://b/x.parquet", "-", "|id",
             "/proc/self/mem.csv"]  # fmt: skip


@fuzz(max_examples=120)
@given(location=st.one_of(st.text(max_size=12), st.sampled_from(LOCATIONS)))
def test_any_location_gives_an_input_error(tmp_path_factory: pytest.TempPathFactory, location: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "empty"
    folder.mkdir(exist_ok=True)
    assume(location.strip() != "/")  # its folders may have .txt files, and be read as classes
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(InputError):
            read_table([location], CONFIG, "data.train")
    assert read_files(folder) == {}


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A random classifier."""
    folder = tmp_path_factory.mktemp("model")
    tiny.make_model(layers=1).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return Predictor.from_pretrained(str(folder))


@pytest.mark.parametrize("ending", GOOD)
@pytest.mark.parametrize("older", [None, "an older answer\n"])
def test_predictions_are_written_completely_or_not_at_all(
    classifier: Predictor, tmp_path: Path, ending: str, older: str | None
) -> None:
    path, out, outcomes = tmp_path / f"rows{ending}", tmp_path / "answers.jsonl", {"rows": 0, "errors": 0}

    @fuzz(max_examples=40)
    @given(changes=edits)
    @example(changes=[])
    @example(changes=[(0.9, 9999, b"")])
    def run(changes: list[tuple[float, int, bytes]]) -> None:
        path.write_bytes(edit(GOOD[ending], changes))
        out.unlink(missing_ok=True)
        if older is not None:
            out.write_text(older)
        before = read_files(tmp_path)
        try:
            count = predict_file(classifier, str(path), str(out))
        except InputError:
            outcomes["errors"] += 1
            assert read_files(tmp_path) == before
        else:
            outcomes["rows"] += 1
            assert len([json.loads(line) for line in out.read_text().splitlines()]) == count
            assert set(read_files(tmp_path)) == {path.name, out.name}

    run()
    assert min(outcomes.values()) > 0, outcomes


def odd_paths(folder: Path) -> dict[str, Path]:
    """Returns paths at which no folder can be created, or at which none may be."""
    (folder / "file").write_text("mine")
    (folder / "link").symlink_to(folder / "nowhere")
    return {
        "too long": folder / ("a" * 5000),
        "in too long": folder / ("a" * 5000) / "out",
        "in a file": folder / "file" / "out",
        "file": folder / "file",
        "link to nowhere": folder / "link",
        "here": Path(),
        "nul": folder / "a\0b" / "out",
    }


@pytest.mark.parametrize("kind", ["too long", "in too long", "in a file", "file", "link to nowhere", "here", "nul"])
@pytest.mark.parametrize("given_as", ["checkpoint", "out"])
def test_any_path_given_to_materialize_is_an_input_error(tmp_path: Path, kind: str, given_as: str) -> None:
    path = odd_paths(tmp_path)[kind]
    before = read_files(tmp_path)
    words: dict[str, Callable[[], object]] = {
        "checkpoint": lambda: materialize(path, tmp_path / "out"),
        "out": lambda: materialize(tmp_path / "none.pt", path),
    }
    with pytest.raises(InputError):
        words[given_as]()
    assert read_files(tmp_path) == before
    assert os.path.islink(tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()
