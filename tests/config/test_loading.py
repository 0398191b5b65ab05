"""From defaults, YAML and the command line to a RunConfig: layers, wording of errors, --help and --print_config."""

import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_finetune.config import loading
from hf_finetune.config.loading import (
    SECTIONS,
    TYPES,
    build_parser,
    check_key,
    config_from_dict,
    expected,
    load_config,
    read_arguments,
    read_yaml,
    setting_types,
    to_yaml,
)
from hf_finetune.config.sections import RunConfig, TrainConfig, to_dict, flatten
from hf_finetune.system.errors import InputError

NEEDED = {"model.backbone": "backbone", "data.train": ["train.csv"]}


@pytest.fixture(autouse=True, scope="module")
def one_parser() -> Iterator[None]:
    """Building a parser takes 40 ms and parsing none; nothing but --help, with a description of its own, changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "build_parser", functools.cache(build_parser))
        yield


def from_words(*words: str, defaults: Mapping[str, Any] = NEEDED) -> RunConfig:
    """The config of a command line."""
    config = load_config(defaults, words)
    assert config is not None
    return config


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
        model=type(config.model)(backbone="backbone"), data=type(config.data)(train=("train.csv",))
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
        {"model.backbone": "backbone", "train.epochs": 5}, ["--config", path, "--seed", "1"], demo=DEMO
    )
    assert config is not None
    assert (config.name, config.data.train, config.train.epochs) == ("demo", ("demo.csv",), 11)
    assert (config.train.batch_size, config.seed) == (6, 1)


@pytest.mark.parametrize("in_yaml", [False, True])
@pytest.mark.parametrize("key", ["data.train", "data.dataset"])
def test_named_data_leave_nothing_of_the_demo(tmp_path: Path, key: str, in_yaml: bool) -> None:
    words = ["--config", write(tmp_path, nested_yaml(key, "mine"))] if in_yaml else [f"--{key}", "mine"]
    assert load_config({"model.backbone": "b"}, words, demo=DEMO) == load_config(
        {"model.backbone": "b", key: "mine"}, []
    )


def test_the_command_line_goes_over_the_demo(tmp_path: Path) -> None:
    config = load_config({"model.backbone": "backbone"}, ["--train.epochs", "2", "--name", "mine"], demo=DEMO)
    assert config is not None
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
        ("freeze.layers", "2", 2),
        ("freeze.layers", "-1", -1),
        ("freeze.layers", "2/3", "2/3"),
        ("freeze.layers", "all", "all"),
        ("train.schedule", "cosine", "cosine"),
        ("task.label_separator", "';'", None),  # see below: quotes are YAML's
        ("data.text_columns", "text_a", ("text_a",)),
        ("data.text_columns", "[a, b]", ("a", "b")),
        ("data.text_columns", "['a, b', c]", ("a, b", "c")),
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


def test_one_plain_value_is_a_list_of_one_for_every_list() -> None:
    lists = [key for key, hint in TYPES.items() if expected(hint) == "a list of strings"]
    assert len(lists) == 10
    for key in lists:
        needed = NEEDED | ({"adapter.kind": "lora"} if key.startswith("adapter.") else {})
        assert value_of(from_words(f"--{key}", "value", defaults=needed), key) == ("value",)
        assert value_of(from_words(defaults=needed | {key: "value"}), key) == ("value",)


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
    ("evaluation.every", "epochs", 'must be a whole number or "epoch"'),
    ("evaluation.every", "1.5", 'must be a whole number or "epoch"'),
    ("evaluation.every", "true", 'must be a whole number or "epoch"'),
    ("checkpoint.every", "0", "must be at least 1"),
    ("freeze.layers", "some", "takes a count"),
    ("freeze.layers", "2.5", "takes a count"),
    ("freeze.layers", "true", "takes a count"),
    ("freeze.layers", "null", "takes a count"),
    ("freeze.layers", "[1]", "takes a count"),
    ("freeze.patterns", "(", "not a regular expression"),
    ("data.text_columns", "[1, 2]", "must be a list of strings"),
    ("data.text_columns", "[[a]]", "must be a list of strings"),
    ("data.text_columns", "[null]", "must be a list of strings"),
    ("data.text_columns", "[]", "names at least one column"),
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


def test_every_setting_that_takes_no_null_refuses_it(tmp_path: Path) -> None:
    strict = [key for key, hint in TYPES.items() if "null" not in expected(hint) and "list" not in expected(hint)]
    assert len(strict) >= 30
    for key in strict:
        assert error_of("--config", write(tmp_path, nested_yaml(key, "null"))).startswith(f"{key} (null): "), key


@pytest.mark.parametrize("value", ["[{]", "[a: b: c]", "[!!int x]", "[2024-13-45]", "[" * 600 + "]"])
def test_a_list_that_yaml_cannot_read_is_an_error(value: str) -> None:
    assert error_of("--data.train", value).startswith("data.train ([")


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
        ("freeze.encoder_layer", "freeze.layers"),
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
    assert load_config(NEEDED | BUSY, ["--train.epochs", "9", "--print_config"]) is None
    printed = capsys.readouterr().out
    again = load_config({}, ["--config", write(tmp_path, printed)])
    assert again == from_words("--train.epochs", "9", defaults=NEEDED | BUSY)
    assert again is not None
    assert again.train.epochs == 9
    assert dict(flatten(yaml.safe_load(printed))).keys() == TYPES.keys()


def test_print_config_reports_errors_as_a_run_would() -> None:
    assert error_of("--print_config", "--train.epochs", "0") == "train.epochs (0): must be at least 1"


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


# --- fuzz: only InputError may come out -----------------------------------------------------------------------------

words_of_settings = st.sampled_from([f"--{key}" for key in (*TYPES, *SECTIONS, "config", "nope", "train.epoch", "")])
odd_values = st.sampled_from(
    ["", "null", "true", "-1", "0", "1e400", "nan", ".inf", "[", "[]", "[{]", "{}", "{a: b}", "2/3", "0x", "1:2", "=", "*a",
     "!!int x", "&a [*a]", "2024-13-45", "a\nb", "\x00", "/", "--", "-", "é", "0b_", "1" * 5000]
)  # fmt: skip


def outcome(*words: str, defaults: Mapping[str, Any] = NEEDED) -> RunConfig | str | None:
    """The config of a command line, or the text of its InputError."""
    try:
        return load_config(defaults, words)
    except InputError as error:
        return str(error)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(words=st.lists(st.one_of(words_of_settings, odd_values, st.text(max_size=12)), max_size=6))
def test_any_command_line_gives_a_config_or_an_input_error(words: list[str]) -> None:
    assert outcome(*(word for word in words if word not in ("--help", "-h"))) != ""


@settings(max_examples=100, deadline=None, derandomize=True)
@given(key=st.sampled_from(sorted(TYPES)), value=st.one_of(odd_values, st.text(max_size=12)))
def test_any_value_of_any_setting_gives_a_config_or_an_input_error(key: str, value: str) -> None:
    typed, in_recipe = outcome(f"--{key}={value}"), outcome(defaults=NEEDED | {key: value})
    assert typed == in_recipe
    assert isinstance(typed, RunConfig) or (typed or "").startswith(key.split(".")[0])


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


# --- parts ----------------------------------------------------------------------------------------------------------


def test_setting_types_lists_every_field_of_every_section() -> None:
    assert setting_types() == TYPES
    assert {key for key in TYPES if "." not in key} == {"name", "output_dir", "seed"}
    assert setting_types(TrainConfig, "x.").keys() == {f"x.{name}" for name in TrainConfig.__dataclass_fields__}
    for key in TYPES:
        check_key(key)
        assert expected(TYPES[key])


def test_read_arguments_keeps_the_order() -> None:
    assert read_arguments(["--seed", "1", "--data.train", "a", "b", "--seed=2", "--name="]) == [
        ("seed", "1"),
        ("data.train", ["a", "b"]),
        ("seed", "2"),
        ("name", ""),
    ]


def test_read_yaml_flattens(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\ntrain: {epochs: 2}\ndata:\n  train: [a]\n")
    assert read_yaml(path) == {"seed": 1, "train.epochs": 2, "data.train": ["a"]}


# --- help -----------------------------------------------------------------------------------------------------------


def test_help_lists_every_setting_with_the_recipes_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load_config(NEEDED | {"train.epochs": 77}, ["--help"], prog="classify", description="What it does.")
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "What it does." in text
    assert "77" in text
    assert all(f"--{key} " in text for key in TYPES)
    assert all(f"--{key}" in build_parser("x", "").format_help() for key in ("config", "print_config", "debug"))


HEAVY = ("torch", "transformers", "accelerate", "datasets", "numpy", "tensorboard")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import hf_finetune", 0),
        ("import hf_finetune.config.loading, hf_finetune.recipe, hf_finetune.cli", 0),
        ("from hf_finetune import run_recipe; run_recipe('classification', {}, arguments=['--help'])", 0),
        ("from hf_finetune import run_recipe; sys.exit(run_recipe('classification', {}, arguments=['--sed', '1']))", 2),
    ],
)
def test_nothing_heavy_is_imported_before_the_settings_hold(code: str, status: int) -> None:
    script = f"""
import atexit, sys
atexit.register(lambda: print("heavy:", [name for name in {HEAVY} if name in sys.modules]))
{code}
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr
    assert ended.stdout.splitlines()[-1] == "heavy: []"
