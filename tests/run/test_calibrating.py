"""Runs with task.calibrate: what they fit, export and report; resumed, finished, and as the start of another run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import yaml
from support import tiny
from support.configs import make_small_config
from support.runs import load_exported_weights, run_until

from hf_finetune import cli
from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig, flatten
from hf_finetune.export.predict import Predictor
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
CALIBRATE = {"task.calibrate": ["temperature", "abstention", "conformal"], "task.target_accuracy": 0.6}
SEVERAL = {"task.calibrate": ["temperature", "thresholds", "conformal"], "task.coverage": 0.8}


def read_record(config: RunConfig) -> dict[str, Any]:
    """What the exported config.json has under our key."""
    record: dict[str, Any] = json.loads((config.run_dir / "model" / "config.json").read_text(encoding="utf-8"))
    return record["hf_finetune"]  # type: ignore[no-any-return]


def read_rows(config: RunConfig, split: str) -> list[dict[str, Any]]:
    text = Path(getattr(config.data, split)[0]).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> tuple[RunConfig, dict[str, Any]]:
    """The config and the results of a calibrated run."""
    config = make_small_config(tmp_path_factory.mktemp("calibrated"), backbones("bert"), **CALIBRATE)
    return config, finetune(config).results


def test_results_have_what_was_fitted_and_its_effect_on_the_test(made: tuple[RunConfig, dict[str, Any]]) -> None:
    config, results = made
    fitted = results["calibration"]
    assert fitted.keys() == {"num_examples", "temperature", "abstention_threshold", "set_threshold"}
    assert fitted["num_examples"] == 24
    assert read_record(config)["calibration"] == fitted
    names = {"ece", "brier_score", "log_loss"}
    names |= {f"calibrated/{name}" for name in (*names, "answered", "answered_accuracy", "set_coverage", "set_size")}
    for split in ("validation", "test"):
        assert results[split].keys() == {"loss", "accuracy", "f1_macro"} | names
    assert results["validation"]["calibrated/log_loss"] <= results["validation"]["log_loss"] + 0.02
    assert results["validation"]["calibrated/answered_accuracy"] >= 0.6
    assert results["validation"]["calibrated/set_coverage"] >= 0.9
    assert results["validation"]["log_loss"] == pytest.approx(results["validation"]["loss"], abs=1e-6)


def test_the_other_numbers_are_those_of_a_run_without_it(
    made: tuple[RunConfig, dict[str, Any]], tmp_path: Path
) -> None:
    config, results = made
    plain = finetune(load_config({**read_settings(config), "output_dir": str(tmp_path), "task.calibrate": [],
                                  "task.target_accuracy": 0.95}, [])).results  # fmt: skip
    assert plain["calibration"] is None
    assert plain["best"] == results["best"]
    for split in ("validation", "test"):
        assert plain[split] == {name: results[split][name] for name in plain[split]}
    assert list(plain["test"]) == ["loss", "accuracy", "f1_macro"]


def read_settings(config: RunConfig) -> dict[str, Any]:
    """The settings of a config, as load_config() takes them."""
    return dict(flatten(yaml.safe_load((config.run_dir / "config.yaml").read_text(encoding="utf-8"))))


def test_predictions_honour_it_and_plain_transformers_gives_the_logits(made: tuple[RunConfig, dict[str, Any]]) -> None:
    config, results = made
    texts = [row["text"] for row in read_rows(config, "test")]
    predictor = Predictor.from_pretrained(config.run_dir)
    predictions = predictor.predict(texts)
    classifier = transformers.pipeline("text-classification", str(config.run_dir / "model"), top_k=None, device="cpu")
    temperature, threshold = (results["calibration"][name] for name in ("temperature", "abstention_threshold"))
    for prediction, scores in zip(predictions, classifier(texts), strict=True):
        logits = np.log([next(s["score"] for s in scores if s["label"] == name) for name in predictor.task.label_names])
        expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        assert list(prediction["probabilities"].values()) == pytest.approx(expected, abs=1e-5)
        best = max(prediction["probabilities"], key=prediction["probabilities"].get)
        assert prediction["label"] == (best if prediction["probabilities"][best] >= threshold else None)
        assert prediction["label_set"][0] == best
    answered = np.mean([prediction["label"] is not None for prediction in predictions])
    assert answered == pytest.approx(results["test"]["calibrated/answered"])


def test_evaluate_gives_exactly_the_numbers_of_the_run(made: tuple[RunConfig, dict[str, Any]]) -> None:
    config, results = made
    predictor = Predictor.from_pretrained(config.run_dir)
    assert predictor.evaluate(read_rows(config, "test")) == results["test"]
    assert predictor.evaluate(read_rows(config, "validation")) == pytest.approx(results["validation"])


def test_the_card_says_which_numbers_are_calibrated(made: tuple[RunConfig, dict[str, Any]]) -> None:
    config, results = made
    card = (config.run_dir / "model" / "README.md").read_text(encoding="utf-8")
    assert "calibrated on the 24 validation examples:" in card
    assert f"- temperature {results['calibration']['temperature']:.4g}: logits are divided by it" in card
    assert f"| test | calibrated/set_coverage | {results['test']['calibrated/set_coverage']:.4f} |" in card
    assert "begin with `calibrated/` are with this, all others without" in card


def test_a_finished_run_is_fitted_again_with_other_settings_and_not_trained(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = make_config()
    first = finetune(plain).results
    weights = load_exported_weights(plain.run_dir)
    assert first["calibration"] is None
    assert "calibration" not in read_record(plain)
    capsys.readouterr()
    again = finetune(make_config(**CALIBRATE)).results
    printed = capsys.readouterr().out
    assert "update 1/" not in printed
    assert "  calibrated   temperature " in printed
    assert again["updates"] == first["updates"]
    assert read_record(plain)["calibration"] == again["calibration"]
    assert all((weights[name] == tensor).all() for name, tensor in load_exported_weights(plain.run_dir).items())
    finetune(make_config(**CALIBRATE))
    assert "is finished, there is nothing to train" in capsys.readouterr().out
    last = finetune(plain).results
    assert last["calibration"] is None
    assert last["test"] == first["test"]
    assert "calibration" not in read_record(plain)


def test_a_resumed_run_is_calibrated_as_one_that_was_not_stopped(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, made: tuple[RunConfig, dict[str, Any]]
) -> None:
    config = make_config(**CALIBRATE)
    run_until(config, 8, monkeypatch)
    results = finetune(config).results
    assert results["calibration"] == made[1]["calibration"]
    assert results["test"] == made[1]["test"]


def test_a_run_that_begins_from_a_calibrated_one_does_not_inherit_it(
    make_config: MakeConfig, made: tuple[RunConfig, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(**{"start_from": str(made[0].run_dir), "train.max_updates": 1})
    results = finetune(config).results
    assert "its calibration fits its own weights and is not taken over" in capsys.readouterr().out
    assert results["calibration"] is None
    assert "calibration" not in read_record(config)
    [prediction] = Predictor.from_pretrained(config.run_dir).predict(["the old cat"])
    assert list(prediction) == ["label", "probabilities"]


@pytest.mark.parametrize("windows", [False, True])
def test_several_labels_of_a_text(make_config: MakeConfig, windows: bool, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"data.max_length": 8, "task.long_texts": "windows", "task.window_overlap": 2} if windows else {}
    config = make_config("multi_label", **SEVERAL, **settings)
    results = finetune(config).results
    assert results["calibration"].keys() == {"num_examples", "temperature", "thresholds", "set_thresholds"}
    assert results["calibration"]["num_examples"] == 24
    assert results["calibration"]["thresholds"].keys() == set(results["labels"])
    assert results["validation"]["calibrated/f1_macro"] >= results["validation"]["f1_macro"]
    predictor = Predictor.from_pretrained(config.run_dir)
    assert predictor.evaluate(read_rows(config, "test")) == results["test"]
    [prediction] = predictor.predict(["the old cat"])
    assert list(prediction) == ["labels", "label_set", "probabilities"]


def test_too_few_validation_rows_are_an_error_before_training(make_config: MakeConfig) -> None:
    config = make_config(**{"task.calibrate": ["conformal"], "task.coverage": 0.99})
    with pytest.raises(
        InputError, match=r"task.coverage \(0.99\): needs 99 validation examples, and there are 24; give more"
    ):
        finetune(config)
    assert not (config.run_dir / "results.json").exists()


def test_texts_without_an_answer_are_empty_lines(made: tuple[RunConfig, dict[str, Any]], tmp_path: Path) -> None:
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"text": row["text"]} for row in read_rows(made[0], "test")])
    for ending in ("txt", "csv", "parquet", "jsonl"):
        out = tmp_path / f"out.{ending}"
        assert cli.main(["predict", str(made[0].run_dir), "--data", str(data), "--out", str(out)]) == 0
    labels = [json.loads(line)["label"] for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = (tmp_path / "out.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert lines == ["" if label is None else label for label in labels]
