"""Which tensors train. The model's stack of blocks is found by its structure, and what feeds it by autograd's graph, so
that no family's names are needed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_finetune.config.sections import FreezeConfig, require, parse_fraction
from hf_finetune.model.structure import ModelStructure, analyze_structure, find_stack, record_calls
from hf_finetune.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FreezePlan:
    """Which parameters are frozen. `num_prefix_blocks` blocks above frozen embeddings have a constant output (-1: none
    has, not even the embeddings). `adapters` are the parameters of adapters."""

    structure: ModelStructure
    frozen: frozenset[str]
    sizes: dict[str, int]
    num_prefix_blocks: int
    adapters: frozenset[str] = frozenset()

    @property
    def trainable(self) -> frozenset[str]:
        """Names of the parameters that train."""
        return frozenset(self.sizes) - self.frozen

    @property
    def num_total(self) -> int:
        """Parameters in all."""
        return sum(self.sizes.values())

    @property
    def num_trainable(self) -> int:
        """Parameters that train."""
        return sum(size for name, size in self.sizes.items() if name not in self.frozen)

    def table(self) -> list[tuple[str, int, str]]:
        """Rows of part, parameters, and "trains", "frozen" or how many train; neighbours alike are one row."""
        rows: list[tuple[str, int, int, str, tuple[int, int]]] = []
        for part, names in self.structure.parts().items():
            kind = " of adapters" * bool(self.adapters.intersection(names))
            size = sum(self.sizes[name] for name in names)
            free = sum(self.sizes[name] for name in names if name not in self.frozen)
            is_block, last = part.startswith("block "), rows[-1] if rows else None
            if last and is_block and last[0].startswith("block") and last[4] == (size, free):
                first = last[0].split()[1].split("-")[0]
                rows[-1] = (f"blocks {first}-{part.split()[1]}", last[1] + size, last[2] + free, kind, last[4])
            elif names:
                rows.append((part, size, free, kind, (size, free)))
        return [
            (part, size, "trains" if free == size else "frozen" if free == 0 else f"{free:,}{kind} train")
            for part, size, free, kind, _ in rows
        ]

    def describe(self) -> str:
        """The table as text."""
        lines = [f"  {part:<14} {size:>13,}  {state}" for part, size, state in self.table()]
        share = self.num_trainable / self.num_total
        lines.append(f"  {'total':<14} {self.num_total:>13,}  {self.num_trainable:,} train ({share:.1%})")
        return "\n".join(lines)


def resolve_num_blocks(config: FreezeConfig, anatomy: ModelStructure) -> int:
    """How many blocks from the bottom up freeze.layers means on this model."""
    value, depth = config.layers, len(anatomy.blocks)
    if value == "all":
        return depth
    if isinstance(value, str):
        fraction = parse_fraction(value)
        assert fraction is not None  # FreezeConfig checked it
        count = int(fraction * depth + 0.5) if not anatomy.shared else int(fraction == 1) * depth
        require(not anatomy.shared or fraction in (0, 1), "freeze.layers", value, SHARED_BLOCK)
        return count
    require(
        abs(value) <= depth,
        "freeze.layers",
        value,
        f"this backbone has {depth} {'block' if depth == 1 else 'blocks'}"
        + (f"; {SHARED_BLOCK}" if anatomy.shared else ""),
    )
    return value if value >= 0 else depth + value


def check_stages(config: FreezeConfig, anatomy: ModelStructure) -> None:
    """Raises InputError where a stage of freeze.unfreeze freezes what trained before."""
    before = resolve_num_blocks(config, anatomy)
    for stage in config.unfreeze:
        count = resolve_num_blocks(config.at(int(stage["epoch"])), anatomy)
        require(
            count <= before,
            "freeze.unfreeze",
            stage,
            f"would freeze again what trains: {before} blocks are frozen before",
        )
        before = count


SHARED_BLOCK = 'this backbone runs one shared block many times: it is frozen whole ("all") or not at all (0)'


def apply_freezing(
    model: Any,
    config: FreezeConfig,
    anatomy: ModelStructure | None = None,
    *,
    adapters: frozenset[str] = frozenset(),
    new: frozenset[str] = frozenset(),
) -> FreezePlan:
    """Sets requires_grad as the config says, and returns the plan. In a model with adapters nothing trains but their
    parameters and the `new` ones.

    Raises InputError where a pattern matches nothing, or nothing would train.
    """
    anatomy = anatomy or analyze_structure(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    frozen = set(anatomy.unused)
    if config.embeddings:
        frozen.update(anatomy.embeddings)
    for names in anatomy.blocks[: resolve_num_blocks(config, anatomy)]:
        frozen.update(names)
    for pattern in config.patterns:
        matched = [name for name in sizes if re.search(pattern, name)]
        require(
            bool(matched), "freeze.patterns", pattern, f"matches no parameter (they are named like {next(iter(sizes))})"
        )
        frozen.update(matched)
    if adapters:
        frozen.update(sizes.keys() - adapters - new)
    if len(frozen) == len(sizes):
        raise InputError(
            "freeze: everything would be frozen, the head too, and nothing would train; "
            "see freeze.patterns and freeze.layers"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return FreezePlan(
        structure=anatomy,
        frozen=frozenset(frozen),
        sizes=sizes,
        num_prefix_blocks=count_constant_blocks(model),
        adapters=adapters,
    )


def count_constant_blocks(model: nn.Module) -> int:
    """Blocks whose output needs no gradient, from the bottom; -1 where the input of block 0 needs one."""
    _, stack = find_stack(model)
    first_input: list[torch.Tensor] = []

    def keep_input(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        first_input.append(arguments[0] if arguments else keywords["hidden_states"])

    handle = stack[0].register_forward_pre_hook(keep_input, with_kwargs=True)
    try:
        _, outputs = record_calls(model, stack)
    finally:
        handle.remove()
    if first_input[0].requires_grad:
        return -1
    depth = 0
    for block in stack:
        if any(tensor.requires_grad for tensor in outputs[block]):
            break
        depth += 1
    return depth


def find_eval_modules(model: nn.Module, *, has_adapters: bool = False) -> list[nn.Module]:
    """The modules to keep in eval mode, each by itself: all in what is frozen (of a model with adapters, where everything is but
    them, below the boundary alone: dropout belongs to training the blocks above); what has no parameters (dropout) and
    runs below the boundary, even if above it again (T5's dropout); and, where the first block's input is constant, the
    module that runs the stack, since some (BART's encoder) drop out by a function and their own mode."""
    stack_name, stack = find_stack(model)
    ran: list[nn.Module] = []
    handles = [module.register_forward_pre_hook(lambda module, _: ran.append(module)) for module in model.modules()]
    try:
        depth = count_constant_blocks(model)
    finally:
        for handle in handles:
            handle.remove()
    inside, boundary = set(stack[-1].modules()), 0
    if depth >= 0:
        boundary = ran.index(stack[depth]) if depth < len(stack) else max(i for i, m in enumerate(ran) if m in inside)
    below, constant = set(ran[:boundary]), list[nn.Module]()
    for module in model.modules():
        parameters = list(module.parameters())
        if has_adapters and module not in below:
            continue
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            constant += module.modules()
    if depth >= 0:
        constant += [module for module in ran[:boundary] if not any(True for _ in module.parameters())]
        constant.append(model.get_submodule(stack_name.rpartition(".")[0]))
    return list(dict.fromkeys(constant))


def set_train_mode(model: nn.Module, constant: Iterable[nn.Module]) -> None:
    """model.train(), with what is constant left in eval mode."""
    model.train()
    for module in constant:
        module.training = False  # not eval(), which would take all inside along
