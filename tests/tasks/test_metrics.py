"""The offline metrics against scikit-learn and scipy, and metrics loaded with the `evaluate` package."""

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
import torch
from scipy.special import softmax

from hf_finetune.data.features import ClassSets, Features
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import class_scoring, metrics
from hf_finetune.tasks.base import EvaluationOutput
from hf_finetune.tasks.class_scoring import ClassificationScoring

SEEDS = range(5)
SHAPES = {"binary": (2, None), "classes": (4, None), "labels": (2, 3)}  # values, columns
AVERAGES = ("macro", "micro", "weighted")


def draw(shape: str, seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Returns predictions and references of which about half agree."""
    values, columns = SHAPES[shape]
    generator = np.random.default_rng(seed)
    size = (count,) if columns is None else (count, columns)
    references = generator.integers(0, values, size)
    guesses = generator.integers(0, values, size)
    return np.where(generator.random(size) < 0.5, references, guesses), references


def compute(name: str, predictions: Any, references: Any) -> float:
    """Returns the value of an offline metric, a plain float."""
    value = metrics.load_metric(name)(predictions, references)
    assert type(value) is float
    return value


# --- the numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["f1", "precision", "recall"])
def test_f1_precision_and_recall_are_scikit_learns(kind: str, shape: str, seed: int) -> None:
    predictions, references = draw(shape, seed)
    score: Callable[..., float] = getattr(sklearn.metrics, f"{kind}_score")
    values = [compute(f"{kind}_{average}", predictions, references) for average in AVERAGES]
    assert values == [score(references, predictions, average=average) for average in AVERAGES]
    assert len(set(values)) > 1  # the averages differ on these data


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_match_is_scikit_learns_accuracy(shape: str, seed: int) -> None:
    predictions, references = draw(shape, seed)
    expected = sklearn.metrics.accuracy_score(references, predictions)
    assert compute("exact_match", predictions, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_accuracy_is_scikit_learns_and_counts_each_of_several_labels(seed: int) -> None:
    predictions, references = draw("classes", seed)
    expected = sklearn.metrics.accuracy_score(references, predictions)
    assert compute("accuracy", predictions, references) == pytest.approx(expected, abs=1e-12)
    predictions, references = draw("labels", seed)
    expected = sklearn.metrics.accuracy_score(references.ravel(), predictions.ravel())
    assert compute("accuracy", predictions, references) == pytest.approx(expected, abs=1e-12)
    assert compute("accuracy", predictions, references) > compute("exact_match", predictions, references)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", ["binary", "classes"])
def test_matthews_correlation_is_scikit_learns(shape: str, seed: int) -> None:
    predictions, references = draw(shape, seed)
    expected = sklearn.metrics.matthews_corrcoef(references, predictions)
    assert compute("matthews_correlation", predictions, references) == expected
    assert 0.1 < expected < 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_roc_auc_is_scikit_learns_for_two_classes_many_classes_and_several_labels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scored = sklearn.metrics.roc_auc_score

    references = generator.integers(0, 2, 80)
    scores = softmax(generator.normal(size=(80, 2)) + np.eye(2)[references], axis=1)
    assert compute("roc_auc", scores, references) == scored(references, scores[:, 1])
    assert compute("roc_auc", scores[:, 1], references) == scored(references, scores[:, 1])

    references = generator.integers(0, 4, 80)
    scores = softmax(generator.normal(size=(80, 4)) + np.eye(4)[references], axis=1)
    expected = scored(references, scores, multi_class="ovr", average="macro")
    assert compute("roc_auc", scores, references) == expected

    references = generator.integers(0, 2, (80, 3))
    scores = generator.random((80, 3)) + 0.5 * references
    assert compute("roc_auc", scores, references) == scored(references, scores, average="macro")
    assert 0.55 < expected < 1


@pytest.mark.parametrize("seed", SEEDS)
def test_correlations_and_squared_error_are_scipys_and_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    references = generator.normal(size=50).round(1)  # with ties
    predictions = references**3 + generator.normal(size=50)
    assert compute("pearson", predictions, references) == scipy.stats.pearsonr(predictions, references).statistic
    assert compute("spearman", predictions, references) == scipy.stats.spearmanr(predictions, references).statistic
    expected = sklearn.metrics.mean_squared_error(references, predictions)
    assert compute("mse", predictions, references) == pytest.approx(expected, rel=1e-12)


def test_metrics_take_lists_as_well_as_arrays() -> None:
    assert compute("accuracy", [1, 0, 2, 2], [1, 1, 2, 0]) == 0.5
    assert compute("exact_match", [[1, 0], [1, 1]], [[1, 0], [0, 1]]) == 0.5
    assert compute("f1_micro", [[1, 0], [1, 1]], [[1, 0], [0, 1]]) == pytest.approx(0.8)
    assert compute("mse", [1, 2], [1, 4]) == 2.0


# --- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize(
    ("predictions", "references"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [2, 2, 2]), ([1], [2]), ([], [])]
)
def test_a_correlation_with_a_constant_is_nan(name: str, predictions: list[float], references: list[float]) -> None:
    assert math.isnan(compute(name, predictions, references))


def test_roc_auc_is_nan_if_a_class_does_not_occur() -> None:
    assert math.isnan(compute("roc_auc", [[0.2, 0.8], [0.6, 0.4]], [1, 1]))
    assert math.isnan(compute("roc_auc", [[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]], [0, 2]))
    assert math.isnan(compute("roc_auc", [[0.2, 0.3], [0.6, 0.2]], [[1, 0], [1, 0]]))


def test_roc_auc_over_several_labels_omits_those_that_are_always_0_or_always_1() -> None:
    scores, references = [[0.2, 0.9], [0.6, 0.1], [0.7, 0.3]], [[0, 1], [0, 1], [1, 1]]
    assert compute("roc_auc", scores, references) == 1.0


@pytest.mark.parametrize("name", [name for name in metrics.OFFLINE if name.startswith(("f1", "precision", "recall"))])
def test_a_class_that_is_never_predicted_counts_as_0_without_a_warning(
    name: str, recwarn: pytest.WarningsRecorder
) -> None:
    assert 0 < compute(name, [0, 0, 0, 1], [0, 1, 2, 1]) < 1
    assert compute(name, [1, 1], [0, 0]) == 0
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_references_of_a_single_class() -> None:
    for name in ("accuracy", "exact_match", "f1_macro", "f1_micro", "precision_weighted", "recall_macro"):
        assert compute(name, [1, 1, 1], [1, 1, 1]) == 1
    assert compute("matthews_correlation", [1, 1, 1], [1, 1, 1]) == 0
    assert compute("matthews_correlation", [0, 1, 0], [1, 1, 1]) == 0


# --- names ----------------------------------------------------------------------------------------------------------


def test_all_promised_metrics_are_offline() -> None:
    promised = {"accuracy", "matthews_correlation", "roc_auc", "pearson", "spearman", "mse", "exact_match"}
    promised |= {f"{kind}_{average}" for kind in ("f1", "precision", "recall") for average in AVERAGES}
    assert set(metrics.OFFLINE) == promised


@pytest.mark.parametrize(("short", "name"), sorted(metrics.SHORT_NAMES.items()))
def test_a_short_name_stands_for_a_full_name(short: str, name: str) -> None:
    assert metrics.expand_name(short) == metrics.expand_name(name) == name
    assert metrics.load_metric(short) is metrics.OFFLINE[name]


def test_a_larger_value_is_better_except_for_errors_and_losses() -> None:
    assert {name for name in (*metrics.OFFLINE, "loss") if not metrics.greater_is_better(name)} == {"mse", "loss"}
    assert metrics.greater_is_better("bleu")
    assert not metrics.greater_is_better("wer")


def compute_all(names: list[str], scoring: ClassificationScoring, logits: Any, labels: Any) -> dict[str, float]:
    """Returns metrics of the predictions and probabilities of logits."""
    predictions, scores = scoring.decode(logits), scoring.compute_scores(logits)
    return metrics.compute_all(names, predictions=predictions, scores=scores, references=labels)


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_a_metric_that_fits_a_problem_can_be_computed_for_it(problem: str) -> None:
    generator = np.random.default_rng(0)
    names = ("score",) if problem == "regression" else ("a", "b", "c")
    scoring = ClassificationScoring(problem=problem, label_names=names)
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
        computed = compute_all([name], scoring, logits, labels)
        assert list(computed) == [name]
        assert math.isfinite(computed[name])
    numbers = {"pearson", "spearman", "mse"}
    expected = {
        "single_label": set(metrics.OFFLINE) - numbers,
        "multi_label": set(metrics.OFFLINE) - numbers - {"matthews_correlation"},
        "regression": numbers,
    }
    assert fitting == expected[problem]
    metrics.check_fits("a-metric-of-the-hub", problem)


def test_the_error_of_a_metric_that_does_not_fit_names_metric_and_problem() -> None:
    with pytest.raises(InputError, match=r"^evaluation\.metric \(mse\): cannot be computed for a multi_label problem$"):
        metrics.check_fits("mse", "multi_label")


def test_compute_all_gives_each_metric_once_from_predictions_or_probabilities() -> None:
    scoring = ClassificationScoring(problem="single_label", label_names=("a", "b"))
    logits, labels = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.5]], dtype=np.float32), np.array([0, 1, 1])
    computed = compute_all(["loss", "f1", "accuracy", "f1_macro", "roc_auc", "accuracy"], scoring, logits, labels)
    assert list(computed) == ["f1_macro", "accuracy", "roc_auc"]
    assert computed["accuracy"] == pytest.approx(2 / 3)
    assert computed["roc_auc"] == sklearn.metrics.roc_auc_score(labels, softmax(logits, axis=1)[:, 1])


# --- metrics of the Hub ---------------------------------------------------------------------------------------------

SCRIPT = """
import datasets
import evaluate
import tempfile

tempfile.mkstemp(dir="ran")  # shows that this code has run


class HalfAccuracy(evaluate.Metric):
    def _info(self):
        numbers = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=numbers)

    def _compute(self, predictions, references):
        right = sum(ours == theirs for ours, theirs in zip(predictions, references))
        return {"half_accuracy": 0.5 * right / len(references), "right": right}
"""
ASK = """
import json, os, sys, time
from hf_finetune.tasks import metrics
from hf_finetune.system.errors import InputError

metrics.load_metric("f1")
answer = {"untrusted": []}
for name in ("accuracy", "acuracy", sys.argv[1], "somebody/something"):  # accuracy/accuracy.py lies in this folder
    try:
        metrics.load_metric(name, trust_code=name == "accuracy")
    except InputError as error:
        answer["untrusted"].append(str(error))
answer["ran"] = os.listdir("ran")
answer["imported"] = [name for name in ("evaluate", "torch", "datasets") if name in sys.modules]
import evaluate
for name in ("acuracy", "zzz", "somebody/something"):
    started = time.monotonic()
    try:
        metrics.load_metric(name, trust_code=True)
    except InputError as error:
        answer[name] = [str(error), time.monotonic() - started]
local = metrics.load_metric(sys.argv[1], trust_code=True)
answer["local"] = [local([1, 2, 3, 1], [1, 2, 0, 0]) for _ in range(2)]
answer["ran_trusted"] = len(os.listdir("ran"))
sys.modules["evaluate"] = None  # as if it were not installed
try:
    metrics.load_metric("wer", trust_code=True)
except InputError as error:
    answer["wer"] = str(error)
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of SCRIPT in a new process: evaluate takes seconds to import, and writes its files into HF_HOME."""
    folder = tmp_path_factory.mktemp("evaluate")
    script = folder / "half_accuracy.py"
    (folder / "accuracy").mkdir()
    for path in (script, folder / "accuracy" / "accuracy.py"):
        path.write_text(SCRIPT, encoding="utf-8")
    (folder / "ran").mkdir()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    command = [sys.executable, "-c", ASK, str(script)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"script": str(script), **json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.processes
def test_an_offline_metric_imports_neither_evaluate_nor_torch(answer: dict[str, Any]) -> None:
    assert answer["imported"] == []


def test_the_code_of_a_metric_runs_only_if_it_is_trusted(answer: dict[str, Any]) -> None:
    """A folder of the name of an offline metric in the current folder does not run either."""
    assert answer["ran"] == []
    assert answer["ran_trusted"] > 0
    for name, message in zip(("acuracy", answer["script"], "somebody/something"), answer["untrusted"], strict=True):
        assert message.startswith(f"evaluation.metric ({name}): is not an offline metric (")
        assert message.endswith("runs only with evaluation.trust_metric_code true")


def test_the_error_of_an_unknown_name_has_the_nearest_one_and_needs_no_network(answer: dict[str, Any]) -> None:
    for name, hint in (
        ("acuracy", r"did you mean accuracy\?"),
        ("zzz", "offline metrics are accuracy, exact_match, f1_macro, .*, mse"),
        ("somebody/something", "offline metrics are accuracy, .*"),
    ):
        message, seconds = answer[name]
        pattern = rf"evaluation\.metric \({name}\): there is no such metric; {hint} \(evaluate\.load: .*\)"
        assert re.fullmatch(pattern, message)
        assert seconds < 15


def test_without_evaluate_the_error_has_the_command_that_installs_it(answer: dict[str, Any]) -> None:
    assert re.match(r"evaluation\.metric \(wer\): is not an offline metric \(", answer["wer"])
    assert re.search(r"\), and metrics of the Hub need a package: pip install .*evaluate", answer["wer"])


def test_the_value_of_a_metric_script_is_its_first(answer: dict[str, Any]) -> None:
    assert answer["local"] == [0.25, 0.25]


def test_the_value_of_a_metric_is_the_one_with_its_name_or_else_the_first() -> None:
    class Module:
        def compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
            return {"other": 1, "mine": 2}

    for name, expected in (("mine", 2.0), ("theirs", 1.0)):
        assert metrics.make_hub_metric(name, Module())([0], [0]) == expected


@pytest.mark.parametrize("name", ["somebody/metric", "/folder/metric.py"])
def test_the_name_of_a_hub_metric_or_a_script_makes_a_valid_file_name_of_a_checkpoint(name: str) -> None:
    from hf_finetune.run.checkpoint import make_checkpoint_name

    file = make_checkpoint_name(1, 10, 0.5, name, 0.25)
    assert Path(file).name == file


# --- counts of decisions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", sorted(metrics.COUNTED))
def test_metrics_of_counts_are_those_of_arrays_to_the_last_bit(name: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    num_examples, num_labels = int(generator.integers(1, 40)), int(generator.integers(1, 30))
    actual = generator.random((num_examples, num_labels)) < generator.random(num_labels) * generator.integers(0, 2)
    predicted = generator.random((num_examples, num_labels)) < generator.random(num_labels)
    parts = [(predicted[start : start + 7], actual[start : start + 7]) for start in range(0, num_examples, 7)]
    counts = metrics.count_decisions(parts, num_labels)
    if num_labels > 1:  # scikit-learn takes a column of one label for class numbers
        expected = metrics.load_metric(name)(predicted.astype(int), actual.astype(np.float32))
        assert metrics.compute_counted(name, counts) == expected


class LogitRunner:
    """Evaluates logits that are given, in batches of 5 (a tasks.scoring.Runner)."""

    def __init__(self, logits: np.ndarray, scoring: ClassificationScoring) -> None:
        self.logits, self.scoring, self.kept = logits, scoring, 0

    def compute_outputs(self, indices: np.ndarray, reduce: Any = None) -> EvaluationOutput:
        entries = []
        for start in range(0, len(indices), 5):
            batch = torch.from_numpy(self.logits[indices[start : start + 5]])
            entries += (reduce or self.scoring.reduce)(batch, None)
        self.kept = max(np.asarray(entry).nbytes for entry in entries)
        return EvaluationOutput(loss=0.5, outputs=entries)

    def generate_texts(self, generate: Any, indices: np.ndarray) -> list[str]:
        raise NotImplementedError


def evaluate_logits(problem: str, num_labels: int, **options: Any) -> tuple[dict[str, float], dict[str, float], int]:
    """Returns the metrics of random logits, the same from all logits at once, and the bytes that are kept of an example."""
    generator = np.random.default_rng(4)
    names = tuple(map(str, range(num_labels)))
    scoring = ClassificationScoring(problem=problem, label_names=names)
    logits = generator.normal(size=(23, num_labels)).astype(np.float32)
    labels: Any = generator.integers(0, num_labels, 23)
    if problem == "multi_label":
        offsets = np.arange(0, 2 * 23 + 1, 2)
        values = np.sort(np.stack([labels, (labels + 1) % num_labels], 1), axis=1).reshape(-1).astype(np.int32)
        labels = ClassSets(values=values, offsets=offsets, num_classes=num_labels)
    features = Features(inputs={}, offsets=np.arange(24), labels=labels, num_truncated=0)
    indices, table = generator.permutation(23)[:19], Table(columns={}, files=["a"] * 23, lines=[0] * 23)
    runner = LogitRunner(logits, scoring)
    metric = options.pop("metric", scoring.default_metric)
    values_by_name = scoring.evaluate(runner, features, table, metric=metric, indices=indices, **options)
    everything = scoring.compute_metrics(metric, list(logits[indices]), features, table, indices)
    return values_by_name, {"loss": 0.5, **everything}, runner.kept


@pytest.mark.parametrize(("problem", "kept"), [("multi_label", 3), ("single_label", 8)])
def test_evaluation_keeps_decisions_and_gives_the_same_numbers(problem: str, kept: int) -> None:
    values, expected, num_bytes = evaluate_logits(problem, 17)
    assert values == expected
    assert list(values) == list(expected)
    assert num_bytes == kept
    values, expected, _ = evaluate_logits(problem, 17, metric="loss", more_metrics=("f1_weighted",))
    assert set(values) == {*expected, "f1_weighted"}


def test_a_metric_of_scores_gets_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    values, expected, num_bytes = evaluate_logits("multi_label", 17, metric="roc_auc")
    assert (values, num_bytes) == (expected, 17 * 4)
    own = {"mean": lambda inputs: float(inputs.scores.mean())}
    values, expected, num_bytes = evaluate_logits("multi_label", 17, own_metrics=own)
    assert num_bytes == 17 * 4
    assert {name: values[name] for name in expected} == expected
    monkeypatch.setattr(class_scoring, "MOST_SCORES", 300)
    with pytest.raises(InputError) as caught:
        evaluate_logits("multi_label", 17, metric="roc_auc")
    assert str(caught.value).startswith(
        "evaluation.metric (roc_auc): needs all scores of 19 examples and 17 labels at once"
    )
    assert evaluate_logits("multi_label", 17)[0]["loss"] == 0.5
