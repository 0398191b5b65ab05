"""What task.calibrate fitted, and what it changes, as the page about a run shows it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from hf_finetune.analysis.decisions import make_decisions
from hf_finetune.analysis.run_files import RunFiles, read_runs
from hf_finetune.tasks.calibration import Calibrator

LABELS = ("a", "b", "c")


def calibrate_run(run: RunFiles, problem: str, methods: tuple[str, ...]) -> RunFiles:
    """Returns the run with the results of a calibration that was fitted on drawn examples."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 3)) * 2
    single = problem == "single_label"
    probabilities = softmax(logits, -1) if single else expit(logits)
    references = logits.argmax(-1) if single else (logits > 0.5).astype(int)
    calibrator = Calibrator(
        methods=methods, accuracy=0.9, coverage=0.8, problem=problem, label_names=LABELS
    ).fit(probabilities, references)  # fmt: skip
    measured = calibrator.measure(probabilities, references) | {"accuracy": 0.75, "f1_micro": 0.5}
    calibration = {"calibration": calibrator.to_record(), "problem": problem, "labels": list(LABELS)}
    settings = {"task.calibrate": list(methods), "task.target_accuracy": 0.9, "task.coverage": 0.8}
    return replace(run, settings={**run.settings, **settings}, results={**run.results, **calibration, "test": measured})


def read_effect(decisions: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """The cells of the table by the name of their row."""
    return {row.name: row.cells for row in decisions["effect"].rows}


def test_one_label_has_temperature_abstention_and_sets(finished: dict[str, Path]) -> None:
    (run,) = read_runs([finished["base"]])
    assert make_decisions(run, "test") == {}
    run = calibrate_run(run, "single_label", ("temperature", "abstention", "conformal"))
    found, values, record = make_decisions(run, "test"), run.results["test"], run.results["calibration"]
    assert [line.split()[0] for line in found["lines"]] == ["temperature", "abstention", "sets"]
    assert f"{record['temperature']:.4g}" in found["lines"][0]
    assert (found["num_examples"], found["thresholds"]) == (200, None)
    assert found["effect"].head == ("without", "with", "asked for")
    effect = read_effect(found)
    assert len(effect) == 7
    assert effect["log loss"] == (f"{values['log_loss']:.4f}", f"{values['calibrated/log_loss']:.4f}", "–")
    assert effect["accuracy of the answers"] == ("0.7500", f"{values['calibrated/answered_accuracy']:.4f}", "0.9")
    assert effect["share of texts that get an answer"] == ("1.0000", f"{values['calibrated/answered']:.4f}", "–")
    assert effect["share of right labels that are in the sets"][0] == "–"
    assert effect["share of right labels that are in the sets"][2] == "0.8"


def test_several_labels_have_a_threshold_each(finished: dict[str, Path]) -> None:
    run = calibrate_run(read_runs([finished["base"]])[0], "multi_label", ("thresholds",))
    found, record = make_decisions(run, "test"), run.results["calibration"]
    assert found["effect"].head == ("without", "with")
    assert read_effect(found)["f1_micro"] == ("0.5000", f"{run.results['test']['calibrated/f1_micro']:.4f}")
    assert found["thresholds"].head == ("predicted above",)
    shown = {row.name: row.cells for row in found["thresholds"].rows}
    assert shown == {label: (f"{record['thresholds'][label]:.4f}",) for label in LABELS}
    both = make_decisions(calibrate_run(run, "multi_label", ("thresholds", "conformal")), "test")
    assert both["thresholds"].head == ("predicted above", "in the set from")
    assert read_effect(both)["labels in a set, mean"][1] != "–"
