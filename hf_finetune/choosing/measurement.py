"""A dry run's measurements: memory and seconds of some real updates and evaluations of a run."""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hf_finetune.cache.capture import capture_chunk, compute_activations, inference_only, with_cached_forward
from hf_finetune.cache.decision import CacheDecision
from hf_finetune.cache.layout import CHUNK_TOKENS
from hf_finetune.cache.store import Entry
from hf_finetune.choosing.live_tensors import measure_activations
from hf_finetune.choosing.plan import MemoryRoom, find_free_memory
from hf_finetune.data.batches import share_batch
from hf_finetune.data.features import Array
from hf_finetune.forward.cached import CachedForward
from hf_finetune.run import checkpoint
from hf_finetune.run.frozen_weights import settle_frozen_weights
from hf_finetune.run.head_start import start_head
from hf_finetune.run.training_run import TrainingRun, evaluate_split
from hf_finetune.system.processes import peak_memory_mb
from hf_finetune.training.loop import Update, make_micro_batch_limit, train_steps
from hf_finetune.training.source import SourceBatch

NUM_UPDATES = 6  # whose time is measured, of all lengths: the shortest and the longest are among them
NUM_REPEATS = 2  # of each of them
NUM_CHUNKS = 4  # of a capture whose time is measured
NUM_BATCHES = 4  # of an evaluation whose time is measured
MOST_SAVED = 2**28  # bytes that are written to measure the disk


@dataclass(frozen=True, kw_only=True)
class GivenBatches:
    """Batches in an order of one's own (a BatchSource)."""

    batches: Sequence[SourceBatch]

    def get_batch(self, update: int) -> SourceBatch:
        return self.batches[update]


def count_tokens(batch: SourceBatch) -> int:
    """Returns the tokens of a batch, padding included."""
    return int(batch.measured.lengths[batch.indices].max()) * len(batch.indices)


@dataclass(kw_only=True)
class HeldActivations:
    """Activations of some sequences in memory. starts: The first token of each sequence [S], 0 for those that are not there."""

    dtype: str
    starts: Array
    values: torch.Tensor

    def gather(self, sequence_indices: Array, mask: Array, positions: Array | None = None) -> torch.Tensor:
        indices = sequence_indices if sequence_indices.ndim == 2 else sequence_indices[:, None]
        places = np.arange(mask.shape[1]) if positions is None else positions
        return self.values[torch.from_numpy(np.where(mask, self.starts[indices] + places, 0))]


def time_capture(run: TrainingRun, cached_forward: CachedForward, entry: Entry) -> float:
    """Returns the seconds that the capture of all activations takes, from those of some of its chunks. The first one has the
    longest sequences; it is not counted, since first calls are slower."""
    chunks = entry.layout.chunks()
    places = np.linspace(0, len(chunks) - 1, min(len(chunks), NUM_CHUNKS)).astype(np.int64)
    seconds = []
    with inference_only(run):
        for place in (0, *places):
            began = time.perf_counter()
            capture_chunk(run, cached_forward, entry, *chunks[place])
            seconds.append(time.perf_counter() - began)
    return sum(seconds[1:]) / len(places) * len(chunks) / run.runtime.num_processes


class Measurement:
    """Runs some batches of a run, which is of no use afterwards.

    Attributes:
        sizes: The tokens of each batch of the first epoch, padding included, in ascending order [U].
        places: Those of some batches of all sizes among them.
        batches: These batches.
    """

    def __init__(self, run: TrainingRun, cache: CacheDecision) -> None:
        source = run.make_source()
        batches = [source.get_batch(update) for update in range(run.schedule.updates_per_epoch)]
        batches.sort(key=count_tokens)
        self.sizes = np.array([count_tokens(batch) for batch in batches])
        self.places = np.unique(np.linspace(0, len(batches) - 1, NUM_UPDATES).astype(np.int64))
        self.batches = [batches[place] for place in self.places]
        self.capture_seconds = 0.0
        self.head_seconds = 0.0
        self.validation = self.sample(run, "validation")
        self.run = self.prepare(run, cache)

    def sample(self, run: TrainingRun, split: str) -> Array:
        """Returns features of all lengths, for a few batches of an evaluation."""
        order = np.argsort(run.features[split].lengths, kind="stable")
        count = min(len(order), NUM_BATCHES * run.config.evaluation.batch_size)
        return np.sort(order[np.linspace(0, len(order) - 1, count).astype(np.int64)])

    def prepare(self, run: TrainingRun, cache: CacheDecision) -> TrainingRun:
        """Returns the run as it trains: with the activations of the chosen batches, if it caches them."""
        if cache.entry is not None and cache.cached_forward is not None:
            self.capture_seconds = time_capture(run, cache.cached_forward, cache.entry)
            train = np.unique(np.concatenate([batch.indices for batch in self.batches]))
            features = dict(run.features)
            for split, indices in (("train", train), ("validation", self.validation)):
                held = self.hold(run, cache, split, run.features[split].get_sequence_indices(indices))
                features[split] = dataclasses.replace(features[split], activations=held)
            run = dataclasses.replace(with_cached_forward(run, cache.cached_forward), features=features)
        else:
            run = with_cached_forward(run, None)
        if run.is_cached:  # their features are those of the run
            self.batches = [
                dataclasses.replace(batch, measured=dataclasses.replace(batch.measured, features=run.features["train"]))
                for batch in self.batches
            ]
        run = settle_frozen_weights(run)
        began = time.perf_counter()
        start_head(run)
        self.head_seconds = time.perf_counter() - began
        return run

    def hold(self, run: TrainingRun, cache: CacheDecision, split: str, sequences: Array) -> HeldActivations:
        """Computes the activations of sequences as the capture does."""
        assert cache.entry is not None
        assert cache.cached_forward is not None
        lengths = run.features[split].sequence_lengths
        sequences = sequences[np.argsort(-lengths[sequences], kind="stable")]
        starts, parts, num_tokens = np.zeros(len(lengths), dtype=np.int64), [], 0
        size = max(1, CHUNK_TOKENS // int(lengths[sequences[0]]))
        with inference_only(run):
            for first in range(0, len(sequences), size):
                chunk = sequences[first : first + size]
                values, mask = compute_activations(run, cache.cached_forward, [(split, int(one)) for one in chunk])
                parts.append(values[mask].to(getattr(torch, cache.entry.dtype)).cpu())
                starts[chunk] = num_tokens + np.cumsum([0, *lengths[chunk]])[:-1]
                num_tokens += int(lengths[chunk].sum())
        return HeldActivations(dtype=cache.entry.dtype, starts=starts, values=torch.cat(parts))

    # --- memory -----------------------------------------------------------------------------------------------------

    def measure_memory(self) -> tuple[dict[str, int], MemoryRoom]:
        """Returns the bytes of the longest batch by kind, and how large its micro-batches can be.

        Two of its examples are run first. If the micro-batches of the config do not fit, they stand for all that is measured.
        """
        run, batch = self.run, self.batches[-1]
        lengths = batch.measured.lengths[batch.indices]
        two = dataclasses.replace(batch, indices=batch.indices[np.argsort(-lengths, kind="stable")[:2]])
        device = run.runtime.device
        with measure_activations(run.train_state.model) as live:
            self.run_updates([two])
        per_example, free = live.peak / len(two.indices), find_free_memory(device)
        limit = make_micro_batch_limit(run.config, run.runtime.num_processes, run.train_state.row_sharing)
        counts = batch.measured.sequence_counts
        shares = share_batch(
            batch.indices, batch.measured.lengths, limit, run.runtime.process, run.runtime.num_processes, counts
        )
        asked = max(len(share) for share in shares)
        fitting = int(free // per_example) if per_example else asked
        room = MemoryRoom(free=free, per_example=round(per_example), asked=asked, fitting=fitting)
        if room.fits:
            with measure_activations(run.train_state.model) as live:
                self.run_updates([batch])
            activations = live.peak
        else:
            self.batches = [two] * len(self.batches)
            activations = round(per_example * asked)
        parameters = list(run.train_state.model.parameters())
        memory = {
            "frozen": sum(one.nbytes for one in parameters if not one.requires_grad),
            "trainable": sum(one.nbytes for one in parameters if one.requires_grad),
            "gradients": sum(one.grad.nbytes for one in parameters if one.grad is not None),
            "optimizer": checkpoint.count_tensor_bytes(run.train_state.optimizer.state_dict()),
            "activations": activations,
        }
        return memory, room

    def finish_memory(self, memory: dict[str, int]) -> dict[str, int]:
        """Returns the memory with what else the process takes, and its peak: at the end, the exported model is loaded next to the
        trained one, on the CPU."""
        device, model = self.run.runtime.device, self.run.train_state.model
        memory = {**memory, "other": max(0, round(peak_memory_mb(device) * 2**20) - sum(memory.values()))}
        reloaded = checkpoint.count_tensor_bytes(model.state_dict()) if device.type == "cpu" else 0
        return {**memory, "reloaded model": reloaded, "peak": sum(memory.values()) + reloaded}

    # --- time -------------------------------------------------------------------------------------------------------

    def run_updates(self, batches: Sequence[SourceBatch]) -> list[Update]:
        """Runs an update for each batch."""
        run = self.run
        steps = train_steps(
            run.train_state,
            GivenBatches(batches=batches),
            run.task,
            run.config,
            run.runtime,
            total_updates=len(batches),
        )
        return list(steps)

    def time_epoch(self) -> float:
        """Returns the seconds of the updates of an epoch: those that were not measured take what their size lets one expect.

        Each batch runs several times. The first time is not counted, since it may be slower.
        """
        updates = self.run_updates([*self.batches] * (1 + NUM_REPEATS))
        seconds = np.array([update.seconds for update in updates[len(self.batches) :]]).reshape(NUM_REPEATS, -1)
        sizes, members = np.unique(self.sizes[self.places], return_inverse=True)  # several may have the same
        means = np.bincount(members, seconds.mean(axis=0)) / np.bincount(members)
        return float(np.interp(self.sizes, sizes, means).sum())

    def time_evaluation(self, split: str) -> float:
        """Returns the seconds of an evaluation of a split as a run does it, for the test split with the entire model; 0 for a
        split that the run does not have."""
        if split not in self.run.features:
            return 0.0
        features = self.run.features[split]
        indices = self.validation if split == "validation" else self.sample(self.run, split)
        began = time.perf_counter()
        evaluate_split(self.run, split, indices, uses_cache=split == "validation")
        seconds = time.perf_counter() - began
        return seconds * float(features.num_tokens.sum()) / float(features.num_tokens[indices].sum())

    def estimate_check(self, validation: float) -> float:
        """Returns the seconds of the checks before training. validation: Those of an evaluation."""
        share = min(1.0, 2 * self.run.config.evaluation.batch_size / len(self.run.features["validation"]))
        return share * validation + self.head_seconds

    def time_saving(self) -> float:
        """Returns the seconds of a checkpoint for each of its bytes, which are written to a temporary folder."""
        tensors: dict[str, torch.Tensor] = {}
        num_bytes = 0
        for name, tensor in self.run.train_state.model.state_dict().items():
            if not tensors or num_bytes + tensor.nbytes <= MOST_SAVED:
                tensors[name], num_bytes = tensor, num_bytes + tensor.nbytes
        content = {"epoch": 1, "update": 1, "loss": 0.0, "metrics": {}, "model_state_dict": tensors}
        with tempfile.TemporaryDirectory(prefix="hf-finetune-") as folder:
            began = time.perf_counter()
            checkpoint.save_checkpoint(Path(folder), content, metric=self.run.metric, value=0.0)
            return (time.perf_counter() - began) / num_bytes

    def count_encoded_bytes(self) -> int:
        """Returns the bytes of the encoded text."""
        parts = self.run.features.values()
        return sum(array.nbytes for part in parts for array in (*part.inputs.values(), part.offsets))
