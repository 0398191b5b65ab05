"""From defaults, YAML and the command line to a RunConfig: layers, wording of errors, --help and --print_config."""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_finetune import cli
from hf_finetune.config.help import format_help, read_help_texts
from hf_finetune.config.loading import (
    SECTIONS,
    config_from_dict,
    get_section_classes,
    get_setting_types,
    load_config,
    split_arguments,
    to_yaml,
)
from hf_finetune.config.recipes import recipe_path
from hf_finetune.config.sections import RENAMED, RunConfig, TaskSettings, TrainConfig, flatten, to_dict
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.config.values import convert, describe_type
from hf_finetune.config.yaml_files import load_yaml, read_yaml
from hf_finetune.recipe import run_recipe
from hf_finetune.system.errors import InputError

NEEDED = {"task.kind": "classify", "model.backbone": "backbone", "data.train": ["train.csv"]}
SETTINGS = load_task("classify").Settings
TYPES = get_setting_types(SETTINGS)


def from_words(*words: str, defaults: Mapping[str, Any] = NEEDED) -> RunConfig:
    """The config of a command line."""
    return load_config(defaults, words)


def write(folder: Path, text: str | bytes, name: str = "config.yaml") -> str:
    """The path of a file with this text."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def from_text(folder: Path, text: str | bytes) -> RunConfig:
    """The config of a YAML file."""
    return from_words("--config", write(folder, text))


def nested_yaml(key: str, value: str) -> str:
    """YAML that sets a dotted key to what is written in `value`."""
    section, _, leaf = key.rpartition(".")
    return f"{section}:\n  {leaf}: {value}\n" if section else f"{leaf}: {value}\n"


def value_of(config: RunConfig, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def error_of(*words: str, defaults: Mapping[str, Any] = NEEDED) -> str:
    """The text of the InputError of a command line: one line."""
    with pytest.raises(InputError) as caught:
        load_config(defaults, words)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


# --- layers ---------------------------------------------------------------------------------------------------------


def test_the_command_line_goes_over_yaml_and_yaml_over_the_recipe_and_the_recipe_over_the_defaults(
    tmp_path: Path,
) -> None:
    defaults = NEEDED | {"train.epochs": 5, "train.batch_size": 5, "train.patience": 5}
    path = write(tmp_path, "train:\n  batch_size: 6\n  patience: 6\n")
    config = from_words("--train.patience", "7", "--config", path, defaults=defaults)
    train = config.train
    assert (train.schedule, train.epochs, train.batch_size, train.patience) == (TrainConfig().schedule, 5, 6, 7)


def test_the_later_of_two_files_and_of_two_arguments_holds(tmp_path: Path) -> None:
    first, second = (write(tmp_path, f"seed: {seed}\nname: run{seed}\n", f"{seed}.yaml") for seed in (1, 2))
    assert from_words("--config", first, "--config", second).seed == 2
    assert from_words("--config", second, "--config", first).seed == 1
    assert from_words("--seed", "3", "--seed=4").seed == 4


def test_nothing_given_leaves_the_defaults_of_the_dataclasses() -> None:
    config = from_words()
    assert config == RunConfig(
        name="train",  # of train.csv
        model=type(config.model)(backbone="backbone"),
        data=type(config.data)(train=("train.csv",)),
        task=SETTINGS(kind="classify"),
    )


def test_recipe_defaults_are_checked_and_typed_like_yaml() -> None:
    assert from_words(defaults=NEEDED | {"data.train": "one.csv"}).data.train == ("one.csv",)
    assert from_words(defaults=NEEDED | {"data.text_columns": ("a", "b")}).data.text_columns == ("a", "b")
    assert error_of(defaults=NEEDED | {"train.epochs": "x"}) == "train.epochs (x): must be a whole number"
    assert error_of(defaults=NEEDED | {"train.epoch": 1}).endswith("did you mean train.epochs?")


DEMO = {"name": "demo", "data.train": ["demo.csv"], "train.epochs": 11}


def test_the_demo_holds_where_no_data_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {batch_size: 6}\n")
    config = load_config(
        {"task.kind": "classify", "model.backbone": "backbone", "train.epochs": 5},
        ["--config", path, "--seed", "1"],
        demo=DEMO,
    )
    assert (config.name, config.data.train, config.train.epochs) == ("demo", ("demo.csv",), 11)
    assert (config.train.batch_size, config.seed) == (6, 1)


@pytest.mark.parametrize("in_yaml", [False, True])
@pytest.mark.parametrize("key", ["data.train", "data.dataset"])
def test_named_data_leave_nothing_of_the_demo(tmp_path: Path, key: str, in_yaml: bool) -> None:
    words = ["--config", write(tmp_path, nested_yaml(key, "mine"))] if in_yaml else [f"--{key}", "mine"]
    defaults = {"task.kind": "classify", "model.backbone": "b"}
    assert load_config(defaults, words, demo=DEMO) == load_config(defaults | {key: "mine"}, [])


def test_the_command_line_goes_over_the_demo(tmp_path: Path) -> None:
    config = load_config(NEEDED, ["--train.epochs", "2", "--name", "mine"], demo=DEMO)
    assert (config.name, config.data.train, config.train.epochs) == ("mine", ("demo.csv",), 2)


@pytest.mark.parametrize("text", ["", "# nothing\n", "train:\n", "model: {}\ntrain:\n  # nothing\n", "---\n"])
def test_an_empty_file_or_section_sets_nothing(tmp_path: Path, text: str) -> None:
    assert from_text(tmp_path, text) == from_words()


def test_sections_may_be_written_dotted_in_yaml(tmp_path: Path) -> None:
    assert from_text(tmp_path, "train.epochs: 9\ntrain: {patience: 2}\n").train == TrainConfig(epochs=9, patience=2)


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("train.epochs", "4", 4),
        ("seed", "0", 0),
        ("train.learning_rate", "1e-5", 1e-5),
        ("train.learning_rate", "2.5e-05", 2.5e-5),
        ("train.learning_rate", "1", 1.0),
        ("train.max_grad_norm", "0", 0.0),
        ("model.trust_remote_code", "true", True),
        ("freeze.embeddings", "True", True),
        ("freeze.embeddings", "false", False),
        ("model.revision", "null", None),
        ("data.max_length", "null", None),
        ("data.max_length", "128", 128),
        ("name", "run-1", "run-1"),
        ("model.revision", "v1.0", "v1.0"),
        ("evaluation.every", "epoch", "epoch"),
        ("evaluation.every", "25", 25),
        ("evaluation.every", "1/9", "1/9"),
        ("freeze.layers", "2", 2),
        ("freeze.layers", "-1", -1),
        ("freeze.layers", "2/3", "2/3"),
        ("freeze.layers", "all", "all"),
        ("train.schedule", "cosine", "cosine"),
        ("task.label_separator", "';'", None),  # see below: quotes are YAML's
        ("data.text_columns", "text_a", ("text_a",)),
        ("data.text_columns", "['a', 'b']", ("a", "b")),
        ("data.text_columns", '["a, b", "c"]', ("a, b", "c")),
        ("data.text_columns", "  [ 'a' ,\"it's\" ]  ", ("a", "it's")),
        ("freeze.patterns", "['[0-3]', '(a|b)']", ("[0-3]", "(a|b)")),
        ("freeze.unfreeze", "[{epoch: 2, layers: 1/3}]", ({"epoch": 2, "layers": "1/3"},)),
        ("freeze.unfreeze", "[]", ()),
        ("cache.activations", "on", "on"),
        ("cache.activations", "off", "off"),
        ("train.learning_rate", "1.5e-3", 1.5e-3),
        ("seed", "0x10", 16),
        ("tracking.trackers", "[]", ()),
        ("tracking.trackers", "null", ()),
        ("data.train", "some/*.csv", None),
        ("data.train", "data[1].csv", ("data[1].csv",)),
        ("data.train", "package://NAME/a#sha256=0", ("package://NAME/a#sha256=0",)),
        ("freeze.patterns", "^emb.*[0-9]$", ("^emb.*[0-9]$",)),
    ],
)
def test_a_value_means_the_same_in_yaml_and_on_the_command_line(
    tmp_path: Path, key: str, written: str, value: Any
) -> None:
    typed = written.strip("'") if key == "task.label_separator" else written
    on_command_line, in_one_word = from_words(f"--{key}", typed), from_words(f"--{key}={typed}")
    in_yaml = from_text(tmp_path, nested_yaml(key, written))
    assert on_command_line == in_yaml == in_one_word
    if value is not None or typed == "null":
        assert value_of(in_yaml, key) == value
        assert type(value_of(in_yaml, key)) is type(value)


def test_several_words_after_one_flag_are_a_list() -> None:
    config = from_words("--data.train", "a.csv", "b.csv", "c.csv", "--data.text_columns", "one", "two", "--seed", "1")
    assert config.data.train == ("a.csv", "b.csv", "c.csv")
    assert config.data.text_columns == ("one", "two")
    assert config.seed == 1


@pytest.mark.parametrize(
    ("key", "text", "ways"),
    [
        ("freeze.patterns", "[0-3]", """'["0-3"]' for a list, '["[0-3]"]' for the text [0-3]"""),
        ("freeze.patterns", "[abc]", """'["abc"]' for a list, '["[abc]"]' for the text [abc]"""),
        ("data.train", "[ab].csv[12]", """'["[ab].csv[12]"]' for the text [ab].csv[12]"""),
        ("data.train", "[a, b]", """'["a", "b"]' for a list, '["[a, b]"]' for the text [a, b]"""),
        ("data.train", '["a", b]', """'["a", "b"]' for a list, '["[\\"a\\", b]"]' for the text ["a", b]"""),
        ("tracking.trackers", "[1, true]", """'["1", "true"]' for a list, '["[1, true]"]' for the text [1, true]"""),
        ("freeze.patterns", "[{a: b}]", """'["[{a: b}]"]' for the text [{a: b}]"""),
        ("freeze.patterns", "[']", """'["['"'"']"]' for the text [']"""),
    ],
)
def test_brackets_without_quotes_could_be_a_list_or_a_text_and_the_error_shows_how_to_write_both(
    key: str, text: str, ways: str
) -> None:
    message = error_of(f"--{key}", text)
    assert message == f"{key} ({text}): must be a list in quotes, because it could also be one text: write {ways}"
    assert error_of(defaults=NEEDED | {key: text}) == message
    first, *others = shlex.split(message.partition(": write ")[2].rpartition(" for the text ")[0])
    as_text = others[-1] if others else first
    assert value_of(from_words(f"--{key}", as_text), key) == (text,)
    assert value_of(from_words(f"--{key}", first), key)


def test_a_list_that_the_shell_has_split_is_an_error_that_shows_the_words() -> None:
    message = error_of("--data.train", "[a.en,", "b.de]")
    assert message == (
        """data.train ([a.en, b.de]): must be in quotes, because a shell splits it: write '["a.en", "b.de"]', """
        "or the words alone: a.en b.de"
    )


def test_each_of_several_words_is_a_text_as_it_was_typed() -> None:
    for words in (("[0-3]", "null", "# x"), ("[0-3]", "[a-z]"), ("[ab]c", "d[ef]")):
        assert from_words("--freeze.patterns", *words).freeze.patterns == words


def test_one_plain_value_is_a_list_of_one_for_every_list() -> None:
    lists = [key for key, hint in TYPES.items() if describe_type(hint) == "a list of strings"]
    assert len(lists) == 12
    for key in lists:
        needed = NEEDED | ({"adapter.kind": "lora"} if key.startswith("adapter.") else {})
        word = "temperature" if key == "task.calibrate" else "value"
        assert value_of(from_words(f"--{key}", word, defaults=needed), key) == (word,)
        assert value_of(from_words(defaults=needed | {key: word}), key) == (word,)


# --- errors ---------------------------------------------------------------------------------------------------------

SAME_ERRORS = [
    ("train.epochs", "x", "must be a whole number"),
    ("train.epochs", "1.5", "must be a whole number"),
    ("train.epochs", "1e3", "must be a whole number"),
    ("train.epochs", "true", "must be a whole number"),
    ("train.epochs", "null", "must be a whole number"),
    ("train.epochs", "[1]", "must be a whole number"),
    ("train.epochs", "0", "must be at least 1"),
    ("seed", "-1", "must be 0 or more"),
    ("train.learning_rate", "fast", "must be a number"),
    ("train.learning_rate", "true", "must be a number"),
    ("train.learning_rate", "null", "must be a number"),
    ("train.learning_rate", ".nan", "must be above 0"),
    ("train.learning_rate", "0", "must be above 0"),
    ("train.batch_size", "null", "must be a whole number"),
    ("data.max_length", "long", "must be a whole number or null"),
    ("data.max_length", "2", "must be at least 4"),
    ("hub.push", "1", "must be true or false"),
    ("hub.push", "maybe", "must be true or false"),
    ("hub.push", "null", "must be true or false"),
    ("train.schedule", "linaer", "must be one of linear, cosine, constant"),
    ("train.precision", "16", "must be one of auto, fp32, bf16, fp16"),
    ("task.problem", "regresion", "must be one of auto, single_label, multi_label, regression"),
    *(("evaluation.every", value, "must be a number of updates") for value in ("epochs", "1.5", "true", "1/0", "2/3")),
    ("checkpoint.every", "0", "must be at least 1"),
    ("freeze.layers", "some", "must be a count"),
    ("freeze.layers", "2.5", "must be a count"),
    ("freeze.layers", "true", "must be a count"),
    ("freeze.layers", "null", "must be a count"),
    ("freeze.layers", "[1]", "must be a count"),
    ("freeze.patterns", "(", "must be a regular expression"),
    ("data.text_columns", "[]", "must name at least one column"),
    ("freeze.unfreeze", "[1]", "must be a list of mappings, such as [{epoch: 2, layers: 1}]"),
    ("freeze.unfreeze", "[{2: 1}]", "must be a list of mappings"),
    ("freeze.unfreeze", "x", "must be a list of mappings"),
    ("freeze.unfreeze", "[{epoch: 2, encoder_layers: 1}]", "encoder_layers is now called layers"),
    ("name", "a/b", "not a path"),
]


@pytest.mark.parametrize(("key", "written", "fragment"), SAME_ERRORS)
def test_an_error_reads_the_same_from_yaml_and_from_the_command_line(
    tmp_path: Path, key: str, written: str, fragment: str
) -> None:
    typed = error_of(f"--{key}", written)
    in_yaml = error_of("--config", write(tmp_path, nested_yaml(key, written)))
    in_recipe = error_of(defaults=NEEDED | {key: yaml.safe_load(written)})
    assert typed == in_yaml == in_recipe
    assert typed.startswith(f"{key} (")
    assert fragment in typed


@pytest.mark.parametrize("written", ["[1, 2]", "[[a]]", "[null]", "{a: b}", "5", "true"])
def test_a_list_of_strings_in_yaml_takes_strings_alone(tmp_path: Path, written: str) -> None:
    message = error_of("--config", write(tmp_path, nested_yaml("data.text_columns", written)))
    assert "must be a list of strings" in message or message.startswith("data.text_columns.a (b): there is no such")


def test_a_number_in_yaml_where_a_string_belongs_is_shown_in_quotes(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {label_column: 4}\n")
    assert (
        error_of("--config", path)
        == 'data.label_column (4): must be a string or a list of strings or null; put it in quotes: "4"'
    )
    assert from_words("--data.label_column", "4").data.label_column == "4"


def test_a_label_column_may_be_several(tmp_path: Path) -> None:
    several = ("toxic", "obscene")
    assert from_words("--data.label_column", *several).data.label_column == several
    assert from_words("--data.label_column", '["toxic", "obscene"]').data.label_column == several
    path = write(tmp_path, "data: {label_column: [toxic, obscene]}\n")
    config = from_words("--config", path)
    assert config.data.label_column == config.data.label_columns == several
    assert config_from_dict(to_dict(config)) == config
    assert from_words("--data.label_column", "toxic").data.label_column == "toxic"
    assert from_words("--config", write(tmp_path, "data: {label_column: [toxic]}\n")).data.label_column == "toxic"
    assert from_words("--data.label_column", "null").data.label_columns == ()


def test_labels_in_a_list_may_be_numbers_and_null() -> None:
    hint = tuple[str | int | None, ...]
    for value in ([-100, None], ["-100", "null"], "[-100, null]", (-100, "null")):
        assert convert("task.ignore_labels", hint, value) == ("-100", "null")
    assert convert("task.ignore_labels", hint, "null") == convert("task.ignore_labels", hint, None) == ("null",)
    assert convert("task.ignore_labels", hint, "-100") == convert("task.ignore_labels", hint, -100) == ("-100",)
    assert convert("task.ignore_labels", hint, []) == convert("task.ignore_labels", hint, "[]") == ()
    with pytest.raises(InputError, match=r"^task.ignore_labels \(\[\['a'\]\]\): must be a list of labels, such as"):
        convert("task.ignore_labels", hint, [["a"]])


def test_every_setting_that_takes_no_null_refuses_it(tmp_path: Path) -> None:
    strict = [
        key
        for key, hint in TYPES.items()
        if not any(word in describe_type(hint) for word in ("null", "list", "mapping"))
    ]
    assert len(strict) >= 30
    for key in strict:
        assert error_of("--config", write(tmp_path, nested_yaml(key, "null"))).startswith(f"{key} (null): "), key


@pytest.mark.parametrize("value", ["[{]", "[a: b: c]", "[!!int x]", "[2024-13-45]", "[" * 600 + "]"])
def test_a_list_that_yaml_cannot_read_is_an_error(value: str) -> None:
    assert error_of("--data.train", value).startswith("data.train ([")
    assert error_of("--freeze.unfreeze", value).startswith("freeze.unfreeze ([")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train.epoch", "train.epochs"),
        ("train.learning_rat", "train.learning_rate"),
        ("epochs", "train.epochs"),
        ("learning_rate", "train.learning_rate"),
        ("max_lenght", "data.max_length"),
        ("trian.epochs", "train.epochs"),
        ("data.epochs", "train.epochs"),
        ("freeze.layer", "freeze.layers"),
        ("sed", "seed"),
        ("output", "output_dir"),
        ("backbone", "model.backbone"),
        ("some.very.long.section.patienc", "train.patience"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(tmp_path: Path, wrong: str, right: str) -> None:
    message = error_of(f"--{wrong}", "1")
    assert message == f"{wrong} (1): there is no such setting; did you mean {right}?"
    assert error_of("--config", write(tmp_path, nested_yaml(wrong, "1"))) == message


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_a_key_of_an_earlier_version_names_the_new_one(tmp_path: Path, old: str) -> None:
    message = error_of(f"--{old}", "auto")
    assert message == f"{old} (auto): is now called {RENAMED[old]}"
    assert error_of("--config", write(tmp_path, nested_yaml(old, "auto"))) == message
    assert any(RENAMED[old] in get_setting_types(load_task(kind).Settings) for kind in ("classify", "choose"))


def test_a_key_like_no_other_is_sent_to_the_help() -> None:
    assert error_of("--xyzzy", "1") == "xyzzy (1): there is no such setting; --help lists the settings"


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_a_section_is_no_setting(tmp_path: Path, section: str) -> None:
    message = error_of(f"--{section}", "5")
    assert message.startswith(f"{section}: is a section; set one of its keys, such as {section}.")
    assert error_of("--config", write(tmp_path, f"{section}: 5\n")) == message


def test_a_mapping_where_a_value_belongs_is_an_error(tmp_path: Path) -> None:
    message = error_of("--config", write(tmp_path, "train:\n  epochs:\n    a: 1\n"))
    assert message == "train.epochs.a (1): there is no such setting; did you mean train.epochs?"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x"], "x: settings are written --section.key VALUE"),
        (["-x"], "-x: settings are written --section.key VALUE"),
        (["--"], "--: settings are written --section.key VALUE"),
        (["--seed=1", "2"], "2: settings are written --section.key VALUE"),
        (["--seed"], "seed (nothing): takes one value"),
        (["--seed", "--name", "a"], "seed (nothing): takes one value"),
        (["--seed", "1", "2"], "seed (1 2): takes one value"),
        (["--config"], "config (nothing): takes one value"),
        (["--data.train"], "data.train (nothing): takes one value"),
    ],
)
def test_words_that_are_no_settings_are_errors(words: list[str], message: str) -> None:
    assert error_of(*words) == message


@pytest.mark.parametrize(
    ("text", "line", "fragment"),
    [
        ("seed: 1\ntrain: a: b\n", 2, "not YAML"),
        ("seed: 1\n\t- x\n", 2, "not YAML"),
        ("train: [1\n", 2, "not YAML"),
        ("? [1]\n: 2\n", 1, "not YAML"),
        ("seed: !!python/object:os.system 1\n", 1, "not YAML"),
        (b"seed: \xff\n", None, "not YAML"),
        ("seed: \x00\n", None, "not YAML"),
        ("seed: 2024-13-45\n", None, "not YAML"),
        ("seed: 0b_\n", None, "not YAML"),
        ("train: &a {epochs: *a}\n", None, "not YAML"),
        ("[" * 600, None, "not YAML"),
        ("seed: 1\nname: a\nseed: 1\n", 3, "seed is given twice"),
        ("train: {epochs: 1}\ntrain.epochs: 1\n", None, "gives train.epochs twice"),
        ("- seed\n", None, "not a list"),
        ("5\n", None, "not a int"),
        ("just text\n", None, "not a str"),
    ],
)
def test_a_file_that_holds_no_settings_is_named_with_the_line(
    tmp_path: Path, text: str | bytes, line: int | None, fragment: str
) -> None:
    path = write(tmp_path, text)
    message = error_of("--config", path)
    assert path in message
    assert fragment in message
    assert line is None or message.startswith(f"{path}:{line}: ")


def test_a_mapping_may_change_what_it_merges() -> None:
    text = "all: &all {epochs: 1, seed: 2}\ndeep: {er: &er {<<: *all, epochs: 3}}\nboth: {<<: *er, seed: 4}\n"
    assert load_yaml(text)["both"] == {"epochs": 3, "seed": 4}


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        assert error_of("--config", str(path)).startswith(f"--config ({path}): ")


# --- round trips ----------------------------------------------------------------------------------------------------

BUSY = {
    "name": "busy-1",
    "seed": 7,
    "data.text_columns": ["a b", "ü, 'quoted'"],
    "data.train": ["x: y.csv", "[1].csv", "- a"],
    "data.max_length": 99,
    "task.label_separator": "|",
    "freeze.layers": "2/3",
    "freeze.patterns": ["^a.*[0-9]$", "#"],
    "train.learning_rate": 1e-5,
    "train.patience": 3,
    "train.min_delta": 1e-7,
    "evaluation.every": 10,
    "tracking.trackers": [],
    "model.revision": "1e5",
    "hub.push": True,
    "hub.repo_id": "user/name",
}


def test_print_config_prints_what_config_reads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_recipe(NEEDED | BUSY, arguments=["--train.epochs", "9", "--print_config"]) == 0
    printed = capsys.readouterr().out
    again = load_config({}, ["--config", write(tmp_path, printed)])
    assert again == from_words("--train.epochs", "9", defaults=NEEDED | BUSY)
    assert again.train.epochs == 9
    assert dict(flatten(yaml.safe_load(printed))).keys() == TYPES.keys()


def test_print_config_reports_errors_as_a_run_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_recipe(NEEDED, arguments=["--print_config", "--train.epochs", "0"]) == 2
    assert capsys.readouterr().err == "error: train.epochs (0): must be at least 1\n"


def test_config_from_dict_gives_back_what_as_dict_took() -> None:
    config = from_words(defaults=NEEDED | BUSY)
    assert config_from_dict(to_dict(config)) == config
    assert config_from_dict(to_dict(config)) != from_words()


def test_config_from_dict_checks_again() -> None:
    plain = to_dict(from_words())
    with pytest.raises(InputError, match=r"^train\.epochs \(0\): must be at least 1"):
        config_from_dict(plain | {"train": plain["train"] | {"epochs": 0}})
    with pytest.raises(InputError, match=r"^train\.ema( \(.*\))?: there is no such setting"):
        config_from_dict(plain | {"train": plain["train"] | {"ema": 0}})


# What a person might call a column or a separator. "null" is YAML's word for none on a command line; and PyYAML does not
# read back the rare line ends of Unicode that it wrote.
names = st.text(st.characters(exclude_characters="\x85\u2028\u2029"), min_size=1, max_size=8).filter(
    lambda text: text != "null"
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(columns=st.lists(names, min_size=2, max_size=2, unique=True), label=names, separator=names)
@example(columns=["1", "1e5"], label="true", separator="\n")
@example(columns=["[a]", " [b, c] "], label="null ", separator=":")
@example(columns=["2024-01-01", "~"], label="yes", separator="\t")
def test_any_text_survives_the_round_trip_through_yaml(
    tmp_path_factory: pytest.TempPathFactory, columns: list[str], label: str, separator: str
) -> None:
    if label in columns:
        return
    given_settings = {"data.text_columns": columns, "data.label_column": label, "task.label_separator": separator}
    config = from_words(defaults=NEEDED | given_settings)
    assert config.data.text_columns == tuple(columns)
    folder = tmp_path_factory.mktemp("round")
    assert load_config({}, ["--config", write(folder, to_yaml(config))]) == config


# --- options of an optimizer or a schedule ---------------------------------------------------------------------------

OPTIONS = {"betas": [0.9, 0.95], "eps": 1e-6}


@pytest.mark.parametrize(
    "words",
    [
        ["--train.optimizer_options.betas", "0.9", "0.95", "--train.optimizer_options.eps", "1e-6"],
        ["--train.optimizer_options.betas=[0.9, 0.95]", "--train.optimizer_options.eps=0.000001"],
        ["--train.optimizer_options", "{betas: [0.9, 0.95], eps: 1e-6}"],
        ["--train.optimizer_options.amsgrad=true", "--train.optimizer_options={betas: [0.9, .95], eps: 1.e-6}"],
    ],
)
def test_options_are_the_same_from_all_doors(tmp_path: Path, words: list[str]) -> None:
    nested = load_config(NEEDED | {"train.optimizer_options": OPTIONS | {"betas": (0.9, 0.95)}})
    assert nested.train.optimizer_options == OPTIONS
    assert from_words(*words) == nested
    path = write(tmp_path, "train: {optimizer_options: {betas: [0.9, 0.95], eps: 1e-6}}\n")
    assert from_words("--config", path) == nested
    assert from_words("--config", write(tmp_path, to_yaml(nested))) == nested
    assert config_from_dict(to_dict(nested)) == nested
    assert dict(flatten(to_dict(nested)))["train.optimizer_options.betas"] == [0.9, 0.95]


def test_options_go_over_each_other_one_by_one_and_the_mapping_over_all(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {optimizer_options: {eps: 1.0e-6, amsgrad: true}}\n")
    one = from_words("--config", path, "--train.optimizer_options.eps", "1e-5")
    assert one.train.optimizer_options == {"eps": 1e-5, "amsgrad": True}
    for nothing in ("{}", "null"):
        assert from_words("--config", path, "--train.optimizer_options", nothing).train.optimizer_options == {}
    sgd = ["--train.optimizer", "sgd", "--train.optimizer_options", "{momentum: 0.9}"]
    assert from_words("--config", path, *sgd).train.optimizer_options == {"momentum": 0.9}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1", 1),
        ("1e-8", 1e-8),
        (".5E1", 5.0),
        ("true", True),
        ("null", None),
        ("cosine", "cosine"),
        ("1-sqrt", "1-sqrt"),
    ],
)
def test_an_option_is_the_plain_value_that_it_writes(word: str, value: Any) -> None:
    settings = {"train.optimizer": "m:f", "train.optimizer_options.x": word}
    option = load_config(NEEDED | settings).train.optimizer_options["x"]
    assert (type(option), option) == (type(value), value)
    assert (
        from_words("--train.optimizer=m:f", "--train.optimizer_options.x", word).train.optimizer_options["x"] == value
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.optimizer_options.betas"], "train.optimizer_options.betas (nothing): takes one value"),
        (
            ["--train.optimizer_options", "0.9"],
            "train.optimizer_options (0.9): must be a mapping of options, such as {mom",
        ),
        (["--train.optimizer_options", "{1: 2}"], "train.optimizer_options ({1: 2}): must be a mapping of options"),
        (["--train.optimizer_options.a.b", "1"], "train.optimizer_options.a.b (1): there is no such setting"),
        (["--train.optimizer_option.momentum", "1"], "train.optimizer_option.momentum (1): there is no such setting"),
        (
            ["--train.optimizer_options.eps", "{a: 1}"],
            "train.optimizer_options.eps ({'a': 1}): must be a number, a str",
        ),
        (["--train.optimizer_options.eps", "2024-01-01"], "train.optimizer_options.eps (2024-01-01): must be a number"),
        (
            ["--train.optimizer_options.betas", "[0.9,", "0.95]"],
            "train.optimizer_options.betas ([0.9, 0.95]): must be in q",
        ),
    ],
)
def test_wrong_options_are_errors(words: list[str], message: str) -> None:
    assert error_of(*words).startswith(message)


# --- fuzz: only InputError may come out -----------------------------------------------------------------------------

words_of_settings = st.sampled_from([f"--{key}" for key in (*TYPES, *SECTIONS, "config", "nope", "train.epoch", "")])
odd_values = st.sampled_from(
    ["", "null", "true", "-1", "0", "1e400", "nan", ".inf", "[", "[]", "[{]", "{}", "{a: b}", "2/3", "0x", "1:2", "=", "*a",
     "!!int x", "&a [*a]", "2024-13-45", "a\nb", "\x00", "/", "--", "-", "é", "0b_", "1" * 5000]
)  # fmt: skip


def outcome(*words: str, defaults: Mapping[str, Any] = NEEDED) -> RunConfig | str:
    """The config of a command line, or the text of its InputError."""
    try:
        return load_config(defaults, words)
    except InputError as error:
        return str(error)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(words=st.lists(st.one_of(words_of_settings, odd_values, st.text(max_size=12)), max_size=6))
def test_any_command_line_gives_a_config_or_an_input_error(words: list[str]) -> None:
    assert outcome(*words) != ""


@settings(max_examples=100, deadline=None, derandomize=True)
@given(key=st.sampled_from(sorted(set(TYPES) - {"task.kind"})), value=st.one_of(odd_values, st.text(max_size=12)))
def test_any_value_of_any_setting_gives_a_config_or_an_input_error(key: str, value: str) -> None:
    typed, in_recipe = outcome(f"--{key}={value}"), outcome(defaults=NEEDED | {key: value})
    assert typed == in_recipe
    assert isinstance(typed, RunConfig) or typed.startswith(key.split(".")[0]) or key in typed


plain_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.dates()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(sorted({*TYPES, *SECTIONS})), st.text(max_size=4)), inner, max_size=3
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode),
                      plain_values.map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode())))  # fmt: skip
@example(text=b"train: &x {epochs: *x}")
@example(text=b"seed: 1:99:99999999999999999999")
@example(text=b"model: {backbone: null}\ndata: {train: null, text_columns: {}}")
def test_any_file_gives_settings_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text)
    assert isinstance(outcome("--config", str(path)), (RunConfig, str))


# --- the task -------------------------------------------------------------------------------------------------------


def test_task_settings_are_the_tasks_own_class() -> None:
    assert from_words("--task.problem", "regression").task == SETTINGS(kind="classify", problem="regression")
    tagging = load_config(NEEDED | {"task.kind": "tag"}, ["--task.tag_scheme", "BIOES"])
    assert tagging.task == load_task("tag").Settings(kind="tag", tag_scheme="BIOES")


def test_a_setting_of_another_task_is_an_error_that_lists_this_tasks_own(tmp_path: Path) -> None:
    message = error_of("--task.tag_scheme", "BIOES")
    own = ", ".join(key for key in TYPES if key.startswith("task.") and key != "task.kind")
    assert message == f"task.tag_scheme (BIOES): classify has no such setting; it has {own}"
    assert error_of("--config", write(tmp_path, "task: {tag_scheme: BIOES}\n")) == message


def test_without_a_task_the_error_lists_the_tasks() -> None:
    with pytest.raises(InputError) as caught:
        RunConfig.from_settings({"model.backbone": "b", "data.train": "a.csv"})
    assert str(caught.value).startswith(f"task.kind (null): must be given: one of {', '.join(TASKS)}, or a class")
    assert (
        load_config({}, ["--task.kind", "classify", "--model.backbone", "b", "--data.train", "a"]).task.kind
        == "classify"
    )


@pytest.mark.parametrize("in_yaml", [False, True])
def test_a_recipe_with_a_config_of_another_task_is_an_error_that_names_both_ways_out(
    tmp_path: Path, in_yaml: bool
) -> None:
    words = ["--config", write(tmp_path, "task: {kind: tag}\n")] if in_yaml else ["--task.kind", "tag"]
    assert error_of(*words) == (
        "task.kind (tag): must be classify, the task of this recipe; use the other task's recipe (hf-finetune train tag), "
        "or no recipe at all (hf-finetune train --config FILE.yaml)"
    )
    assert "(hf-finetune train --task.kind a.b:C)" in error_of("--task.kind", "a.b:C")


def test_naming_the_recipes_own_task_again_changes_nothing(tmp_path: Path) -> None:
    assert from_words("--task.kind", "classify") == from_text(tmp_path, "task: {kind: classify}\n") == from_words()


@pytest.mark.parametrize(
    ("kind", "fragment"),
    [
        ("nope", "must be one of classify, tag, "),
        ("no_such_package:Task", "cannot be imported: No module named"),
        ("hf_finetune.tasks.classify:Nope", "cannot be imported: "),
        ("hf_finetune.config.sections:RunConfig", "is not a task: it has no Settings"),
        (["a", "b"], "must be a string"),
    ],
)
def test_a_task_that_does_not_exist_is_an_error(kind: Any, fragment: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(NEEDED | {"task.kind": kind})
    assert str(caught.value).startswith(f"task.kind ({kind}): ")
    assert fragment in str(caught.value)


@dataclass(frozen=True, kw_only=True)
class OwnSettings(TaskSettings):
    """Settings of a task of one's own.

    Args:
        depth: How deep.
        mode: How.
    """

    depth: int
    mode: Literal["a", "b"] = "a"


class OwnTask:
    """As much of a task as the settings need."""

    Settings = OwnSettings


@pytest.fixture
def own_task(monkeypatch: pytest.MonkeyPatch) -> str:
    """The import path of OwnTask."""
    monkeypatch.setitem(sys.modules, "my_package.tasks", sys.modules[__name__])
    return "my_package.tasks:OwnTask"


def test_a_task_of_ones_own_has_its_own_settings(own_task: str, tmp_path: Path) -> None:
    config = RunConfig.from_settings(NEEDED | {"task.kind": own_task, "task.depth": 3})
    assert config.task == OwnSettings(kind=own_task, depth=3)
    assert load_config({}, ["--config", write(tmp_path, to_yaml(config))]) == config
    with pytest.raises(InputError, match=r"^task\.depth \(null\): must be given; .*OwnTask has no default for it$"):
        load_config(NEEDED | {"task.kind": own_task})


def test_a_task_without_settings_says_so(own_task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OwnTask, "Settings", TaskSettings)
    with pytest.raises(InputError, match=r"OwnTask has no such setting; it has no settings of its own$"):
        load_config(NEEDED | {"task.kind": own_task, "task.depth": 3})


def test_a_config_names_its_task_so_that_it_repeats_the_run_without_a_recipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = from_words("--task.problem", "regression", "--train.epochs", "7")
    path = write(tmp_path, to_yaml(config))
    assert cli.main(["train", "--config", path, "--print_config"]) == 0
    assert capsys.readouterr().out == to_yaml(config)
    assert cli.main(["train", "tag", "--config", path]) == 2
    assert "use the other task's recipe (hf-finetune train classify)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", TASKS)
def test_a_recipe_is_named_like_its_task(kind: str) -> None:
    recipe = runpy.run_path(str(recipe_path(kind)))
    assert recipe["DEFAULTS"]["task.kind"] == kind
    config = load_config(recipe["DEFAULTS"], ["--model.backbone", "b", "--data.train", "a.csv"])
    assert type(config.task) is load_task(kind).Settings


def test_every_recipe_has_a_task() -> None:
    assert {path.stem for path in recipe_path("classify").parent.glob("*.py")} == TASKS.keys()


def test_train_without_recipe_runs_a_task_of_ones_own(
    own_task: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--task.kind", own_task, "--model.backbone", "b", "--data.train", "a.csv", "--task.depth", "2"]
    assert cli.main(["train", *words, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["task"] == {"kind": own_task, "depth": 2, "mode": "a"}
    assert cli.main(["train", *words, "--help"]) == 0
    assert "--task.depth                  How deep. [a whole number; required]" in capsys.readouterr().out
    assert cli.main(["train", "--seed", "1"]) == 2
    assert "task.kind (null): must be given" in capsys.readouterr().err


# --- parts ----------------------------------------------------------------------------------------------------------


def test_setting_types_has_every_field_of_every_section() -> None:
    assert {key for key in TYPES if "." not in key} == {"name", "output_dir", "seed", "start_from"}
    assert get_section_classes(SETTINGS).keys() == {*SECTIONS}
    for name, section in get_section_classes(SETTINGS).items():
        assert [key for key in TYPES if key.startswith(f"{name}.")] == [
            f"{name}.{f}" for f in [field.name for field in fields(section)]
        ]
    assert [key for key in get_setting_types() if key.startswith("task.")] == ["task.kind"]
    assert all(describe_type(hint) for hint in TYPES.values())


def test_a_type_that_no_setting_can_have_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match=r"a setting cannot have the type .*bytes.*; it takes int, float, str"):
        convert("task.blob", bytes, "x")


def test_split_arguments_keeps_the_order() -> None:
    assert split_arguments(["--seed", "1", "--data.train", "a", "b", "--seed=2", "--name="]) == [
        ("seed", ["1"]),
        ("data.train", ["a", "b"]),
        ("seed", ["2"]),
        ("name", [""]),
    ]


def test_read_yaml_flattens(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\ntrain: {epochs: 2}\ndata:\n  train: [a]\n")
    assert read_yaml(path) == {"seed": 1, "train.epochs": 2, "data.train": ["a"]}


# --- help -----------------------------------------------------------------------------------------------------------


def test_help_shows_the_defaults_of_the_recipe_and_names_the_demos_values(capsys: pytest.CaptureFixture[str]) -> None:
    defaults = NEEDED | {"train.epochs": 77, "data.train": []}
    demo = {"train.epochs": 78, "data.train": ["demo.csv"], "train.patience": 5}
    assert run_recipe(defaults, demo=demo, description="What it does.\n\n    a command", arguments=["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: hf-finetune train classify ")
    assert "\n\nWhat it does.\n\n    a command\n\n" in text
    words = " ".join(text.split())
    assert "--train.epochs Passes over the training examples. [a whole number; default: 77; demo: 78]" in words
    assert "[a list of strings; required, or data.dataset; demo: demo.csv]" in words
    assert "If not given, never. [a whole number; demo: 5]" in words
    assert "[a string; default: backbone]" in words
    for option in ("--config", "--print_config", "--debug", "--help"):
        assert f"\n  {option} " in text


@pytest.mark.parametrize("kind", TASKS)
def test_help_has_every_setting_of_the_task_once_and_no_others(kind: str) -> None:
    settings = load_task(kind).Settings
    text = format_help(settings, {})
    keys = re.findall(r"^  --(\S+)", text, flags=re.MULTILINE)
    assert sorted(
        set(keys) - {"config", "print_config", "debug", "help", "quiet", "json", "dry-run", "auto"}
    ) == sorted(set(get_setting_types(settings)) - {"task.kind"})
    assert len(set(keys)) == len(keys)
    for name, section in get_section_classes(settings).items():
        assert f"\n\n{name}: " in text or section is TaskSettings
        assert list(read_help_texts(section)) == [field.name for field in fields(section)]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = format_help(SETTINGS, {}).splitlines()
    assert max(map(len, lines[2:])) <= min(max(columns, 62), 110)
    assert "" in lines


def test_a_key_too_long_for_its_column_has_its_text_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = "a_setting_with_a_very_long_name"
    section = make_dataclass("Long", [(long, int, 1)], bases=(TaskSettings,), frozen=True, kw_only=True)
    section.__doc__ = f"""Long.

    Args:
        {long}: Text.
    """
    assert f"  --task.{long}\n{' ' * 32}Text. [a whole number; default: 1]" in format_help(section, {})


HEAVY = ("torch", "transformers", "accelerate", "datasets", "tensorboard", "scipy", "pyarrow")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import hf_finetune", 0),
        ("import hf_finetune.config.loading, hf_finetune.recipe, hf_finetune.cli", 0),
        *((f"from hf_finetune.cli import main; sys.exit(main(['train', '{kind}', '--help']))", 0) for kind in TASKS),
        ("from hf_finetune.cli import main; sys.exit(main(['train', 'classify', '--sed', '1']))", 2),
        ("from hf_finetune.cli import main; sys.exit(main(['train', 'classify', '--print_config']))", 0),
    ],
)
def test_nothing_heavy_is_imported_before_the_settings_are_checked(code: str, status: int) -> None:
    script = f"""
import atexit, sys
atexit.register(lambda: print("heavy:", [name for name in {HEAVY} if name in sys.modules]))
{code}
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr
    assert ended.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize(("written", "number"), [("010", 10), ("-08", -8), ("+7", 7), ("0", 0)])
def test_a_whole_number_is_decimal_also_with_leading_zeros(written: str, number: int) -> None:
    assert convert("freeze.layers", int | str, written) == number
    assert convert("seed", int, written) == number


@pytest.mark.parametrize("kind", [":x", "..a:b", "no_such_package_:Task", "json:no_such_task", "json:dumps"])
def test_an_import_path_that_leads_to_no_task_is_an_error(kind: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"task.kind ({kind}): ")):
        load_task(kind)


@pytest.mark.parametrize("words", [["--config", "no_such_file.yaml"], ["extra"]])
def test_help_is_printed_whatever_else_is_on_the_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_recipe({"task.kind": "classify"}, arguments=[*words, "--help"]) == 0
    assert "--task.problem" in capsys.readouterr().out


def test_only_the_help_of_a_recipe_with_a_demo_speaks_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    for demo, is_mentioned in (({"data.train": ["demo.csv"]}, True), (None, False)):
        assert run_recipe({"task.kind": "classify"}, demo=demo, arguments=["--help"]) == 0
        assert ("trains its demo" in " ".join(capsys.readouterr().out.split())) == is_mentioned
