"""hf-finetune advise: what is expected at each depth, and the depth that is recommended."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from support import tiny
from support.configs import make_small_config

from hf_finetune import cli
from hf_finetune.cache.speeds import SPEEDS, Speed
from hf_finetune.choosing.advise import advise, choose_depth
from hf_finetune.choosing.advise_metric import ExpectedMetric
from hf_finetune.choosing.advise_seconds import choose_depths, expect_seconds, interpolate
from hf_finetune.choosing.advise_text import draw_characters
from hf_finetune.config.loading import to_yaml
from hf_finetune.config.sections import RunConfig
from hf_finetune.forward.cached import CannotCacheError
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError

MakeConfig = Callable[..., RunConfig]
MakeRun = Callable[..., TrainingRun]


def make_metrics(*values: float) -> list[ExpectedMetric]:
    """Expected metrics of the depths 0, 1, ..."""
    return [ExpectedMetric(depth=depth, frozen=0.0, trained=value) for depth, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "greater", "depth"),
    [
        ((0.85, 0.86, 0.857, 0.80), True, 2),
        ((0.85, 0.86, 0.84, 0.80), True, 1),
        ((0.85, 0.85, 0.85, 0.85), True, 3),
        ((0.40, 0.30, 0.302, 0.5), False, 2),
    ],
)
def test_the_deepest_freezing_that_is_as_good_as_the_best_is_recommended(
    values: tuple[float, ...], greater: bool, depth: int
) -> None:
    assert choose_depth(make_metrics(*values), greater_is_better=greater) == depth


def test_the_command_prints_a_table_a_picture_and_lines_to_paste(
    tmp_path: Path, backbones: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes the picture, and nothing into the folder of the runs."""
    config = make_small_config(tmp_path, backbones("bert", layers=3), **{"cache.dir": str(tmp_path / "cache")})
    (tmp_path / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
    words = ["advise", "classify", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "depths.svg")]
    assert cli.main(words) == 0
    output = capsys.readouterr().out
    rows = re.findall(r"^ +(\d) +0\.\d{3} +0\.\d{3} +\d+ s +\d+ s(.*)$", output, flags=re.MULTILINE)
    assert [int(depth) for depth, _ in rows] == [0, 1, 2, 3]
    (recommended,) = (int(depth) for depth, mark in rows if "<- recommended" in mark)
    lines = re.search(r"^freeze:\n  .*\n  .*$", output, flags=re.MULTILINE)
    assert lines is not None
    assert yaml.safe_load(lines[0]) == {"freeze": {"embeddings": True, "layers": recommended}}
    assert f"--freeze.embeddings true --freeze.layers {recommended}\n" in output
    assert re.search(r"The advice took \d+ s; the picture is in .*depths.svg", output)
    picture = ElementTree.parse(tmp_path / "depths.svg").getroot()
    assert len(picture.findall("{*}circle")) == 2 * 4
    assert not (tmp_path / "outputs").exists()
    assert (tmp_path / "cache" / SPEEDS).exists()


@pytest.mark.parametrize(
    ("family", "problem", "pair"),
    [("bert", "multi_label", False), ("bert", "regression", True), ("llama", "single_label", False)],
)
def test_all_kinds_of_labels_and_of_models_get_advice(
    tmp_path: Path,
    backbones: Callable[..., Path],
    family: str,
    problem: str,
    pair: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    advice = advise(make_small_config(tmp_path, backbones(family), problem, pair))
    assert np.isfinite([each.trained for each in advice.metrics]).all()
    # The first token is the same in all texts, and so is its embedding
    assert math.isnan(advice.metrics[0].frozen) is (problem == "regression")
    assert "  0                -" in capsys.readouterr().out or problem != "regression"
    assert [each.depth for each in advice.seconds] == [0, 1, 2]
    assert advice.own_seconds > 0


def test_a_run_that_is_judged_by_its_loss_is_compared_by_the_metric_of_the_task(make_config: MakeConfig) -> None:
    by_loss, by_accuracy = (advise(make_config(**{"evaluation.metric": name})) for name in ("loss", "accuracy"))
    assert by_loss.metric == "accuracy"
    assert (by_loss.metrics, by_loss.depth) == (by_accuracy.metrics, by_accuracy.depth)


def test_windows_of_long_texts_get_advice(make_config: MakeConfig) -> None:
    assert len(advise(make_config(**{"task.long_texts": "windows", "data.max_length": 8})).metrics) == 3


def test_advice_is_the_same_each_time_and_depends_on_the_labels(make_config: MakeConfig, tmp_path: Path) -> None:
    first, second = (advise(make_config()).metrics for _ in range(2))
    assert first == second
    values = [each.trained for each in first]
    assert min(values) > 0.6  # three classes, which these texts show
    path = Path(make_config().data.train[0])
    rows = path.read_text(encoding="utf-8").splitlines()
    labels = [line.partition('"label"')[2] for line in rows]
    mixed = np.random.default_rng(0).permutation(len(rows))
    starts = [line.partition('"label"')[0] for line in rows]
    texts = [f'{start}"label"{labels[place]}' for start, place in zip(starts, mixed, strict=True)]
    (tmp_path / "mixed.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    without_meaning = advise(make_config(**{"data.train": [str(tmp_path / "mixed.jsonl")]})).metrics
    assert max(each.trained for each in without_meaning) < 0.6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"task.kind": "tag", "data.label_column": "tags"},
            "task.kind (tag): advise knows how good a depth is for these tasks",
        ),
        ({"train.loss": "a:b"}, "train.loss (a:b): advise knows the losses of the task only"),
        ({"freeze.patterns": ["a"]}, "freeze.patterns (['a']): advise compares freeze.layers alone"),
        (
            {"freeze.layers": 2, "freeze.unfreeze": [{"epoch": 2, "layers": 1}]},
            "advise compares freeze.layers alone",
        ),
        ({"adapter.kind": "lora"}, "adapter.kind (lora): advise is for runs without adapters"),
        (
            {"data.streaming": True, "train.max_updates": 2},
            "data.streaming (True): advise needs the number of examples",
        ),
    ],
)
def test_what_gets_no_advice_is_an_error(make_config: MakeConfig, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        advise(make_config(**settings))


@pytest.mark.parametrize(
    ("out", "message"), [("a.png", "must be the path of an .svg file"), ("no/a.svg", "does not exist")]
)
def test_a_picture_that_cannot_be_written_is_an_error_at_once(make_config: MakeConfig, out: str, message: str) -> None:
    with pytest.raises(InputError, match=f"--out .*{message}"):
        advise(make_config(), out)


def test_a_backbone_that_runs_one_block_many_times_gets_no_advice(
    tmp_path: Path, backbones: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match="runs one shared block many times"):
        advise(make_small_config(tmp_path, backbones("albert")))


def test_a_backbone_whose_activations_cannot_be_cached_gets_no_advice(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise CannotCacheError("its blocks need more")

    monkeypatch.setattr("hf_finetune.forward.plan.find_cached_forward", refuse)
    with pytest.raises(InputError, match="advise: its blocks need more"):
        advise(make_config())


def test_a_head_without_a_linear_layer_gets_no_advice(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_finetune.choosing.advise.find_linear_head", lambda model: None)
    with pytest.raises(InputError, match="its head has no linear layer that gives logits"):
        advise(make_config())


# --- seconds --------------------------------------------------------------------------------------------------------


def make_speeds() -> dict[int, Speed]:
    """Seconds a token of a model of two blocks: a forward of a block takes 1, an update 3, one of the head 1."""
    return {
        0: Speed(prefix=0.0, entire=7.0, cached=7.0),
        1: Speed(prefix=1.0, entire=5.0, cached=4.0),
        2: Speed(prefix=2.0, entire=3.0, cached=1.0),
    }


def test_seconds_are_those_of_the_tokens(make_run: MakeRun) -> None:
    run = make_run(**{"train.epochs": 3})
    train, validation, test = (int(run.features[split].num_tokens.sum()) for split in ("train", "validation", "test"))
    seconds = expect_seconds(run, make_speeds(), 100.0)
    one, evaluated = 3 * train * 4.0, 3 * validation * 4.0 / 3
    assert seconds[1].warm == pytest.approx(100 + one + evaluated + 2 * test)
    assert seconds[1].cold == pytest.approx(seconds[1].warm + train + validation)
    assert seconds[0].cold == seconds[0].warm


@pytest.mark.parametrize(
    ("setting", "prefix", "caches"),
    [("auto", 0.5, True), ("auto", 50.0, False), ("on", 50.0, True), ("off", 1.0, False)],
)
def test_only_what_is_cached_makes_later_runs_faster(
    make_run: MakeRun, setting: str, prefix: float, caches: bool
) -> None:
    run = make_run(**{"train.epochs": 1, "cache.activations": setting})
    speeds = {depth: replace(speed, prefix=prefix * depth) for depth, speed in make_speeds().items()}
    seconds = expect_seconds(run, speeds, 0.0)[1]
    assert (seconds.warm < seconds.cold) is caches


def test_labels_that_are_all_the_same_are_an_error(make_config: MakeConfig, tmp_path: Path) -> None:
    rows = [{"text": f"the cat {word}", "label": 1.5} for word in tiny.FILLER]
    path = tiny.write_jsonl(tmp_path / "same.jsonl", rows)
    with pytest.raises(InputError, match="the sample does not determine pearson"):
        advise(make_config("regression", **{"data.train": [str(path)], "task.problem": "regression"}))


def test_speeds_between_those_that_were_measured_are_on_a_line() -> None:
    assert choose_depths(6) == [0, 2, 5, 6]
    assert choose_depths(2) == [0, 1, 2]
    assert choose_depths(1) == [0, 1]
    speeds = {0: make_speeds()[0], 2: make_speeds()[2]}
    assert interpolate(speeds, 1) == Speed(prefix=1.0, entire=5.0, cached=4.0)


def test_the_picture_in_the_terminal_has_all_depths(make_run: MakeRun) -> None:
    seconds = expect_seconds(make_run(), make_speeds(), 1.0)
    picture = draw_characters(make_metrics(0.9, 0.8, 0.5), seconds, "accuracy").splitlines()
    assert [row for row, line in enumerate(picture) if re.search(r"\|.*0$", line)] == [1]
    assert re.search(r"\|2$", picture[12])
    flat = draw_characters(make_metrics(0.9, 0.9, 0.9), seconds, "accuracy")
    assert all(re.search(rf"\|.*{depth}", flat) for depth in range(3))
