"""The activation cache in complete runs: equal numbers, right hits and misses, no damaged entry used, and every refusal
reported."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.runs import assert_same_tensors, load_last_checkpoint, read_untimed_metrics, run_recipe, run_until
from support.script_server import ScriptServer

from hf_finetune.cache import check, decision, listing, store
from hf_finetune.cache.capture import attach_activations, inference_only
from hf_finetune.cache.layout import make_layout
from hf_finetune.cache.speeds import SPEEDS, Speed, forget_wrong_speed
from hf_finetune.config.loading import to_yaml
from hf_finetune.config.sections import RunConfig
from hf_finetune.forward.plan import FULL_FORWARD
from hf_finetune.run import checkpoint
from hf_finetune.run.folder import open_run
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune
from hf_finetune.training.progress import Progress

MakeConfig = Callable[..., RunConfig]
CACHED = {
    "cache.activations": "on",
    "freeze.embeddings": True,
    "freeze.layers": 1,
    "train.dropout_masks": "stateless",
}


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    """The setting of a cache for one test."""
    return {"cache.dir": str(tmp_path / "cache")}


def list_keys(cache: dict[str, str]) -> set[str]:
    """The keys of the complete entries."""
    entries = listing.list_entries(store.activations_dir(cache["cache.dir"]))
    return {entry.folder.name for entry in entries if not entry.is_partial}


def read_activations(cache: dict[str, str]) -> bytes:
    """The file of the only entry."""
    (key,) = list_keys(cache)
    return (store.activations_dir(cache["cache.dir"]) / key / store.ACTIVATIONS).read_bytes()


def assert_equal_metrics(ours: Path, theirs: Path, tolerance: float) -> None:
    """The rows of metrics.jsonl are equal, up to the tolerance. Correlations are left out: predictions are almost constant."""
    for one, other in zip(read_untimed_metrics(ours), read_untimed_metrics(theirs), strict=True):
        values = {key: value for key, value in one.items() if not key.endswith(("pearson", "spearman"))}
        assert values == pytest.approx({key: other[key] for key in values}, abs=tolerance)


# --- the same numbers -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize(("kept", "tolerance"), [("fp32", 1e-5), ("16-bit", 2e-2)])
def test_a_cached_run_has_the_numbers_of_one_without(
    make_config: MakeConfig, cache: dict[str, str], problem: str, kept: str, tolerance: float
) -> None:
    """With dropout. The final numbers are those of the entire model, so the exported model gives the same."""
    without = make_config(problem, **CACHED | {"cache.activations": "off"}, name="without")
    finetune(without)
    config = make_config(problem, **CACHED, **cache, **{"cache.precision": kept})
    result = finetune(config)
    assert list_keys(cache)
    assert_equal_metrics(config.run_dir, without.run_dir, tolerance)
    assert result.results["seconds"]["cache"] > 0
    assert result.results["reload_difference"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family != "albert"])
def test_every_family_trains_from_its_cache(
    make_config: MakeConfig, backbones: Callable[..., Path], cache: dict[str, str], family: str
) -> None:
    settings = {**CACHED, **cache, "model.backbone": str(backbones(family, layers=3)), "cache.precision": "fp32",
                "freeze.layers": "all" if family in ("t5", "bart") else 2, "train.max_updates": 6}  # fmt: skip
    without = make_config(**settings | {"cache.activations": "off"}, name="without")
    finetune(without)
    config = make_config(**settings)
    finetune(config)
    assert list_keys(cache)
    assert_equal_metrics(config.run_dir, without.run_dir, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [{"train.micro_batch_size": 3}, {"train.micro_batch_tokens": 30}])
def test_micro_batches_change_nothing_with_a_cache_either(
    make_config: MakeConfig, cache: dict[str, str], limit: dict[str, int]
) -> None:
    complete = make_config(**CACHED, **cache, name="complete")
    finetune(complete)
    config = make_config(**CACHED, **cache, **limit)
    finetune(config)
    assert_equal_metrics(config.run_dir, complete.run_dir, 1e-5)


@pytest.mark.processes
def test_two_processes_fill_the_cache_together_and_have_the_numbers_of_one(
    make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = {"cache.dir": str(tmp_path / "one")}, {"cache.dir": str(tmp_path / "two")}
    alone = make_config(**CACHED, **here, name="alone")
    finetune(alone)
    together = make_config(**CACHED, **there, name="together")
    done = run_recipe(script_server, 2, together, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert done.stdout.count("tokens captured") == 1
    assert list_keys(here) == list_keys(there)
    assert read_activations(here) == read_activations(there)
    assert_equal_metrics(together.run_dir, alone.run_dir, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(3,), (8,), (5, 13)])
def test_a_stopped_run_resumes_with_its_cache_to_the_same_bits(
    make_config: MakeConfig, cache: dict[str, str], stops: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**CACHED, **cache, "checkpoint.every": 2, "evaluation.every": 4}
    complete = make_config(**settings, name="complete")
    finetune(complete)
    config = make_config(**settings)
    for stop in stops:
        run_until(config, stop, monkeypatch)
    finetune(config)
    assert_same_tensors(
        load_last_checkpoint(config.run_dir)["model_state_dict"],
        load_last_checkpoint(complete.run_dir)["model_state_dict"],
    )
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(complete.run_dir)


def test_early_stopping_works_from_the_cache(make_config: MakeConfig, cache: dict[str, str]) -> None:
    settings = {"train.epochs": 20, "train.patience": 1, "train.learning_rate": 1e-6, "evaluation.metric": "accuracy"}
    result = finetune(make_config(**CACHED, **cache, **settings))
    assert result.results["best"]["epoch"] < 20
    assert max(row["epoch"] for row in read_untimed_metrics(result.run_dir)) < 20


# --- hits and misses ------------------------------------------------------------------------------------------------

TINY_RUN = {**CACHED, "train.max_updates": 1}


@pytest.mark.slow
def test_seed_rate_labels_and_head_find_the_entry(
    make_config: MakeConfig, cache: dict[str, str], tmp_path: Path
) -> None:
    """The seed splits off validation and test: another seed makes other splits of the same rows."""
    rows = tiny.make_rows(60)
    path = tiny.write_jsonl(tmp_path / "all.jsonl", rows)
    split_off = {"data.train": [str(path)], "data.validation": [], "data.test": []}
    finetune(make_config(**TINY_RUN, **cache, **split_off, name="first"))
    first = list_keys(cache)
    assert len(first) == 1
    other_labels = tiny.write_jsonl(
        tmp_path / "others.jsonl", [{**row, "label": row["label"][0] + "x"} for row in rows]
    )
    for number, changes in enumerate(
        (
            {"seed": 5},
            {"train.learning_rate": 1e-4, "train.head_learning_rate": 1e-3, "train.epochs": 3},
            {"data.train": [str(other_labels)]},
            {"model.dropout": 0.3},
            {"train.batch_size": 4, "evaluation.batch_size": 7, "train.micro_batch_tokens": 40},
            {"freeze.patterns": [r"encoder\.layer\.1\.output"]},
        )
    ):
        finetune(make_config(**TINY_RUN | {**cache, **split_off, **changes}, name=f"other-{number}"))
        assert list_keys(cache) == first, changes


def test_test_rows_of_their_own_are_not_computed(
    make_config: MakeConfig, cache: dict[str, str], tmp_path: Path
) -> None:
    """Nothing would read them: the entire model computes the numbers of the test split."""
    test = tiny.write_jsonl(tmp_path / "other-test.jsonl", tiny.make_rows(9))
    finetune(make_config(**TINY_RUN, **cache, name="first"))
    first = list_keys(cache)
    finetune(make_config(**{**TINY_RUN, **cache, "data.test": [str(test)]}, name="second"))
    finetune(make_config(**{**TINY_RUN, **cache, "data.test": [], "data.test_fraction": 0.0}, name="third"))
    assert list_keys(cache) == first


@pytest.mark.slow
def test_weights_tokens_boundary_and_precision_miss(
    make_config: MakeConfig, backbones: Callable[..., Path], cache: dict[str, str], tmp_path: Path
) -> None:
    source = backbones("bert", layers=3)
    base = {**TINY_RUN, **cache, "model.backbone": str(source)}
    finetune(make_config(**base, name="first"))
    keys = list_keys(cache)

    def assert_missed(name: str, **changes: Any) -> None:
        finetune(make_config(**{**base, **changes}, name=name))
        assert len(list_keys(cache) - keys) == 1, name
        keys.update(list_keys(cache))

    changed = tmp_path / "changed"
    shutil.copytree(source, changed)
    weights = load_file(changed / "model.safetensors")
    name = next(name for name in weights if "layer.0.attention.self.query.weight" in name)
    weights[name][3, 5] += 2.0**-20  # one weight of a frozen block
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    assert_missed("weight", **{"model.backbone": str(changed)})

    above = tmp_path / "above"  # a weight above the boundary does not belong to the prefix
    shutil.copytree(source, above)
    weights = load_file(above / "model.safetensors")
    weights[next(name for name in weights if "layer.2.attention.self.query.weight" in name)][3, 5] += 1.0
    save_file(weights, above / "model.safetensors", metadata={"format": "pt"})
    finetune(make_config(**base | {"model.backbone": str(above)}, name="above"))
    assert list_keys(cache) == keys

    lines = (tmp_path / "train-single_label.jsonl").read_text().splitlines(keepends=True)
    lines[7] = lines[7].replace('"text": "', '"text": "cat ', 1)
    (tmp_path / "token.jsonl").write_text("".join(lines))
    assert_missed("token", **{"data.train": [str(tmp_path / "token.jsonl")]})
    assert_missed("boundary", **{"freeze.layers": 2})
    assert_missed("length", **{"data.max_length": 6})
    assert_missed("computed", **{"train.precision": "bf16"})
    assert_missed("stored", **{"cache.precision": "fp32"})
    assert_missed("attention", **{"model.attention": "eager"})


@pytest.mark.parametrize("damage", ["flip", "cut", "no manifest", "manifest"])
def test_a_damaged_entry_is_found_and_rebuilt_never_used(
    make_config: MakeConfig, cache: dict[str, str], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    finetune(make_config(**TINY_RUN, **cache, name="first"))
    good = read_activations(cache)
    (key,) = list_keys(cache)
    path = (
        store.activations_dir(cache["cache.dir"])
        / key
        / (store.MANIFEST if "manifest" in damage else store.ACTIVATIONS)
    )
    content = bytearray(path.read_bytes())
    if damage == "no manifest":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content[:-10] if damage == "cut" else content)
    capsys.readouterr()
    second = make_config(**TINY_RUN, **cache, name="second")
    finetune(second)
    assert (
        "is damaged in" in capsys.readouterr().out or damage == "manifest"
    )  # perhaps in its spans, which are not used
    assert read_activations(cache) == good
    assert_equal_metrics(second.run_dir, second.run_dir.parent / "first", 0.0)


# Trains with a config, and kills itself with SIGKILL when it begins to capture this chunk; 0 for none
KILLED_CAPTURE = """
import os, signal, sys
from hf_finetune.cache import capture, layout
from hf_finetune.config.loading import load_config
from hf_finetune.train import finetune

chunks, capture_chunk, layout.CHUNK_TOKENS = [], capture.capture_chunk, 64

def count_and_capture(*arguments):
    chunks.append(None)
    print("chunk", flush=True)
    if len(chunks) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return capture_chunk(*arguments)

capture.capture_chunk = count_and_capture
finetune(load_config({}, ["--config", sys.argv[1]]))
"""


@pytest.mark.processes
def test_a_killed_capture_resumes_to_the_same_bytes(
    make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer
) -> None:
    """A run gets a real SIGKILL three times while it captures, and then runs to its end."""
    here, there = {"cache.dir": str(tmp_path / "one")}, {"cache.dir": str(tmp_path / "two")}
    settings = {**TINY_RUN, "data.train": [str(tiny.write_jsonl(tmp_path / "many.jsonl", tiny.make_rows(400)))]}
    script = tmp_path / "capture.py"
    script.write_text(KILLED_CAPTURE, encoding="utf-8")

    def count_chunks(config: RunConfig, kill_at: int) -> int:
        path = tmp_path / f"{config.name}.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        code = script_server.run(script, [str(path), str(kill_at)], tmp_path, dict(os.environ), seconds=90)
        assert code == (-signal.SIGKILL if kill_at else 0), (tmp_path / "stderr").read_text(encoding="utf-8")
        return (tmp_path / "stdout").read_text(encoding="utf-8").count("chunk")

    total = count_chunks(make_config(**settings, **here, name="complete"), 0)
    config = make_config(**settings, **there)
    for kill_at in (3, 6, 2):
        assert count_chunks(config, kill_at) == kill_at
        assert not list_keys(there)
    assert count_chunks(config, 0) < total, "good chunks are not computed again"
    assert read_activations(here) == read_activations(there)


# --- the decision ---------------------------------------------------------------------------------------------------


@pytest.fixture
def decide(make_config: MakeConfig, cache: dict[str, str]) -> Any:
    """`decide(progress, **settings)`: a run that is set up, and the decision on its cache."""

    def make(progress: Progress | None = None, **settings: Any) -> tuple[TrainingRun, decision.CacheDecision]:
        config = make_config(**{**CACHED, **cache, **settings})
        with open_run(config) as runtime:
            run = set_up(config, runtime, Clock())
            return run, decision.decide(run, progress or Progress())

    return make


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("bert", {"freeze.embeddings": False}, "the embeddings train"),
        ("albert", {"freeze.layers": "all"}, "runs one shared block many times"),
        ("t5", {"freeze.layers": 1}, "need more of the lower ones than hidden states"),
    ],
)
def test_a_refusal_to_cache_names_its_reason(
    decide: Any, backbones: Callable[..., Path], family: str, settings: dict[str, Any], reason: str
) -> None:
    settings = {"model.backbone": str(backbones(family)), **settings}
    with pytest.raises(InputError, match=f"cache.activations \\(on\\): .*{reason}"):
        decide(**settings)
    _, cache_decision = decide(**settings, **{"cache.activations": "auto"})
    assert not cache_decision.is_on
    assert reason in cache_decision.lines[0]


@pytest.mark.slow
def test_auto_decides_by_the_measured_gain_and_keeps_the_decision(decide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = {"cache.activations": "auto"}
    _, cache_decision = decide(**auto)
    assert not cache_decision.is_on, "60 short texts are not worth a file"
    monkeypatch.setattr(decision, "estimate_gain", lambda *_: (40.6, 96.2))
    _, cache_decision = decide(**auto)
    assert cache_decision.is_on
    assert cache_decision.lines[0] == "on: saves about 40.6 s of 96.2 s"
    assert cache_decision.entry is not None
    assert str(cache_decision.entry.folder) in cache_decision.lines[1]
    assert "differ from the entire model's by at most" in cache_decision.lines[2]
    _, cache_decision = decide(Progress(update=3, cached=False), **auto)
    assert cache_decision.lines == ("off: as this run started",)
    monkeypatch.setattr(decision, "estimate_gain", lambda *_: (-3.0, 96.2))
    _, cache_decision = decide(Progress(update=3, cached=True), **auto)
    assert cache_decision.is_on
    _, cache_decision = decide(**auto)
    assert cache_decision.lines == ("off: would cost about 3.0 s more than the 96.2 s without it",)
    _, cache_decision = decide(**auto, **{"freeze.layers": 0})
    assert "only the embeddings" in cache_decision.lines[0]
    _, cache_decision = decide(Progress(stopped=True))
    assert "nothing is left to train" in cache_decision.lines[0]
    _, cache_decision = decide(**{"cache.activations": "off"})
    assert cache_decision.lines == ("off: set by cache.activations",)


def test_a_complete_entry_needs_no_measurement(decide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, cache_decision = decide()
    assert cache_decision.lines[0] == "on: set by cache.activations"
    with open_run(run.config):
        attach_activations(run, cache_decision.entry, cache_decision.cached_forward)
    monkeypatch.setattr(decision, "measure_speed", lambda *_: pytest.fail("measured"))
    _, cache_decision = decide(**{"cache.activations": "auto"})
    assert cache_decision.lines[0].startswith("on: the activations are there")


def test_the_speed_of_the_machine_is_measured_once_and_again_when_it_proves_wrong(
    decide: Any, monkeypatch: pytest.MonkeyPatch, cache: dict[str, str]
) -> None:
    speeds = iter([Speed(prefix=9.0, entire=10.0, cached=1.0), Speed(prefix=0.0, entire=1e-9, cached=1e-9)])
    monkeypatch.setattr(decision, "measure_speed", lambda *_: next(speeds))
    auto = {"cache.activations": "auto"}
    for changed in ({}, {"seed": 5}, {"train.learning_rate": 1e-5}):
        assert decide(**auto, **changed)[1].is_on
    run, _ = decide(**auto)

    def train(seconds: float) -> None:
        clock = Clock()
        clock.num_tokens = 1000
        with clock("train"):  # nothing has ended the phase when the speed is compared
            clock.switched -= seconds
            forget_wrong_speed(run, clock)

    train(9500.0)
    assert decide(**auto)[1].is_on  # 9.5 s a token are about 10
    train(4500.0)
    assert not decide(**auto)[1].is_on
    path = Path(cache["cache.dir"]) / SPEEDS
    path.write_text("[1]")
    monkeypatch.setattr(decision, "measure_speed", lambda *_: Speed(prefix=9.0, entire=10.0, cached=1.0))
    assert decide(**auto)[1].is_on
    assert len(json.loads(path.read_text())) == 1


def test_the_self_check_is_kept_for_the_same_model(
    decide: Any, monkeypatch: pytest.MonkeyPatch, backbones: Callable[..., Path], tmp_path: Path
) -> None:
    calls = []
    honest = check.check_logits
    monkeypatch.setattr(check, "check_logits", lambda *arguments: calls.append(1) or honest(*arguments))
    run, first = decide()
    decide()
    assert len(calls) == 2  # there is no entry yet
    with open_run(run.config):
        attach_activations(run, first.entry, first.cached_forward)
    lines = [decide(**changed)[1].lines[2] for changed in ({}, {}, {"seed": 7})]
    assert len(calls) == 3
    assert lines == [first.lines[2]] * 3
    path = first.entry.folder / check.VERDICT
    kept = json.loads(path.read_text())
    for damaged in ("{", json.dumps(kept | {"difference": 9.0}), json.dumps(kept | {"difference": float("nan")})):
        path.write_text(damaged)
        decide()
    assert len(calls) == 6
    shutil.copytree(backbones("bert"), tmp_path / "other")  # with another upper block, and the same prefix
    weights = load_file(tmp_path / "other" / "model.safetensors")
    name = next(name for name in weights if "layer.1.output.LayerNorm.weight" in name)
    weights[name] *= 2
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    _, other = decide(**{"model.backbone": str(tmp_path / "other")})
    assert other.entry.key == first.entry.key
    assert len(calls) == 7


def test_the_numbers_of_validation_are_those_of_the_best_update(
    make_config: MakeConfig, cache: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fp32 activations they are the entire model's to 1e-6. If outputs of the trained model differ, it is run again."""
    results = finetune(make_config(**TINY_RUN, **cache, **{"cache.precision": "fp32"}, name="first")).results
    assert "activations of the frozen layers in 16 bit" not in read_card(make_config(name="first"))
    compared = results["validation_check"]
    assert compared["difference"] <= compared["tolerance"] <= 1e-4
    best = next(row for row in results["history"] if row["update"] == results["best"]["update"])
    assert results["validation"] == {name: best[name] for name in results["validation"]}
    config = make_config(**TINY_RUN, **cache, **{"cache.precision": "fp32"}, name="second")
    different = check.Comparison(difference=float("nan"), tolerance=1.0)
    monkeypatch.setattr("hf_finetune.train.compare_evaluation", lambda _: different)
    entire = finetune(config).results
    assert entire["validation_check"] is None
    assert entire["validation"] == pytest.approx(results["validation"], abs=1e-6)
    assert entire["test"] == results["test"]
    assert "the entire model is evaluated again" in capsys.readouterr().out


def test_numbers_of_other_activations_do_not_stand(
    make_config: MakeConfig, cache: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed in its export has nothing left to train. If its activations are still there, its numbers are those
    of a run that was not killed; else the entire model computes them."""

    def kill(name: str) -> RunConfig:
        config = make_config(**TINY_RUN, **cache, name=name)
        with monkeypatch.context() as patch:
            patch.setattr("hf_finetune.train.finish_run", raise_interrupt)
            with pytest.raises(KeyboardInterrupt):
                finetune(config)
        return config

    never_killed = finetune(make_config(**TINY_RUN, **cache, name="never")).results
    assert "activations of the frozen layers in 16 bit" in read_card(make_config(name="never"))
    results = finetune(kill("killed")).results
    assert results["validation"] == never_killed["validation"]
    assert results["validation_check"] == never_killed["validation_check"]
    config = kill("pruned")
    shutil.rmtree(cache["cache.dir"])
    results = finetune(config).results
    assert results["validation_check"] is None
    assert "activations of the frozen layers in 16 bit" not in read_card(config)
    from_activations = next(row for row in results["history"] if row["update"] == results["best"]["update"])
    assert results["validation"]["loss"] == pytest.approx(from_activations["loss"], abs=1e-3)


def read_card(config: RunConfig) -> str:
    """The card of a run's model."""
    return (config.run_dir / "model" / "README.md").read_text(encoding="utf-8")


def raise_interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_outputs_that_are_not_finite_are_never_the_same(value: float) -> None:
    assert not check.Comparison(difference=value, tolerance=float("inf")).is_same


def test_a_trained_model_whose_outputs_differ_from_its_cached_ones_is_noticed(decide: Any) -> None:
    run, cache_decision = decide(**{"cache.precision": "fp32"})
    with open_run(run.config):
        run = attach_activations(run, cache_decision.entry, cache_decision.cached_forward)
    assert check.compare_evaluation(run).is_same
    with torch.no_grad():
        run.train_state.model.base_model.embeddings.word_embeddings.weight.normal_()
    assert not check.compare_evaluation(run).is_same


def test_an_evaluation_that_leaves_nothing_out_is_not_compared_with_itself(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are the entire model's, and stand without a comparison."""
    monkeypatch.setattr(
        "hf_finetune.run.setup.find_forward_plan", lambda *_, **__: (FULL_FORWARD, "nothing to leave out")
    )
    monkeypatch.setattr(check, "compare_outputs", None)
    monkeypatch.setattr(
        "hf_finetune.train.evaluate_split", lambda run, split, **options: evaluated.append(split) or numbers
    )
    evaluated, numbers = list[str](), {"accuracy": 0.5, "loss": 0.25}
    results = finetune(make_config(**TINY_RUN | {"cache.activations": "off"})).results
    assert results["validation_check"] is None
    assert results["validation"] == numbers
    assert evaluated == ["validation", "test"]  # after the update; at the end


def test_the_estimate_counts_what_is_to_come(make_config: MakeConfig, cache: dict[str, str], monkeypatch: Any) -> None:
    """A fake clock measures 1 s for the entire model, 0.4 s from cached activations, and 0.2 s for the prefix."""
    config = make_config(**CACHED, **cache, **{"train.epochs": 4})
    with open_run(config) as runtime:
        run = set_up(config, runtime, Clock())
        cached_forward = run.train_state.forward_plan.cached
        assert cached_forward is not None
        answers = iter([0.2, 1.0, 0.4] * 3)
        monkeypatch.setattr(decision, "time_call", lambda function: (function(), next(answers))[1])
        layout = make_layout(run.features)
        entry = decision.find_entry(run, layout, 32)
        with inference_only(run):
            saved, total = decision.estimate_gain(run, cached_forward, entry, Progress())
            halfway = Progress(update=2 * run.schedule.updates_per_epoch)
            saved_from_halfway, _ = decision.estimate_gain(run, cached_forward, entry, halfway)
    indices = np.argsort(run.features["train"].lengths, kind="stable")[26:34]
    per_token = 1.0 / run.features["train"].lengths[indices].sum()
    train, validation = (run.features[split].lengths.sum() for split in ("train", "validation"))
    seconds_of_capture = layout.num_tokens * 0.2 * per_token
    expected = (4 * train * 0.6 + 4 * validation * 0.2) * per_token
    assert saved == pytest.approx(expected - seconds_of_capture)
    assert saved_from_halfway == pytest.approx(expected / 2 - seconds_of_capture)
    assert total == pytest.approx(4 * (train + validation * (0.2 + 0.4 / 3)) * per_token)


@pytest.mark.parametrize("activations", ["on", "auto"])
def test_cached_activations_that_give_other_logits_are_refused(
    make_config: MakeConfig, cache: dict[str, str], monkeypatch: pytest.MonkeyPatch, activations: str
) -> None:
    from hf_finetune.forward.cached import CachedForward

    config = make_config(**CACHED | {"cache.activations": activations}, **cache)
    honest = CachedForward.compute_activations
    with open_run(config) as runtime:
        run = set_up(config, runtime, Clock())
        monkeypatch.setattr(
            CachedForward, "compute_activations", lambda self, batch: 3 * honest(self, batch).roll(1, -1)
        )
        if activations == "on":
            with pytest.raises(
                InputError, match=r"cache.activations \(on\): logits from cached activations differ from the model's by"
            ):
                decision.decide(run, Progress())
        else:
            assert "off: logits from cached activations differ" in decision.decide(run, Progress()).lines[0]


def test_a_disk_without_space_is_found_before_the_capture(decide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(InputError, match=r"cache.activations \(on\): .* MB are needed at .* and 0 MB are free"):
        decide()


def test_measuring_leaves_the_model_unchanged(decide: Any) -> None:
    run, _ = decide()
    assert all(parameter.grad is None for parameter in run.train_state.model.parameters())
    assert not any("forward" in vars(module) for module in list(run.train_state.model.modules())[1:])


@pytest.mark.parametrize("part", ["all", "second half"])
def test_forged_activations_are_refused_although_their_digests_fit(
    make_config: MakeConfig, cache: dict[str, str], part: str
) -> None:
    """The attack: states times -3 with new digests were accepted, and trained other weights."""
    finetune(make_config(**TINY_RUN, **cache, name="first"))
    (key,) = list_keys(cache)
    folder = store.activations_dir(cache["cache.dir"]) / key
    manifest = json.loads((folder / store.MANIFEST).read_bytes())
    values = np.fromfile(folder / store.ACTIVATIONS, np.float16)
    values[len(values) // 2 if part == "second half" else 0 :] *= -3
    content = values.tobytes()
    (folder / store.ACTIVATIONS).write_bytes(content)
    manifest["digests"] = [hashlib.sha256(content[begin:end]).hexdigest() for begin, end in manifest["spans"]]
    (folder / store.MANIFEST).write_bytes(json.dumps(manifest, default=str).encode())
    with pytest.raises(InputError, match=r"^cache\.dir: the stored activations in .* differ by .*; remove that folder"):
        finetune(make_config(**TINY_RUN, **cache, name="second"))


# --- values that fp16 cannot hold -----------------------------------------------------------------------------------


def large_backbone(source: Path, folder: Path, factor: float) -> Path:
    """The backbone with a factor on the last norm of its first block, so that its activations are large."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layer.0.output.LayerNorm.weight" in name)
    weights[name] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
def test_values_too_large_for_fp16_are_kept_in_bf16(
    make_config: MakeConfig, backbones: Callable[..., Path], cache: dict[str, str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    same = check.Comparison(difference=0.0, tolerance=1.0)
    monkeypatch.setattr(check, "check_logits", lambda *_: same)  # fp16's infinities would fail it
    backbone = large_backbone(backbones("bert"), tmp_path / "large", 1e6)
    settings = {**TINY_RUN, **cache, "model.backbone": str(backbone)}
    for name in ("first", "second"):
        finetune(make_config(**settings, name=name))
    assert capsys.readouterr().out.count("too large for fp16") == 1, "the second run finds the entry"
    (entry,) = listing.list_entries(store.activations_dir(cache["cache.dir"]))
    assert entry.manifest["dtype"] == "bfloat16"


def test_activations_that_are_not_finite_are_an_error(decide: Any) -> None:
    run, cache_decision = decide(**{"cache.precision": "fp32"})
    cached_forward = run.train_state.forward_plan.cached
    with torch.no_grad():
        next(iter(cached_forward.placeholders)).word_embeddings.weight[5:] = float("inf")
    with open_run(run.config), pytest.raises(InputError, match="give values that are not finite"):
        attach_activations(run, cache_decision.entry, cache_decision.cached_forward)
    assert not list_keys({"cache.dir": str(run.config.cache.dir)})


def test_the_results_are_those_of_the_exported_model(
    make_config: MakeConfig, cache: dict[str, str], tmp_path: Path
) -> None:
    from hf_finetune.export.predict import Predictor
    from hf_finetune.export.predictor_calls import evaluate_file

    result = finetune(make_config(**CACHED, **cache))
    values = evaluate_file(Predictor.from_pretrained(str(result.run_dir)), str(tmp_path / "test-single_label.jsonl"))
    assert values == json.loads((result.run_dir / "results.json").read_text())["test"]
    assert checkpoint.find_newest_intact(result.run_dir / "checkpoints")[0] is not None
