"""The offline metrics against scikit-learn and scipy called directly, and the way to any other metric."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from scipy.special import softmax

from hf_finetune.system.errors import InputError
from hf_finetune.tasks import metrics
from hf_finetune.tasks.classify import Classification

SEEDS = range(5)
SHAPES = {"binary": (2, None), "classes": (4, None), "labels": (2, 3)}  # values, columns
AVERAGES = ("macro", "micro", "weighted")


def draw(shape: str, seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and references of which about half agree."""
    values, columns = SHAPES[shape]
    generator = np.random.default_rng(seed)
    size = (count,) if columns is None else (count, columns)
    references = generator.integers(0, values, size)
    guesses = generator.integers(0, values, size)
    return np.where(generator.random(size) < 0.5, references, guesses), references


def value(name: str, predictions: Any, references: Any) -> float:
    computed = metrics.load(name).compute(predictions=predictions, references=references)
    assert list(computed) == [name]
    assert type(computed[name]) is float
    return computed[name]


# --- the numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["f1", "precision", "recall"])
def test_f1_precision_and_recall_are_scikit_learns(kind: str, shape: str, seed: int) -> None:
    predictions, references = draw(shape, seed)
    score: Callable[..., float] = getattr(sklearn.metrics, f"{kind}_score")
    values = [value(f"{kind}_{average}", predictions, references) for average in AVERAGES]
    assert values == [score(references, predictions, average=average) for average in AVERAGES]
    assert len(set(values)) > 1  # the averages differ on these data


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_match_is_scikit_learns_accuracy(shape: str, seed: int) -> None:
    predictions, references = draw(shape, seed)
    expected = sklearn.metrics.accuracy_score(references, predictions)
    assert value("exact_match", predictions, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_accuracy_is_scikit_learns_and_over_several_labels_counts_decisions(seed: int) -> None:
    predictions, references = draw("classes", seed)
    expected = sklearn.metrics.accuracy_score(references, predictions)
    assert value("accuracy", predictions, references) == pytest.approx(expected, abs=1e-12)
    predictions, references = draw("labels", seed)
    expected = sklearn.metrics.accuracy_score(references.ravel(), predictions.ravel())
    assert value("accuracy", predictions, references) == pytest.approx(expected, abs=1e-12)
    assert value("accuracy", predictions, references) > value("exact_match", predictions, references)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", ["binary", "classes"])
def test_matthews_correlation_is_scikit_learns(shape: str, seed: int) -> None:
    predictions, references = draw(shape, seed)
    expected = sklearn.metrics.matthews_corrcoef(references, predictions)
    assert value("matthews_correlation", predictions, references) == expected
    assert 0.1 < expected < 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_roc_auc_is_scikit_learns_for_two_classes_many_classes_and_several_labels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scored = sklearn.metrics.roc_auc_score

    references = generator.integers(0, 2, 80)
    scores = softmax(generator.normal(size=(80, 2)) + np.eye(2)[references], axis=1)
    assert value("roc_auc", scores, references) == scored(references, scores[:, 1])
    assert value("roc_auc", scores[:, 1], references) == scored(references, scores[:, 1])

    references = generator.integers(0, 4, 80)
    scores = softmax(generator.normal(size=(80, 4)) + np.eye(4)[references], axis=1)
    expected = scored(references, scores, multi_class="ovr", average="macro")
    assert value("roc_auc", scores, references) == expected

    references = generator.integers(0, 2, (80, 3))
    scores = generator.random((80, 3)) + 0.5 * references
    assert value("roc_auc", scores, references) == scored(references, scores, average="macro")
    assert 0.55 < expected < 1


@pytest.mark.parametrize("seed", SEEDS)
def test_correlations_and_squared_error_are_scipys_and_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    references = generator.normal(size=50).round(1)  # with ties
    predictions = references**3 + generator.normal(size=50)
    assert value("pearson", predictions, references) == scipy.stats.pearsonr(predictions, references).statistic
    assert value("spearman", predictions, references) == scipy.stats.spearmanr(predictions, references).statistic
    expected = sklearn.metrics.mean_squared_error(references, predictions)
    assert value("mse", predictions, references) == pytest.approx(expected, rel=1e-12)


def test_plain_lists_do_as_well_as_arrays() -> None:
    assert value("accuracy", [1, 0, 2, 2], [1, 1, 2, 0]) == 0.5
    assert value("exact_match", [[1, 0], [1, 1]], [[1, 0], [0, 1]]) == 0.5
    assert value("f1_micro", [[1, 0], [1, 1]], [[1, 0], [0, 1]]) == pytest.approx(0.8)
    assert value("mse", [1, 2], [1, 4]) == 2.0


# --- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize(
    ("predictions", "references"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [2, 2, 2]), ([1], [2]), ([], [])]
)
def test_a_correlation_with_a_constant_is_nan(name: str, predictions: list[float], references: list[float]) -> None:
    assert math.isnan(value(name, predictions, references))


def test_roc_auc_is_nan_where_a_class_is_missing() -> None:
    assert math.isnan(value("roc_auc", [[0.2, 0.8], [0.6, 0.4]], [1, 1]))
    assert math.isnan(value("roc_auc", [[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]], [0, 2]))
    assert math.isnan(value("roc_auc", [[0.2, 0.3], [0.6, 0.2]], [[1, 0], [1, 0]]))


def test_roc_auc_over_several_labels_leaves_out_those_without_both_answers() -> None:
    scores, references = [[0.2, 0.9], [0.6, 0.1], [0.7, 0.3]], [[0, 1], [0, 1], [1, 1]]
    assert value("roc_auc", scores, references) == 1.0


@pytest.mark.parametrize("name", [name for name in metrics.OFFLINE if name.startswith(("f1", "precision", "recall"))])
def test_a_class_never_predicted_counts_as_0_without_a_warning(name: str, recwarn: pytest.WarningsRecorder) -> None:
    assert 0 < value(name, [0, 0, 0, 1], [0, 1, 2, 1]) < 1
    assert value(name, [1, 1], [0, 0]) == 0
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_one_class_everywhere_is_all_right_or_all_wrong() -> None:
    for name in ("accuracy", "exact_match", "f1_macro", "f1_micro", "precision_weighted", "recall_macro"):
        assert value(name, [1, 1, 1], [1, 1, 1]) == 1
    assert value("matthews_correlation", [1, 1, 1], [1, 1, 1]) == 0
    assert value("matthews_correlation", [0, 1, 0], [1, 1, 1]) == 0


# --- names ----------------------------------------------------------------------------------------------------------


def test_the_issues_metrics_are_all_there_offline() -> None:
    asked = {"accuracy", "matthews_correlation", "roc_auc", "pearson", "spearman", "mse", "exact_match"}
    asked |= {f"{kind}_{average}" for kind in ("f1", "precision", "recall") for average in AVERAGES}
    assert set(metrics.OFFLINE) == asked


@pytest.mark.parametrize(("short", "name"), sorted(metrics.SHORT_NAMES.items()))
def test_a_short_name_means_a_whole_one(short: str, name: str) -> None:
    assert name in metrics.OFFLINE
    assert metrics.load(short).name == name


def test_whether_larger_is_better() -> None:
    assert {name for name in (*metrics.OFFLINE, "loss") if not metrics.greater_is_better(name)} == {"mse", "loss"}
    assert metrics.greater_is_better("bleu")
    assert not metrics.greater_is_better("wer")


def compute_all(names: list[str], task: Classification, logits: Any, labels: Any) -> dict[str, float]:
    """The metrics of a task's decisions and probabilities."""
    return metrics.compute_all(names, predictions=task.decode(logits), scores=task.scores(logits), references=labels)


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_only_metrics_that_can_be_computed_fit_a_problem(problem: str) -> None:
    """Which of them fit is tried out, by computing each on predictions of that problem."""
    generator = np.random.default_rng(0)
    names = ("score",) if problem == "regression" else ("a", "b", "c")
    task = Classification(problem=problem, label_names=names, label_column="label")
    logits = generator.normal(size=(30, len(names))).astype(np.float32)
    labels: Any = {
        "single_label": generator.integers(0, 3, 30),
        "multi_label": generator.integers(0, 2, (30, 3)).astype(np.float32),
        "regression": generator.normal(size=30).astype(np.float32),
    }[problem]
    fitting = set()
    for name in metrics.OFFLINE:
        try:
            metrics.check_fits(name, problem)
        except InputError:
            continue
        fitting.add(name)
        computed = compute_all([name], task, logits, labels)
        assert list(computed) == [name]
        assert math.isfinite(computed[name])
    numbers = {"pearson", "spearman", "mse"}
    assert fitting == {
        "single_label": set(metrics.OFFLINE) - numbers,
        "multi_label": set(metrics.OFFLINE) - numbers - {"matthews_correlation"},
        "regression": numbers,
    }[problem]  # fmt: skip
    metrics.check_fits("a-metric-of-the-hub", problem)


def test_a_metric_that_does_not_fit_is_an_error_that_names_both() -> None:
    with pytest.raises(InputError, match=r"^evaluation\.metric \(mse\): cannot be computed for a multi_label problem$"):
        metrics.check_fits("mse", "multi_label")


def test_compute_all_gives_each_metric_once_from_predictions_or_probabilities() -> None:
    task = Classification(problem="single_label", label_names=("a", "b"), label_column="label")
    logits, labels = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.5]], dtype=np.float32), np.array([0, 1, 1])
    computed = compute_all(["loss", "f1", "accuracy", "f1_macro", "roc_auc", "accuracy"], task, logits, labels)
    assert list(computed) == ["f1_macro", "accuracy", "roc_auc"]
    assert computed["accuracy"] == pytest.approx(2 / 3)
    assert computed["roc_auc"] == sklearn.metrics.roc_auc_score(labels, softmax(logits, axis=1)[:, 1])


# --- metrics through evaluate ---------------------------------------------------------------------------------------

SCRIPT = """
import datasets
import evaluate


class HalfAccuracy(evaluate.Metric):
    def _info(self):
        numbers = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=numbers)

    def _compute(self, predictions, references):
        right = sum(ours == theirs for ours, theirs in zip(predictions, references))
        return {"half_accuracy": 0.5 * right / len(references), "right": right}
"""
ASK = """
import json, sys, time
from hf_finetune.tasks import metrics
from hf_finetune.system.errors import InputError

metrics.load("f1")
answer = {"imported": [name for name in ("evaluate", "torch", "datasets") if name in sys.modules]}
import evaluate
for name in ("acuracy", "zzz", "somebody/something"):
    started = time.monotonic()
    try:
        metrics.load(name)
    except InputError as error:
        answer[name] = [str(error), time.monotonic() - started]
local = metrics.load(sys.argv[1])
answer["local"] = [local.compute(predictions=[1, 2, 3, 1], references=[1, 2, 0, 0]) for _ in range(2)]
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a new process finds: evaluate takes seconds to import, and keeps its files where HF_HOME says."""
    folder = tmp_path_factory.mktemp("evaluate")
    script = folder / "half_accuracy.py"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    command = [sys.executable, "-c", ASK, str(script)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"script": str(script), **json.loads(done.stdout.splitlines()[-1])}


def test_an_offline_metric_imports_neither_evaluate_nor_torch(answer: dict[str, Any]) -> None:
    assert answer["imported"] == []


def test_an_unknown_name_is_an_error_with_the_nearest_one_at_once_without_a_network(answer: dict[str, Any]) -> None:
    for name, hint in (
        ("acuracy", r"did you mean accuracy\?"),
        ("zzz", "offline there are accuracy, exact_match, f1_macro, .*, mse"),
        ("somebody/something", "offline there are accuracy, .*"),
    ):
        message, seconds = answer[name]
        pattern = rf"evaluation\.metric \({name}\): no such metric; {hint} \(evaluate\.load: .*\)"
        assert re.fullmatch(pattern, message)
        assert seconds < 15


def test_a_metric_script_is_loaded_through_evaluate_and_gives_its_first_value(answer: dict[str, Any]) -> None:
    assert answer["local"] == [{answer["script"]: 0.25}] * 2


def test_of_several_values_the_one_called_as_the_metric_counts() -> None:
    class Module:
        def compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
            return {"other": 1, "mine": 2}

    for name, expected in (("mine", 2.0), ("theirs", 1.0)):
        metric = metrics.HubMetric(name=name, module=Module())
        assert metric.compute(predictions=[0], references=[0]) == {name: expected}


@pytest.mark.parametrize("name", ["somebody/metric", "/folder/metric.py"])
def test_a_checkpoint_of_a_metric_from_the_hub_or_a_script_has_a_file_name(name: str) -> None:
    from hf_finetune.run.checkpoint import make_checkpoint_name

    file = make_checkpoint_name(1, 10, 0.5, name, 0.25)
    assert Path(file).name == file
