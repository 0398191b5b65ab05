"""Decides whether a run caches the activations of its frozen prefix.

Frozen embeddings and blocks in eval mode give the same hidden states for an input in every epoch and every run.
forward/cached.py runs a model up to the end of that prefix (the boundary) and from there; cache/store.py keeps the activations
at the boundary on disk.

B features, T tokens, H hidden.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hf_finetune.cache import store
from hf_finetune.cache.capture import compute_activations, inference_only, make_batch, with_cached_forward
from hf_finetune.cache.check import check_once
from hf_finetune.cache.key import find_entry
from hf_finetune.cache.layout import make_layout
from hf_finetune.cache.speeds import Speed, find_path, make_key, read_speeds, write_speeds
from hf_finetune.cache.store import Entry
from hf_finetune.data.features import Batch, Features
from hf_finetune.forward.cached import CachedForward
from hf_finetune.model.freezing import set_train_mode
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import is_missing
from hf_finetune.training.loop import make_micro_batch_limit
from hf_finetune.training.progress import Progress
from hf_finetune.training.train_state import add_reading

MIN_GAIN_SECONDS, MIN_GAIN_SHARE = 2.0, 0.05  # auto does not fill a disk for less

NUM_TIMED = 16  # most examples of the micro-batch whose time is measured


@dataclass(frozen=True, kw_only=True)
class CacheDecision:
    """The decision whether activations are cached.

    Args:
        lines: The decision and its reasons, to print.
        entry: The entry of the cache; None if activations are not cached.
        cached_forward: Runs the model from cached activations; None if they are not cached.
    """

    lines: tuple[str, ...]
    entry: Entry | None = None
    cached_forward: CachedForward | None = None

    @property
    def is_on(self) -> bool:
        """True if activations are cached."""
        return self.entry is not None


# --- the decision ---------------------------------------------------------------------------------------------------


def decide(run: TrainingRun, progress: Progress) -> CacheDecision:
    """Decides by cache.activations, what the model allows, a self-check, free disk space and the measured speed.

    All processes get the same decision. A resumed run keeps the decision of its start. Raises InputError if cache.activations is
    on and caching is not possible.
    """
    activations = run.config.cache.activations
    cached_forward = run.train_state.forward_plan.cached
    if activations == "off":
        return CacheDecision(lines=("off: set by cache.activations",))
    if cached_forward is None:
        return decline(run, run.stage.cannot_cache)
    if activations == "auto" and progress.cached is False:
        return CacheDecision(lines=("off: as this run started",))
    if run.is_over(progress) and not progress.cached:
        return CacheDecision(lines=("off: nothing is left to train",))
    if run.why_inputs_change:
        return decline(run, run.why_inputs_change)
    if activations == "auto" and run.plan.num_prefix_blocks == 0:
        return CacheDecision(lines=("off: only the embeddings are constant, and they cost little",))
    return check_and_measure(run, cached_forward, progress)


def check_and_measure(run: TrainingRun, cached_forward: CachedForward, progress: Progress) -> CacheDecision:
    """Decides by the self-check, the measured speed and the free disk space. On all processes."""
    activations = run.config.cache.activations
    layout = make_layout(choose_splits(run))
    with inference_only(run):
        sample, _ = compute_activations(run, cached_forward, [("train", 0)])
        cached_forward = dataclasses.replace(cached_forward, dtype=sample.dtype)
        run = with_cached_forward(run, cached_forward)
        entry = find_entry(run, layout, sample.shape[-1])
        # The final numbers of a run that was killed after its training are those of one that was not, if they can be read
        if run.is_over(progress) and not run.runtime.on_main(entry.is_complete):
            return CacheDecision(lines=("off: nothing is left to train",))
        check = check_once(run, cached_forward, entry)
        if not check.is_same:
            return decline(
                run,
                f"logits from cached activations differ from the model's by {check.difference:.1e}, above {check.tolerance:.1e}",
            )
        lines = (
            describe_entry(entry),
            "logits from cached activations differ from the entire model's by at most "
            f"{check.difference:.1e} (tolerance {check.tolerance:.1e})",
        )
        if activations == "auto" and progress.cached:
            return CacheDecision(lines=("on: as this run started", *lines), entry=entry, cached_forward=cached_forward)
        # The clock and the disk of the main process decide for all
        if disk_problem := run.runtime.on_main(lambda: find_disk_problem(entry)):
            return decline(run, disk_problem)
        reason = "set by cache.activations"
        if activations == "auto" and run.runtime.on_main(entry.is_complete):
            reason = "the activations are there"
        elif activations == "auto":
            gain = estimate_gain(run, cached_forward, entry, progress)
            saved, total = run.runtime.on_main(lambda: gain)
            reason = describe_gain(saved, total)
            if saved < max(MIN_GAIN_SECONDS, MIN_GAIN_SHARE * total):
                return CacheDecision(lines=(f"off: {reason}",))
    return CacheDecision(lines=(f"on: {reason}", *lines), entry=entry, cached_forward=cached_forward)


def choose_splits(run: TrainingRun) -> dict[str, Features]:
    """Returns the features whose activations are cached, by split. Test rows are used once, and by the entire model; they are
    cached if they were drawn from the training rows: a run with another seed trains on them, and finds the entry."""
    has_own_rows = "test" in run.splits.num_rows
    return {split: part for split, part in run.features.items() if split != "test" or not has_own_rows}


def decline(run: TrainingRun, reason: str) -> CacheDecision:
    """Returns the decision not to cache, with the reason. Raises InputError if cache.activations is on."""
    if run.config.cache.activations == "on":
        raise InputError(f"cache.activations (on): {reason}; choose auto or off")
    return CacheDecision(lines=(f"off: {reason}",))


def describe_gain(saved: float, total: float) -> str:
    """Returns how many seconds the cache is expected to save."""
    if saved <= 0:
        return f"would cost about {-saved:.1f} s more than the {total:.1f} s without it"
    return f"saves about {saved:.1f} s of {total:.1f} s"


def describe_entry(entry: Entry) -> str:
    """Returns size, folder and state of an entry."""
    state = "found" if entry.is_complete() else "to be computed"
    return f"{entry.num_bytes / 1e6:,.0f} MB in {entry.dtype} at {entry.folder} ({state})"


def find_disk_problem(entry: Entry) -> str | None:
    """Returns why the entry does not fit on its disk, or that this cannot be read; or None. A partial entry has reserved its disk
    space, or part of it."""
    if entry.is_complete():
        return None
    try:
        partial_file = entry.partial / store.ACTIVATIONS
        reserved = 0 if is_missing(partial_file) else getattr(partial_file.stat(), "st_blocks", 0) * 512
        folder = entry.root
        while is_missing(folder):
            folder = folder.parent
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{entry.root} cannot be read: {error.strerror}"
    if entry.num_bytes - reserved <= free // 2:
        return None
    return (
        f"{entry.num_bytes / 1e6:,.0f} MB are needed at {entry.root} and {free / 1e6:,.0f} MB are free; half of it must "
        "remain free"
    )


# --- the measured speed ---------------------------------------------------------------------------------------------


def estimate_gain(
    run: TrainingRun, cached_forward: CachedForward, entry: Entry, progress: Progress
) -> tuple[float, float]:
    """Multiplies the machine's seconds a token by the tokens that remain in this stage.

    Returns the seconds that the cache saves, and the seconds that training and validation take without it.
    """
    train, schedule, num_processes = run.features["train"], run.schedule, run.runtime.num_processes
    speed = find_speed(run, cached_forward)
    updates = run.find_stage_end(progress.num_settled) - progress.update
    train_tokens = int(train.num_tokens.sum()) * updates / schedule.updates_per_epoch
    evaluations = -(-updates // schedule.find_period(run.config.evaluation.every))
    validation_tokens = int(run.features["validation"].num_tokens.sum()) * evaluations
    missing_tokens = 0 if entry.is_complete() else entry.layout.num_tokens
    saved = train_tokens * (speed.entire - speed.cached) + (validation_tokens - missing_tokens) * speed.prefix
    # A backward costs two forwards, so a forward is a third of an update
    total = train_tokens * speed.entire + validation_tokens * (speed.prefix + speed.cached / 3)
    return saved / num_processes, total / num_processes


def find_speed(run: TrainingRun, cached_forward: CachedForward) -> Speed:
    """Returns the machine's seconds a token for this kind of job: those that it has kept, or else measured ones, which are then
    kept. On all processes."""
    path, key = find_path(run), make_key(run)
    kept = run.runtime.on_main(lambda: read_speeds(path).get(key))
    if kept is not None:
        return kept
    speed = measure_speed(run, cached_forward)
    run.runtime.on_main(lambda: write_speeds(path, {**read_speeds(path), key: speed}))
    return speed


def measure_speed(run: TrainingRun, cached_forward: CachedForward) -> Speed:
    """Measures one small micro-batch of average length."""
    train = run.features["train"]
    limit = make_micro_batch_limit(run.config, run.runtime.num_processes)
    limit = dataclasses.replace(limit, num_examples=min(limit.num_examples, NUM_TIMED))
    order = np.argsort(-train.lengths, kind="stable")
    counts = train.count_sequences(np.arange(len(train)))
    middle = order[max(0, (len(order) - limit.num_examples) // 2) :]
    indices = limit.split(middle, train.lengths, counts)[0]
    batch = make_batch(run, indices)
    num_tokens = int(train.num_tokens[indices].sum())
    activations = cached_forward.compute_activations(batch.inputs)
    return Speed(
        prefix=time_call(lambda: cached_forward.compute_activations(batch.inputs)) / num_tokens,
        entire=time_call(lambda: run_forward_backward(run, batch, None)) / num_tokens,
        cached=time_call(lambda: run_forward_backward(run, batch, activations)) / num_tokens,
    )


def time_call(function: Callable[[], object]) -> float:
    """Returns the seconds of the faster of two calls, after one that warms up."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def run_forward_backward(run: TrainingRun, batch: Batch, activations: torch.Tensor | None) -> None:
    """Computes one micro-batch as training does, and drops its gradients. activations: cached ones, or None."""
    state = run.train_state
    batch = add_reading(batch, run.task.objective, state.forward_plan)
    set_train_mode(state.model, state.eval_modules)
    with (
        torch.enable_grad(),
        state.dropout_masks.active(0, batch.sequence_indices, run.runtime.device, reading=batch.reading),
    ):
        outputs = state.forward_plan.run_model(state.model, batch.inputs, activations, batch.reading)
        run.task.objective.timing_loss(outputs, batch).backward()
    state.model.zero_grad(set_to_none=True)
    state.model.eval()
