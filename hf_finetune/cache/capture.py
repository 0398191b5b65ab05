"""Computes the hidden states at the boundary, and attaches them to the features.

B examples, T tokens, H hidden.
"""

import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hf_finetune.cache import store
from hf_finetune.cache.store import Entry, StoredActivations
from hf_finetune.data.features import Batch, Features, collate
from hf_finetune.forward.cached import CachedForward
from hf_finetune.model.structure import eval_mode
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError, StoppedError


class TooLargeError(Exception):
    """States that fp16 cannot hold."""


@contextlib.contextmanager
def inference_only(job: TrainingRun) -> Iterator[None]:
    """Within the block the model may be run in any way; modes and gradients are as before after it."""
    model = job.train_state.model
    try:
        with eval_mode(model), torch.no_grad():
            yield
    finally:
        model.zero_grad(set_to_none=True)


def make_batch(job: TrainingRun, rows: "np.ndarray[Any, Any]") -> Batch:
    """A batch of training features as evaluation takes it, on the device, without stored states."""
    features = dataclasses.replace(job.features["train"], activations=None)
    batch = collate(features, rows, job.train_state.pad_token_id).to(job.runtime.device)
    return job.task.encoding.prepare(batch, features, job.train_state.model, 0)


def compute_activations(
    job: TrainingRun, replay: CachedForward, sources: list[tuple[str, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """States [S, T, H] of sequences of any splits at the boundary, and the mask [S, T] of their tokens."""
    inputs, mask = pad_sequences(job.features, sources, job.train_state.pad_token_id)
    states = replay.compute_activations({name: tensor.to(job.runtime.device) for name, tensor in inputs.items()})
    return states, mask.to(states.device)


def attach_activations(job: TrainingRun, entry: Entry | None, replay: CachedForward | None) -> TrainingRun:
    """The job with the states of all its features, captured where the cache does not hold them. Without a cache, and with
    auto where the cache's folder cannot be written, the job with no replay. On all processes."""
    try:
        if entry is not None and replay is not None:
            entry = complete_entry(job, replay, entry)
    except InputError as error:
        if job.config.cache.activations == "on":
            raise
        job.runtime.say(f"cache       off after all: {error}\n")
        entry = None
    if entry is None:
        return with_cached_forward(job, None)
    features = {
        split: dataclasses.replace(
            rows,
            activations=StoredActivations(
                path=entry.folder / store.STATES,
                kind=entry.kind,
                hidden=entry.hidden,
                starts=entry.layout.starts[split],
            ),
        )
        for split, rows in job.features.items()
    }
    return dataclasses.replace(with_cached_forward(job, replay), features=features)


def with_cached_forward(job: TrainingRun, replay: CachedForward | None) -> TrainingRun:
    """The job with this replay, or none."""
    shortcuts = dataclasses.replace(job.train_state.forward_plan, cached=replay)
    state = dataclasses.replace(job.train_state, forward_plan=shortcuts)
    return dataclasses.replace(job, stage=dataclasses.replace(job.stage, train_state=state))


def complete_entry(job: TrainingRun, replay: CachedForward, entry: Entry) -> Entry:
    """Makes the entry whole, or the one in bf16 where values are too large for fp16; returns the one that is."""
    try:
        capture_missing(job, replay, entry)
        return entry
    except TooLargeError:
        job.runtime.say("cache       values are too large for fp16: kept in bf16")
        job.runtime.on_main(lambda: shutil.rmtree(entry.partial, ignore_errors=True))
        entry = dataclasses.replace(entry, kind="bfloat16")
        capture_missing(job, replay, entry)
        return entry


def capture_missing(job: TrainingRun, replay: CachedForward, entry: Entry) -> None:
    """Each process computes its share of what is missing. One run at a time does it."""
    run = job.runtime
    with contextlib.ExitStack() as held:
        run.on_main(lambda: held.enter_context(store.lock_entry(entry.root, entry.key, run.say)))
        missing, notes = run.on_main(lambda: store.find_missing_chunks(entry))
        for note in notes:
            run.say(f"cache       {note}")
        if not missing and run.on_main(entry.is_complete):
            return
        began = time.perf_counter()
        outcomes = run.gather(capture_share(job, replay, entry, missing)) if missing else []
        if "stopped" in outcomes:
            raise run.stopped_error()
        if "too large" in outcomes:
            raise TooLargeError
        if faults := [outcome for outcome in outcomes if outcome]:
            raise InputError(faults[0])
        run.on_main(lambda: store.finish_entry(entry))
        num_tokens, took = entry.layout.num_tokens, time.perf_counter() - began
        run.say(f"cache       {num_tokens:,} tokens captured in {took:.1f} s\n")


def capture_share(job: TrainingRun, replay: CachedForward, entry: Entry, missing: list[int]) -> str:
    """Computes this process's share of the missing chunks; what went wrong, or nothing, for all processes to hear."""
    run = job.runtime
    chunks = entry.layout.chunks()
    share = missing[run.process :: run.num_processes]
    shows = run.is_main and sys.stderr.isatty()
    with tqdm(total=len(share), desc="capturing the prefix", unit="chunk", disable=not shows, leave=False) as bar:

        def compute(number: int) -> bytes:
            if run.is_asked_to_stop():
                raise StoppedError
            content = capture_chunk(job, replay, entry, *chunks[number])
            bar.update(1)
            return content

        try:
            with inference_only(job):
                store.fill_entry(entry, share, run.process, compute)
        except InputError as error:
            return str(error)
        except TooLargeError:
            return "too large"
        except StoppedError:
            return "stopped"
    return ""


def capture_chunk(job: TrainingRun, replay: CachedForward, entry: Entry, begin: int, end: int) -> bytes:
    """The states of features `begin` to `end` of the layout, as the file holds them."""
    sources = entry.layout.source[begin:end]
    values, mask = compute_activations(job, replay, sources)
    stored = values[mask].to(getattr(torch, entry.kind))
    if not bool(torch.isfinite(stored).all()):
        if entry.kind == "float16" and bool(torch.isfinite(values).all()):
            raise TooLargeError
        split, number = sources[0]
        raise InputError(
            f"cache.activations: the frozen blocks give values that are not finite near sequence {number} of {split}; "
            "--cache.activations off trains without"
        )
    return stored.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def pad_sequences(
    features: dict[str, Features], sources: list[tuple[str, int]], pad_token_id: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Padded inputs of sequences of any splits, and their mask [S, T]."""
    spans = [features[split].offsets[number : number + 2] for split, number in sources]
    longest = max(int(end - begin) for begin, end in spans)
    mask = np.zeros((len(sources), longest), dtype=np.int64)
    names = features[sources[0][0]].inputs.keys()
    batch = {name: np.full(mask.shape, pad_token_id if name == "input_ids" else 0, dtype=np.int64) for name in names}
    for index, ((split, _), (begin, end)) in enumerate(zip(sources, spans, strict=True)):
        mask[index, : end - begin] = 1
        for name in names:
            batch[name][index, : end - begin] = features[split].inputs[name][begin:end]
    tensors = {name: torch.from_numpy(array) for name, array in {**batch, "attention_mask": mask}.items()}
    return tensors, torch.from_numpy(mask.astype(bool))
