"""The frozen prefix of a run: whether to cache it, what its states depend on, capturing them, proving the replay.

Frozen embeddings and blocks in eval mode map an input to the same hidden states in every epoch and run. replay.py runs a
model up to and from that boundary, states.py keeps the states on disk; here they meet the run.

B examples, T tokens, H hidden.
"""

import contextlib
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tqdm import tqdm

from hf_finetune import heads, states
from hf_finetune.checkpoint import Progress
from hf_finetune.data import Batch, Features, collate
from hf_finetune.errors import InputError, StoppedError
from hf_finetune.freezing import train_mode
from hf_finetune.job import Job
from hf_finetune.loop import micro_batch_limit
from hf_finetune.replay import Replay
from hf_finetune.resume import digest_of
from hf_finetune.states import Entry, Layout, States

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


class TooLargeError(Exception):
    """States that fp16 cannot hold."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Whether the prefix is cached, and the lines that say why; where it is, the entry and the replay."""

    lines: tuple[str, ...]
    entry: Entry | None = None
    replay: Replay | None = None

    @property
    def is_on(self) -> bool:
        """Whether the prefix is cached."""
        return self.entry is not None


# --- whether --------------------------------------------------------------------------------------------------------


def choose(job: Job, progress: Progress) -> Choice:
    """Decides by prefix.cache, what the model allows, the self-check, the disk and the measured speed. The same on all
    processes, and the same after a resume as before it. Raises InputError where `on` cannot be done."""
    config = job.config.prefix
    replay = job.trainee.shortcuts.replay
    if config.cache == "off":
        return Choice(lines=("cache off: as prefix.cache says",))
    if replay is None:
        return refuse(job, job.no_replay)
    if config.cache == "auto" and progress.cached is False:
        return Choice(lines=("cache off: as this run was begun",))
    if job.is_over(progress):
        return Choice(lines=("cache off: nothing is left to train",))
    if job.task.changing_inputs:
        return refuse(job, job.task.changing_inputs)
    if config.cache == "auto" and job.plan.num_prefix_blocks == 0:
        return Choice(lines=("cache off: only the embeddings are constant, and they cost little",))
    layout = states.make_layout(job.features)
    with measuring(job):
        sample, _ = states_of(job, replay, [("train", 0)])
        replay = dataclasses.replace(replay, dtype=sample.dtype)
        job = with_replay(job, replay)
        entry = make_entry(job, layout, sample.shape[-1])
        checks = job.runtime.gather(self_check(job, replay, entry.kind))
        difference, tolerance = max(each[0] for each in checks), max(each[1] for each in checks)
        if not difference <= tolerance:
            return refuse(
                job, f"the replayed logits differ from the model's by {difference:.1e}, above {tolerance:.1e}"
            )
        checked = (
            f"replayed logits differ from the whole model's by at most {difference:.1e} (tolerance {tolerance:.1e})"
        )
        lines = (where_line(entry), checked)
        if config.cache == "auto" and progress.cached:
            return Choice(lines=("cache on: as this run was begun", *lines), entry=entry, replay=replay)
        gain = estimate(job, replay, entry, progress)
    full = disk_fault(entry)
    (saved, total), full = job.runtime.on_main(lambda: (gain, full))  # one clock and one disk decide for all
    if full:
        return refuse(job, full)
    if config.cache == "on":
        return Choice(lines=(f"cache on: {gain_text(saved, total)}", *lines), entry=entry, replay=replay)
    if saved < max(LEAST_GAIN_SECONDS, LEAST_GAIN_SHARE * total):
        return Choice(lines=(f"cache off: {gain_text(saved, total)}",))
    return Choice(lines=(f"cache on: {gain_text(saved, total)}", *lines), entry=entry, replay=replay)


def refuse(job: Job, reason: str) -> Choice:
    """No cache, with the reason; where one is asked for, that is an error."""
    if job.config.prefix.cache == "on":
        raise InputError(f"prefix.cache (on): {reason}; auto or off trains without")
    return Choice(lines=(f"cache off: {reason}",))


def gain_text(saved: float, total: float) -> str:
    """What the cache is expected to save."""
    if saved <= 0:
        return f"would cost about {-saved:.1f} s more than the {total:.1f} s without"
    return f"saves about {saved:.1f} s of {total:.1f} s"


def where_line(entry: Entry) -> str:
    """Size, place and state of the entry."""
    state = "warm" if entry.is_whole() else "to be captured"
    return f"{entry.num_bytes / 1e6:,.0f} MB in {entry.kind} at {entry.folder} ({state})"


def disk_fault(entry: Entry) -> str | None:
    """Why the entry does not fit on its disk, or None. A partial entry has its room already, or part of it."""
    if entry.is_whole():
        return None
    begun = entry.partial / states.STATES
    held = getattr(begun.stat(), "st_blocks", 0) * 512 if begun.exists() else 0
    parent = entry.root
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if entry.num_bytes - held <= free // 2:
        return None
    return f"{entry.num_bytes / 1e6:,.0f} MB are needed at {entry.root} and {free / 1e6:,.0f} MB are free; half must stay so"


@contextlib.contextmanager
def measuring(job: Job) -> Iterator[None]:
    """Within the block the model may be run in any way; modes and gradients are as before after it."""
    model = job.trainee.model
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        model.zero_grad(set_to_none=True)


def batch_of(job: Job, rows: "np.ndarray[Any, Any]") -> Batch:
    """A batch of training features as evaluation takes it, on the device, without stored states."""
    features = dataclasses.replace(job.features["train"], states=None)
    batch = collate(features, rows, job.trainee.pad_token_id).to(job.runtime.device)
    return job.task.prepare(batch, features, job.trainee.model, 0)


def states_of(job: Job, replay: Replay, sources: list[tuple[str, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """States [S, T, H] of sequences of any splits at the boundary, and the mask [S, T] of their tokens."""
    inputs, mask = pad(job.features, sources, job.trainee.pad_token_id)
    states = replay.states({name: tensor.to(job.runtime.device) for name, tensor in inputs.items()})
    return states, mask.to(states.device)


def self_check(job: Job, replay: Replay, kind: str) -> tuple[float, float]:
    """The largest difference of a replayed logit from the whole model's on training examples of all lengths, and the
    tolerance. States are captured from each example alone and rounded as they are stored, then replayed in padded batches.
    """
    order = np.argsort(job.features["train"].lengths, kind="stable")
    picked = order[np.linspace(0, len(order) - 1, NUM_CHECKED).astype(int)]
    largest, difference = 1.0, 0.0
    for start in range(CHECKED_BATCH):  # a short, a long and two middle ones in each
        rows = np.unique(picked[start::CHECKED_BATCH])
        batch = batch_of(job, rows)
        alone = [states_of(job, replay, [("train", int(sequence))])[0][0] for sequence in batch.sequences]
        padded = torch.nn.utils.rnn.pad_sequence([each.to(getattr(torch, kind)) for each in alone], batch_first=True)
        expected = seen(job, heads.run(job.trainee.model, batch.inputs), batch)
        with job.trainee.shortcuts(padded.to(alone[0].dtype)):
            found = seen(job, heads.run(job.trainee.model, batch.inputs), batch)
        largest = max(largest, float(expected.abs().max()))
        difference = max(difference, float((found - expected).abs().max()))
        if not bool(torch.isfinite(found).all()):
            difference = float("inf")
    epsilon = max(EPSILON[kind], EPSILON[job.runtime.precision])
    return difference, TOLERANCE_ROUNDINGS * epsilon * largest


def seen(job: Job, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The outputs, those of padding set to zero where each token has its own: nobody reads them. A decoder's tokens are not
    those of the input."""
    mask, values = batch.inputs["attention_mask"].bool(), outputs.float()
    if values.shape[:2] != mask.shape or values.ndim < 3 or heads.writes(job.trainee.model):
        return values
    return values.masked_fill(~mask[..., *[None] * (values.ndim - 2)], 0.0)


def estimate(job: Job, replay: Replay, entry: Entry, progress: Progress) -> tuple[float, float]:
    """Seconds that the cache saves, and seconds of training and validation without it: measured on one micro-batch of
    middling length, and multiplied by the tokens to come."""
    train, schedule = job.features["train"], job.schedule
    limit = micro_batch_limit(job.config, job.runtime.num_processes)
    order = np.argsort(-train.lengths, kind="stable")
    counts = train.counts(np.arange(len(train)))
    rows = limit.split(order[max(0, (len(order) - limit.rows) // 2) :], train.lengths, counts)[0]
    batch = batch_of(job, rows)
    num_tokens = int(train.num_tokens[rows].sum())
    captured = replay.states(batch.inputs)
    prefix = seconds(lambda: replay.states(batch.inputs)) / num_tokens
    whole = seconds(lambda: forward_backward(job, batch, None)) / num_tokens
    replayed = seconds(lambda: forward_backward(job, batch, captured)) / num_tokens
    updates = job.stage_end(progress.settled) - progress.update
    train_tokens = int(train.num_tokens.sum()) * updates / schedule.updates_per_epoch
    every = job.config.evaluation.every
    evaluations = -(-updates // (schedule.updates_per_epoch if every == "epoch" else every))
    validation_tokens = int(job.features["validation"].num_tokens.sum()) * evaluations
    missing = 0 if entry.is_whole() else entry.layout.num_tokens
    saved = train_tokens * (whole - replayed) + (validation_tokens - missing) * prefix
    total = train_tokens * whole + validation_tokens * (prefix + replayed / 3)  # a backward costs two forwards
    return saved / job.runtime.num_processes, total / job.runtime.num_processes


def seconds(function: Callable[[], object]) -> float:
    """The faster of two runs, after one that warms up."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def forward_backward(job: Job, batch: Batch, captured: torch.Tensor | None) -> None:
    """One micro-batch as training computes it, its gradients thrown away. The head's cost stands for the loss's."""
    trainee, task = job.trainee, job.task
    train_mode(trainee.model, trainee.constant)
    with torch.enable_grad(), trainee.shortcuts(captured), trainee.masks(0, batch.sequences, job.runtime.device):
        outputs = heads.run(trainee.model, batch.inputs)
        loss = task.represent(outputs, batch).sum() if task.couples_rows else task.loss(outputs, batch)[0]
        loss.backward()
    trainee.model.zero_grad(set_to_none=True)
    trainee.model.eval()


# --- what the states depend on --------------------------------------------------------------------------------------


def make_entry(job: Job, layout: Layout, hidden: int) -> Entry:
    """The entry of this run's prefix and features: the fp32 one, or the 16-bit one that is there, fp16 first."""
    root = Path(job.config.prefix.dir) if job.config.prefix.dir else states.default_root()
    description = job.runtime.on_main(lambda: describe(job))

    def of(kind: str) -> Entry:
        return Entry(root=root, description=description, layout=layout, kind=kind, hidden=hidden)

    if job.config.prefix.precision == "fp32":
        return of("float32")
    only_bfloat16 = job.runtime.on_main(lambda: of("bfloat16").is_whole() and not of("float16").is_whole())
    return of("bfloat16" if only_bfloat16 else "float16")


def describe(job: Job) -> dict[str, Any]:
    """All that the states depend on besides the features: the frozen weights, the boundary, the config as far as the
    forward goes, attention, precision, versions. Nothing else: another head, label set or seed finds the same entry."""
    model, plan = job.trainee.model, job.plan
    base = getattr(model, model.base_model_prefix, model)
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if not key.startswith(FREE_CONFIG) and "drop" not in key  # frozen modules are in eval mode
    }
    return {
        "format": FORMAT,
        "weights": weights_digest(job),
        "blocks": plan.num_prefix_blocks,
        "architecture": type(base).__name__,
        "config": json.loads(json.dumps(config, default=str)),
        "attention": str(model.config._attn_implementation),
        "precision": job.runtime.precision,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def weights_digest(job: Job) -> str:
    """Digest of the name, type, shape and bytes of every frozen tensor of the prefix."""
    plan = job.plan
    blocks = [name for names in plan.anatomy.blocks[: plan.num_prefix_blocks] for name in names]
    names = sorted({*plan.anatomy.embeddings, *blocks} & plan.frozen)
    return digest_of(dict(job.trainee.model.named_parameters()), names)


# --- capture --------------------------------------------------------------------------------------------------------


def attach(job: Job, choice: Choice) -> Job:
    """The job with the states of all its features, captured where the cache does not hold them. Without a cache, and with
    auto where the cache's folder cannot be written, the job with no replay. On all processes."""
    entry, replay = choice.entry, choice.replay
    try:
        if entry is not None and replay is not None:
            entry = ensure(job, replay, entry)
    except InputError as error:
        if job.config.prefix.cache == "on":
            raise
        job.runtime.say(f"cache       off after all: {error}\n")
        entry = None
    if entry is None:
        return with_replay(job, None)
    features = {
        split: dataclasses.replace(
            rows,
            states=States(
                path=entry.folder / states.STATES,
                kind=entry.kind,
                hidden=entry.hidden,
                starts=entry.layout.starts[split],
            ),
        )
        for split, rows in job.features.items()
    }
    return dataclasses.replace(with_replay(job, replay), features=features)


def with_replay(job: Job, replay: Replay | None) -> Job:
    """The job with this replay, or none."""
    shortcuts = dataclasses.replace(job.trainee.shortcuts, replay=replay)
    return dataclasses.replace(job, trainee=dataclasses.replace(job.trainee, shortcuts=shortcuts))


def ensure(job: Job, replay: Replay, entry: Entry) -> Entry:
    """Makes the entry whole, or the one in bf16 where values are too large for fp16; returns the one that is."""
    try:
        fill(job, replay, entry)
        return entry
    except TooLargeError:
        job.runtime.say("cache       values are too large for fp16: kept in bf16")
        job.runtime.on_main(lambda: shutil.rmtree(entry.partial, ignore_errors=True))
        entry = dataclasses.replace(entry, kind="bfloat16")
        fill(job, replay, entry)
        return entry


def fill(job: Job, replay: Replay, entry: Entry) -> None:
    """Each process computes its share of what is missing. One run at a time does it."""
    run = job.runtime
    with contextlib.ExitStack() as held:
        run.on_main(lambda: held.enter_context(states.locked(entry.root, entry.key, run.say)))
        missing, notes = run.on_main(lambda: states.missing_chunks(entry))
        for note in notes:
            run.say(f"cache       {note}")
        if not missing and run.on_main(entry.is_whole):
            return
        began = time.perf_counter()
        outcomes = run.gather(fill_share(job, replay, entry, missing)) if missing else []
        if "stopped" in outcomes:
            raise run.stop()
        if "too large" in outcomes:
            raise TooLargeError
        if faults := [outcome for outcome in outcomes if outcome]:
            raise InputError(faults[0])
        run.on_main(lambda: states.finish(entry))
        num_tokens, took = entry.layout.num_tokens, time.perf_counter() - began
        run.say(f"cache       {num_tokens:,} tokens captured in {took:.1f} s\n")


def fill_share(job: Job, replay: Replay, entry: Entry, missing: list[int]) -> str:
    """Computes this process's share of the missing chunks; what went wrong, or nothing, for all processes to hear."""
    run = job.runtime
    chunks = entry.layout.chunks()
    share = missing[run.process :: run.num_processes]
    shows = run.is_main and sys.stderr.isatty()
    with tqdm(total=len(share), desc="capturing the prefix", unit="chunk", disable=not shows, leave=False) as bar:

        def compute(number: int) -> bytes:
            if run.is_asked_to_stop():
                raise StoppedError
            content = capture(job, replay, entry, *chunks[number])
            bar.update(1)
            return content

        try:
            with measuring(job):
                states.fill(entry, share, run.process, compute)
        except InputError as error:
            return str(error)
        except TooLargeError:
            return "too large"
        except StoppedError:
            return "stopped"
    return ""


def capture(job: Job, replay: Replay, entry: Entry, begin: int, end: int) -> bytes:
    """The states of features `begin` to `end` of the layout, as the file holds them."""
    sources = entry.layout.source[begin:end]
    values, mask = states_of(job, replay, sources)
    stored = values[mask].to(getattr(torch, entry.kind))
    if not bool(torch.isfinite(stored).all()):
        if entry.kind == "float16" and bool(torch.isfinite(values).all()):
            raise TooLargeError
        split, number = sources[0]
        raise InputError(
            f"prefix.cache: the frozen blocks give values that are not finite near sequence {number} of {split}; "
            "--prefix.cache off trains without"
        )
    return stored.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def pad(
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
