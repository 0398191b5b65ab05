"""Dropout without a stream: a mask is a pure function of (seed, update, example, place in the model, position).

Masks drawn from a generator depend on how the examples of a batch are grouped; these do not. With dropout on, the
numbers are the same on any number of processes, with any micro-batch, padded or not, cached or not, and resume has no
random state to keep. On a CPU they cost a tenth of torch's, which come from one thread (docs/performance.md).

B examples, T tokens, D the last dimension of a tensor.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hf_finetune.config.sections import require
from hf_finetune.model import heads
from hf_finetune.model.freezing import set_train_mode
from hf_finetune.model.structure import make_probe_batch

LANES = 4  # 16-bit numbers in one 64-bit hash

GOLDEN = -7046029254386353131  # 2**64 / golden ratio as int64, the increment of SplitMix64 (Steele et al., OOPSLA 2014)

MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # of SplitMix64's finalizer

# Up to here a bf16 attention with its own matrix products beats the CPU's flash kernel, whose backward is slow at short
# lengths; above, the kernel that keeps no [T, T] matrix wins (docs/performance.md)
LONGEST_EAGER = 128


def shift_right(values: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift of int64; torch's own keeps the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix_bits(values: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finalizer: every bit of the result depends on every bit of an int64."""
    values = (values ^ shift_right(values, 30)) * MULTIPLIERS[0]
    values = (values ^ shift_right(values, 27)) * MULTIPLIERS[1]
    return values ^ shift_right(values, 31)


def make_update_key(seed: int, update: int) -> torch.Tensor:
    """One int64 key [1] for an update of a run. Seed 0 and update 0 are mixed as others: mix(0) alone would be 0."""
    return mix_bits(mix_bits(torch.tensor([seed + 2**32]) * GOLDEN) + torch.tensor([update + 1]) * GOLDEN)


def draw_bits(keys: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Uniform int16 numbers of `shape`, from the keys of its first dimension.

    Each index but the last is mixed into the key in turn, so that a number does not depend on the sizes of the dimensions:
    padding changes nothing. The last index costs one multiplication for four numbers: key x constant of the column,
    with its high half added to its low one.
    """
    if len(shape) == 1:
        return draw_bits(keys, torch.Size([*shape, 1]))[:, 0]
    device = keys.device
    for size in shape[1:-1]:
        keys = mix_bits(keys[..., None] + torch.arange(1, size + 1, device=device) * GOLDEN)
    columns = mix_bits(torch.arange(1, -(-shape[-1] // LANES) + 1, device=device)) | 1
    hashed = (keys | 1)[..., None] * columns
    hashed += hashed >> 32
    return hashed.view(torch.int16)[..., : shape[-1]]


class MaskedDropout(torch.autograd.Function):
    """x / (1 - p) where a lane is above the threshold, else 0. Never a product with a mask: see docs/performance.md."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, drawn: torch.Tensor, probability: float) -> torch.Tensor:
        # Selecting bits by an integer comparison runs on all vector units; torch has no such kernel for mixed types
        kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
        ctx.threshold = round(probability * 2**16) - 2**15 - 1
        ctx.scale = 2**16 / (2**16 - round(probability * 2**16))
        drawn = drawn.to(kind).contiguous()
        ctx.save_for_backward(drawn)
        return apply_mask(x, drawn, ctx.threshold, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (drawn,) = ctx.saved_tensors
        return apply_mask(gradients[0], drawn, ctx.threshold, ctx.scale), None, None


def apply_mask(x: torch.Tensor, drawn: torch.Tensor, threshold: int, scale: float) -> torch.Tensor:
    """x * scale where drawn > threshold, else 0."""
    bits = x.contiguous().view(drawn.dtype)
    return torch.ops.aten.threshold_backward(bits, drawn, threshold).view(x.dtype).mul_(scale)


class StatelessDropout(TorchFunctionMode):
    """While it is active, every dropout of a model in training takes its mask from the hash, attention's too.

    Works on any model: torch hands every functional.dropout and scaled_dot_product_attention to an active mode, and
    nn.Dropout calls the former. The place of a mask is how many were drawn before it in this forward. What draws random
    numbers in another way (nn.MultiheadAttention, an LSTM) is not caught; `choose_masks` finds that out.

    rows: [B] numbers of the examples in the training features, in the order of the batch. shared: places whose tensor
    belongs to no example (DeBERTa's relative positions), as `choose_masks` finds them.
    """

    def __init__(self, seed: int, update: int, rows: torch.Tensor, shared: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.update_key = make_update_key(seed, update).to(rows.device)
        self.example_keys = mix_bits(self.update_key + (rows + 1) * GOLDEN)
        self.shared = shared
        self.shapes: list[torch.Size] = []  # of the tensors that masks were drawn for

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is F.dropout:
            return self.dropout(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return self.attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def dropout(
        self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        """functional.dropout."""
        if not training or p == 0.0:
            return input
        place = len(self.shapes)
        self.shapes.append(input.shape)
        salt = mix_bits(torch.tensor([place + 1], device=self.update_key.device) * GOLDEN)
        if place in self.shared or input.shape[0] != len(self.example_keys):
            drawn = draw_bits(mix_bits(self.update_key ^ salt), torch.Size([1, *input.shape]))[0]
        else:
            drawn = draw_bits(mix_bits(self.example_keys ^ salt), input.shape)
        return MaskedDropout.apply(input, drawn, p)

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """functional.scaled_dot_product_attention, by matrix products where a mask is drawn or the kernel is slow."""
        slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= LONGEST_EAGER
        if dropout_p == 0.0 and not (slow and torch.is_grad_enabled()):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=attn_mask, dropout_p=0.0, is_causal=is_causal, scale=scale,
                enable_gqa=enable_gqa,
            )  # fmt: skip
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        scores = torch.matmul(query * (scale or query.shape[-1] ** -0.5), key.transpose(-2, -1))
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        least = torch.finfo(scores.dtype).min  # not -inf: a softmax over nothing else is nan, and so is its gradient
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, least)
        elif attn_mask is not None:
            scores = scores + attn_mask.clamp_min(least)
        weights = torch.softmax(scores, -1)
        return torch.matmul(self.dropout(weights, dropout_p).to(value.dtype), value)


@dataclass(frozen=True, kw_only=True)
class DropoutMasks:
    """Where a run's dropout masks come from. `reason` says why; `shared` are the places of tensors that no example owns."""

    seed: int
    is_stateless: bool
    reason: str = ""
    shared: frozenset[int] = frozenset()

    def __call__(
        self, update: int, rows: "np.ndarray[Any, Any]", device: torch.device | str = "cpu"
    ) -> contextlib.AbstractContextManager[Any]:
        """Within the block, the masks of an update for a batch of these rows of the training features."""
        if not self.is_stateless:
            return contextlib.nullcontext()
        return StatelessDropout(
            self.seed, update, torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device), self.shared
        )


def choose_masks(asked: str, seed: int, model: torch.nn.Module, constant: Iterable[torch.nn.Module]) -> DropoutMasks:
    """The masks that train.dropout_masks means for this model where it is. Runs a probe to see what is dropped out."""
    device = next(model.parameters()).device
    if asked == "torch" or (asked == "auto" and device.type != "cpu"):
        reason = "as train.dropout_masks says" if asked == "torch" else f"the faster ones on {device.type}"
        return DropoutMasks(seed=seed, is_stateless=False, reason=f"from a generator: {reason}")
    random_state = torch.get_rng_state()
    shapes = [probe_shapes(model, constant, seed, num_examples) for num_examples in (1, 2)]
    if not torch.equal(random_state, torch.get_rng_state()):
        reason = "this backbone draws random numbers in another way than functional.dropout"
        require(asked == "auto", "train.dropout_masks", asked, reason)
        return DropoutMasks(seed=seed, is_stateless=False, reason=f"from a generator: {reason}")
    for one, two in zip(*shapes, strict=True):
        if one != two and one != torch.Size([1, *two[1:]]):
            reason = f"this backbone drops out a tensor {tuple(two)} whose first dimension is not the examples"
            require(asked == "auto", "train.dropout_masks", asked, reason)
            return DropoutMasks(seed=seed, is_stateless=False, reason=f"from a generator: {reason}")
    if not shapes[0]:
        return DropoutMasks(
            seed=seed, is_stateless=True, reason="none: every probability is 0, or what drops out is frozen"
        )
    shared = frozenset(place for place, (one, two) in enumerate(zip(*shapes, strict=True)) if one == two)
    reason = "a function of seed, update, example and position, however examples are grouped"
    return DropoutMasks(seed=seed, is_stateless=True, reason=reason, shared=shared)


def probe_shapes(
    model: torch.nn.Module, constant: Iterable[torch.nn.Module], seed: int, num_examples: int
) -> list[torch.Size]:
    """The shapes of all tensors that are dropped out in a forward of so many examples."""
    batch = {name: tensor[:num_examples] for name, tensor in make_probe_batch(model, 5).items()}
    modes = {module: module.training for module in model.modules()}
    mode = StatelessDropout(seed, 0, torch.arange(num_examples, device=batch["input_ids"].device))
    try:
        set_train_mode(model, constant)
        with torch.no_grad(), mode:
            heads.run_model(model, batch)
    finally:
        for module, training in modes.items():
            module.training = training
    return mode.shapes
