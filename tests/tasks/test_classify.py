"""The parts of classification, for all three problems: labels, losses, predictions, errors."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax

from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig, TrainConfig
from hf_finetune.data.features import Batch, ClassSets
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.class_scoring import ClassificationObjective, ClassificationScoring
from hf_finetune.tasks.classify import Classification
from hf_finetune.tasks.classify_columns import Settings, TextColumns
from hf_finetune.tasks.labels import sort_numbers_first
from hf_finetune.tasks.text.label_reader import guess_problem

SEEDS = (0, 1, 2)


def make_table(labels: Sequence[Any], class_names: tuple[str, ...] | None = None) -> Table:
    """Returns a table of these labels, from lines 1, 2, ... of made.csv."""
    count = len(labels)
    columns = {"text": ["text"] * count, "label": list(labels)}
    return Table(columns=columns, files=["made.csv"] * count, lines=list(range(1, count + 1)), class_names=class_names)


def make_run_config(problem: Any = "auto", separator: str | None = None, smoothing: float = 0.0) -> RunConfig:
    """Returns a config that is never run."""
    return RunConfig(
        model=ModelConfig(backbone="unused"),
        data=DataConfig(train=("unused",)),
        task=Settings(kind="classify", problem=problem, label_separator=separator),
        train=TrainConfig(label_smoothing=smoothing),
    )


def make_task(labels: Sequence[Any], class_names: tuple[str, ...] | None = None, **options: Any) -> Classification:
    """Returns the task for these training labels."""
    return Classification.from_table(make_run_config(**options), make_table(labels, class_names))


def make_scoring(problem: str, names: Sequence[str] = ("a", "b", "c")) -> ClassificationScoring:
    """Returns the scoring of a problem."""
    return ClassificationScoring(problem=problem, label_names=tuple(names))


def encode_labels(task: Classification, labels: Sequence[Any]) -> np.ndarray:
    """Returns the targets of a table with these labels, as batches have them."""
    targets = task.encoding.labels(make_table(labels), {})
    assert targets is not None
    return targets.gather(np.arange(len(labels))) if isinstance(targets, ClassSets) else targets  # type: ignore[return-value]


def make_batch(labels: torch.Tensor) -> Batch:
    """Returns a batch that has all that a loss reads."""
    indices = np.arange(len(labels))
    return Batch(
        feature_indices=indices,
        sequence_indices=indices,
        sequence_counts=np.ones(len(indices), dtype=np.int64),
        inputs={},
        labels=labels,
    )


def catch_error(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Calls a function; returns the message of its InputError, one line."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


# --- columns and problem ---------------------------------------------------------------------------------------------


def test_columns_of_one_text_and_of_a_pair() -> None:
    single, pair = TextColumns(texts=("text",), label="label"), TextColumns(texts=("one", "two"), label="label")
    assert (single.spec.inputs, single.spec.labels, single.spec.strata) == (("text",), ("label",), "label")
    assert TextColumns(texts=("text",), label="score", numbers=True).spec.strata is None
    assert single.make_row(["a cat"]) == {"text": "a cat"}
    assert pair.make_row(["a cat", "a dog"]) == {"one": "a cat", "two": "a dog"}
    assert catch_error(single.make_row, ["a", "b"]) == "--text: takes one text, as the model was trained"
    assert catch_error(pair.make_row, ["a"]) == "--text: takes two texts, as the model was trained"


@pytest.mark.parametrize(
    ("labels", "separator", "problem", "reason"),
    [
        (["a", "b"], None, "single_label", "label holds single labels"),
        ([1, 2, 0], None, "single_label", "label holds single labels"),
        ([1.0, 2.0], None, "single_label", "label holds single labels"),
        (["1", "2"], None, "single_label", "label holds single labels"),
        ([True, False], None, "single_label", "label holds single labels"),
        (["1.5", "a"], None, "single_label", "label holds single labels"),
        (["1.5", ""], None, "regression", "label holds numbers with fractions"),
        ([10**400, 1], None, "single_label", "label holds single labels"),
        (["a|b", "c"], None, "single_label", "label holds single labels"),
        ([0.5, 1.0], None, "regression", "label holds numbers with fractions"),
        ([1, 0.25, 3], None, "regression", "label holds numbers with fractions"),
        (["0.5", "2"], None, "regression", "label holds numbers with fractions"),
        ([1.0, float("nan")], None, "single_label", "label holds single labels"),
        ([1.0, float("inf")], None, "regression", "label holds numbers with fractions"),
        (["1", "nan"], None, "single_label", "label holds single labels"),
        ([["a", "b"], []], None, "multi_label", "label holds lists"),
        ([("a", "b"), ("b",)], None, "multi_label", "label holds lists"),
        ([None, ["a", "b"]], None, "multi_label", "label holds lists"),
        (["a,b", "c"], ",", "multi_label", "task.label_separator splits label"),
    ],
)
def test_the_label_column_decides_the_problem(
    labels: list[Any], separator: str | None, problem: str, reason: str
) -> None:
    assert guess_problem(make_table(labels), "label", separator) == (problem, reason)


def test_the_order_of_rows_does_not_change_the_problem() -> None:
    for labels in (["1.5", "cat", "2"], ["cat", "1.5", "2"], ["2", "1.5", "cat"]):
        assert guess_problem(make_table(labels), "label", None)[0] == "single_label"


def test_the_setting_overrides_the_guess() -> None:
    task = make_task([0.5, 1.5], problem="regression")
    assert task.problem == "regression"
    assert task.encoding.reason == "set by task.problem"  # type: ignore[attr-defined]
    assert make_task(["1", "2", "3"], problem="regression").label_names == ("score",)
    assert make_task(["1.5", "2.5"], problem="single_label").label_names == ("1.5", "2.5")


@pytest.mark.parametrize("labels", [["b", "a", "b"], [["a"], ["b", "c"]], [0.5, 1.5]])
def test_a_task_made_from_its_state_is_the_same(labels: list[Any]) -> None:
    task = make_task(labels)
    again = Classification.from_state(make_run_config(), task.state_dict())
    assert (again.problem, again.label_names, again.head) == (task.problem, task.label_names, task.head)
    assert (again.objective, again.scoring) == (task.objective, task.scoring)
    assert task.head.auto_class == "AutoModelForSequenceClassification"


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
        ([True, False], ("false", "true")),
        (["Zoo", "ärger", "apple"], ("Zoo", "apple", "ärger")),
    ],
)
def test_labels_are_ordered_by_value_or_alphabet_and_never_by_their_rows(
    labels: list[Any], names: tuple[str, ...]
) -> None:
    for seed in SEEDS:
        shuffled = [labels[index] for index in np.random.default_rng(seed).permutation(len(labels))]
        assert make_task(shuffled, problem="single_label").label_names == names


def test_sort_numbers_first_puts_numbers_by_value_before_names() -> None:
    assert sorted(["b", "10", "-2", "a", "9", "1.5"], key=sort_numbers_first) == ["-2", "1.5", "9", "10", "a", "b"]


def test_class_names_of_a_data_set_keep_their_order_and_their_numbers() -> None:
    table = make_table([2, 0, 2], ("zebra", "ant", "mole"))
    task = Classification.from_table(make_run_config(), table)
    assert task.label_names == ("zebra", "ant", "mole")
    assert task.encoding.labels(table, {}).tolist() == [2, 0, 2]  # type: ignore[union-attr]
    assert encode_labels(task, ["mole", "zebra"]).tolist() == [2, 0]


def test_class_names_of_a_list_column_are_used() -> None:
    table = make_table([[0, 2], [], [1]], ("zebra", "ant", "mole"))
    task = Classification.from_table(make_run_config(), table)
    assert (task.problem, task.label_names) == ("multi_label", ("zebra", "ant", "mole"))
    targets = task.encoding.labels(table, {})
    assert isinstance(targets, ClassSets)
    assert targets.gather(np.arange(3)).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert targets.gather(np.array([2, 0])).tolist() == [[0, 1, 0], [1, 0, 1]]


def test_single_labels_become_class_numbers() -> None:
    labels = ["b", "a", "c", "a"]
    encoded = encode_labels(make_task(labels), labels)
    assert encoded.tolist() == [1, 0, 2, 0]
    assert encoded.dtype == np.int64


def test_numbers_mean_the_same_class_as_whole_number_floats_and_strings() -> None:
    task = make_task([0, 1, 2])
    assert encode_labels(task, [2.0, 1, "0"]).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("labels", "separator"),
    [
        ([["b", "a"], ["c"], [], ["a", "a"]], None),
        (["b|a", "c", "", "a|a"], "|"),
        (["b | a ", " c", " ", "|a|"], "|"),
        ([("b", "a"), ["c"], (), "a"], "|"),
    ],
)
def test_several_labels_become_0_and_1(labels: list[Any], separator: str | None) -> None:
    table = make_table(labels)
    task = Classification.from_table(make_run_config(separator=separator), table)
    encoded = encode_labels(task, labels)
    assert task.label_names == ("a", "b", "c")
    assert encoded.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert encoded.dtype == np.float32


def test_numbers_become_numbers() -> None:
    encoded = encode_labels(make_task([0.5, 2]), ["0.5", -1, 2.25, " 3e2 "])
    assert encoded.tolist() == [0.5, -1.0, 2.25, 300.0]
    assert encoded.dtype == np.float32


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["a", "a"], {}, "data.label_column (label): training has only 'a'; at least two classes are needed"),
        ([1, 1.0, "1"], {"problem": "single_label"}, "data.label_column (label): training has only '1'; "),
        ([["a"], ["a"]], {}, "data.label_column (label): training has only 'a'; "),
        ([[], []], {}, "data.label_column (label): training has no label; "),
        (["a", None], {}, "made.csv:2: label is null"),
        (["a", "b", ""], {}, "made.csv:3: label is empty"),
        (["a", "b", " \t"], {}, "made.csv:3: label is empty"),
        ([["a", "b"], None], {}, "made.csv:2: label is null; give a row without labels an empty list"),
        ([["a", "b"], ["a", None]], {}, "made.csv:2: label is null"),
        ([["a", "b"], ["a", ""]], {}, "made.csv:2: label is empty"),
        (
            [["a", "b"], [["a"]]],
            {},
            "made.csv:2: label (['a']) is not a single label; write each label as a text",
        ),
        ([["a", "b"], [0.5]], {}, "made.csv:2: label (0.5) is not a class; set task.problem to regression for numbers"),
        ([["a", "b"], "a"], {}, "made.csv:2: label (a) is not a list; a string of several labels needs task.label_sep"),
        ([["a", "b"], 5], {"separator": ","}, "made.csv:2: label (5) is not a list; "),
        (["a", None], {"separator": ","}, "made.csv:2: label is null; "),
        (
            [["a", "b"], "b"],
            {"problem": "single_label"},
            "made.csv:1: label (['a', 'b']) is not a single label; set task.problem to multi_label for lists",
        ),
        (
            [{"a": 1}, "b"],
            {},
            "made.csv:1: label ({'a': 1}) is not a single label; set data.label_column to the entry "
            "that is the label, such as label.a",
        ),
        (
            [1, 0.5],
            {"problem": "single_label"},
            "made.csv:2: label (0.5) is not a class; set task.problem to regression for numbers",
        ),
        (
            [1, math.nan],
            {"problem": "single_label"},
            "made.csv:2: label is nan; to leave out the rows without a label, ",
        ),
        ([1, math.inf], {"problem": "single_label"}, "made.csv:2: label (inf) is not a class; "),
        (["a", "b"], {"problem": "regression", "smoothing": 0.1}, "train.label_smoothing (0.1): is for single_label"),
        ([["a"], ["b"]], {"smoothing": 0.1}, "train.label_smoothing (0.1): is for single_label problems, and this one"),
        ([0, 2], {"class_names": ("x", "y")}, "made.csv:2: label (2) is not among the data set's classes"),
        ([0, -1], {"class_names": ("x", "y")}, "made.csv:2: label (-1) is not among the data set's classes"),
        ([0, 0], {"class_names": ("x", "y")}, "data.label_column (label): training has only 'x'; "),
    ],
)
def test_training_labels_that_cannot_be_used_are_errors(
    labels: list[Any], options: dict[str, Any], message: str
) -> None:
    assert catch_error(make_task, labels, **options).startswith(message)


@pytest.mark.parametrize(
    ("training", "labels", "message"),
    [
        (["a", "b"], ["b", "c"], "made.csv:2: the label 'c' is not one of the 2 labels of the training data"),
        (
            [["a", "b"]],
            [["b"], ["a", "new"]],
            "made.csv:2: the label 'new' is not one of the 2 labels of the training data",
        ),
        (["a", "b"], ["a", None], "made.csv:2: label is null"),
        (["a", "b"], ["a", ["a", "b"]], "made.csv:2: label (['a', 'b']) is not a single label"),
        ([["a", "b"]], [["a"], None], "made.csv:2: label is null; "),
        (["1", "2"], ["1", "02"], "made.csv:2: the label '02' is not one of the 2"),
    ],
)
def test_labels_that_training_does_not_have_are_errors_with_their_line(
    training: list[Any], labels: list[Any], message: str
) -> None:
    assert catch_error(encode_labels, make_task(training), labels).startswith(message)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("high", "label ('high') is not a number, which task.problem regression needs"),
        ("", "label is empty; to leave out"),
        (None, "label is null; to leave out the rows without a label, set task.ignore_labels to null"),
        (True, "label (True) is not a number"),
        ([0.5], "label ([0.5]) is not a number"),
        (math.nan, "label is nan; to leave out"),
        ("nan", "label is nan; to leave out"),
        ("inf", "label (inf) is not finite"),
        (-math.inf, "label (-inf) is not finite"),
        (1e39, "label (1e+39) is not finite, or too large for float32"),
        ("-1e300", "label (-1e+300) is not finite, or too large for float32"),
        (10**400, "label (inf) is not finite, or too large for float32"),
    ],
)
def test_values_that_are_not_finite_numbers_are_errors_with_their_line(value: Any, message: str) -> None:
    task = make_task([0.5, 1.5], problem="regression")
    assert catch_error(encode_labels, task, [0.5, 1, value]).startswith(f"made.csv:3: {message}")


def test_the_largest_float32_numbers_can_be_predicted() -> None:
    largest = float(np.finfo(np.float32).max)
    encoded = encode_labels(make_task([0.5, 1.5]), [largest, -largest, 1e-50])
    assert np.isfinite(encoded).all()


# --- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_single_label_loss_is_the_sum_of_cross_entropy(seed: int, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(7, 3, generator=generator), torch.randint(0, 3, (7,), generator=generator)
    total, count = ClassificationObjective(problem="single_label", label_smoothing=smoothing).loss(
        logits, make_batch(labels)
    )
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
    total, count = ClassificationObjective(problem="multi_label").loss(logits, make_batch(labels))
    assert count == 21
    torch.testing.assert_close(total / count, torch.nn.BCEWithLogitsLoss()(logits, labels))
    chance, truth = expit(logits.numpy()), labels.numpy()
    assert float(total) == pytest.approx(-np.log(np.where(truth == 1, chance, 1 - chance)).sum(), rel=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_regression_loss_is_the_sum_of_squares(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(7, 1, generator=generator), torch.randn(7, generator=generator)
    total, count = ClassificationObjective(problem="regression").loss(logits, make_batch(labels))
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
    total, _ = ClassificationObjective(problem=problem).loss(logits, make_batch(labels))
    assert total.dtype == torch.float32
    total.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_losses_of_parts_of_a_batch_add_up_to_its_loss() -> None:
    cases = {
        "single_label": torch.tensor([0, 2, 1, 1, 0]),
        "multi_label": torch.eye(5, 3),
        "regression": torch.arange(5.0),
    }
    for problem, labels in cases.items():
        objective = ClassificationObjective(problem=problem, label_smoothing=0.1)
        logits = torch.randn(5, 1 if problem == "regression" else 3)
        whole, count = objective.loss(logits, make_batch(labels))
        parts = [objective.loss(logits[part], make_batch(labels[part])) for part in (slice(0, 2), slice(2, 5))]
        assert sum(part[1] for part in parts) == count
        torch.testing.assert_close(parts[0][0] + parts[1][0], whole)


# --- scoring --------------------------------------------------------------------------------------------------------

LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, -0.1, -2.0], [0.1, 0.2, 0.3]], dtype=np.float32)


def test_single_label_predicts_the_largest_logit() -> None:
    scoring = make_scoring("single_label")
    assert scoring.decode(LOGITS).tolist() == [0, 1, 2]
    scores = scoring.compute_scores(LOGITS)
    np.testing.assert_allclose(scores, torch.softmax(torch.from_numpy(LOGITS), -1).numpy(), rtol=1e-5)
    described = scoring.describe_scores(scores[1])
    assert described["label"] == "b"
    assert list(described["probabilities"]) == ["a", "b", "c"]
    assert sum(described["probabilities"].values()) == pytest.approx(1.0)


def test_multi_label_predicts_all_labels_with_a_probability_above_one_half() -> None:
    scoring = make_scoring("multi_label")
    assert scoring.decode(LOGITS).tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 1]]
    scores = scoring.compute_scores(LOGITS)
    np.testing.assert_allclose(scores, torch.sigmoid(torch.from_numpy(LOGITS)).numpy(), rtol=1e-5)
    assert [scoring.describe_scores(row)["labels"] for row in scores] == [["a", "c"], [], ["a", "b", "c"]]
    assert scoring.describe_scores(scores[0])["probabilities"] == pytest.approx(
        {"a": 0.8808, "b": 0.2689, "c": 0.6225}, abs=1e-4
    )
    assert scoring.decode(np.zeros((1, 3), dtype=np.float32)).tolist() == [[0, 0, 0]]


def test_regression_predicts_the_logit_itself() -> None:
    scoring, outputs = make_scoring("regression", ["score"]), np.array([[0.25], [-7.5]], dtype=np.float32)
    assert scoring.decode(outputs).tolist() == [0.25, -7.5]
    assert scoring.compute_scores(outputs).tolist() == [[0.25], [-7.5]]
    assert scoring.describe_scores(scoring.compute_scores(outputs)[1]) == {"score": -7.5}


def test_predictions_have_the_labels_that_metrics_are_computed_from() -> None:
    for seed in SEEDS:
        logits = np.random.default_rng(seed).normal(size=(20, 3)).astype(np.float32)
        single, several = make_scoring("single_label"), make_scoring("multi_label")
        names = [single.describe_scores(row)["label"] for row in single.compute_scores(logits)]
        assert [single.label_names[number] for number in single.decode(logits)] == names
        sets = [several.describe_scores(row)["labels"] for row in several.compute_scores(logits)]
        assert [[name for name, on in zip("abc", row, strict=True) if on] for row in several.decode(logits)] == sets


def test_probabilities_of_a_prediction_are_plain_floats() -> None:
    described = make_scoring("multi_label").describe_scores(np.array([0.9, 0.1, 0.6], dtype=np.float32))  # type: ignore[arg-type]
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
    scoring = make_scoring(problem)
    assert (scoring.default_metric, scoring.metric_names) == (default, names)
