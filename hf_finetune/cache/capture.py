"""Computes the activations at the boundary of the frozen prefix, and attaches them to the features.

B features, S sequences, T tokens, H hidden.
"""

import contextlib
import dataclasses
import secrets
import shutil
import time
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch

from hf_finetune.cache import store
from hf_finetune.cache.reader import StoredActivations
from hf_finetune.cache.store import Entry
from hf_finetune.data.features import Array, Batch, collate, pad_sequences
from hf_finetune.forward.cached import CachedForward
from hf_finetune.model.structure import eval_mode
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.bars import LongTask
from hf_finetune.system.errors import InputError, StoppedError
from hf_finetune.system.writers import check_writers

# Largest relative rounding error of a dtype, and of a precision of the computation
EPSILON = {
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float32": 2.0**-24,
    "bf16": 2.0**-8,
    "fp16": 2.0**-11,
    "fp32": 2.0**-24,
}

NUM_STORED = 16  # sequences whose stored activations are compared with fresh ones

# Stored activations may differ from fresh ones by one rounding of their dtype, and by this many of the computation, since they
# were computed in other batches or on another kind of processor. Sums of fp32 lose some roundings; in 16 bit, sums are computed
# in fp32, and their results are rounded
COMPUTED_ROUNDINGS = {"fp32": 64, "fp16": 8, "bf16": 8}


class TooLargeError(Exception):
    """Activations that fp16 cannot hold."""


@contextlib.contextmanager
def inference_only(run: TrainingRun) -> Iterator[None]:
    """Runs the block in eval mode and without gradients. Afterwards the modules have their modes again, and no gradients."""
    model = run.train_state.model
    try:
        with eval_mode(model), torch.no_grad():
            yield
    finally:
        model.zero_grad(set_to_none=True)


def make_batch(run: TrainingRun, indices: Array) -> Batch:
    """Returns a batch of training features as evaluation takes it, on the device, without cached activations."""
    features = run.features["train"]
    batch = collate(features, indices, run.train_state.padding)
    return run.task.encoding.prepare(batch, features, run.train_state.model, 0).to(run.runtime.device)


def compute_activations(
    run: TrainingRun, cached_forward: CachedForward, source: list[tuple[str, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the activations at the boundary for sequences of any splits [S, T, H], and the mask of their tokens [S, T].

    source: split and number of each sequence.
    """
    parts = [
        (run.features[split], np.array([number for _, number in group]))
        for split, group in groupby(source, key=itemgetter(0))
    ]
    arrays = pad_sequences(parts, run.train_state.padding)
    inputs = {name: torch.from_numpy(array).to(run.runtime.device) for name, array in arrays.items()}
    activations = cached_forward.compute_activations(inputs)
    return activations, inputs["attention_mask"].to(activations.device) > 0


# --- the run with its cache -----------------------------------------------------------------------------------------


def attach_activations(run: TrainingRun, entry: Entry | None, cached_forward: CachedForward | None) -> TrainingRun:
    """Returns the run with the activations of all its features, and computes those that the cache does not hold.

    Without an entry, returns the run without a cached forward. So it does if cache.activations is auto and the cache's folder
    cannot be written; with `on`, that raises InputError. On all processes.
    """
    try:
        if entry is not None and cached_forward is not None:
            entry = complete_entry(run, cached_forward, entry)
            check_stored(run, cached_forward, entry)
    except InputError as error:
        if run.config.cache.activations == "on":
            raise
        run.runtime.say(f"cache       off after all: {error}\n")
        entry = None
    if entry is None:
        return with_cached_forward(run, None)
    cached = {
        split: dataclasses.replace(run.features[split], activations=open_stored(entry, split))
        for split in entry.layout.starts
    }
    return dataclasses.replace(with_cached_forward(run, cached_forward), features={**run.features, **cached})


def with_cached_forward(run: TrainingRun, cached_forward: CachedForward | None) -> TrainingRun:
    """Returns the run with this cached forward, or with none."""
    plan = dataclasses.replace(run.train_state.forward_plan, cached=cached_forward)
    state = dataclasses.replace(run.train_state, forward_plan=plan)
    return dataclasses.replace(run, stage=dataclasses.replace(run.stage, train_state=state))


def open_stored(entry: Entry, split: str) -> StoredActivations:
    """Returns the stored activations of a split."""
    path, starts = entry.folder / store.ACTIVATIONS, entry.layout.starts[split]
    return StoredActivations(path=path, dtype=entry.dtype, hidden=entry.hidden, starts=starts)


# --- the check of what is stored ------------------------------------------------------------------------------------


def check_stored(run: TrainingRun, cached_forward: CachedForward, entry: Entry) -> None:
    """Compares stored activations of random sequences, which no writer of the cache can know, with those of a fresh forward.

    Raises InputError if those of a token differ by more than roundings. On all processes, each with sequences of its own.
    """
    precision = run.runtime.precision
    tolerance = EPSILON[entry.dtype] + COMPUTED_ROUNDINGS[precision] * EPSILON[precision]
    error = max(run.runtime.gather(measure_stored(run, cached_forward, entry)))
    if not error <= tolerance:  # also if it is nan
        raise InputError(
            f"cache.dir: the stored activations in {entry.folder} are not those of this model on this machine: they differ by "
            f"{error:.1e} of their size, above {tolerance:.1e}; remove that folder, and they are computed again"
        )


def measure_stored(run: TrainingRun, cached_forward: CachedForward, entry: Entry) -> float:
    """Returns the largest difference of a token's stored activations from fresh ones, relative to the fresh ones (2-norms)."""
    chosen = secrets.SystemRandom().sample(range(len(entry.layout.source)), min(NUM_STORED, len(entry.layout.source)))
    largest = 0.0
    for split, group in groupby(sorted(entry.layout.source[number] for number in chosen), key=itemgetter(0)):
        source = list(group)
        with inference_only(run):
            fresh, mask = compute_activations(run, cached_forward, source)
        indices = np.array([number for _, number in source])
        stored = open_stored(entry, split).gather(indices, mask.cpu().numpy()).to(fresh.device)
        expected, actual = fresh[mask].double(), stored[mask].double()
        errors = (actual - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        largest = max(largest, float(errors.nan_to_num(nan=torch.inf).max()))
    return largest


# --- the capture ----------------------------------------------------------------------------------------------------


def complete_entry(run: TrainingRun, cached_forward: CachedForward, entry: Entry) -> Entry:
    """Completes the entry and returns it; if values are too large for fp16, completes and returns the one in bf16 instead."""
    try:
        capture_missing(run, cached_forward, entry)
        return entry
    except TooLargeError:
        run.runtime.say("cache       values are too large for fp16: kept in bf16")
        run.runtime.on_main(lambda: shutil.rmtree(entry.partial, ignore_errors=True))
        entry = dataclasses.replace(entry, dtype="bfloat16")
        capture_missing(run, cached_forward, entry)
        return entry


def capture_missing(run: TrainingRun, cached_forward: CachedForward, entry: Entry) -> None:
    """Computes what is missing in the entry, a share on each process. Other runs that need the entry wait.

    Raises TooLargeError if fp16 cannot hold a value, StoppedError if a signal stops the run, and InputError if a value is not
    finite or the entry cannot be written. On all processes.
    """
    runtime = run.runtime
    if runtime.on_main(lambda: check_before_lock(run, entry)):
        return
    with contextlib.ExitStack() as stack:  # of the main process, which holds the lock for all
        runtime.on_main(lambda: stack.enter_context(store.lock_entry(entry.root, entry.key, runtime.say)))
        missing, notes = runtime.on_main(lambda: store.find_missing_chunks(entry))
        for note in notes:
            runtime.say(f"cache       {note}")
        if not missing and runtime.on_main(entry.is_complete):
            return
        began = time.perf_counter()
        errors = runtime.gather(capture_share(run, cached_forward, entry, missing)) if missing else []
        if any(isinstance(error, StoppedError) for error in errors):
            raise runtime.stopped_error()
        if any(isinstance(error, TooLargeError) for error in errors):
            raise TooLargeError
        for error in errors:
            if error is not None:
                raise error
        runtime.on_main(lambda: store.finish_entry(entry))
        num_tokens, seconds = entry.layout.num_tokens, time.perf_counter() - began
        runtime.say(f"cache       {num_tokens:,} tokens captured in {seconds:.1f} s\n")


def check_before_lock(run: TrainingRun, entry: Entry) -> bool:
    """True if an entry can be used as it is, in a folder that this user cannot write. InputError if another user could have
    written it."""
    check_writers(entry.root, (entry.folder, entry.partial), trust_others=run.config.cache.trust_other_users)
    return store.is_usable_unlocked(entry)


def capture_share(
    run: TrainingRun, cached_forward: CachedForward, entry: Entry, missing: list[int]
) -> InputError | TooLargeError | StoppedError | None:
    """Computes this process's share of the missing chunks. Returns the error that ended it, so that all processes can raise it
    together."""
    runtime = run.runtime
    chunks = entry.layout.chunks()
    share = missing[runtime.process :: runtime.num_processes]
    with LongTask("cache", len(share), "chunks", is_shown=runtime.is_main) as shown:

        def compute(number: int) -> bytes:
            if runtime.is_asked_to_stop():
                raise StoppedError
            content = capture_chunk(run, cached_forward, entry, *chunks[number])
            shown.add(1)
            return content

        try:
            with inference_only(run):
                store.fill_entry(entry, share, runtime.process, compute)
        except (InputError, TooLargeError, StoppedError) as error:
            return error
    return None


def capture_chunk(run: TrainingRun, cached_forward: CachedForward, entry: Entry, begin: int, end: int) -> bytes:
    """Computes the activations of the sequences `begin` to `end` of the layout. Returns them as the file holds them."""
    source = entry.layout.source[begin:end]
    values, mask = compute_activations(run, cached_forward, source)
    stored = values[mask].to(getattr(torch, entry.dtype))
    if not bool(torch.isfinite(stored).all()):
        if entry.dtype == "float16" and bool(torch.isfinite(values).all()):
            raise TooLargeError
        split, number = source[0]
        raise InputError(
            f"cache.activations: the frozen blocks give values that are not finite near sequence {number} of {split}; "
            "train without the cache: set cache.activations to off"
        )
    return stored.cpu().contiguous().view(torch.uint8).numpy().tobytes()
