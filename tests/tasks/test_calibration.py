"""task.calibrate: its settings, what it fits, and what predictions and metrics it gives."""

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import f1_score
from tasks.test_classify import make_table

from hf_finetune.config.loading import load_config
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.statistics.calibration import compute_calibration_error, find_confidences
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.calibration import Calibration, Calibrator
from hf_finetune.tasks.class_scoring import ClassificationScoring
from hf_finetune.tasks.classify import Classification
from hf_finetune.tasks.window_scoring import WindowScoring

NAMES = ("a", "b", "c")
Array = np.ndarray[Any, Any]


def make_calibrator(*methods: str, problem: str = "single_label", **options: Any) -> Calibrator:
    options = {"accuracy": 0.9, "coverage": 0.9, "label_names": NAMES, **options}
    return Calibrator(methods=methods, problem=problem, **options)


def draw(num_examples: int = 600, seed: int = 0) -> tuple[Array, Array]:
    """Logits [N, 3] of a model that is too certain, and the right classes."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(num_examples, 3))
    classes = (softmax(logits, axis=1).cumsum(axis=1) > generator.random((num_examples, 1))).argmax(axis=1)
    return (4 * logits).astype(np.float32), classes


def draw_several(num_examples: int = 600, seed: int = 0) -> tuple[Array, Array]:
    """Logits [N, 3] of a model that is too certain and gives labels too seldom, and which labels are right [N, 3]."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(num_examples, 3))
    labels = (expit(logits) > generator.random((num_examples, 3))).astype(np.int64)
    return (4 * logits - 3).astype(np.float32), labels


def fit(logits: Array, references: Array, *methods: str, **options: Any) -> tuple[Calibrator, Array]:
    """A fitted calibrator, and the probabilities that it was fitted on."""
    several = references.ndim == 2
    probabilities = expit(logits.astype(np.float64)) if several else softmax(logits.astype(np.float64), axis=1)
    problem = "multi_label" if several else "single_label"
    return make_calibrator(*methods, problem=problem, **options).fit(probabilities, references), probabilities


# --- settings --------------------------------------------------------------------------------------------------------


def make_task(labels: list[Any], **settings: Any) -> Classification:
    defaults = {"task.kind": "classify", "model.backbone": "unused", "data.train": ["unused"]}
    return Classification.from_table(load_config({**defaults, **settings}, []), make_table(labels))


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (["a", "b"], {"task.calibrate": ["heat"]}, r"task.calibrate \(\['heat'\]\): must be some of temperature, thresholds"),
        (["a", "b"], {"task.calibrate": ["temperature", "temperature"]}, "must differ from each other"),
        (["a", "b"], {"task.calibrate": ["thresholds"]}, "thresholds is for multi_label problems, and this one is single_label"),
        ([["a"], ["b"]], {"task.calibrate": ["abstention"]}, "abstention is for single_label problems, and this one is multi"),
        ([0.5, 1.5], {"task.calibrate": ["temperature"]}, "is for labels, and this problem is regression"),
        (["a", "b"], {"task.coverage": 0.8}, r"task.coverage \(0.8\): has no effect without task.calibrate conformal"),
        (["a", "b"], {"task.target_accuracy": 0.8, "task.calibrate": ["conformal"]}, "without task.calibrate abstention"),
        (["a", "b"], {"task.coverage": 1.0, "task.calibrate": ["conformal"]}, r"task.coverage \(1.0\): must be between 0 and 1"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_errors(labels: list[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task(labels, **settings)


@pytest.mark.parametrize("kind", sorted(TASKS.keys() - {"classify"}))
def test_other_tasks_have_no_such_setting(kind: str) -> None:
    with pytest.raises(InputError, match=rf"task.calibrate .*{kind} has no such setting"):
        load_config({"task.kind": kind, "task.calibrate": ["temperature"]}, [])
    assert not hasattr(load_task(kind).Settings, "calibrate")


def test_nothing_is_fitted_unless_it_is_asked_for() -> None:
    assert make_task(["a", "b"]).scoring.calibrator is None
    calibrator = make_task(["a", "b"], **{"task.calibrate": ["conformal"], "task.coverage": 0.8}).scoring.calibrator
    assert calibrator is not None
    assert calibrator.methods == ("conformal",)
    assert calibrator.coverage == 0.8
    assert calibrator.to_record() is None
    assert calibrator.describe() == []


def test_too_few_validation_examples_are_an_error_before_training() -> None:
    single = make_calibrator("conformal", coverage=0.95)
    assert single.check({"a": 18, "b": 1, "c": 0}, 19) == []
    with pytest.raises(
        InputError, match=r"task.coverage \(0.95\): needs 19 validation examples, and there are 18; give more"
    ):
        single.check({"a": 18, "b": 0, "c": 0}, 18)
    several = make_calibrator("conformal", problem="multi_label")
    with pytest.raises(InputError, match=r"needs 9 validation examples of a label, and there are 8"):
        several.check({"a": 8, "b": 8, "c": 2}, 100)
    [warning] = several.check({"a": 9, "b": 8, "c": 2}, 100)
    assert warning.startswith("2 of 3 labels have fewer than the 9 validation examples")
    assert warning.endswith("so that every set holds them: b, c")
    assert make_calibrator("temperature").check({"a": 1}, 1) == []
    assert make_calibrator("abstention").check({"a": 10}, 10) == []
    with pytest.raises(
        InputError, match=r"task.target_accuracy \(0.9\): needs 10 validation examples, and there are 9; give"
    ):
        make_calibrator("abstention").check({"a": 9}, 9)


# --- what is fitted --------------------------------------------------------------------------------------------------


def test_the_temperature_makes_the_probabilities_right() -> None:
    calibrator, probabilities = fit(*draw(), "temperature")
    assert calibrator.fitted is not None
    assert calibrator.fitted.temperature == pytest.approx(4, rel=0.2)
    logits, classes = draw(4000, seed=1)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    scaled = calibrator.scale(probabilities)
    assert scaled == pytest.approx(softmax(logits / calibrator.fitted.temperature, axis=1), abs=1e-6)
    errors = [compute_calibration_error(*find_confidences(values, classes)) for values in (probabilities, scaled)]
    assert errors[1] < 0.2 * errors[0]
    values = calibrator.measure(probabilities, classes)
    assert [values["ece"], values["calibrated/ece"]] == pytest.approx(errors)
    assert values["calibrated/log_loss"] < values["log_loss"]
    assert values.keys() == {
        f"{prefix}{name}" for prefix in ("", "calibrated/") for name in ("ece", "brier_score", "log_loss")
    }


def test_the_temperature_of_certain_models_is_found_as_well() -> None:
    """Their probabilities are 0 and 1 up to the last digits."""
    logits, classes = draw()
    calibrator, probabilities = fit(5 * logits, classes, "temperature")
    assert calibrator.fitted is not None
    assert probabilities.max() > 1 - 1e-12
    assert calibrator.fitted.temperature == pytest.approx(20, rel=0.2)


def test_thresholds_of_labels_raise_f1() -> None:
    calibrator, _ = fit(*draw_several(), "temperature", "thresholds")
    logits, labels = draw_several(2000, seed=1)
    probabilities = expit(logits.astype(np.float64))
    decisions = calibrator.decide(probabilities)
    assert calibrator.fitted is not None
    assert calibrator.fitted.thresholds is not None
    assert (decisions.predicted == (decisions.probabilities > calibrator.take(calibrator.fitted.thresholds))).all()
    values = calibrator.measure(probabilities, labels)
    assert values["calibrated/f1_macro"] == pytest.approx(f1_score(labels, decisions.predicted, average="macro"))
    assert values["calibrated/f1_macro"] > f1_score(labels, probabilities > 0.5, average="macro") + 0.05
    assert calibrator.with_threshold(0.9).decide(probabilities).predicted.sum() == (decisions.probabilities > 0.9).sum()


def test_texts_that_are_answered_have_the_accuracy() -> None:
    calibrator, probabilities = fit(*draw(3000), "temperature", "abstention", accuracy=0.8)
    classes = draw(3000)[1]
    values = calibrator.measure(probabilities, classes)
    assert values["calibrated/answered_accuracy"] == pytest.approx(0.8, abs=0.005)
    assert 0.1 < values["calibrated/answered"] < 0.9
    decisions = calibrator.decide(probabilities)
    answered = decisions.predicted.any(axis=1)
    assert answered.mean() == values["calibrated/answered"]
    assert (decisions.predicted[answered].argmax(axis=1) == probabilities[answered].argmax(axis=1)).all()
    assert (decisions.predicted.sum(axis=1) == answered).all()


def test_without_a_threshold_for_the_accuracy_every_text_is_answered() -> None:
    generator = np.random.default_rng(0)
    probabilities = softmax(generator.normal(size=(300, 3)), axis=1)
    order = np.argsort(probabilities, axis=1)
    calibrator = make_calibrator("abstention", accuracy=0.99).fit(probabilities, order[:, 0])  # always wrong
    assert calibrator.decide(probabilities).predicted.any(axis=1).all()
    assert "no threshold reaches task.target_accuracy (0.99) on validation" in calibrator.describe()[0]
    assert not any(name.startswith("calibrated/answered") for name in calibrator.measure(probabilities, order[:, 0]))


def test_sets_hold_the_right_label_with_the_coverage() -> None:
    calibrator, _ = fit(*draw(2000), "conformal", coverage=0.8)
    logits, classes = draw(4000, seed=1)
    values = calibrator.measure(softmax(logits.astype(np.float64), axis=1), classes)
    assert values["calibrated/set_coverage"] == pytest.approx(0.8, abs=0.03)
    assert 1 < values["calibrated/set_size"] < 3


def test_sets_of_several_labels_hold_each_label_with_the_coverage() -> None:
    calibrator, _ = fit(*draw_several(2000), "conformal", coverage=0.8)
    logits, labels = draw_several(4000, seed=1)
    values = calibrator.measure(expit(logits.astype(np.float64)), labels)
    assert values["calibrated/set_coverage"] == pytest.approx(0.8, abs=0.03)


# --- predictions -----------------------------------------------------------------------------------------------------


def make_scoring(calibrator: Calibrator | None, problem: str = "single_label") -> ClassificationScoring:
    return ClassificationScoring(problem=problem, label_names=NAMES, calibrator=calibrator)


def predict(scoring: ClassificationScoring, logits: Array) -> list[dict[str, Any]]:
    return list(scoring.make_predictions(logits, None, None))  # type: ignore[arg-type]


def test_a_model_that_is_not_certain_gives_no_label_and_a_set() -> None:
    fitted = Calibration(num_examples=9, temperature=2.0, abstention_threshold=0.6, set_threshold=0.25)
    logits = np.log(np.array([[0.9, 0.06, 0.04], [0.4, 0.35, 0.25]], dtype=np.float32))
    certain, uncertain = predict(make_scoring(make_calibrator(fitted=fitted)), logits)
    exact = np.sqrt([0.9, 0.06, 0.04])
    assert list(certain) == ["label", "label_set", "probabilities"]
    assert certain["label"] == "a"
    assert certain["label_set"] == ["a"]
    assert list(certain["probabilities"].values()) == pytest.approx(exact / exact.sum())
    assert uncertain["label"] is None
    assert uncertain["label_set"] == ["a", "b", "c"]
    assert json.loads(json.dumps(uncertain)) == uncertain


def test_each_label_has_its_threshold_and_a_set_begins_with_the_most_probable() -> None:
    thresholds, sets = {"a": 0.2, "b": 0.9, "c": 0.5}, {"a": 0.1, "b": 0.5, "c": 0.9}
    fitted = Calibration(num_examples=9, thresholds=thresholds, set_thresholds=sets)
    scoring = make_scoring(make_calibrator(problem="multi_label", fitted=fitted), "multi_label")
    logits = np.log(np.array([[0.3, 0.8, 0.6]]) / (1 - np.array([[0.3, 0.8, 0.6]]))).astype(np.float32)
    [prediction] = predict(scoring, logits)
    assert prediction["labels"] == ["a", "c"]
    assert prediction["label_set"] == ["b", "a"]
    [prediction] = predict(scoring.with_options(threshold=0.7), logits)  # --threshold is for all labels
    assert prediction["labels"] == ["b"]
    [prediction] = predict(scoring.with_options(top_k=1), logits)
    assert list(prediction["probabilities"]) == ["b"]
    assert prediction["labels"] == ["a", "c"]


def test_predictions_before_a_fit_are_those_of_the_model() -> None:
    logits, _ = draw(5)
    assert predict(make_scoring(make_calibrator("temperature")), logits) == predict(make_scoring(None), logits)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_windows_are_calibrated_after_they_are_pooled(pooling: str) -> None:
    class Windows:
        example_indices = np.array([0, 0, 1])

        def __len__(self) -> int:
            return 3

    fitted = Calibration(num_examples=9, temperature=2.0)
    calibrator = make_calibrator(fitted=fitted)
    scoring = WindowScoring(problem="single_label", label_names=NAMES, pooling=pooling, calibrator=calibrator)
    logits, _ = draw(3)
    plain = list(WindowScoring(problem="single_label", label_names=NAMES, pooling=pooling).make_predictions(
        logits, Windows(), None))  # type: ignore[arg-type]  # fmt: skip
    calibrated = list(scoring.make_predictions(logits, Windows(), None))  # type: ignore[arg-type]
    for before, after in zip(plain, calibrated, strict=True):
        roots = np.sqrt(list(before["probabilities"].values()))
        assert list(after["probabilities"].values()) == pytest.approx(roots / roots.sum(), abs=1e-6)


# --- the record ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
def test_a_record_gives_the_same_decisions(several: bool) -> None:
    methods = ("temperature", "thresholds" if several else "abstention", "conformal")
    fitted, probabilities = fit(*(draw_several() if several else draw()), *methods)
    record = json.loads(json.dumps(fitted.to_record()))
    unfitted = make_calibrator(*methods, problem=fitted.problem)
    again = unfitted.from_record(record)
    assert again == fitted
    assert (again.decide(probabilities).predicted == fitted.decide(probabilities).predicted).all()
    assert len(fitted.describe()) == 3


@pytest.mark.parametrize(
    "record",
    [
        {"num_examples": 5, "heat": 2},
        {},
        {"num_examples": 5, "temperature": "hot"},
        {"num_examples": 5, "temperature": math.nan},
        {"num_examples": 5, "thresholds": {"a": 0.5}},
        {"num_examples": 5, "thresholds": [0.5, 0.5, 0.5]},
        {"num_examples": 5, "set_thresholds": {"a": "x", "b": 1, "c": 2}},
    ],
    ids=str,
)
def test_a_record_of_another_form_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        make_calibrator("temperature").from_record(record)
