"""What the report says of labels that are numbers, labels of their own for nearly each row, and rare labels."""

from collections.abc import Sequence

import pytest

from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig
from hf_finetune.data.table import Table
from hf_finetune.run.data_report import report_on_rows
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.classify import Classification
from hf_finetune.tasks.classify_columns import Settings


def find_warnings(labels: Sequence[str], **settings: object) -> list[str]:
    """Returns the warnings about a training table with these labels."""
    count = len(labels)
    texts = [f"text number {row}" for row in range(count)]
    table = Table(
        columns={"text": texts, "label": list(labels)}, files=["a.csv"] * count, lines=list(range(1, count + 1))
    )
    task = Settings(kind="classify", **settings)  # type: ignore[arg-type]
    config = RunConfig(model=ModelConfig(backbone="-"), data=DataConfig(train=("-",), label_column="label"), task=task)
    return report_on_rows({"train": table}, Classification.from_table(config, table)).warnings


@pytest.mark.parametrize(
    ("labels", "warning"),
    [
        ([f"{number}%" for number in range(40)], "40 labels in 40 rows are numbers with %: to predict a number, write"),
        (
            [f"${number}.50" for number in range(40)],
            "40 labels in 40 rows are numbers with $: to predict a number, write",
        ),
        ([str(1900 + number) for number in range(40)], "40 labels in 40 rows are numbers: to predict a number, set"),
        (
            [f"ID{number}" for number in range(40)],
            "label has 40 different labels in 40 rows, as ids, dates and texts have",
        ),
        ([f"2021-01-{number + 10}" for number in range(21)] * 2, "label has 21 different labels in 42 rows, as ids"),
    ],
)
def test_labels_that_are_no_classes_are_one_warning(labels: list[str], warning: str) -> None:
    """That they are rare is not a second one: adding examples or joining them with others would be wrong."""
    (found,) = find_warnings(labels)
    assert found.startswith(warning)


@pytest.mark.parametrize(
    ("labels", "way_out"),
    [
        (
            [str(number % 5 + 1) for number in range(20)],
            "add examples; if the labels are numbers to predict, set task.pr",
        ),
        (
            ["25%", "50%", "75%"] * 4,
            "add examples; if the labels are numbers to predict, write them without % and set ",
        ),
        (["0", "1"] * 4, "add examples, or join these labels with others"),
        (["good", "bad", "4"] * 4, "add examples, or join these labels with others"),
        (["a|b", "a", "b"] * 4, "add examples"),
    ],
)
def test_the_advice_on_rare_labels_fits_what_they_are(labels: list[str], way_out: str) -> None:
    rare = next(sentence for sentence in find_warnings(labels) if "fewer than 5 examples" in sentence)
    assert rare.partition("they will hardly be learned: ")[2].startswith(way_out)


def test_numbers_to_predict_have_no_rare_labels() -> None:
    labels = [f"{number}.5" for number in range(20)]
    assert find_warnings(labels) == []
    assert find_warnings([str(number) for number in range(40)], problem="regression") == []


def test_labels_that_the_settings_name_are_classes() -> None:
    names = tuple(f"ID{number}" for number in range(40))
    (rare,) = find_warnings(names, label_names=names)
    assert "40 labels have fewer than 5 examples" in rare


def test_0_and_1_next_to_true_and_false_in_any_case_are_a_warning() -> None:
    assert find_warnings(["TRUE", "False", "1", "0"] * 5) == [
        "0 and 1 are other classes than false and true: 0 5, 1 5, False 5, TRUE 5; write them in one way if they are the same"
    ]


def test_long_labels_are_cut_in_the_report() -> None:
    (rare,) = find_warnings(["a" * 100, "b" * 100, "c"] * 3)
    assert f"such as {'a' * 37}... (3) and {'b' * 37}... (3);" in rare


def test_a_number_with_a_sign_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        InputError, match=r"a.csv:1: label \('49%'\) is not a number, .* regression needs; write it without %"
    ):
        find_warnings(["49%", "50%"], problem="regression")
