"""Labels, losses, decisions and errors of the classification task, for all three problems."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax

from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig, TaskConfig, TrainConfig
from hf_finetune.data.features import Batch
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import TASKS, build
from hf_finetune.tasks.base import Task
from hf_finetune.tasks.classify import Classification, guess_problem, numeric_first

SEEDS = (0, 1, 2)


def make_table(labels: Sequence[Any], class_names: tuple[str, ...] | None = None) -> Table:
    """A table with these labels; its rows come from lines 1, 2, ... of made.csv."""
    count = len(labels)
    columns = {"text": ["text"] * count, "label": list(labels)}
    return Table(columns=columns, files=["made.csv"] * count, lines=list(range(1, count + 1)), class_names=class_names)


def make_run_config(problem: Any = "auto", separator: str | None = None, smoothing: float = 0.0) -> RunConfig:
    """A config with this task."""
    return RunConfig(
        model=ModelConfig(backbone="unused"),
        data=DataConfig(train=("unused",)),
        task=TaskConfig(problem=problem, label_separator=separator),
        train=TrainConfig(label_smoothing=smoothing),
    )


def make_task(labels: Sequence[Any], class_names: tuple[str, ...] | None = None, **options: Any) -> Classification:
    """The task that these training labels make."""
    return Classification.from_table(make_run_config(**options), make_table(labels, class_names))


def task_of(problem: str, names: Sequence[str] = ("a", "b", "c"), smoothing: float = 0.0) -> Classification:
    """A task without a table."""
    return Classification(problem=problem, label_names=tuple(names), label_column="label", label_smoothing=smoothing)


def batch_of(labels: torch.Tensor) -> Batch:
    """A batch as far as a loss reads it."""
    rows = np.arange(len(labels))
    return Batch(
        feature_indices=rows,
        sequence_indices=rows,
        sequence_counts=np.ones(len(rows), dtype=np.int64),
        inputs={},
        labels=labels,
    )


def error_of(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The text of the InputError of a call: one line."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


# --- which problem --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "separator", "problem", "reason"),
    [
        (["a", "b"], None, "single_label", "label holds single labels"),
        ([1, 2, 0], None, "single_label", "label holds single labels"),
        ([1.0, 2.0], None, "single_label", "label holds single labels"),
        (["1", "2"], None, "single_label", "label holds single labels"),
        ([True, False], None, "single_label", "label holds single labels"),
        (["1.5", "a"], None, "single_label", "label holds single labels"),
        (["1.5", ""], None, "single_label", "label holds single labels"),
        ([10**400, 1], None, "single_label", "label holds single labels"),
        (["a|b", "c"], None, "single_label", "label holds single labels"),
        ([0.5, 1.0], None, "regression", "label holds numbers with fractions"),
        ([1, 0.25, 3], None, "regression", "label holds numbers with fractions"),
        (["0.5", "2"], None, "regression", "label holds numbers with fractions"),
        ([1.0, float("nan")], None, "regression", "label holds numbers with fractions"),
        ([1.0, float("inf")], None, "regression", "label holds numbers with fractions"),
        (["1", "nan"], None, "regression", "label holds numbers with fractions"),
        ([["a"], []], None, "multi_label", "label holds lists"),
        ([("a",), ("b",)], None, "multi_label", "label holds lists"),
        ([None, ["a"]], None, "multi_label", "label holds lists"),
        (["a,b", "c"], ",", "multi_label", "task.label_separator splits label"),
    ],
)
def test_the_problem_is_told_by_the_label_column(
    labels: list[Any], separator: str | None, problem: str, reason: str
) -> None:
    assert guess_problem(make_table(labels), "label", separator) == (problem, reason)


def test_the_order_of_rows_does_not_decide_the_problem() -> None:
    for labels in (["1.5", "cat", "2"], ["cat", "1.5", "2"], ["2", "1.5", "cat"]):
        assert guess_problem(make_table(labels), "label", None)[0] == "single_label"


def test_the_settings_word_goes_over_the_guess() -> None:
    task = make_task([0.5, 1.5], problem="regression")
    assert (task.problem, task.reason) == ("regression", "as task.problem says")
    assert make_task(["1", "2", "3"], problem="regression").label_names == ("score",)
    assert make_task(["1.5", "2.5"], problem="single_label").label_names == ("1.5", "2.5")


def test_build_makes_the_task_by_its_name() -> None:
    task: Task = build("classification", make_run_config(), make_table(["a", "b"]))
    assert (task.name, task.auto_class) == ("classification", "AutoModelForSequenceClassification")
    assert task.label_names == ("a", "b")
    assert TASKS["classification"] is Classification
    assert all(task.name == name for name, task in TASKS.items())


# --- labels and their order -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["dog", "cat", "ant", "cat"], ("ant", "cat", "dog")),
        (["10", "9", "-1", "2"], ("-1", "2", "9", "10")),
        ([10, 9, -1, 2], ("-1", "2", "9", "10")),
        ([2.0, 10.0, 1], ("1", "2", "10")),
        (["b", "10", "9", "a"], ("9", "10", "a", "b")),
        (["--5", "-", "5"], ("5", "-", "--5")),
        (["1", "01", "001"], ("001", "01", "1")),
        ([str(2**60 + 1), str(2**60)], (str(2**60), str(2**60 + 1))),
        ([True, False], ("False", "True")),
        (["Zoo", "ärger", "apple"], ("Zoo", "apple", "ärger")),
    ],
)
def test_labels_are_ordered_by_value_or_alphabet_and_never_by_first_seen(
    labels: list[Any], names: tuple[str, ...]
) -> None:
    for seed in SEEDS:
        shuffled = [labels[place] for place in np.random.default_rng(seed).permutation(len(labels))]
        assert make_task(shuffled, problem="single_label").label_names == names


def test_numeric_first_puts_whole_numbers_by_value_before_names() -> None:
    assert sorted(["b", "10", "-2", "a", "9", "1.5"], key=numeric_first) == ["-2", "9", "10", "1.5", "a", "b"]


def test_class_names_of_the_data_set_keep_their_order_and_their_numbers() -> None:
    table = make_table([2, 0, 2], ("zebra", "ant", "mole"))
    task = Classification.from_table(make_run_config(), table)
    assert task.label_names == ("zebra", "ant", "mole")
    assert task.labels(table, {}).tolist() == [2, 0, 2]
    assert task.labels(make_table(["mole", "zebra"]), {}).tolist() == [2, 0]


def test_class_names_of_a_list_column_are_used_too() -> None:
    table = make_table([[0, 2], [], [1]], ("zebra", "ant", "mole"))
    task = Classification.from_table(make_run_config(), table)
    assert (task.problem, task.label_names) == ("multi_label", ("zebra", "ant", "mole"))
    assert task.labels(table, {}).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_single_labels_become_class_numbers() -> None:
    labels = ["b", "a", "c", "a"]
    encoded = make_task(labels).labels(make_table(labels), {})
    assert encoded.tolist() == [1, 0, 2, 0]
    assert encoded.dtype == np.int64


def test_numbers_mean_the_same_class_as_whole_number_floats_and_strings() -> None:
    task = make_task([0, 1, 2])
    assert task.labels(make_table([2.0, 1, "0"]), {}).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("labels", "separator"),
    [([["b", "a"], ["c"], [], ["a", "a"]], None), (["b|a", "c", "", "a|a"], "|"), (["b | a ", " c", " ", "|a|"], "|"),
     ([("b", "a"), ["c"], (), "a"], "|")],
)  # fmt: skip
def test_several_labels_become_0_and_1(labels: list[Any], separator: str | None) -> None:
    table = make_table(labels)
    task = Classification.from_table(make_run_config(separator=separator), table)
    encoded = task.labels(table, {})
    assert task.label_names == ("a", "b", "c")
    assert encoded.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert encoded.dtype == np.float32


def test_numbers_become_numbers() -> None:
    encoded = make_task([0.5, 2]).labels(make_table(["0.5", -1, 2.25, " 3e2 "]), {})
    assert encoded.tolist() == [0.5, -1.0, 2.25, 300.0]
    assert encoded.dtype == np.float32


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["a", "a"], {}, "data.label_column (label): training has only 'a'; two classes are the least"),
        ([1, 1.0, "1"], {"problem": "single_label"}, "data.label_column (label): training has only '1'; "),
        ([["a"], ["a"]], {}, "data.label_column (label): training has only 'a'; "),
        ([[], []], {}, "data.label_column (label): training has no label; "),
        (["a", None], {}, "made.csv:2: label is null"),
        (["a", "b", ""], {}, "made.csv:3: label is empty"),
        (["a", "b", " \t"], {}, "made.csv:3: label is empty"),
        ([["a", "b"], None], {}, "made.csv:2: label is null; a row without labels has an empty list"),
        ([["a", "b"], ["a", None]], {}, "made.csv:2: label is null"),
        ([["a", "b"], ["a", ""]], {}, "made.csv:2: label is empty"),
        ([["a", "b"], [["a"]]], {}, "made.csv:2: label (['a']) is no single label; see task.problem"),
        ([["a", "b"], [0.5]], {}, "made.csv:2: label (0.5) is no class; see task.problem regression"),
        ([["a", "b"], "a"], {}, "made.csv:2: label (a) is no list; a string of several labels needs task.label_sep"),
        ([["a", "b"], 5], {"separator": ","}, "made.csv:2: label (5) is no list; "),
        (["a", None], {"separator": ","}, "made.csv:2: label is null; "),
        ([["a"], "b"], {"problem": "single_label"}, "made.csv:1: label (['a']) is no single label; see task.problem"),
        ([{"a": 1}, "b"], {}, "made.csv:1: label ({'a': 1}) is no single label; see task.problem"),
        ([1, 0.5], {"problem": "single_label"}, "made.csv:2: label (0.5) is no class; see task.problem regression"),
        ([1, math.nan], {"problem": "single_label"}, "made.csv:2: label (nan) is no class; "),
        ([1, math.inf], {"problem": "single_label"}, "made.csv:2: label (inf) is no class; "),
        (["a", "b"], {"problem": "regression", "smoothing": 0.1}, "train.label_smoothing (0.1): is for single_label"),
        ([["a"], ["b"]], {"smoothing": 0.1}, "train.label_smoothing (0.1): is for single_label problems, and this one"),
        ([0, 2], {"class_names": ("x", "y")}, "made.csv:2: label (2) is not among the data set's classes"),
        ([0, -1], {"class_names": ("x", "y")}, "made.csv:2: label (-1) is not among the data set's classes"),
        ([0, 0], {"class_names": ("x", "y")}, "data.label_column (label): training has only 'x'; "),
    ],
)
def test_training_labels_that_cannot_be_used_are_named(
    labels: list[Any], options: dict[str, Any], message: str
) -> None:
    assert error_of(make_task, labels, **options).startswith(message)


@pytest.mark.parametrize(
    ("training", "labels", "message"),
    [
        (["a", "b"], ["b", "c"], "made.csv:2: the label 'c' is not among the 2 that training has"),
        ([["a", "b"]], [["b"], ["a", "new"]], "made.csv:2: the label 'new' is not among the 2 that training has"),
        (["a", "b"], ["a", None], "made.csv:2: label is null"),
        (["a", "b"], ["a", ["b"]], "made.csv:2: label (['b']) is no single label"),
        ([["a", "b"]], [["a"], None], "made.csv:2: label is null; "),
        (["1", "2"], ["1", "02"], "made.csv:2: the label '02' is not among the 2"),
    ],
)
def test_labels_of_other_splits_that_training_lacks_are_named(
    training: list[Any], labels: list[Any], message: str
) -> None:
    assert error_of(make_task(training).labels, make_table(labels), {}).startswith(message)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("high", "label ('high') is no number, as task.problem regression needs"),
        ("", "label ('') is no number"),
        (None, "label (null) is no number"),
        (True, "label (True) is no number"),
        ([0.5], "label ([0.5]) is no number"),
        (math.nan, "label (nan) is not finite"),
        ("nan", "label (nan) is not finite"),
        ("inf", "label (inf) is not finite"),
        (-math.inf, "label (-inf) is not finite"),
        (1e39, "label (1e+39) is not finite, or too large for float32"),
        ("-1e300", "label (-1e+300) is not finite, or too large for float32"),
        (10**400, "label (inf) is not finite, or too large for float32"),
    ],
)
def test_numbers_that_are_none_are_named(value: Any, message: str) -> None:
    task = make_task([0.5, 1.5], problem="regression")
    assert error_of(task.labels, make_table([0.5, 1, value]), {}).startswith(f"made.csv:3: {message}")


def test_the_largest_numbers_that_float32_holds_are_taken() -> None:
    largest = float(np.finfo(np.float32).max)
    encoded = make_task([0.5, 1.5]).labels(make_table([largest, -largest, 1e-50]), {})
    assert np.isfinite(encoded).all()


# --- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_single_label_loss_is_the_sum_of_cross_entropy(seed: int, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(7, 3, generator=generator), torch.randint(0, 3, (7,), generator=generator)
    total, count = task_of("single_label", smoothing=smoothing).loss(logits, batch_of(labels))
    assert count == 7
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, labels)
    torch.testing.assert_close(total / count, theirs)
    logarithms = log_softmax(logits.numpy(), axis=-1)
    by_hand = -(1 - smoothing) * logarithms[np.arange(7), labels].sum() - smoothing * logarithms.mean(-1).sum()
    assert float(total) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_multi_label_loss_is_the_sum_of_binary_cross_entropy_over_all_decisions(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(7, 3, generator=generator), torch.randint(0, 2, (7, 3), generator=generator).float()
    total, count = task_of("multi_label").loss(logits, batch_of(labels))
    assert count == 21
    torch.testing.assert_close(total / count, torch.nn.BCEWithLogitsLoss()(logits, labels))
    chance, truth = expit(logits.numpy()), labels.numpy()
    assert float(total) == pytest.approx(-np.log(np.where(truth == 1, chance, 1 - chance)).sum(), rel=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_regression_loss_is_the_sum_of_squares(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(7, 1, generator=generator), torch.randn(7, generator=generator)
    total, count = task_of("regression", ["score"]).loss(logits, batch_of(labels))
    assert count == 7
    torch.testing.assert_close(total / count, torch.nn.MSELoss()(logits[:, 0], labels))
    assert float(total) == pytest.approx(float(((logits[:, 0] - labels) ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [("single_label", torch.tensor([0, 2])), ("multi_label", torch.eye(2, 3)), ("regression", torch.zeros(2))],
)
def test_a_loss_is_summed_in_fp32_and_has_a_gradient(problem: str, labels: torch.Tensor) -> None:
    columns = 1 if problem == "regression" else 3
    logits = torch.randn(2, columns, dtype=torch.bfloat16, requires_grad=True)
    total, _ = task_of(problem).loss(logits, batch_of(labels))
    assert total.dtype == torch.float32
    total.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_losses_of_parts_add_up_to_the_loss_of_the_whole() -> None:
    for problem, labels in (("single_label", torch.tensor([0, 2, 1, 1, 0])), ("multi_label", torch.eye(5, 3)),
                            ("regression", torch.arange(5.0))):  # fmt: skip
        task, logits = task_of(problem, smoothing=0.1 if problem == "single_label" else 0.0), torch.randn(5, 3)
        logits = logits[:, :1] if problem == "regression" else logits
        whole, count = task.loss(logits, batch_of(labels))
        parts = [task.loss(logits[part], batch_of(labels[part])) for part in (slice(0, 2), slice(2, 5))]
        assert sum(part[1] for part in parts) == count
        torch.testing.assert_close(parts[0][0] + parts[1][0], whole)


# --- decisions ------------------------------------------------------------------------------------------------------

LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, -0.1, -2.0], [0.1, 0.2, 0.3]], dtype=np.float32)


def test_single_label_decides_for_the_largest() -> None:
    task = task_of("single_label")
    assert task.decode(LOGITS).tolist() == [0, 1, 2]
    scores = task.scores(LOGITS)
    np.testing.assert_allclose(scores, torch.softmax(torch.from_numpy(LOGITS), -1).numpy(), rtol=1e-5)
    described = task.describe_scores(scores[1])
    assert described["label"] == "b"
    assert list(described["probabilities"]) == ["a", "b", "c"]
    assert sum(described["probabilities"].values()) == pytest.approx(1.0)


def test_multi_label_decides_for_all_above_one_half() -> None:
    task = task_of("multi_label")
    assert task.decode(LOGITS).tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 1]]
    scores = task.scores(LOGITS)
    np.testing.assert_allclose(scores, torch.sigmoid(torch.from_numpy(LOGITS)).numpy(), rtol=1e-5)
    assert [task.describe_scores(row)["labels"] for row in scores] == [["a", "c"], [], ["a", "b", "c"]]
    assert task.describe_scores(scores[0])["probabilities"] == pytest.approx(
        {"a": 0.8808, "b": 0.2689, "c": 0.6225}, abs=1e-4
    )
    assert task.decode(np.zeros((1, 3), dtype=np.float32)).tolist() == [[0, 0, 0]]


def test_regression_gives_the_number_itself() -> None:
    task, outputs = task_of("regression", ["score"]), np.array([[0.25], [-7.5]], dtype=np.float32)
    assert task.decode(outputs).tolist() == [0.25, -7.5]
    assert task.scores(outputs).tolist() == [[0.25], [-7.5]]
    assert task.describe_scores(task.scores(outputs)[1]) == {"score": -7.5}


def test_what_is_described_is_what_is_decoded() -> None:
    for seed in SEEDS:
        logits = np.random.default_rng(seed).normal(size=(20, 3)).astype(np.float32)
        single, several = task_of("single_label"), task_of("multi_label")
        names = [single.describe_scores(row)["label"] for row in single.scores(logits)]
        assert [single.label_names[number] for number in single.decode(logits)] == names
        sets = [several.describe_scores(row)["labels"] for row in several.scores(logits)]
        assert [[name for name, on in zip("abc", row, strict=True) if on] for row in several.decode(logits)] == sets


def test_plain_values_come_out_of_describe() -> None:
    described = task_of("multi_label").describe_scores(np.array([0.9, 0.1, 0.6], dtype=np.float32))  # type: ignore[arg-type]
    assert all(type(score) is float for score in described["probabilities"].values())


@pytest.mark.parametrize(
    ("problem", "default", "names"),
    [
        ("single_label", "accuracy", ("accuracy", "f1_macro")),
        ("multi_label", "f1_micro", ("f1_micro", "f1_macro", "exact_match")),
        ("regression", "pearson", ("pearson", "spearman", "mse")),
    ],
)
def test_every_problem_has_its_metrics(problem: str, default: str, names: tuple[str, ...]) -> None:
    task = task_of(problem)
    assert (task.default_metric, task.metric_names) == (default, names)
