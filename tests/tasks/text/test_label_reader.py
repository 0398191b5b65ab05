"""Labels as people have them: lists as text, places of 0 and 1, a column a label, missing labels, a decimal comma."""

import json
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig
from hf_finetune.data.column_writer import make_column
from hf_finetune.data.features import ClassSets
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table
from hf_finetune.run.data_report import report_on_rows
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.classify import Classification
from hf_finetune.tasks.classify_columns import Settings
from hf_finetune.tasks.text.label_checks import find_label_warnings, find_lookalikes, suggest_names


def make_table(class_names: tuple[str, ...] | None = None, **columns: Sequence[Any]) -> Table:
    """Returns a table of these columns, from lines 1, 2, ... of made.csv."""
    count = len(next(iter(columns.values())))
    return Table(
        columns={name: list(values) for name, values in columns.items()},
        files=["made.csv"] * count,
        lines=list(range(1, count + 1)),
        class_names=class_names,
    )


def make_config(label: str | tuple[str, ...] = "label", **settings: Any) -> RunConfig:
    """Returns a config that is never run. settings: those of the task."""
    return RunConfig(
        model=ModelConfig(backbone="unused"),
        data=DataConfig(train=("unused",), label_column=label),
        task=Settings(kind="classify", **settings),
    )


def make_task(table: Table, label: str | tuple[str, ...] = "label", **settings: Any) -> Classification:
    """Returns the task for this training table."""
    return Classification.from_table(make_config(label, **settings), table)


def read_targets(task: Classification, table: Table) -> list[Any]:
    """Returns the targets of a table, as batches have them."""
    targets = task.encoding.labels(table, {})
    assert targets is not None
    return (targets.gather(np.arange(len(table))) if isinstance(targets, ClassSets) else targets).tolist()


def catch_error(*arguments: Any, **settings: Any) -> str:
    """Returns the one line of the InputError that make_task() raises."""
    with pytest.raises(InputError) as caught:
        make_task(*arguments, **settings)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --- one form -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "names", "others"),
    [
        (["0.0", "11.0", "2.0"], ("0", "2", "11"), [0, "11", 11.0, " 2 ", Decimal("2.00")]),
        ([0, 11, 2], ("0", "2", "11"), ["0.0", "11.0", 2.0]),
        (["0,0", "11,0"], ("0", "11"), ["11", 0]),
        (["True", "FALSE"], ("false", "true"), [True, False, "true"]),
        ([True, False], ("false", "true"), ["True", "False", "TRUE"]),
        (["pos", "neg", "pos "], ("neg", "pos"), ["pos\t", b"neg", "\u00a0pos"]),
        (["cafe\u0301", "th\u00e9"], ("caf\u00e9", "th\u00e9"), ["caf\u00e9", "the\u0301"]),
        (["1.5", "10.0", "9.0", "x"], ("1.5", "9.0", "10.0", "x"), ["9.0", 10.0, "1.5"]),
    ],
)
def test_a_label_is_found_in_whatever_form_another_file_has_it(
    training: list[Any], names: tuple[str, ...], others: list[Any]
) -> None:
    task = make_task(make_table(label=training))
    assert task.label_names == names
    by_other = read_targets(task, make_table(label=others))
    assert all(isinstance(number, int) for number in by_other)
    again = Classification.from_state(make_config(), task.state_dict())
    assert read_targets(again, make_table(label=others)) == by_other
    assert set(read_targets(task, make_table(label=training))) == set(range(len(names)))


def test_labels_of_a_model_from_before_are_found() -> None:
    old = Classification.from_state(make_config(), {"problem": "single_label", "labels": ["False", "True"]})
    assert read_targets(old, make_table(label=[True, "False", "true"])) == [1, 0, 1]
    assert old.label_names == ("False", "True")


@pytest.mark.parametrize(
    ("training", "other", "message"),
    [
        (["Positive", "negative"], "positive", "did you mean 'Positive'?"),
        (["positive", "negative"], "postive", "did you mean 'positive'"),
        (["a", "b", "c"], "Zorn", "they are a, b, c"),
        ([str(number) for number in range(9)], "77", "they are 0, 1, 2, 3, 4, ..."),
    ],
)
def test_a_label_that_training_lacks_is_an_error_with_the_nearest(
    training: list[str], other: str, message: str
) -> None:
    task = make_task(make_table(label=training))
    with pytest.raises(InputError) as caught:
        task.encoding.labels(make_table(label=[training[0], other, other]), {})
    assert str(caught.value).startswith(f"made.csv:2: the label {other!r} is not one of the {len(training)} labels of")
    assert message in str(caught.value)


def test_suggestions_know_case_and_typing_errors() -> None:
    assert suggest_names("NEG", ["neg", "pos"]) == "did you mean 'neg'?"
    assert suggest_names("xyz", ["neg", "pos"]) == "they are neg, pos"


def test_the_spelling_that_was_changed_is_said() -> None:
    def say(labels: list[Any]) -> list[str]:
        return make_task(make_table(label=labels)).encoding.reader.describe_spelling(make_table(label=labels))  # type: ignore[attr-defined]

    assert say(["pos", "pos ", "neg\t"]) == ["blanks at the ends of 2 labels removed"]
    assert say(["cafe\u0301", "b"]) == ["accents of 1 labels composed"]
    assert say(["0.0", "11.0"]) == ["0.0 read as 0"]
    assert say(["True", "False"]) == ["True read as true"]
    assert say(["a", "b"]) == say([0, 1]) == say(["0", "1"]) == []


# --- several labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        ["['b', 'a']", "[]", "['c']"],
        ['["b", "a"]', "[]", '["c"]'],
        ["['b' 'a']", "[]", "['c']"],
        [["b", "a"], [], ["c"]],
        ["['b ', ' a']", "[]", "['c']"],
    ],
)
def test_lists_that_are_written_as_text_are_read(labels: list[Any]) -> None:
    task = make_task(make_table(label=labels))
    assert (task.problem, task.label_names) == ("multi_label", ("a", "b", "c"))
    assert read_targets(task, make_table(label=labels)) == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert task.encoding.reason == (  # type: ignore[attr-defined]
        "label holds lists" if isinstance(labels[0], list) else "label holds lists that are written as text"
    )


def test_text_in_brackets_that_is_no_list_stays_a_label() -> None:
    task = make_task(make_table(label=["[good]", "[bad]"]))
    assert (task.problem, task.label_names) == ("single_label", ("[bad]", "[good]"))
    assert make_task(make_table(label=["['a']", "b"])).problem == "single_label"


PLACES = [[0.0, 1.0, 1.0], [1, 0, 0], [False, False, True]]


@pytest.mark.parametrize("labels", [PLACES, [str(bits) for bits in PLACES], ["[0 1 1]", "[1. 0. 0.]", "[0, 0, 1]"]])
def test_lists_of_0_and_1_are_places_with_names(labels: list[Any]) -> None:
    table = make_table(label=labels)
    task = make_task(table, label_names=("x", "y", "z"))
    assert (task.problem, task.label_names) == ("multi_label", ("x", "y", "z"))
    assert read_targets(task, table) == [[0, 1, 1], [1, 0, 0], [0, 0, 1]]
    assert read_targets(task, make_table(label=[["z", "x"], [], ["y"]])) == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert task.encoding.count_labels(table) == {"x": 1, "y": 1, "z": 2}


def test_lists_of_0_and_1_without_names_are_refused() -> None:
    message = catch_error(make_table(label=PLACES))
    assert message == (
        "data.label_column (label): holds lists of 0 and 1, such as [0.0, 1.0, 1.0]; name the 3 labels of their places in "
        "task.label_names"
    )
    message = catch_error(make_table(label=PLACES), label_names=("x", "y"))
    assert message.startswith("task.label_names (x, y): has 2 names, and label has 3 places, such as [0.0, 1.0, 1.0]")


def test_lists_of_class_numbers_are_no_places() -> None:
    table = make_table(label=[[0], [0, 1], []])
    assert make_task(table).label_names == ("0", "1")
    assert read_targets(make_task(table), table) == [[1, 0], [1, 1], [0, 0]]
    coded = make_table(("x", "y"), label=[[0, 1], [1, 0]])
    assert read_targets(make_task(coded), coded) == [[1, 1], [1, 1]]


NAMES = ("x", "y")


@pytest.mark.parametrize("is_reloaded", [False, True])
def test_whether_lists_have_places_is_decided_once_on_training(is_reloaded: bool) -> None:
    """[0, 1] is y, or x and y: by itself it is neither. A task that is made from its state reads it as training did."""

    def read(train: list[list[Any]], test: list[list[Any]]) -> list[Any]:
        task = make_task(make_table(label=train), label_names=NAMES)
        if is_reloaded:
            task = Classification.from_state(make_config(label_names=NAMES), json.loads(json.dumps(task.state_dict())))
        return read_targets(task, make_table(label=test))

    assert read([[0, 1], [1, 1]], [[0, 1], [1, 0]]) == [[0, 1], [1, 0]]
    assert read([[0], [0, 1]], [[0, 1], [1, 0]]) == [[1, 1], [1, 1]]
    assert read([[0], [0, 1]], [["x"], ["y", "x"]]) == [[1, 0], [1, 1]]
    with pytest.raises(InputError, match=r"made.csv:2: label \(\[1\]\): training has lists of 2 places of 0 and 1"):
        read([[0, 1], [1, 1]], [[0, 1], [1]])
    with pytest.raises(InputError, match=r"made.csv:1: label \(\[0, 2\]\): training has lists of 2 places"):
        read([[0, 1], [1, 1]], [[0, 2]])
    with pytest.raises(
        InputError, match=r"made.csv:2: label \(\[1, 1\]\): it has places of 0 and 1, and the lists of tr"
    ):
        read([[0], [0, 1]], [[0, 1], [1, 1]])


def test_a_state_without_the_decision_has_each_table_decide() -> None:
    """Of a model of an earlier version, or one that was trained elsewhere."""
    task = Classification.from_state(make_config(label_names=NAMES), {"problem": "multi_label", "labels": NAMES})
    assert read_targets(task, make_table(label=[[0, 1], [1, 1]])) == [[0, 1], [1, 1]]
    assert read_targets(task, make_table(label=[[1], [0, 1]])) == [[0, 1], [1, 1]]


def test_the_state_of_single_labels_stays_as_earlier_versions_have_it() -> None:
    """Their checkpoints are resumed if the states are equal."""
    assert make_task(make_table(label=["a", "b"])).state_dict().keys() == {"problem", "labels", "class_weights"}


def test_places_are_found_although_the_labels_are_called_0_and_1() -> None:
    table = make_table(label=[[0, 1], [1, 1]])
    assert read_targets(make_task(table, label_names=("0", "1")), table) == [[0, 1], [1, 1]]


COLUMNS = ("toxic", "obscene")


def test_a_column_for_each_label() -> None:
    table = make_table(toxic=["0", "1", "1", "0"], obscene=[True, "false", 1.0, 0])
    task = make_task(table, COLUMNS)
    assert (task.problem, task.label_names) == ("multi_label", COLUMNS)
    assert read_targets(task, table) == [[0, 1], [1, 0], [1, 1], [0, 0]]
    assert make_task(table, COLUMNS, label_names=("A", "B")).label_names == ("A", "B")
    spec = Classification.make_columns(make_config(COLUMNS)).spec
    assert (spec.inputs, spec.labels, spec.strata) == (("text",), COLUMNS, None)


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([0, 2], {}, "made.csv:2: toxic (2) is not 0 or 1, which each of several label columns must be"),
        ([0, None], {}, "made.csv:2: toxic is null; to leave out"),
        (["0", "NA"], {}, "made.csv:2: toxic is NA; to leave out"),
        ([0, [1]], {}, "made.csv:2: toxic ([1]) is not 0 or 1"),
        (
            [0, 1],
            {"problem": "single_label"},
            "data.label_column (['toxic', 'obscene']): has one column for single_label",
        ),
        (
            [0, 1],
            {"label_separator": ","},
            "data.label_column (['toxic', 'obscene']): has one column with task.label_s",
        ),
        ([0, 1], {"label_names": ("a", "b", "c")}, "task.label_names (['a', 'b', 'c']): must be 2, a name a column"),
    ],
)
def test_columns_that_do_not_hold_0_and_1_are_refused(
    values: list[Any], settings: dict[str, Any], message: str
) -> None:
    table = make_table(toxic=values, obscene=[0, 1])
    with pytest.raises(InputError) as caught:
        read_targets(make_task(table, COLUMNS, **settings), table)
    assert str(caught.value).startswith(message)


def test_columns_for_labels_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "onehot.csv"
    path.write_text("id,text,toxic,obscene\n0,a b,0,1\n1,c d,1,0\n2,e f,-1,-1\n")
    config = make_config(COLUMNS, ignore_labels=("-1",))
    spec = Classification.make_columns(config).spec
    table = read_table([str(path)], config.data, "data.train", spec)
    assert read_targets(Classification.from_table(config, table), table) == [[0, 1], [1, 0]]
    assert len(read_table([str(path)], config.data, "--data", spec, needs_labels=False)) == 3


# --- names from the settings ----------------------------------------------------------------------------------------


def test_names_of_the_settings_have_their_order_and_name_numbers() -> None:
    assert make_task(make_table(label=["b", "a", "a"]), label_names=("c", "b", "a")).label_names == ("c", "b", "a")
    task = make_task(make_table(label=["0", "1.0", "0"]), label_names=("neg", "pos"))
    assert read_targets(task, make_table(label=[0, "1", "pos", "0.0"])) == [0, 1, 1, 0]
    with pytest.raises(InputError, match=r"^made.csv:1: the label 'x' is not one of the 2 labels of task.label_names"):
        read_targets(task, make_table(label=["x"]))
    message = catch_error(make_table(label=["a", "b"]), label_names=("a",))
    assert message == "task.label_names (['a']): must be two names or more"
    numbered = make_task(make_table(label=["1", "2"]), label_names=("2", "1"))
    assert read_targets(numbered, make_table(label=[1, 2])) == [1, 0]


# --- missing labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [None, "", float("nan"), "nan", "NA", "None"])
def test_a_stray_missing_label_among_numbers_is_an_error_at_its_line(missing: Any) -> None:
    message = catch_error(make_table(label=["0", "1", missing, "0"]))
    assert message.startswith("made.csv:3: label is ")
    assert message.endswith("; to leave out the rows without a label, set task.ignore_labels to null")


@pytest.mark.parametrize("missing", [None, "", float("nan"), "nan", "NA", "-100", -100.0])
def test_rows_that_are_not_labelled_are_left_out_and_counted(missing: Any) -> None:
    config = make_config(ignore_labels=("null", "-100"))
    table = make_table(text=list("abcd"), label=["0", missing, "1", "0"])
    spec = Classification.make_columns(config).spec
    assert spec.keep_labelled is not None
    kept = spec.keep_labelled(table)
    assert kept.columns == {"text": ["a", "c", "d"], "label": ["0", "1", "0"]}
    assert kept.lines == [1, 3, 4]
    assert kept.notes == ("made.csv: 1 of 4 rows are left out: they are not labelled (task.ignore_labels null, -100)",)
    assert spec.keep_labelled(kept) is kept
    with pytest.raises(InputError, match=r"^task.ignore_labels \(null, -100\): leaves no row of made.csv"):
        spec.keep_labelled(make_table(text=["a"], label=[None]))
    assert Classification.make_columns(make_config()).spec.keep_labelled is None


def test_rows_of_a_regression_and_of_lists_are_left_out_too() -> None:
    keep = Classification.make_columns(make_config(ignore_labels=("null", "-1"))).spec.keep_labelled
    assert keep is not None
    assert keep(make_table(label=["0,5", "NA", "1,5"])).columns["label"] == ["0,5", "1,5"]
    assert keep(make_table(label=[["a"], None, ["b", None], [-1]])).columns["label"] == [["a"]]
    assert keep(make_table(label=["yes", "NA", None])).columns["label"] == ["yes", "NA"]  # a word among words


def test_minus_100_is_refused_as_a_class() -> None:
    message = catch_error(make_table(label=[0, 1, -100]))
    assert message.startswith(
        "data.label_column (label): the label -100 usually means that a text is not labelled; leave"
    )
    assert make_task(make_table(label=[0, -100]), label_names=("-100", "0")).label_names == ("-100", "0")
    message = catch_error(make_table(("x", "y"), label=[0, -1]))
    assert message.endswith("is not among the data set's classes; leave such rows out with task.ignore_labels -1")


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [["0,00", "0,14", "2"], ["0.00", "0.14", "2"], [Decimal("0"), Decimal("0.14"), 2]])
def test_numbers_with_a_decimal_comma_are_numbers(labels: list[Any]) -> None:
    task = make_task(make_table(label=labels))
    assert task.problem == "regression"
    assert read_targets(task, make_table(label=labels)) == pytest.approx([0.0, 0.14, 2.0])
    with_comma = isinstance(labels[0], str) and "," in labels[0]
    assert task.encoding.reason.endswith("a decimal comma") is with_comma  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["0,5", "1", "0.5"],
            "made.csv:1: label (0,5) has a decimal comma, and made.csv:3 (0.5) a decimal point; write all",
        ),
        (
            ["5", "1,234"],
            "made.csv:2: label (1,234) can be read in two ways; write numbers without separators of thousands",
        ),
        (["5", "1.234,5"], "made.csv:2: label (1.234,5) can be read in two ways; "),
    ],
)
def test_numbers_that_can_be_read_in_two_ways_are_refused(labels: list[str], message: str) -> None:
    task = make_task(make_table(label=labels))
    with pytest.raises(InputError) as caught:
        read_targets(task, make_table(label=labels))
    assert str(caught.value).startswith(message)


# --- warnings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["Positive", "positive", "neg"], [("Positive", "positive")]),
        (
            ["very good", "very-good", "very_good", "Very  Good"],
            [("very good", "very-good", "very_good", "Very  Good")],
        ),
        (["\uff21", "A", "B"], [("\uff21", "A")]),
        (["pos\u200b", "pos"], [("pos\u200b", "pos")]),
        (["C", "C++", "C#", "-", "+", "1.0", "1", "-1", "10"], []),
    ],
)
def test_labels_that_look_alike_are_found(names: list[str], groups: list[tuple[str, ...]]) -> None:
    assert find_lookalikes(names) == groups


def test_what_labels_may_mean_is_a_warning() -> None:
    task = make_task(make_table(label=["Positive", "positive", "neg", "nan", "neg"]))
    warnings = task.encoding.find_warnings({"train": make_table(label=["Positive", "positive", "neg", "nan", "neg"])})
    assert (
        warnings[0] == "labels that look alike are different classes: 'Positive' (1) and 'positive' (1); "
        "write them in one way if they are the same"
    )
    assert warnings[1].startswith("the label 'nan' (1) is a class, and in many files it means that a label is missing")
    assert "task.ignore_labels -1" in find_label_warnings({"-1": 3, "0": 2, "1": 1, "2": 1})[0]
    for scale in (["-1", "0", "1"], ["-1", "1"], ["-2", "-1", "0", "1", "2"], ["a", "b"]):
        assert find_label_warnings(dict.fromkeys(scale, 1)) == []


def test_a_million_rows_are_read_by_their_distinct_values() -> None:
    labels = ["a", "b ", "c", "d", "e"] * 200_000
    table = make_table(label=make_column(labels))
    started = time.process_time()
    task = make_task(table)
    targets = task.encoding.labels(table, {})
    seconds = time.process_time() - started
    assert isinstance(targets, np.ndarray)
    assert np.bincount(targets).tolist() == [200_000] * 5
    assert seconds < 5  # well below 1 s on a quiet machine


@pytest.mark.parametrize("odd", [[1, 0], [], [0, 1, 2], [0, None, 1]])
def test_a_list_without_a_place_for_each_class_is_refused_in_training_and_in_a_test(odd: list[Any]) -> None:
    """The other lists are not read as the numbers of classes because of one of another length."""
    lists, names = [[0, 1, 0], [1, 0, 0], [0, 0, 1]], ("a", "b", "c")
    table = make_table(text=["x"] * 4, label=[*lists, odd])
    message = f"made.csv:4: label ({odd}): the other lists have 3 places of 0 and 1, one for each label"
    assert catch_error(table, label_names=names) == message
    task = make_task(make_table(text=["x"] * 3, label=lists), label_names=names)
    with pytest.raises(InputError) as caught:
        read_targets(task, table)
    assert str(caught.value) == (
        f"made.csv:4: label ({odd}): training has lists of 3 places of 0 and 1, one for each label; write all lists in one way"
    )


def test_labels_that_may_have_separators_of_thousands_stay_as_they_are() -> None:
    table = make_table(text=["x"] * 3, label=["1,000", "12,000", "500"])
    assert set(make_task(table).label_names) == {"1,000", "12,000", "500"}
    assert make_task(make_table(text=["x"] * 2, label=["1,0", "12,0"])).label_names == ("1", "12")


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (("['a', 'b']", "c"), "lists as text"),
        (("a|b", "a", "b"), "1 label looks joined by '|', such as a|b"),
        (
            ("a, b", "b, c", "a, c"),
            "3 labels look joined by ',', such as a, b: for several labels a text, set task.label_separator to ','",
        ),
        (("a / b", "b / a"), "task.label_separator to '/'"),
        (("[a, b]", "[c]"), 'write ["a", "b"]'),
        (("0", "1", "true"), "other classes than false and true"),
    ],
)
def test_labels_that_may_be_meant_in_another_way_are_warned_of(names: tuple[str, ...], part: str) -> None:
    [warning] = find_label_warnings(dict.fromkeys(names, 7))
    assert part in warning


@pytest.mark.parametrize(
    "names",
    [
        ("New York, NY", "Albany, NY"),
        ("a|b", "c"),
        ("[x", "y"),
        ("[x]", "y"),
        ("x/a", "b/c"),
        ("0", "1"),
        ("true", "false"),
    ],
)
def test_other_labels_are_not_warned_of(names: tuple[str, ...]) -> None:
    assert find_label_warnings(dict.fromkeys(names, 7)) == []


def test_a_regression_without_a_number_is_found_by_the_report() -> None:
    table = make_table(text=["x"] * 3, label=["0.5", "1.5", "n/a"])
    task = make_task(table)
    with pytest.raises(InputError, match=r"made.csv:3: label is n/a"):
        task.encoding.count_labels(table)


@pytest.mark.parametrize(
    ("labels", "is_warned"),
    [(["0,1", "0", "1"], True), (["2,27", "27", 2], True), (["0,5", "1", "2"], False), (["0.5", "1", "0"], False)],
)
def test_numbers_that_may_be_several_labels_are_warned_of(labels: list[Any], is_warned: bool) -> None:
    table = make_table(text=["x"] * 3, label=labels)
    task = make_task(table)
    assert task.problem == "regression"
    assert ["task.label_separator ','" in warning for warning in task.encoding.find_warnings({"train": table})] == [
        True
    ] * is_warned


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [("pos", "pos ", ()), (1, "1.0", ()), (["a", "b"], "['b', 'a']", ()), ([1, 0], [True, False], ("a", "b"))],
)
def test_labels_that_mean_the_same_do_not_contradict_each_other(one: Any, other: Any, names: tuple[str, ...]) -> None:
    by_type = {str: ["x", "y"], int: [2, 3], list: [["a"], ["b"]]}
    others = [[0, 1], [1, 1]] if names else by_type[type(one)]
    table = make_table(text=["x"] * 4, label=[one, other, *others])
    unified = make_task(table, label_names=names).encoding.unify_labels(table)
    assert unified is not None
    assert unified[0] == unified[1] != unified[2]


def test_the_report_compares_labels_by_their_meaning() -> None:
    table = make_table(text=["a film", "a film", "b film", "b film"], label=["pos", "pos ", "neg", "pos"])
    report = report_on_rows({"train": table}, make_task(table))
    assert {
        finding.kind: finding.count for finding in report.findings if finding.kind in ("duplicates", "conflicts")
    } == {
        "duplicates": 1,
        "conflicts": 1,
    }


def test_rare_labels_that_look_joined_shall_not_be_joined() -> None:
    table = make_table(text=["a film", "b film", "c film", "d film"], label=["a;b", "b;a", "a", "b"])
    assert not any(
        "join these labels" in warning for warning in report_on_rows({"train": table}, make_task(table)).warnings
    )


@pytest.mark.parametrize("empty", ["set()", "{}", "[]"])
def test_sets_that_are_written_as_text_are_read(empty: str) -> None:
    table = make_table(text=["x"] * 3, label=["{'b', 'a'}", empty, "{'c'}"])
    task = make_task(table)
    assert (task.problem, task.label_names) == ("multi_label", ("a", "b", "c"))
    assert read_targets(task, table) == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_a_missing_label_among_joined_ones_may_be_none() -> None:
    table = make_table(text=["x"] * 4, label=["a,b", "b,a", "", "a"])
    assert catch_error(table).startswith("made.csv:3: label is empty; to leave out")
    assert "task.label_separator ','" in catch_error(table)
    assert read_targets(make_task(table, label_separator=","), table) == [[1, 1], [1, 1], [0, 0], [1, 0]]


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (
            [f"{number}%" for number in range(6)],
            "6 labels in 6 rows are numbers with %: to predict a number, write them",
        ),
        ([f"${number}.50" for number in range(6)], "6 labels in 6 rows are numbers with $"),
        (
            [str(number) for number in range(21)],
            "21 labels in 21 rows are numbers: to predict a number, set task.problem",
        ),
        (["25%", "50%", "100%"], None),
        ([f"q{number}" for number in range(30)] * 3, None),
        ([str(number) for number in range(21)] * 3, None),
    ],
)
def test_numbers_that_are_classes_are_warned_of(labels: list[str], part: str | None) -> None:
    table = make_table(text=["x"] * len(labels), label=labels)
    warnings = make_task(table).encoding.find_warnings({"train": table})
    assert [part in warning for warning in warnings if part] == [True] * (part is not None)
    assert part or not warnings


@pytest.mark.parametrize(
    ("labels", "is_warned"),
    [
        (["1.100", "2.101", "3.500", "4.250", "12.100"], True),
        (["1.100", "2.101", "3.500", "4.250", "0.123"], False),
        (["1.100", "2.101", "3.500", "4.250"], False),
    ],
)
def test_points_that_may_separate_thousands_are_warned_of(labels: list[str], is_warned: bool) -> None:
    table = make_table(text=["x"] * len(labels), label=labels)
    encoding = make_task(table).encoding
    assert ["separates thousands" in warning for warning in encoding.find_warnings({"train": table})] == [
        True
    ] * is_warned
    assert encoding.describe_problem(table)[0][1].endswith(f"to {max(map(float, labels)):g}")


def test_lists_of_one_label_are_single_labels_if_the_settings_say_so() -> None:
    table = make_table(text=["x"] * 3, label=[["pos"], ["neg"], ["pos"]])
    assert "task.problem single_label" in make_task(table).encoding.reason
    task = make_task(table, problem="single_label")
    assert (task.label_names, read_targets(task, table)) == (("neg", "pos"), [1, 0, 1])
    several = make_table(text=["x"] * 3, label=[["pos"], ["neg", "pos"], []])
    assert make_task(several).encoding.reason == "label holds lists"
    assert "(['neg', 'pos']) is not a single label" in catch_error(several, problem="single_label")


def test_rows_with_an_empty_list_are_counted_and_can_be_left_out() -> None:
    table = make_table(text=["x"] * 4, label=[["pos"], ["neg"], [], []])
    assert "2 rows have an empty one" in make_task(table).encoding.reason
    assert catch_error(table, problem="single_label").startswith("made.csv:3: label is an empty list; to leave out")
    for problem, count in (("single_label", 2), ("auto", 4)):
        spec = Classification.make_columns(make_config(problem=problem, ignore_labels=(None,))).spec
        assert spec.keep_labelled is not None
        assert len(spec.keep_labelled(table)) == count


def test_written_lists_of_one_label_are_single_labels_if_the_settings_say_so() -> None:
    table = make_table(text=["x"] * 3, label=["['pos']", '["neg"]', "['pos']"])
    assert "task.problem single_label" in make_task(table).encoding.reason
    task = make_task(table, problem="single_label")
    assert (task.label_names, read_targets(task, table)) == (("neg", "pos"), [1, 0, 1])
    assert read_targets(task, make_table(text=["x"] * 2, label=["neg", "pos"])) == [0, 1]
    several = make_table(text=["x"] * 2, label=["['pos']", "['neg', 'pos']"])
    assert "(['neg', 'pos']) is not a single label" in catch_error(several, problem="single_label")


def test_a_written_list_is_a_label_among_other_texts_and_where_a_class_is_called_so() -> None:
    task = make_task(make_table(text=["x"] * 2, label=["['pos']", "neg"]), problem="single_label")
    assert task.label_names == ("['pos']", "neg")
    assert read_targets(task, make_table(text=["x"], label=["['pos']"])) == [0]


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        ({"id": 1, "name": "pos"}, "set data.label_column to the entry that is the label, such as label.name"),
        ({"id": 1}, "set data.label_column to the entry that is the label, such as label.id"),
        ([{"id": 1}], "write each label as a text"),
    ],
)
def test_the_error_about_an_object_names_its_entry(label: Any, hint: str) -> None:
    assert catch_error(make_table(text=["a", "b"], label=[label, label])).endswith(f"is not a single label; {hint}")


def test_blanks_among_ones_are_zeros_to_be_written() -> None:
    columns = ("toxic", "obscene")
    table = make_table(text=["a", "b"], toxic=["1", ""], obscene=["0", "1"])
    assert catch_error_of_targets(table, columns) == (
        "made.csv:2: toxic is empty; all other rows have 1: write 0 for a text without the label"
    )
    table = make_table(text=["a", "b", "c"], toxic=["1", "", "0"], obscene=["0", "1", "1"])
    assert "toxic is empty; to leave out" in catch_error_of_targets(table, columns)


def catch_error_of_targets(table: Table, columns: tuple[str, ...]) -> str:
    """Returns the InputError about the targets of a table."""
    with pytest.raises(InputError) as caught:
        read_targets(make_task(table, columns), table)
    return str(caught.value)


def test_a_label_that_all_rows_have_is_warned_of() -> None:
    table = make_table(text=["a", "b"], toxic=["1", "1"], obscene=["0", "1"])
    warnings = make_task(table, ("toxic", "obscene")).encoding.find_warnings({"train": table})
    assert warnings == ["all 2 rows have the labels toxic, so that nothing can be learned of them"]


def test_percentages_with_a_decimal_comma_are_not_joined_labels() -> None:
    counts = {"0,0 %": 5, "10,1 %": 5, "20,1 %": 5, "10,0 %": 5}
    assert not [warning for warning in find_label_warnings(counts) if "joined" in warning]


def test_written_empty_lists_are_left_out_as_others_are() -> None:
    table = make_table(text=["x"] * 3, label=["['pos']", "['neg']", "[]"])
    assert catch_error(table, problem="single_label").startswith("made.csv:3: label is an empty list; to leave out")
    spec = Classification.make_columns(make_config(problem="single_label", ignore_labels=(None,))).spec
    assert spec.keep_labelled is not None
    assert len(spec.keep_labelled(table)) == 2


@pytest.mark.parametrize(
    "span", [[0, 4, "PER"], {"start": 0, "end": 4, "labels": ["PER"]}, {"start_offset": 0, "end_offset": 4}]
)
def test_spans_of_characters_are_no_labels(span: Any) -> None:
    error = catch_error(make_table(text=["Anna", "Bob"], label=[[span], []]))
    assert error.endswith("is not a single label; these are spans of characters: --task tag")
