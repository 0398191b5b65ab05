"""Folds and seeds of a run: many normal runs on one cache, and what they say together."""

import contextlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.configs import make_small_config

from hf_finetune import cli
from hf_finetune.choosing.label_errors import LABEL_ERRORS
from hf_finetune.choosing.out_of_fold import OUT_OF_FOLD, join_scored
from hf_finetune.choosing.repeats import FOLD_DEFAULTS, Repeats, format_interval, print_summary, run_folds, run_seeds
from hf_finetune.choosing.trials import Outcome
from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.scored import read_scored
from hf_finetune.statistics.intervals import Interval
from hf_finetune.system.console import configure_logging
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]


@dataclass(frozen=True)
class Finished:
    """Finished folds: their settings, what they reached, and the lines that they printed."""

    base: RunConfig
    repeats: Repeats
    lines: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Finished:
    """Three folds of 60 rows."""
    folder = tmp_path_factory.mktemp("folds")
    tiny.write_jsonl(folder / "train.jsonl", tiny.make_rows(60))
    settings = {
        **FOLD_DEFAULTS,
        "name": "folds",
        "data.train": [str(folder / "train.jsonl")],
        "data.validation": [],
        "data.test": [],
        "train.epochs": 2,
        "freeze.embeddings": True,
        "freeze.layers": 1,
        "cache.activations": "on",
        "cache.dir": str(folder / "cache"),
    }
    base, output = make_small_config(folder, backbones("bert"), **settings), io.StringIO()
    with contextlib.redirect_stdout(output):
        repeats = run_folds(base, 3)
    return Finished(base, repeats, output.getvalue().splitlines())


def test_each_row_has_the_prediction_of_the_run_that_did_not_train_on_it(finished: Finished) -> None:
    scored = read_scored(finished.base.run_dir / OUT_OF_FOLD)
    assert list(scored.lines) == list(range(1, 61))
    folds = [read_scored(path / "scored" / "validation.jsonl") for path in finished.repeats.run_dirs.values()]
    assert [len(fold) for fold in folds] == [20, 20, 20]
    for fold in folds:
        places = [line - 1 for line in fold.lines]
        assert isinstance(scored.scores.probabilities, np.ndarray)
        assert np.array_equal(scored.scores.probabilities[places], fold.scores.probabilities)
        assert [scored.digests[place] for place in places] == list(fold.digests)
    accuracies = [outcome.best["accuracy"] for outcome in finished.repeats.outcomes.values()]
    assert scored.compute("accuracy")[0] == pytest.approx(np.mean(accuracies))


def test_all_folds_share_one_entry_of_the_cache(finished: Finished) -> None:
    entries = list(Path(str(finished.base.cache.dir), "activations").glob("*/manifest.json"))
    assert len(entries) == 1


def test_the_printed_mean_and_deviation(finished: Finished) -> None:
    losses = [
        outcome.results["validation"]["loss"] for outcome in finished.repeats.outcomes.values() if outcome.results
    ]
    rows = {line.split()[0]: line.split() for line in finished.lines if line.strip()}
    assert rows["mean"][1] == f"{np.mean(losses):.4f}"
    assert rows["deviation"][1] == f"{np.std(losses, ddof=1):.4f}"
    assert f"out of fold {finished.base.run_dir / OUT_OF_FOLD}: 60 rows" in "\n".join(finished.lines)


def test_the_file_of_likely_wrong_labels(finished: Finished) -> None:
    lines = (finished.base.run_dir / LABEL_ERRORS).read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    rows = tiny.make_rows(60)
    assert found
    for error in found:
        assert error["file"] == finished.base.data.train[0]
        assert error["label"] == rows[error["line"] - 1]["label"] != error["suggestion"]
    assert [error["probability"] for error in found] == sorted(error["probability"] for error in found)


def test_a_fold_is_a_normal_run(finished: Finished, tmp_path: Path) -> None:
    run_dir = finished.repeats.run_dirs["fold-2"]
    config = load_config({}, ["--config", str(run_dir / "config.yaml"), "--output_dir", str(tmp_path)])
    assert (config.data.folds, config.data.fold) == (3, 2)
    alone = finetune(config)
    assert alone.results["history"] == list(finished.repeats.outcomes["fold-2"].history)


def test_finished_folds_are_not_trained_again(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_finetune.train.train_and_export", lambda *_: pytest.fail("a fold was trained again"))
    again = run_folds(finished.base, 3)
    assert {name: dict(outcome.best) for name, outcome in again.outcomes.items()} == {
        name: dict(outcome.best) for name, outcome in finished.repeats.outcomes.items()
    }


def test_folds_of_other_data_or_settings_are_not_continued(finished: Finished) -> None:
    """Earlier folds would count as finished, and the others would be made from other data."""
    base, path = finished.base, Path(finished.base.data.train[0])
    content = path.read_text(encoding="utf-8")
    path.write_text(content.replace('"animals"', '"food"', 1), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != content
    try:
        with pytest.raises(
            InputError,
            match=r"holds the folds of other inputs: data\.train: has other content now; choose another name",
        ):
            run_folds(base, 3)
    finally:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"holds the folds of other settings: fold-1\.data\.folds \(was 3, now 4\)"):
        run_folds(base, 4)
    longer = replace(base, train=replace(base.train, epochs=3), freeze=replace(base.freeze, layers=0))
    with pytest.raises(InputError, match=r"freeze\.layers \(was 1, now 0\), train\.epochs \(was 2, now 3\)"):
        run_folds(longer, 3)


def test_label_errors_of_the_command(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["label-errors", str(finished.base.run_dir), "--top", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("train.jsonl:") == 2
    assert cli.main(["label-errors", str(finished.base.run_dir / "trials")]) == 2
    assert "has no out_of_fold.jsonl; hf-finetune train RECIPE --folds 5" in capsys.readouterr().err
    assert cli.main(["label-errors", str(finished.base.run_dir), "--top", "-1"]) == 2
    assert "top (-1): must be 0 or more" in capsys.readouterr().err


def test_runs_with_different_metrics_have_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    """An entity type may be missing in a fold, and nothing answered at the accuracy that was asked for."""
    configure_logging()
    values = [{"loss": 0.5, "f1/PER": 0.75, "f1/LOC": 0.75}, {"loss": 1.5, "f1/LOC": 0.25}]
    outcomes = {
        f"fold-{number}": Outcome(
            metric="loss",
            greater_is_better=False,
            history=(),
            num_updates=1,
            total_updates=1,
            results={"validation": each},
        )
        for number, each in enumerate(values, start=1)
    }
    print_summary(Repeats(run_dirs={}, outcomes=outcomes), "folds")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert rows == [
        ["fold", "validation", "loss"],
        ["fold-1", "0.5000"],
        ["fold-2", "1.5000"],
        ["mean", "1.0000"],
        ["deviation", "0.7071"],
        ["mean", "deviation"],
        ["validation", "f1/PER", "-", "-"],
        ["validation", "f1/LOC", "0.5000", "0.3536"],
    ]


def test_an_interval_that_is_not_defined_is_not_printed() -> None:
    assert format_interval(Interval(value=0.5, low=0.25, high=0.75)) == "0.5000 (95 %: 0.2500 to 0.7500)"
    undefined = Interval(value=0.5, low=math.nan, high=math.nan)
    assert format_interval(undefined) == "0.5000 (its interval is not defined)"


def test_folds_without_scored_examples_say_so(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hf_finetune.choosing.repeats.read_folds", lambda run_dirs: None)
    assert run_folds(finished.base, 3).out_of_fold is None
    assert "out of fold none: not all runs have scored/validation.jsonl" in capsys.readouterr().out


def test_seeds(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"data\.max_length \(9999\)"):
        run_seeds(make_config(name="seeds", seed=3, **{"train.epochs": 1, "data.max_length": 9999}), 2)
    repeats = run_seeds(
        make_config(name="seeds", seed=3, **{"train.epochs": 1}), 2
    )  # corrected, before any run has begun
    assert list(repeats.run_dirs) == ["seed-3", "seed-4"]
    losses = [outcome.best["loss"] for outcome in repeats.outcomes.values()]
    assert losses[0] != losses[1]
    printed = capsys.readouterr().out
    assert f"{np.mean(losses):.4f}" in printed
    assert "test accuracy" in printed
    assert "draws its own" not in printed


def test_errors(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: Finished
) -> None:
    for count in (1, 1001):
        with pytest.raises(InputError, match=rf"--folds \({count}\): must be from 2 to 1,000"):
            run_folds(make_config(), count)
    with pytest.raises(InputError, match=r"data\.validation .*: a fold of the training data is the validation split"):
        run_folds(make_config(), 3)
    for words, message in (
        ("--folds 3 --seeds 2", "--folds (3): cannot be used with --seeds"),
        ("--folds many", "--folds (many): must be a whole number"),
        ("--folds", "--folds (nothing): takes one value"),
        ("--folds 3 --quiet", "error: --quiet: is for hf-finetune train with one run"),
        ("--json --seeds 3", "error: --json: is for hf-finetune train with one run"),
    ):
        assert cli.main(["train", "classify", *words.split()]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["train", "classify", "--folds", "3", "--help"]) == 0
    assert "usage: hf-finetune train classify" in capsys.readouterr().out
    part = read_scored(finished.base.run_dir / OUT_OF_FOLD)
    other = read_scored(finished.base.run_dir / OUT_OF_FOLD)
    object.__setattr__(other.scores, "label_names", ("x", "y", "z"))
    with pytest.raises(InputError, match="the folds have different label_names"):
        join_scored([part, other])
