"""The cached prefix in whole runs: same numbers, right hits and misses, nothing damaged used, nothing asked for refused in
silence."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.runs import TORCHRUN, assert_same_tensors, launch, load_last_checkpoint, read_untimed_metrics, run_until

from hf_finetune.cache import decision, layout, listing, store
from hf_finetune.cache.capture import attach_activations, inference_only
from hf_finetune.config.sections import RunConfig
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
    """The setting of a cache of the test's own."""
    return {"cache.dir": str(tmp_path / "prefix")}


def entries(cache: dict[str, str]) -> set[str]:
    """The keys of the whole entries."""
    return {entry.folder.name for entry in listing.list_entries(Path(cache["cache.dir"])) if not entry.is_partial}


def entry_bytes(cache: dict[str, str]) -> bytes:
    """The states of the only entry."""
    (key,) = entries(cache)
    return (Path(cache["cache.dir"]) / key / store.ACTIVATIONS).read_bytes()


def assert_like(ours: Path, theirs: Path, tolerance: float) -> None:
    """Equal rows of metrics.jsonl, up to the tolerance; a correlation of all but constant predictions is left out."""
    for one, other in zip(read_untimed_metrics(ours), read_untimed_metrics(theirs), strict=True):
        kept = {key: value for key, value in one.items() if not key.endswith(("pearson", "spearman"))}
        assert kept == pytest.approx({key: other[key] for key in kept}, abs=tolerance)


# --- the same numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize(("kept", "tolerance"), [("fp32", 1e-5), ("16-bit", 2e-2)])
def test_a_cached_run_has_the_numbers_of_one_without(
    make_config: MakeConfig, cache: dict[str, str], problem: str, kept: str, tolerance: float
) -> None:
    """Dropout on. The final numbers are those of the whole model, so they are what the exported one gives."""
    without = make_config(problem, **CACHED | {"cache.activations": "off"}, name="without")
    finetune(without)
    config = make_config(problem, **CACHED, **cache, **{"cache.precision": kept})
    result = finetune(config)
    assert entries(cache)
    assert_like(config.run_dir, without.run_dir, tolerance)
    assert result.results["seconds"]["cache"] > 0
    assert result.results["reload_difference"] == 0.0


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
    assert entries(cache)
    assert_like(config.run_dir, without.run_dir, 1e-5)


@pytest.mark.parametrize("limit", [{"train.micro_batch_size": 3}, {"train.micro_batch_tokens": 30}])
def test_micro_batches_change_nothing_with_a_cache_either(
    make_config: MakeConfig, cache: dict[str, str], limit: dict[str, int]
) -> None:
    whole = make_config(**CACHED, **cache, name="whole")
    finetune(whole)
    config = make_config(**CACHED, **cache, **limit)
    finetune(config)
    assert_like(config.run_dir, whole.run_dir, 1e-5)


def test_two_processes_fill_the_cache_together_and_have_the_numbers_of_one(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "CHUNK_TOKENS", 4096)
    here, there = {"cache.dir": str(tmp_path / "one")}, {"cache.dir": str(tmp_path / "two")}
    alone = make_config(**CACHED, **here, name="alone")
    finetune(alone)
    together = make_config(**CACHED, **there, name="together")
    done = launch(TORCHRUN, together, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert done.stdout.count("tokens captured") == 1
    assert entries(here) == entries(there)
    assert entry_bytes(here) == entry_bytes(there)
    assert_like(together.run_dir, alone.run_dir, 1e-5)


@pytest.mark.parametrize("stops", [(3,), (8,), (5, 13)])
def test_a_stopped_run_goes_on_with_its_cache_to_the_same_bits(
    make_config: MakeConfig, cache: dict[str, str], stops: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**CACHED, **cache, "checkpoint.every": 2, "evaluation.every": 4}
    whole = make_config(**settings, name="whole")
    finetune(whole)
    config = make_config(**settings)
    for stop in stops:
        run_until(config, stop, monkeypatch)
    finetune(config)
    assert_same_tensors(
        load_last_checkpoint(config.run_dir)["model_state_dict"], load_last_checkpoint(whole.run_dir)["model_state_dict"]
    )
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(whole.run_dir)


def test_early_stopping_works_from_the_cache(make_config: MakeConfig, cache: dict[str, str]) -> None:
    settings = {"train.epochs": 20, "train.patience": 1, "train.learning_rate": 1e-6, "evaluation.metric": "accuracy"}
    result = finetune(make_config(**CACHED, **cache, **settings))
    assert result.results["best"]["epoch"] < 20
    assert max(row["epoch"] for row in read_untimed_metrics(result.run_dir)) < 20


# --- hits and misses ------------------------------------------------------------------------------------------------

TINY_RUN = {**CACHED, "train.max_updates": 1}


def test_seed_rate_labels_and_head_find_the_entry(
    make_config: MakeConfig, cache: dict[str, str], tmp_path: Path
) -> None:
    """Validation and test are carved out by the seed: another seed makes other splits of the same rows."""
    rows = tiny.make_rows(60)
    path = tiny.write_jsonl(tmp_path / "all.jsonl", rows)
    carved = {"data.train": [str(path)], "data.validation": [], "data.test": []}
    finetune(make_config(**TINY_RUN, **cache, **carved, name="first"))
    first = entries(cache)
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
        finetune(make_config(**TINY_RUN | {**cache, **carved, **changes}, name=f"other-{number}"))
        assert entries(cache) == first, changes


def test_weights_tokens_boundary_and_precision_miss(
    make_config: MakeConfig, backbones: Callable[..., Path], cache: dict[str, str], tmp_path: Path
) -> None:
    source = backbones("bert", layers=3)
    base = {**TINY_RUN, **cache, "model.backbone": str(source)}
    finetune(make_config(**base, name="first"))
    seen = entries(cache)

    def missed(name: str, **changes: Any) -> None:
        finetune(make_config(**{**base, **changes}, name=name))
        assert len(entries(cache) - seen) == 1, name
        seen.update(entries(cache))

    changed = tmp_path / "changed"
    shutil.copytree(source, changed)
    weights = load_file(changed / "model.safetensors")
    name = next(name for name in weights if "layer.0.attention.self.query.weight" in name)
    weights[name][3, 5] += 2.0**-20  # one weight of a frozen block
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    missed("weight", **{"model.backbone": str(changed)})

    above = tmp_path / "above"  # a weight above the boundary is none of the prefix's
    shutil.copytree(source, above)
    weights = load_file(above / "model.safetensors")
    weights[next(name for name in weights if "layer.2.attention.self.query.weight" in name)][3, 5] += 1.0
    save_file(weights, above / "model.safetensors", metadata={"format": "pt"})
    finetune(make_config(**base | {"model.backbone": str(above)}, name="above"))
    assert entries(cache) == seen

    lines = (tmp_path / "train-single_label.jsonl").read_text().splitlines(keepends=True)
    lines[7] = lines[7].replace('"text": "', '"text": "cat ', 1)
    (tmp_path / "token.jsonl").write_text("".join(lines))
    missed("token", **{"data.train": [str(tmp_path / "token.jsonl")]})
    missed("boundary", **{"freeze.layers": 2})
    missed("length", **{"data.max_length": 6})
    missed("computed", **{"train.precision": "bf16"})
    missed("kept", **{"cache.precision": "fp32"})
    missed("attention", **{"model.attention": "eager"})


@pytest.mark.parametrize("damage", ["flip", "cut", "no manifest", "manifest"])
def test_a_damaged_entry_is_found_and_rebuilt_never_used(
    make_config: MakeConfig, cache: dict[str, str], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    finetune(make_config(**TINY_RUN, **cache, name="first"))
    good = entry_bytes(cache)
    (key,) = entries(cache)
    path = Path(cache["cache.dir"]) / key / (store.MANIFEST if "manifest" in damage else store.ACTIVATIONS)
    content = bytearray(path.read_bytes())
    if damage == "no manifest":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content[:-10] if damage == "cut" else content)
    capsys.readouterr()
    second = make_config(**TINY_RUN, **cache, name="second")
    finetune(second)
    assert "is damaged in" in capsys.readouterr().out or damage == "manifest"  # its spans, say, that nobody trusts
    assert entry_bytes(cache) == good
    assert_like(second.run_dir, second.run_dir.parent / "first", 0.0)


def test_a_capture_that_is_killed_goes_on_to_the_same_bytes(make_config: MakeConfig, tmp_path: Path) -> None:
    """A real SIGKILL, three times, of a run that captures slowly; then left alone."""
    here, there = {"cache.dir": str(tmp_path / "one")}, {"cache.dir": str(tmp_path / "two")}
    settings = {**TINY_RUN, "data.train": [str(tiny.write_jsonl(tmp_path / "many.jsonl", tiny.make_rows(400)))]}
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\nfrom hf_finetune.cache import capture, store\nfrom hf_finetune.train import finetune\n"
        "from hf_finetune.config.loading import load_config\nlayout.CHUNK_TOKENS = 64\nfast = capture.capture\n"
        "def slow(*arguments):\n    time.sleep(float(sys.argv[2]))\n    print('chunk', flush=True)\n    return fast(*arguments)\n"
        "capture.capture = slow\nfinetune(load_config({}, ['--config', sys.argv[1]]))\n"
    )
    from hf_finetune.config.loading import to_yaml

    def start(config: RunConfig, pause: str) -> "subprocess.Popen[str]":
        path = tmp_path / f"{config.name}.yaml"
        path.write_text(to_yaml(config))
        return subprocess.Popen(
            [sys.executable, str(script), str(path), pause], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    whole = start(make_config(**settings, **here, name="whole"), "0")
    total = whole.communicate(timeout=60)[0].count("chunk")
    config, computed = make_config(**settings, **there), 0
    for kill_after in (2, 5, 1):
        process = start(config, "0.05")
        assert process.stdout is not None
        for _ in range(kill_after):
            while "chunk" not in process.stdout.readline():
                assert process.poll() is None
        time.sleep(0.02)
        process.kill()
        computed += kill_after + process.communicate()[0].count("chunk")
        assert not entries(there)
    last = start(config, "0")
    output = last.communicate(timeout=60)[0]
    assert last.returncode == 0
    assert output.count("chunk") < total, "what was good is not computed again"
    assert entry_bytes(here) == entry_bytes(there)


# --- the choice -----------------------------------------------------------------------------------------------------


@pytest.fixture
def chosen(make_config: MakeConfig, cache: dict[str, str]) -> Any:
    """`chosen(**settings)`: the job that is set up, and a function that chooses for a progress."""

    def make(progress: Progress | None = None, **settings: Any) -> tuple[TrainingRun, decision.CacheDecision]:
        config = make_config(**{**CACHED, **cache, **settings})
        with open_run(config) as run:
            job = set_up(config, "classification", run, Clock())
            return job, decision.decide(job, progress or Progress())

    return make


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("bert", {"freeze.embeddings": False}, "the embeddings train"),
        ("albert", {"freeze.layers": "all"}, "runs one shared block many times"),
        ("t5", {"freeze.layers": 1}, "need more of the lower ones than hidden states"),
    ],
)
def test_what_cannot_be_cached_is_said_with_its_reason(
    chosen: Any, backbones: Callable[..., Path], family: str, settings: dict[str, Any], reason: str
) -> None:
    settings = {"model.backbone": str(backbones(family)), **settings}
    with pytest.raises(InputError, match=f"cache.activations \\(on\\): .*{reason}"):
        chosen(**settings)
    _, choice = chosen(**settings, **{"cache.activations": "auto"})
    assert not choice.is_on
    assert reason in choice.lines[0]


def test_auto_decides_by_the_measured_gain_and_keeps_to_it(chosen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = {"cache.activations": "auto"}
    _, choice = chosen(**auto)
    assert not choice.is_on, "60 short texts are not worth a file"
    monkeypatch.setattr(decision, "estimate", lambda *_: (40.6, 96.2))
    _, choice = chosen(**auto)
    assert choice.is_on
    assert choice.lines[0] == "cache on: saves about 40.6 s of 96.2 s"
    assert choice.entry is not None
    assert str(choice.entry.folder) in choice.lines[1]
    assert "differ from the whole model's by at most" in choice.lines[2]
    _, choice = chosen(Progress(update=3, cached=False), **auto)
    assert choice.lines == ("cache off: as this run was begun",)
    monkeypatch.setattr(decision, "estimate", lambda *_: (-3.0, 96.2))
    _, choice = chosen(Progress(update=3, cached=True), **auto)
    assert choice.is_on
    _, choice = chosen(**auto)
    assert choice.lines == ("cache off: would cost about 3.0 s more than the 96.2 s without",)
    _, choice = chosen(**auto, **{"freeze.layers": 0})
    assert "only the embeddings" in choice.lines[0]
    _, choice = chosen(Progress(stopped=True))
    assert "nothing is left to train" in choice.lines[0]
    _, choice = chosen(**{"cache.activations": "off"})
    assert choice.lines == ("cache off: as cache.activations says",)


def test_the_estimate_counts_what_is_to_come(make_config: MakeConfig, cache: dict[str, str], monkeypatch: Any) -> None:
    """With a clock that says 1 s for the whole model, 0.4 s replayed, 0.2 s for the prefix, for 100 tokens."""
    config = make_config(**CACHED, **cache, **{"train.epochs": 4})
    with open_run(config) as run:
        job = set_up(config, "classification", run, Clock())
        replay = job.train_state.forward_plan.cached
        assert replay is not None
        answers = iter([0.2, 1.0, 0.4] * 3)
        monkeypatch.setattr(decision, "seconds", lambda function: (function(), next(answers))[1])
        layout = store.make_layout(job.features)
        entry = decision.find_entry(job, layout, 32)
        with inference_only(job):
            found = decision.estimate_gain(job, replay, entry, Progress())
            half = decision.estimate_gain(job, replay, entry, Progress(update=2 * job.schedule.updates_per_epoch))
    rows = np.argsort(job.features["train"].lengths, kind="stable")[26:34]
    per_token = 1.0 / job.features["train"].lengths[rows].sum()
    train, validation = (job.features[split].lengths.sum() for split in ("train", "validation"))
    capture = layout.num_tokens * 0.2 * per_token
    saved = (4 * train * 0.6 + 4 * validation * 0.2) * per_token
    assert found[0] == pytest.approx(saved - capture)
    assert half[0] == pytest.approx(saved / 2 - capture)
    assert found[1] == pytest.approx(4 * (train + validation * (0.2 + 0.4 / 3)) * per_token)


@pytest.mark.parametrize("asked", ["on", "auto"])
def test_a_replay_that_differs_is_found_by_the_self_check(
    make_config: MakeConfig, cache: dict[str, str], monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    from hf_finetune.forward.cached import CachedForward

    config = make_config(**CACHED | {"cache.activations": asked}, **cache)
    honest = CachedForward.compute_activations
    with open_run(config) as run:
        job = set_up(config, "classification", run, Clock())
        monkeypatch.setattr(CachedForward, "states", lambda self, batch: 3 * honest(self, batch).roll(1, -1))
        if asked == "on":
            with pytest.raises(
                InputError, match=r"cache.activations \(on\): the replayed logits differ from the model's by"
            ):
                decision.decide(job, Progress())
        else:
            assert "cache off: the replayed logits differ" in decision.decide(job, Progress()).lines[0]


def test_a_disk_without_room_is_found_before_the_capture(chosen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(InputError, match=r"cache.activations \(on\): .* MB are needed at .* and 0 MB are free"):
        chosen()


def test_measuring_leaves_the_model_as_it_was(chosen: Any) -> None:
    job, _ = chosen()
    assert all(parameter.grad is None for parameter in job.train_state.model.parameters())
    assert not any("forward" in vars(module) for module in list(job.train_state.model.modules())[1:])


# --- values that fp16 cannot hold -----------------------------------------------------------------------------------


def large_backbone(source: Path, folder: Path, factor: float) -> Path:
    """The backbone with the last norm of its first block so large that its states are."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layer.0.output.LayerNorm.weight" in name)
    weights[name] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_values_too_large_for_fp16_are_kept_in_bf16(
    make_config: MakeConfig, backbones: Callable[..., Path], cache: dict[str, str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(decision, "self_check", lambda *_: (0.0, 1.0))  # fp16's infinities would fail it
    backbone = large_backbone(backbones("bert"), tmp_path / "large", 1e6)
    settings = {**TINY_RUN, **cache, "model.backbone": str(backbone)}
    for name in ("first", "second"):
        finetune(make_config(**settings, name=name))
    assert capsys.readouterr().out.count("too large for fp16") == 1, "the second run finds the entry"
    (entry,) = listing.list_entries(Path(cache["cache.dir"]))
    assert entry.manifest["kind"] == "bfloat16"


def test_states_that_are_not_finite_are_an_error(chosen: Any) -> None:
    job, choice = chosen(**{"cache.precision": "fp32"})
    replay = job.train_state.forward_plan.cached
    with torch.no_grad():
        next(iter(replay.placeholders)).word_embeddings.weight[5:] = float("inf")
    with open_run(job.config), pytest.raises(InputError, match="give values that are not finite"):
        attach_activations(job, choice)
    assert not entries({"cache.dir": str(job.config.cache.dir)})


def test_the_results_are_those_of_the_exported_model(
    make_config: MakeConfig, cache: dict[str, str], tmp_path: Path
) -> None:
    from hf_finetune.export.predict import Predictor, evaluate_file

    result = finetune(make_config(**CACHED, **cache))
    values = evaluate_file(Predictor.from_pretrained(str(result.run_dir)), str(tmp_path / "test-single_label.jsonl"))
    assert values == json.loads((result.run_dir / "results.json").read_text())["test"]
    assert checkpoint.find_newest_intact(result.run_dir / "checkpoints")[0] is not None
