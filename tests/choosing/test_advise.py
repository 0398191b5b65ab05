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
from support.entries import make_features as make_plain_features

from hf_finetune import cli
from hf_finetune.cache.speeds import SPEEDS, Speed
from hf_finetune.choosing import advise_metric
from hf_finetune.choosing.advise import advise, choose_depth
from hf_finetune.choosing.advise_metric import (
    PENALTIES,
    ExpectedMetric,
    choose_sample,
    compare_losses,
    make_kernel,
    predict_each,
)
from hf_finetune.choosing.advise_seconds import choose_depths, expect_seconds, interpolate
from hf_finetune.choosing.advise_text import draw_characters
from hf_finetune.config.loading import to_yaml
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import Features
from hf_finetune.forward.cached import CannotCacheError
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.training.ridge import Targets, choose_fit, make_kernel_regressions

MakeConfig = Callable[..., RunConfig]
MakeRun = Callable[..., TrainingRun]


def make_metrics(*values: float) -> list[ExpectedMetric]:
    """Expected metrics of the depths 0, 1, ..."""
    best = max(values)
    return [
        ExpectedMetric(depth=depth, frozen=0.0, trained=value, most_lost=best - value)
        for depth, value in enumerate(values)
    ]


@pytest.mark.parametrize(("lost", "depth"), [((0, 0.004, 0.005, 0.1), 2), ((0, 0.1, 0.004, 0.1), 2), ((0, 0.1), 0)])
def test_the_deepest_freezing_that_is_shown_to_be_harmless_is_recommended(lost: tuple[float, ...], depth: int) -> None:
    metrics = [replace(each, most_lost=lost[each.depth]) for each in make_metrics(*lost)]
    assert choose_depth(metrics) == depth


def make_losses(*means: float) -> np.ndarray:
    """Losses of 400 examples at depths that differ by noise of 0.1, and by these means."""
    generator = np.random.default_rng(0)
    own = 0.1 * generator.normal(size=(len(means), 400))
    return 2.0 + generator.normal(size=400) + own - own.mean(1, keepdims=True) + np.array(means)[:, None]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_loss_orders_the_depths_and_the_metric_says_what_it_is_worth(sign: int) -> None:
    losses, metrics = make_losses(0.0, 0.1, 0.4), sign * np.array([0.81, 0.79, 0.70])
    trained, lost = compare_losses(losses, metrics.tolist(), greater_is_better=sign > 0)
    slope, offset = np.polyfit(losses.mean(1), metrics, 1)
    np.testing.assert_allclose(trained, slope * losses.mean(1) + offset)
    assert lost[0] == 0
    assert lost[1] == pytest.approx(abs(slope) * (0.1 + 2 * (losses[1] - losses[0]).std() / 20))
    assert lost[2] == pytest.approx(abs(slope) * (0.4 + 2 * (losses[2] - losses[0]).std() / 20))
    assert lost[1] == pytest.approx(abs(slope) * (0.1 + 2 * 0.14 / 20), rel=0.05)  # what the depths share is no error


def test_a_depth_with_a_smaller_loss_may_lose_by_the_error() -> None:
    losses = make_losses(0.001, 0.0, 0.4)
    _, lost = compare_losses(losses, [0.8, 0.8, 0.4], greater_is_better=True)
    slope = -np.polyfit(losses.mean(1), [0.8, 0.8, 0.4], 1)[0]
    assert lost[1] == pytest.approx(slope * (2 * (losses[1] - losses[0]).std() / 20 - 0.001))
    assert lost[1] > 0


@pytest.mark.parametrize(("metrics", "greater"), [([0.7, 0.8], True), ([0.8, 0.7], False), ([0.7, 0.7], True)])
def test_what_a_depth_loses_is_not_known_if_a_smaller_loss_is_not_better(metrics: list[float], greater: bool) -> None:
    losses = np.array([[1.0, 2.0], [2.0, 2.5]])
    trained, lost = compare_losses(losses, metrics, greater_is_better=greater)
    assert trained == [pytest.approx(np.mean(metrics))] * 2
    assert lost == [0, pytest.approx(math.nan, nan_ok=True)]


def test_depths_without_any_difference_are_equal() -> None:
    assert compare_losses(np.ones((2, 3)), [0.5, 0.5], greater_is_better=True) == ([0.5, 0.5], [0, 0])


def test_states_that_say_nothing_predict_the_most_frequent_label() -> None:
    """Leaving an example out of the shares of the labels would predict another label for each."""
    labels = np.array([0, 1] * 20 + [1])
    targets = Targets(problem="single_label", values=labels, weights=np.ones(41), num_outputs=2)
    assert (predict_each(np.full((41, 3), 0.1, np.float32), targets).argmax(1) == 1).all()
    assert (predict_each(np.eye(2)[labels], targets).argmax(1) == labels).all()


def test_no_label_is_known_from_the_example_itself() -> None:
    """Features that could tell all examples apart say nothing of labels drawn at random."""
    labels = np.random.default_rng(0).integers(0, 2, 200)
    targets = Targets(problem="single_label", values=labels, weights=np.ones(200), num_outputs=2)
    for size in (20, 1000):
        rows = np.random.default_rng(1).normal(size=(200, size)).astype(np.float32)
        assert (predict_each(rows, targets).argmax(1) == labels).mean() < 0.6
        outputs = choose_fit(make_kernel_regressions(make_kernel(rows)), targets, penalties=PENALTIES).outputs
        assert (outputs.argmax(1) == labels).mean() < 0.6


def make_features(lengths: list[int], example_indices: list[int] | None = None) -> Features:
    """Features of sequences of these lengths."""
    features = make_plain_features([[1] * length for length in lengths])
    return features if example_indices is None else replace(features, example_indices=np.array(example_indices))


def test_the_sample_is_limited_in_tokens_and_has_each_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = choose_sample(make_features([3] * 50), 0)
    assert everything.tolist() == list(range(50))
    monkeypatch.setattr(advise_metric, "LEAST_EXAMPLES", 4)
    monkeypatch.setattr(advise_metric, "MOST_EXAMPLES", 20)
    assert len(choose_sample(make_features([3] * 50), 0)) == 20
    monkeypatch.setattr(advise_metric, "NUM_TOKENS", 30)
    drawn = choose_sample(make_features([3] * 50), 0)
    assert len(set(drawn.tolist())) == 10
    assert drawn.tolist() == sorted(drawn)
    assert drawn.tolist() != choose_sample(make_features([3] * 50), 1).tolist()
    assert len(choose_sample(make_features([300] * 50), 0)) == 4
    windows = choose_sample(make_features([3] * 6, [0, 0, 1, 2, 2, 2]), 0)
    assert windows.tolist() == [0, 2, 3]


def test_the_command_prints_a_table_a_picture_and_lines_to_paste(
    tmp_path: Path, backbones: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes the picture, and nothing into the folder of the runs."""
    config = make_small_config(tmp_path, backbones("bert", layers=3), **{"cache.dir": str(tmp_path / "cache")})
    (tmp_path / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
    words = ["advise", "classify", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "depths.svg")]
    assert cli.main(words) == 0
    output = capsys.readouterr().out
    rows = re.findall(r"^ +(\d) +[01]\.\d{3} +[01]\.\d{3} +0\.\d{3} +\d+ s +\d+ s(.*)$", output, flags=re.MULTILINE)
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


def test_a_metric_that_does_not_follow_the_loss_recommends_nothing() -> None:
    """As accuracy, if one label is so frequent that it is predicted everywhere."""
    losses = np.random.default_rng(0).random((4, 50)) + 0.1 * np.arange(4)[:, None]
    _, most_lost = compare_losses(losses, [0.95, 0.95, 0.95, 0.952], greater_is_better=True)
    assert most_lost[0] == 0
    assert np.isnan(most_lost[1:]).all()
    rows = [
        ExpectedMetric(depth=depth, frozen=0.9, trained=0.9, most_lost=lost) for depth, lost in enumerate(most_lost)
    ]
    assert choose_depth(rows) == 0


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
