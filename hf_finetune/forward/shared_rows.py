"""Whether examples can share rows in a model (data/shared_rows.py), shown on a probe.

A model of transformers keeps the examples of a row apart if it gets positions that start again, no mask of padding, and keeps no
keys and values: its own code then makes the mask of attention, in each kind of layer, or gives a kernel of variable lengths the
begin of each example. Models that have no positions to be given (ALiBi), or that carry a state from token to token, cannot do
that. So no family is trusted by name: logits and gradients of examples in shared rows are compared with those of each alone.

S sequences of the probe, R rows, W tokens of the longest row, V outputs for a token.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_finetune.config.sections import require
from hf_finetune.data.features import Batch, Features, Padding, collate
from hf_finetune.data.shared_rows import RowSharing, share_rows
from hf_finetune.forward.cached import SAME_SUMS, is_close
from hf_finetune.forward.dropout import DropoutMasks
from hf_finetune.forward.first_token import OTHER_GRADIENT_SUMS, OTHER_SUMS, are_same_gradients
from hf_finetune.forward.plan import ForwardPlan
from hf_finetune.model import heads
from hf_finetune.model.freezing import set_train_mode
from hf_finetune.model.structure import keep_modes
from hf_finetune.system.errors import first_line

# Tokens of the probe's sequences. In rows of nine tokens they are 9, 5 + 4 and 3 + 1 with padding
PROBE_LENGTHS = (9, 5, 3, 1, 4)

SAME_16_BIT = 16 * 2.0**-8  # as OTHER_SUMS, for attention that has no fp32

# Attention that computes only what an example needs of a row, by its name in transformers
VARIABLE_LENGTH = ("flash", "flex")


class CannotShareRowsError(Exception):
    """Examples cannot share rows in a model. The message is the reason."""


def find_row_sharing(
    setting: str,
    model: nn.Module,
    masks: DropoutMasks,
    plan: ForwardPlan,
    eval_modules: Iterable[nn.Module],
    why_not: str,
) -> tuple[RowSharing | None, str]:
    """Returns how examples share rows, None if they do not, and what a run with train.shared_rows auto says about that.

    InputError if the setting is on and rows cannot be shared.

    Args:
        setting: train.shared_rows.
        model: In fp32, not yet prepared by Accelerate.
        masks: The dropout masks of the run.
        plan: What a forward need not compute.
        eval_modules: Modules that stay in eval mode in training.
        why_not: Why the task's examples cannot share rows, "" if they can.
    """
    in_one_row = any(name in str(getattr(model.config, "_attn_implementation", "")) for name in VARIABLE_LENGTH)
    if setting == "off" or (setting == "auto" and (why_not or not in_one_row)):
        return None, ""
    require(not why_not, "train.shared_rows", setting, why_not)
    sharing = RowSharing(in_one_row=in_one_row)
    try:
        with keep_modes(model):
            check_rows(RowProbe(model=model, masks=masks, plan=plan, eval_modules=tuple(eval_modules)), sharing)
    except CannotShareRowsError as error:
        require(setting == "auto", "train.shared_rows", setting, f"{error}; choose off")
        return None, f"not shared: {error}"
    return sharing, ""


@dataclass(frozen=True, kw_only=True)
class RowProbe:
    """Runs a model as in training on the sequences of the probe.

    Args:
        model, masks, plan, eval_modules: As in find_row_sharing().
    """

    model: Any
    masks: DropoutMasks
    plan: ForwardPlan
    eval_modules: tuple[nn.Module, ...]

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def make_features(self, changed: int | None = None) -> Features:
        """The sequences. All tokens of the one with the number `changed` are other ones."""
        parts = [np.arange(length) * 7 + number * 3 + 1 for number, length in enumerate(PROBE_LENGTHS)]
        if changed is not None:
            parts[changed] = parts[changed] + 1
        ids = np.concatenate(parts) % self.model.config.vocab_size
        offsets = np.cumsum([0, *PROBE_LENGTHS])
        return Features(inputs={"input_ids": ids.astype(np.int32)}, offsets=offsets, labels=None, num_truncated=0)

    def run(self, batch: Batch, activations: torch.Tensor | None = None) -> torch.Tensor:
        """The model's logits of a batch in training, with dropout if its masks do not depend on the batch [R, W, V]."""
        if self.masks.is_stateless:
            set_train_mode(self.model, self.eval_modules)
        else:
            self.model.eval()
        batch = batch.to(self.device)
        masks = self.masks.active(0, batch.sequence_indices, self.device, batch.rows)
        with self.plan.active(activations), masks:
            return heads.run_model(self.model, batch.inputs)

    def compute_gradients(self, logits: torch.Tensor) -> list[torch.Tensor | None]:
        """The gradients of all parameters that train."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return list(torch.autograd.grad(logits.square().sum(), parameters, allow_unused=True))


def check_rows(probe: RowProbe, sharing: RowSharing) -> None:
    """Raises CannotShareRowsError if an example in a shared row has other logits or gradients than alone, or if they depend on
    the others of the row."""
    row_length = sharing.find_row_length(np.array(PROBE_LENGTHS))
    everything = np.arange(len(PROBE_LENGTHS))
    shared = share_rows(collate(probe.make_features(), everything, Padding(0)), row_length)
    alone = [collate(probe.make_features(), np.array([number]), Padding(0)) for number in everything]
    try:
        with torch.enable_grad(), needed_autocast(probe, sharing):
            tolerance = SAME_16_BIT if torch.is_autocast_enabled(probe.device.type) else OTHER_SUMS
            expected = torch.cat([probe.run(batch)[0] for batch in alone])
            logits = select_tokens(probe.run(shared), shared)
            for number in range(len(everything)):
                other = share_rows(collate(probe.make_features(number), everything, Padding(0)), row_length)
                changed = select_tokens(probe.run(other), other).detach()
                is_other = torch.from_numpy(np.repeat(everything, PROBE_LENGTHS) != number).to(changed.device)
                if not is_close(changed[is_other], logits.detach()[is_other], SAME_SUMS):
                    raise CannotShareRowsError("its layers mix the examples of a row")
            if not is_close(logits.detach(), expected.detach(), tolerance):
                raise CannotShareRowsError("its logits are other ones than those of an example alone")
            if not are_same_gradients(
                probe.compute_gradients(logits), probe.compute_gradients(expected), max(tolerance, OTHER_GRADIENT_SUMS)
            ):
                raise CannotShareRowsError("its gradients are other ones than those of an example alone")
            if probe.plan.cached is not None:
                check_cached(probe, alone, shared, expected, tolerance)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise CannotShareRowsError(
            f"this backbone cannot run with positions that start again: {first_line(error)}"
        ) from None


def needed_autocast(probe: RowProbe, sharing: RowSharing) -> contextlib.AbstractContextManager[Any]:
    """Autocast to 16 bit for kernels of variable lengths on a GPU, which have no fp32."""
    if sharing.in_one_row and probe.device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
    return contextlib.nullcontext()


def check_cached(probe: RowProbe, alone: list[Batch], shared: Batch, expected: torch.Tensor, tolerance: float) -> None:
    """Raises CannotShareRowsError if the logits differ when the model runs from the activations of each example alone."""
    assert probe.plan.cached is not None
    assert shared.rows is not None
    with torch.no_grad():
        probe.model.eval()
        parts = [probe.plan.cached.compute_activations(batch.to(probe.device).inputs)[0] for batch in alone]
        is_token = shared.rows.sequences >= 0
        activations = parts[0].new_zeros(*is_token.shape, parts[0].shape[-1])
        activations[is_token] = torch.cat(parts)[find_places(shared)]
        logits = select_tokens(probe.run(shared, activations), shared)
    if not is_close(logits, expected.detach(), tolerance):
        raise CannotShareRowsError("its logits from cached activations are other ones than those of an example alone")


def find_places(batch: Batch) -> torch.Tensor:
    """Returns the place of each token of shared rows among the tokens of all sequences, one after the other."""
    assert batch.rows is not None
    is_token = batch.rows.sequences >= 0
    starts = torch.from_numpy(np.cumsum([0, *PROBE_LENGTHS]))
    return starts[batch.rows.sequences[is_token]] + batch.rows.positions[is_token]


def select_tokens(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Returns the outputs [R, W, V] of the tokens of shared rows, in the order of the sequences [sum of lengths, V]."""
    assert batch.rows is not None
    return outputs[(batch.rows.sequences >= 0).to(outputs.device)][find_places(batch).argsort().to(outputs.device)]
