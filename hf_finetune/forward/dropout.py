"""Dropout with a counter-based random generator: a mask is a pure function of (seed, update, example, module, position).

Masks from an ordinary generator depend on how the examples of a batch are grouped; these do not (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3"). With dropout on, the numbers are the same on any number of processes, with any
micro-batch size, with or without padding, in rows that examples share or not, with or without cached activations; and resuming
needs no random state. A mask belongs to the name of the module that draws it, so leaving out or recomputing a module changes no
other mask. On a CPU these masks take a tenth of the time of torch's, which one thread draws (docs/performance.md).

B examples, T tokens, N tokens that are read, D the last dimension of a tensor.
"""

import contextlib
import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_finetune.config.sections import require
from hf_finetune.data.features import Array, RowLayout
from hf_finetune.data.reading import TokenReading
from hf_finetune.model import heads
from hf_finetune.model.freezing import set_train_mode
from hf_finetune.model.structure import keep_modes, make_probe_batch
from hf_finetune.system.errors import InputError

LANES = 4  # 16-bit numbers in one 64-bit hash

GOLDEN = -7046029254386353131  # 2**64 / golden ratio as int64, the increment of SplitMix64 (Steele et al., OOPSLA 2014)

MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # of SplitMix64's finalizer

# Most keys for which attention in bf16 by matrix products is faster than the CPU's flash kernel, whose backward is slow at short
# lengths. With more keys, the kernel is faster, since it keeps no [T, T] matrix (docs/performance.md)
LONGEST_EAGER = 128


class MaskKey(NamedTuple):
    """Identifies a mask within a forward pass.

    Args:
        module: Qualified name of the innermost module that is running, "" for the model itself.
        call: Number of earlier calls of that module in this pass.
        draw: Number of masks that this call drew before.
    """

    module: str
    call: int
    draw: int


# --- the random numbers ---------------------------------------------------------------------------------------------


def shift_right(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Shifts int64 to the right and fills with zeros; torch's own shift fills with the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix_bits(values: torch.Tensor) -> torch.Tensor:
    """Applies SplitMix64's finalizer to int64: every bit of the result depends on every bit of the value."""
    values = (values ^ shift_right(values, 30)) * MULTIPLIERS[0]
    values = (values ^ shift_right(values, 27)) * MULTIPLIERS[1]
    return values ^ shift_right(values, 31)


def make_update_key(seed: int, update: int) -> torch.Tensor:
    """Returns the int64 key [1] of an update of a run. Offsets keep seed 0 and update 0 from being mixed to 0."""
    return mix_bits(mix_bits(torch.tensor([seed + 2**32]) * GOLDEN) + torch.tensor([update + 1]) * GOLDEN)


@functools.cache
def make_salt(key: MaskKey) -> int:
    """Returns a hash of a mask's key as int64: the same on every machine."""
    name = int.from_bytes(hashlib.sha256(key.module.encode()).digest()[:8], "little", signed=True)
    values = torch.tensor([name])
    for number in (key.call, key.draw):
        values = mix_bits(values + torch.tensor([number + 1]) * GOLDEN)
    return int(values.item())


def draw_bits(keys: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Returns uniform int16 numbers of `shape`, from one key for each index of its first dimension.

    Each index but the last is mixed into the key in turn, so a number does not depend on the sizes of the dimensions, and
    padding changes nothing. The last index costs one multiplication for four numbers: key x constant of the column, with its
    high half added to its low half.
    """
    if len(shape) == 1:
        return draw_bits(keys, torch.Size([*shape, 1]))[:, 0]
    for size in shape[1:-1]:
        keys = mix_index(keys[..., None], torch.arange(size, device=keys.device))
    return draw_last_dimension(keys, shape[-1])


def mix_index(keys: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Returns keys with an index of a dimension mixed into each."""
    return mix_bits(keys + (indices + 1) * GOLDEN)


def draw_last_dimension(keys: torch.Tensor, size: int) -> torch.Tensor:
    """Returns uniform int16 numbers [..., size] from keys [...]."""
    columns = mix_bits(torch.arange(1, -(-size // LANES) + 1, device=keys.device)) | 1
    hashed = (keys | 1)[..., None] * columns
    hashed += hashed >> 32
    return hashed.view(torch.int16)[..., :size]


def draw_row_bits(keys: torch.Tensor, shape: torch.Size, rows: RowLayout) -> torch.Tensor:
    """Returns for each token of shared rows the numbers that draw_bits() gives it in a row of its own.

    Args:
        keys: Of the sequences, [S].
        shape: Of hidden states [R, W, D], or of attention weights [R, heads, W, W].
        rows: Where the sequences lie in the rows.
    """
    size = rows.sequences.shape
    token_keys = keys[rows.sequences.clamp(min=0)]  # [R, W]
    if len(shape) == 3 and shape[:2] == size:
        return draw_last_dimension(mix_index(token_keys, rows.positions), shape[2])
    if len(shape) != 4 or (shape[0], *shape[2:]) != (size[0], size[1], size[1]):
        raise RuntimeError(f"it drops out a tensor {tuple(shape)} that is neither hidden states nor attention weights")
    head_keys = mix_index(token_keys[:, None], torch.arange(shape[1], device=keys.device)[:, None])  # [R, heads, W]
    bits = draw_last_dimension(mix_index(head_keys, rows.positions[:, None]), int(rows.positions.max()) + 1)
    return bits.gather(-1, rows.positions[:, None, None].expand(shape))  # of each key by its place in its sequence


def draw_token_bits(
    keys: torch.Tensor, reading: TokenReading, width: int, rows: RowLayout | None = None
) -> torch.Tensor:
    """Returns the numbers of hidden states [.., .., width] that belong to the tokens that are read, [1, N, width].

    keys: Of the sequences. rows: Where these lie in rows that they share.
    """
    if rows is None:
        sequences, positions = reading.positions // reading.shape[1], reading.positions % reading.shape[1]
    else:
        sequences, positions = rows.sequences.clamp(min=0).flatten(), rows.positions.flatten()
        sequences, positions = sequences[reading.positions], positions[reading.positions]
    return draw_last_dimension(mix_index(keys[sequences], positions), width)[None]


# --- dropout --------------------------------------------------------------------------------------------------------


class MaskedDropout(torch.autograd.Function):
    """Returns x / (1 - p) if the bits are above a threshold, else 0. A product with a mask would be slower (docs/performance.md),
    and would keep infinity and nan."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bits: torch.Tensor, probability: float) -> torch.Tensor:
        # Selection by an integer comparison is vectorized; torch has no such kernel for mixed types
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
        num_dropped = round(probability * 2**16)  # of the 2**16 values of the bits
        ctx.threshold = num_dropped - 2**15 - 1
        ctx.scale = 2**16 / (2**16 - num_dropped)
        bits = bits.to(integer).contiguous()
        ctx.save_for_backward(bits)
        return apply_mask(x, bits, ctx.threshold, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (bits,) = ctx.saved_tensors
        return apply_mask(gradients[0], bits, ctx.threshold, ctx.scale), None, None


def apply_mask(x: torch.Tensor, bits: torch.Tensor, threshold: int, scale: float) -> torch.Tensor:
    """Returns x * scale if bits > threshold, else 0. The integers `bits` are as wide as x."""
    values = x.contiguous().view(bits.dtype)
    return torch.ops.aten.threshold_backward(values, bits, threshold).view(x.dtype).mul_(scale)


@dataclass(kw_only=True)
class RunningCall:
    """A call of a module that has not returned.

    Args:
        module: The module.
        name: Its qualified name.
        number: Number of its earlier calls in this forward pass.
        turns_on: The call turned the mode on, and turns it off again.
        num_masks: Number of masks that the call has drawn.
    """

    module: torch.nn.Module | None
    name: str
    number: int
    turns_on: bool = False
    num_masks: int = 0


class StatelessDropout(TorchFunctionMode):
    """While it is active, every dropout of a model in train mode takes its mask from the hash, also that of attention.

    torch passes every call of functional.dropout (which nn.Dropout makes) and of scaled_dot_product_attention to an active
    mode, so any model works. Hooks on the modules show which one draws. Random numbers that are drawn in another way
    (nn.MultiheadAttention, an LSTM) are not replaced; `choose_masks` detects that.

    A module that is recomputed (gradient checkpointing) draws the same masks again, if backward runs before the block ends. A
    call of a module while the model itself is not running is such a recomputation; torch turns a mode off during backward, so
    the hooks turn it on again. Raises InputError if the masks of a recomputation cannot be told apart: if a module runs several
    times in a forward pass (ALBERT), or if a block that is recomputed calls functional.dropout itself (BART).

    Args:
        seed: Of the run.
        update: Number of the update.
        indices: Numbers of the batch's examples among the training sequences, in the order of the batch [B].
        modules: Names of the modules that draw masks, and of the model, which is "".
        shared: Keys of the masks of tensors that belong to no example (DeBERTa's relative positions).
        rows: Where the sequences lie in rows that they share, if they do.
        reading: The tokens that are read, if some modules get these alone: their masks are those that they have among all tokens.
    """

    def __init__(
        self,
        seed: int,
        update: int,
        indices: torch.Tensor,
        modules: Mapping[torch.nn.Module, str] | None = None,
        shared: frozenset[MaskKey] = frozenset(),
        rows: RowLayout | None = None,
        reading: TokenReading | None = None,
    ) -> None:
        super().__init__()
        self.update_key = make_update_key(seed, update).to(indices.device)
        self.example_keys = mix_bits(self.update_key + (indices + 1) * GOLDEN)
        self.modules = modules or {}
        self.shared = shared
        self.rows = rows
        self.reading = reading
        self.shapes: list[tuple[MaskKey, torch.Size]] = []  # of the tensors that masks were drawn for
        self.num_calls: dict[str, int] = {}  # of each module in this forward pass
        self.running: list[RunningCall] = []  # the innermost last
        if not self.modules:  # tensors that no module drops out
            self.running.append(RunningCall(module=None, name="", number=0))
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for module in self.modules:
            self.handles.append(module.register_forward_pre_hook(self.start_call))
            self.handles.append(module.register_forward_hook(self.end_call, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def start_call(self, module: torch.nn.Module, _: Any) -> None:
        """Hook before a module's forward."""
        name = self.modules[module]
        if name == "":
            self.num_calls.clear()
            self.running.clear()
        is_recomputed = name != "" and not self.is_model_running()
        number = self.num_calls.get(name, 0)
        if not is_recomputed:
            self.num_calls[name] = number + 1
        elif number > 1:
            raise make_recomputation_error(f"{name} runs {number} times in a forward pass")
        else:
            number = 0
        turns_on = is_recomputed and not self.running
        self.running.append(RunningCall(module=module, name=name, number=number, turns_on=turns_on))
        if turns_on:
            super().__enter__()

    def end_call(self, module: torch.nn.Module, _: Any, __: Any) -> None:
        """Hook after a module's forward, also after one that raised an error."""
        if self.running and self.running[-1].module is module and self.running.pop().turns_on:
            super().__exit__(None, None, None)

    def is_model_running(self) -> bool:
        """True during a forward pass of the model, false while autograd recomputes a part of it."""
        return bool(self.running) and self.running[0].name == ""

    def make_key(self) -> MaskKey:
        """Returns the key of the next mask."""
        if not self.running:
            raise RuntimeError("a dropout mask is drawn outside the model")
        call = self.running[-1]
        if isinstance(call.module, GradientCheckpointingLayer) and call.module.gradient_checkpointing:
            raise make_recomputation_error(f"{call.name} calls functional.dropout itself")
        call.num_masks += 1
        return MaskKey(call.name, call.number, call.num_masks - 1)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is F.dropout:
            return self.dropout(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return self.attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def dropout(
        self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        """functional.dropout with a mask from the hash."""
        if not training or p == 0.0:
            return input
        key = self.make_key()
        self.shapes.append((key, input.shape))
        salt = make_salt(key)
        if self.reading is not None and input.shape[:-1] == (1, len(self.reading)) and key not in self.shared:
            keys = mix_bits(self.example_keys ^ salt)
            bits = draw_token_bits(keys, self.reading, input.shape[-1], self.rows)
        elif self.rows is not None and key not in self.shared:
            bits = draw_row_bits(mix_bits(self.example_keys ^ salt), input.shape, self.rows)
        elif key in self.shared or input.shape[0] != len(self.example_keys):
            bits = draw_bits(mix_bits(self.update_key ^ salt), torch.Size([1, *input.shape]))[0]
        else:
            bits = draw_bits(mix_bits(self.example_keys ^ salt), input.shape)
        return MaskedDropout.apply(input, bits, p)

    def attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """functional.scaled_dot_product_attention; by matrix products if a mask is drawn, or if torch's kernel is slow."""
        is_slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= LONGEST_EAGER
        if dropout_p == 0.0 and not (is_slow and torch.is_grad_enabled()):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        scores = torch.matmul(query * (scale or query.shape[-1] ** -0.5), key.transpose(-2, -1))
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        lowest = torch.finfo(scores.dtype).min  # not -inf: if all keys are masked, a softmax of -inf is nan
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, lowest)
        elif attn_mask is not None:
            scores = scores + attn_mask.clamp_min(lowest)
        weights = torch.softmax(scores, -1)
        return torch.matmul(self.dropout(weights, dropout_p).to(value.dtype), value)


def make_recomputation_error(reason: str) -> InputError:
    """Returns the error of a recomputation whose masks are not known."""
    return InputError(
        "train.dropout_masks (stateless): must be torch if this backbone recomputes activations (gradient checkpointing): "
        f"{reason}"
    )


# --- which masks a run takes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DropoutMasks:
    """The source of a run's dropout masks.

    Args:
        seed: Of the run.
        is_stateless: They come from the hash, not from torch's generator.
        reason: Why, as printed before the first update.
        modules: Names of the modules that draw masks, and of the model, which is "".
        shared: Keys of the masks of tensors that belong to no example.
    """

    seed: int
    is_stateless: bool
    reason: str = ""
    modules: Mapping[torch.nn.Module, str] = field(default_factory=dict)
    shared: frozenset[MaskKey] = frozenset()

    def active(
        self,
        update: int,
        indices: Array,
        device: torch.device | str = "cpu",
        rows: RowLayout | None = None,
        reading: TokenReading | None = None,
    ) -> contextlib.AbstractContextManager[Any]:
        """Draws the masks of an update for a batch of these training sequences [B] until the block ends. Backward must run in
        the block, too, if the model recomputes activations (gradient checkpointing).

        Args:
            update: Number of the update.
            indices: Of the sequences, [B].
            device: That of the batch.
            rows: Where they lie in rows that they share.
            reading: The tokens that some modules get alone.
        """
        if not self.is_stateless:
            return contextlib.nullcontext()
        tensor = torch.from_numpy(np.asarray(indices, dtype=np.int64)).to(device)
        return StatelessDropout(self.seed, update, tensor, self.modules, self.shared, rows, reading)


def choose_masks(
    setting: str, seed: int, model: torch.nn.Module, eval_modules: Iterable[torch.nn.Module]
) -> DropoutMasks:
    """Returns the masks that train.dropout_masks stands for, for this model on its device.

    Runs two probes to see what is dropped out. Raises InputError if the setting is stateless and the hash cannot draw all masks.
    """
    device = next(model.parameters()).device
    if setting == "torch" or (setting == "auto" and device.type != "cpu"):
        why = "as train.dropout_masks requires" if setting == "torch" else f"these are faster on {device.type}"
        return DropoutMasks(seed=seed, is_stateless=False, reason=f"from a generator: {why}")
    eval_modules = list(eval_modules)
    random_state = torch.get_rng_state()
    shapes = [probe_shapes(model, eval_modules, seed, num_examples) for num_examples in (1, 2)]
    shared: list[MaskKey] = []
    problem = ""
    if not torch.equal(random_state, torch.get_rng_state()):
        problem = "this backbone draws random numbers in another way than functional.dropout"
    elif shapes[0].keys() != shapes[1].keys():
        problem = "this backbone drops out other tensors if there are more examples"
    else:
        shared = [key for key, shape in shapes[0].items() if shape == shapes[1][key]]
        for key, shape in shapes[1].items():
            if key not in shared and shapes[0][key] != torch.Size([1, *shape[1:]]):
                problem = f"this backbone drops out a tensor {tuple(shape)} whose first dimension is not the examples"
    if problem:
        require(setting == "auto", "train.dropout_masks", setting, problem)
        return DropoutMasks(seed=seed, is_stateless=False, reason=f"from a generator: {problem}")
    if not shapes[0]:
        reason = "none: every probability is 0, or all that drops out is frozen"
        return DropoutMasks(seed=seed, is_stateless=True, reason=reason)
    return DropoutMasks(
        seed=seed,
        is_stateless=True,
        reason="a function of seed, update, example and position, however examples are grouped",
        modules=select_modules(model, shapes[0]),
        shared=frozenset(shared),
    )


def select_modules(model: torch.nn.Module, keys: Iterable[MaskKey]) -> dict[torch.nn.Module, str]:
    """Returns the names of the modules that draw these masks, and of the model."""
    names = {"", *(key.module for key in keys)}
    return {module: name for name, module in model.named_modules() if name in names}


def probe_shapes(
    model: torch.nn.Module, eval_modules: Iterable[torch.nn.Module], seed: int, num_examples: int
) -> dict[MaskKey, torch.Size]:
    """Returns the shapes of the tensors that are dropped out in a forward pass of this many examples."""
    batch = {name: tensor[:num_examples] for name, tensor in make_probe_batch(model, 5).items()}
    indices = torch.arange(num_examples, device=batch["input_ids"].device)
    mode = StatelessDropout(seed, 0, indices, {module: name for name, module in model.named_modules()})
    with keep_modes(model), torch.no_grad(), mode:
        set_train_mode(model, eval_modules)
        heads.run_model(model, batch)
    return dict(mode.shapes)
