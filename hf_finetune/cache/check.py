"""Compares outputs from cached activations with those of the entire model: before the first update, and at the end.

B features, T tokens, H hidden.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from hf_finetune import __version__
from hf_finetune.cache.capture import EPSILON, compute_activations, inference_only, make_batch
from hf_finetune.cache.store import MALFORMED, Entry
from hf_finetune.data.features import Array, Batch, Features, attach_activations, collate
from hf_finetune.forward.cached import CachedForward
from hf_finetune.forward.plan import ForwardPlan
from hf_finetune.model import heads
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import digest_tensors, write_atomically
from hf_finetune.tasks.objectives import reads_some_tokens
from hf_finetune.training.train_state import add_reading

# Outputs from cached activations may differ from the entire model's by this many roundings of the largest output: those of the
# stored activations, and those of the computation, which adds in another order in another batch.
TOLERANCE_ROUNDINGS = 16

SAME_TO = 1e-5  # relative; of a forward that leaves work out, as its probes allow (forward/first_token.py)

VERDICT = "check.json"  # in the folder of an entry: the self-check of the last model that was run from it

NUM_CHECKED, CHECKED_BATCH = 12, 4  # examples that are compared, and how many of them a batch of the self-check has


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The largest difference between two outputs, nan or infinite if one is not finite, and the tolerance."""

    difference: float
    tolerance: float

    @property
    def is_same(self) -> bool:
        """True if the outputs are the same within the tolerance."""
        return math.isfinite(self.difference) and self.difference <= self.tolerance


def pick_by_length(features: Features) -> Array:
    """Returns the numbers of a few features of all lengths, the shortest and the longest among them."""
    order = np.argsort(features.lengths, kind="stable")
    return order[np.linspace(0, len(order) - 1, NUM_CHECKED).astype(int)]


def check_once(run: TrainingRun, cached_forward: CachedForward, entry: Entry) -> Comparison:
    """Returns check_logits(), from a file in the entry if it was found there for the same key, model and machine. On all
    processes, which get the same result.

    What is stored is compared with its digests and with fresh activations at each start, whether the comparison was kept or not.
    """
    path = entry.folder / VERDICT
    key = run.runtime.on_main(lambda: make_verdict_key(run, entry))
    if (kept := run.runtime.on_main(lambda: read_verdict(path, key))) is not None:
        return kept
    check = find_worst(run.runtime.gather(check_logits(run, cached_forward, entry.dtype)))

    def keep() -> None:
        if check.is_same and entry.is_complete():
            with contextlib.suppress(OSError, InputError):  # of another user, or a full disk: it is compared again
                write_atomically(path, json.dumps({"key": key, **asdict(check)}).encode())

    run.runtime.on_main(keep)
    return check


def make_verdict_key(run: TrainingRun, entry: Entry) -> str:
    """Returns the digest of all that the self-check depends on: the entry, the model above its boundary, code and machine. Of a
    new head only the names and shapes count, so that runs with other seeds share it."""
    weights, new = run.train_state.model.state_dict(), run.backbone.new_parameters
    content = {
        "entry": entry.key,
        "weights": digest_tensors(weights, sorted(weights.keys() - new - {*run.plan.prefix})),
        "shapes": {name: list(tensor.shape) for name, tensor in weights.items()},
        "cuts": len(run.train_state.forward_plan.first_token),
        "training": run.features["train"].fingerprint(),
        "version": __version__,
        "device": name_processor(run.runtime.device),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def name_processor(device: torch.device) -> list[str]:
    """Returns the kind of device, its name, and the instructions that the CPU has."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return [device.type, name, torch.backends.cpu.get_cpu_capability()]


def read_verdict(path: Path, key: str) -> Comparison | None:
    """Returns the comparison that a file holds for this key; None if there is none."""
    try:
        content = json.loads(path.read_bytes())
        if content["key"] != key:
            return None
        kept = Comparison(difference=float(content["difference"]), tolerance=float(content["tolerance"]))
    except (OSError, *MALFORMED):
        return None
    return kept if kept.is_same else None


def check_logits(run: TrainingRun, cached_forward: CachedForward, dtype: str) -> Comparison:
    """Compares logits from cached activations with the entire model's, on training examples of all lengths.

    Activations are computed from each example alone and rounded to `dtype`, as they are stored; the model then runs from them in
    padded batches.
    """
    model, picked = run.train_state.model, pick_by_length(run.features["train"])
    largest, difference = 1.0, 0.0
    for start in range(CHECKED_BATCH):  # each batch has a short, a long and two middle examples
        batch = make_batch(run, np.unique(picked[start::CHECKED_BATCH]))
        alone = [
            compute_activations(run, cached_forward, [("train", int(sequence))])[0][0]
            for sequence in batch.sequence_indices
        ]
        rounded = [activations.to(getattr(torch, dtype)) for activations in alone]
        padded = torch.nn.utils.rnn.pad_sequence(rounded, batch_first=True)
        expected = zero_padding_outputs(run, heads.run_model(model, batch.inputs), batch)
        outputs = run.train_state.forward_plan.run_model(model, batch.inputs, padded.to(alone[0].dtype))
        logits = zero_padding_outputs(run, outputs, batch)
        largest = max(largest, float(expected.abs().max()))
        difference = max(difference, measure_difference(logits, expected))
    epsilon = max(EPSILON[dtype], EPSILON[run.runtime.precision])
    return Comparison(difference=difference, tolerance=TOLERANCE_ROUNDINGS * epsilon * largest)


def compare_evaluation(run: TrainingRun) -> Comparison | None:
    """Compares the outputs that evaluation takes, from stored activations or with other work left out, with those of the entire
    model, on validation features of all lengths. None if it takes those of the entire model. On all processes, which get the same
    result."""
    features, plan = run.features["validation"], run.train_state.forward_plan
    if features.activations is None and dataclasses.replace(plan, cached=None) == plan.complete():
        return None
    picked = np.unique(pick_by_length(features))
    size = min(CHECKED_BATCH, run.config.evaluation.batch_size)
    parts = [compare_outputs(run, features, picked[start : start + size]) for start in range(0, len(picked), size)]
    return find_worst(run.runtime.gather(find_worst(parts)))


def compare_outputs(run: TrainingRun, features: Features, indices: Array) -> Comparison:
    """Compares the outputs of some validation features, of the tokens that the evaluation reads."""
    state = run.train_state
    batch = collate(features, indices, state.padding)
    batch = run.task.encoding.prepare(batch, features, state.model, 0)
    batch = attach_activations(batch, features).to(run.runtime.device)
    reads_all = not reads_some_tokens(run.task.scoring, "reduce")
    reading = add_reading(batch, run.task.objective, state.forward_plan, reads_all=reads_all).reading
    reading = None if reading is None else dataclasses.replace(reading, project=None)  # the logits themselves

    def compute(plan: ForwardPlan, activations: torch.Tensor | None) -> torch.Tensor:
        outputs = plan.run_model(state.model, batch.inputs, activations, reading)
        return zero_padding_outputs(run, outputs, batch)

    with inference_only(run):
        expected = compute(state.forward_plan.complete(), None)
        outputs = compute(state.forward_plan, batch.activations)
    stored = 0.0 if batch.activations is None else EPSILON[str(batch.activations.dtype).removeprefix("torch.")]
    roundings = TOLERANCE_ROUNDINGS * max(stored, EPSILON[run.runtime.precision])
    tolerance = max(SAME_TO, roundings) * max(1.0, float(expected.abs().max()))
    return Comparison(difference=measure_difference(outputs, expected), tolerance=tolerance)


def describe_evaluation(run: TrainingRun) -> str:
    """Returns what an evaluation computes from. Numbers of two evaluations with the same weights are the same if it is equal."""
    activations = run.features["validation"].activations
    if activations is None or run.train_state.forward_plan.cached is None:
        return "inputs"
    return f"{activations.dtype} activations after {run.plan.num_prefix_blocks} blocks"


def find_worst(comparisons: Sequence[Comparison]) -> Comparison:
    """Returns the comparison of all processes' that has the largest difference, one that is not the same before all others."""
    return max(comparisons, key=lambda one: (not one.is_same, one.difference))


def measure_difference(outputs: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest difference, infinite if an output is not finite."""
    return float((outputs - expected).abs().max()) if bool(torch.isfinite(outputs).all()) else float("inf")


def zero_padding_outputs(run: TrainingRun, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Zeroes the outputs at padding positions, which nothing reads. Outputs without a token axis, and encoder-decoders (whose
    output tokens are not the input's), are returned unchanged."""
    mask, values = batch.inputs["attention_mask"].bool(), outputs.float()
    if values.shape[:2] != mask.shape or values.ndim < 3 or heads.is_sequence_to_sequence(run.train_state.model):
        return values
    return values.masked_fill(~mask[..., *[None] * (values.ndim - 2)], 0.0)
