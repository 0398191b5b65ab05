"""The frozen prefix of a run: whether to cache it, what its states depend on, capturing them, proving the replay.

Frozen embeddings and blocks in eval mode map an input to the same hidden states in every epoch and run. replay.py runs a
model up to and from that boundary, states.py keeps the states on disk; here they meet the run.

B examples, T tokens, H hidden.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from hf_finetune.cache import store
from hf_finetune.cache.capture import compute_activations, inference_only, make_batch, with_cached_forward
from hf_finetune.cache.store import Entry, Layout
from hf_finetune.data.features import Batch
from hf_finetune.forward.cached import CachedForward
from hf_finetune.model import heads
from hf_finetune.model.freezing import set_train_mode
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import digest_tensors
from hf_finetune.training.loop import make_micro_batch_limit
from hf_finetune.training.progress import Progress

FORMAT = 1  # of the key's description; raise it when capture computes something else

EPSILON = {
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float32": 2.0**-24,
    "bf16": 2.0**-8,
    "fp16": 2.0**-11,
    "fp32": 2.0**-24,
}

# Replayed logits may differ from the whole model's by this many roundings of the largest: those of the stored states, and
# those of the computation, whose sums have another order in another batch.
TOLERANCE_ROUNDINGS = 16

NUM_CHECKED, CHECKED_BATCH = 12, 4

LEAST_GAIN_SECONDS, LEAST_GAIN_SHARE = 2.0, 0.05  # below, auto does not fill a disk

# Settings of a transformers config that say nothing about the frozen part's forward.
FREE_CONFIG = ("_", "id2label", "label2id", "num_labels", "problem_type", "architectures", "transformers_version", "dtype",
               "torch_dtype",
               "hf_finetune", "classifier", "summary_", "use_cache", "output_", "return_dict", "initializer")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CacheDecision:
    """Whether the prefix is cached, and the lines that say why; where it is, the entry and the replay."""

    lines: tuple[str, ...]
    entry: Entry | None = None
    cached_forward: CachedForward | None = None

    @property
    def is_on(self) -> bool:
        """Whether the prefix is cached."""
        return self.entry is not None


# --- whether --------------------------------------------------------------------------------------------------------


def decide(job: TrainingRun, progress: Progress) -> CacheDecision:
    """Decides by cache.activations, what the model allows, the self-check, the disk and the measured speed. The same on all
    processes, and the same after a resume as before it. Raises InputError where `on` cannot be done."""
    config = job.config.cache
    replay = job.train_state.forward_plan.cached
    if config.activations == "off":
        return CacheDecision(lines=("cache off: as cache.activations says",))
    if replay is None:
        return decline(job, job.stage.cannot_cache)
    if config.activations == "auto" and progress.cached is False:
        return CacheDecision(lines=("cache off: as this run was begun",))
    if job.is_over(progress):
        return CacheDecision(lines=("cache off: nothing is left to train",))
    if job.task.encoding.why_inputs_change:
        return decline(job, job.task.encoding.why_inputs_change)
    if config.activations == "auto" and job.plan.num_prefix_blocks == 0:
        return CacheDecision(lines=("cache off: only the embeddings are constant, and they cost little",))
    layout = store.make_layout(job.features)
    with inference_only(job):
        sample, _ = compute_activations(job, replay, [("train", 0)])
        replay = dataclasses.replace(replay, dtype=sample.dtype)
        job = with_cached_forward(job, replay)
        entry = find_entry(job, layout, sample.shape[-1])
        checks = job.runtime.gather(self_check(job, replay, entry.kind))
        difference, tolerance = max(each[0] for each in checks), max(each[1] for each in checks)
        if not difference <= tolerance:
            return decline(
                job, f"the replayed logits differ from the model's by {difference:.1e}, above {tolerance:.1e}"
            )
        checked = (
            f"replayed logits differ from the whole model's by at most {difference:.1e} (tolerance {tolerance:.1e})"
        )
        lines = (describe_entry(entry), checked)
        if config.activations == "auto" and progress.cached:
            return CacheDecision(lines=("cache on: as this run was begun", *lines), entry=entry, cached_forward=replay)
        gain = estimate_gain(job, replay, entry, progress)
    full = find_disk_problem(entry)
    (saved, total), full = job.runtime.on_main(lambda: (gain, full))  # one clock and one disk decide for all
    if full:
        return decline(job, full)
    if config.activations == "on":
        return CacheDecision(
            lines=(f"cache on: {describe_gain(saved, total)}", *lines), entry=entry, cached_forward=replay
        )
    if saved < max(LEAST_GAIN_SECONDS, LEAST_GAIN_SHARE * total):
        return CacheDecision(lines=(f"cache off: {describe_gain(saved, total)}",))
    return CacheDecision(lines=(f"cache on: {describe_gain(saved, total)}", *lines), entry=entry, cached_forward=replay)


def decline(job: TrainingRun, reason: str) -> CacheDecision:
    """No cache, with the reason; where one is asked for, that is an error."""
    if job.config.cache.activations == "on":
        raise InputError(f"cache.activations (on): {reason}; auto or off trains without")
    return CacheDecision(lines=(f"cache off: {reason}",))


def describe_gain(saved: float, total: float) -> str:
    """What the cache is expected to save."""
    if saved <= 0:
        return f"would cost about {-saved:.1f} s more than the {total:.1f} s without"
    return f"saves about {saved:.1f} s of {total:.1f} s"


def describe_entry(entry: Entry) -> str:
    """Size, place and state of the entry."""
    state = "warm" if entry.is_complete() else "to be captured"
    return f"{entry.num_bytes / 1e6:,.0f} MB in {entry.kind} at {entry.folder} ({state})"


def find_disk_problem(entry: Entry) -> str | None:
    """Why the entry does not fit on its disk, or None. A partial entry has its room already, or part of it."""
    if entry.is_complete():
        return None
    begun = entry.partial / store.STATES
    held = getattr(begun.stat(), "st_blocks", 0) * 512 if begun.exists() else 0
    parent = entry.root
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if entry.num_bytes - held <= free // 2:
        return None
    return f"{entry.num_bytes / 1e6:,.0f} MB are needed at {entry.root} and {free / 1e6:,.0f} MB are free; half must stay so"


def self_check(job: TrainingRun, replay: CachedForward, kind: str) -> tuple[float, float]:
    """The largest difference of a replayed logit from the whole model's on training examples of all lengths, and the
    tolerance. States are captured from each example alone and rounded as they are stored, then replayed in padded batches.
    """
    order = np.argsort(job.features["train"].lengths, kind="stable")
    picked = order[np.linspace(0, len(order) - 1, NUM_CHECKED).astype(int)]
    largest, difference = 1.0, 0.0
    for start in range(CHECKED_BATCH):  # a short, a long and two middle ones in each
        rows = np.unique(picked[start::CHECKED_BATCH])
        batch = make_batch(job, rows)
        alone = [
            compute_activations(job, replay, [("train", int(sequence))])[0][0] for sequence in batch.sequence_indices
        ]
        padded = torch.nn.utils.rnn.pad_sequence([each.to(getattr(torch, kind)) for each in alone], batch_first=True)
        expected = zero_padding_outputs(job, heads.run_model(job.train_state.model, batch.inputs), batch)
        with job.train_state.forward_plan(padded.to(alone[0].dtype)):
            found = zero_padding_outputs(job, heads.run_model(job.train_state.model, batch.inputs), batch)
        largest = max(largest, float(expected.abs().max()))
        difference = max(difference, float((found - expected).abs().max()))
        if not bool(torch.isfinite(found).all()):
            difference = float("inf")
    epsilon = max(EPSILON[kind], EPSILON[job.runtime.precision])
    return difference, TOLERANCE_ROUNDINGS * epsilon * largest


def zero_padding_outputs(job: TrainingRun, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The outputs, those of padding set to zero where each token has its own: nobody reads them. A decoder's tokens are not
    those of the input."""
    mask, values = batch.inputs["attention_mask"].bool(), outputs.float()
    if values.shape[:2] != mask.shape or values.ndim < 3 or heads.is_sequence_to_sequence(job.train_state.model):
        return values
    return values.masked_fill(~mask[..., *[None] * (values.ndim - 2)], 0.0)


def estimate_gain(job: TrainingRun, replay: CachedForward, entry: Entry, progress: Progress) -> tuple[float, float]:
    """Seconds that the cache saves, and seconds of training and validation without it: measured on one micro-batch of
    middling length, and multiplied by the tokens to come."""
    train, schedule = job.features["train"], job.schedule
    limit = make_micro_batch_limit(job.config, job.runtime.num_processes)
    order = np.argsort(-train.lengths, kind="stable")
    counts = train.count_sequences(np.arange(len(train)))
    rows = limit.split(order[max(0, (len(order) - limit.num_examples) // 2) :], train.lengths, counts)[0]
    batch = make_batch(job, rows)
    num_tokens = int(train.num_tokens[rows].sum())
    captured = replay.compute_activations(batch.inputs)
    prefix = time_call(lambda: replay.compute_activations(batch.inputs)) / num_tokens
    whole = time_call(lambda: run_forward_backward(job, batch, None)) / num_tokens
    replayed = time_call(lambda: run_forward_backward(job, batch, captured)) / num_tokens
    updates = job.find_stage_end(progress.num_settled) - progress.update
    train_tokens = int(train.num_tokens.sum()) * updates / schedule.updates_per_epoch
    every = job.config.evaluation.every
    evaluations = -(-updates // (schedule.updates_per_epoch if every == "epoch" else every))
    validation_tokens = int(job.features["validation"].num_tokens.sum()) * evaluations
    missing = 0 if entry.is_complete() else entry.layout.num_tokens
    saved = train_tokens * (whole - replayed) + (validation_tokens - missing) * prefix
    total = train_tokens * whole + validation_tokens * (prefix + replayed / 3)  # a backward costs two forwards
    return saved / job.runtime.num_processes, total / job.runtime.num_processes


def time_call(function: Callable[[], object]) -> float:
    """The faster of two runs, after one that warms up."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def run_forward_backward(job: TrainingRun, batch: Batch, captured: torch.Tensor | None) -> None:
    """One micro-batch as training computes it, its gradients thrown away. The head's cost stands for the loss's."""
    trainee, task = job.train_state, job.task
    set_train_mode(trainee.model, trainee.eval_modules)
    with (
        torch.enable_grad(),
        trainee.forward_plan(captured),
        trainee.dropout_masks(0, batch.sequence_indices, job.runtime.device),
    ):
        outputs = heads.run_model(trainee.model, batch.inputs)
        task.objective.timing_loss(outputs, batch).backward()
    trainee.model.zero_grad(set_to_none=True)
    trainee.model.eval()


# --- what the states depend on --------------------------------------------------------------------------------------


def find_entry(job: TrainingRun, layout: Layout, hidden: int) -> Entry:
    """The entry of this run's prefix and features: the fp32 one, or the 16-bit one that is there, fp16 first."""
    root = store.activations_dir(job.config.cache.dir)
    description = job.runtime.on_main(lambda: describe_key(job))

    def of(kind: str) -> Entry:
        return Entry(root=root, description=description, layout=layout, kind=kind, hidden=hidden)

    if job.config.cache.precision == "fp32":
        return of("float32")
    only_bfloat16 = job.runtime.on_main(lambda: of("bfloat16").is_complete() and not of("float16").is_complete())
    return of("bfloat16" if only_bfloat16 else "float16")


def describe_key(job: TrainingRun) -> dict[str, Any]:
    """All that the states depend on besides the features: the frozen weights, the boundary, the config as far as the
    forward goes, attention, precision, versions. Nothing else: another head, label set or seed finds the same entry."""
    model, plan = job.train_state.model, job.plan
    base = getattr(model, model.base_model_prefix, model)
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if not key.startswith(FREE_CONFIG) and "drop" not in key  # frozen modules are in eval mode
    }
    return {
        "format": FORMAT,
        "weights": digest_prefix_weights(job),
        "blocks": plan.num_prefix_blocks,
        "architecture": type(base).__name__,
        "config": json.loads(json.dumps(config, default=str)),
        "attention": str(model.config._attn_implementation),
        "precision": job.runtime.precision,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def digest_prefix_weights(job: TrainingRun) -> str:
    """Digest of the name, type, shape and bytes of every frozen tensor of the prefix."""
    plan = job.plan
    blocks = [name for names in plan.structure.blocks[: plan.num_prefix_blocks] for name in names]
    names = sorted({*plan.structure.embeddings, *blocks} & plan.frozen)
    return digest_tensors(dict(job.train_state.model.named_parameters()), names)
