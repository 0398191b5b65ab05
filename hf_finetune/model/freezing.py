"""Which parameters train. Parts of a model are found by structure and by autograd's graph, so no family is known by name."""

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_finetune.config.model_sections import parse_fraction
from hf_finetune.config.sections import FreezeConfig, require
from hf_finetune.model.structure import ModelStructure, analyze_structure, find_stack, record_calls
from hf_finetune.system.errors import InputError
from hf_finetune.system.limited import LimitedFunction, LimitError

SECONDS_TO_MATCH = 10.0  # a pattern that is not malformed takes milliseconds for the names of a large model

SHARED_BLOCK = 'this backbone runs one shared block many times: freeze all of it ("all") or none of it (0)'


@dataclass(frozen=True, kw_only=True)
class FreezePlan:
    """Which parameters are frozen.

    Args:
        structure: The parts of the model.
        frozen: Names of the frozen parameters.
        sizes: Number of values of each parameter, by name.
        num_prefix_blocks: Blocks above frozen embeddings whose output is constant; -1 if the embeddings train.
        adapters: Names of the parameters of adapters.
    """

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
    def prefix(self) -> list[str]:
        """Names of the frozen parameters below the boundary; none if the embeddings train."""
        blocks = [name for names in self.structure.blocks[: max(0, self.num_prefix_blocks)] for name in names]
        embeddings = self.structure.embeddings if self.num_prefix_blocks >= 0 else ()
        return sorted({*embeddings, *blocks} & self.frozen)

    @property
    def num_total(self) -> int:
        """Number of values of all parameters."""
        return sum(self.sizes.values())

    @property
    def num_trainable(self) -> int:
        """Number of values of the parameters that train."""
        return self.count_trainable(self.sizes)

    def count_trainable(self, names: Iterable[str]) -> int:
        """Returns the number of values of those of the named parameters that train."""
        return sum(self.sizes[name] for name in names if name not in self.frozen)

    def count_by_part(self) -> list[dict[str, Any]]:
        """Returns each part of the model, bottom up: its name, its number of values, and how many of them train."""
        return [
            {"part": part, "parameters": self.count_values(names), "trainable": self.count_trainable(names)}
            for part, names in self.structure.parts().items()
            if names
        ]

    def table(self) -> list[tuple[str, int, str]]:
        """Rows of a part, its number of values, and "trains", "frozen" or how many of them train. Neighbouring blocks that are
        alike are one row."""
        parts = {part: names for part, names in self.structure.parts().items() if names}
        rows: list[list[str]] = []  # parts of each row
        for part, names in parts.items():
            if rows and part.startswith("block ") and rows[-1][-1].startswith("block "):
                previous = parts[rows[-1][-1]]
                is_like_previous = self.count_values(previous) == self.count_values(names)
                if is_like_previous and self.count_trainable(previous) == self.count_trainable(names):
                    rows[-1].append(part)
                    continue
            rows.append([part])
        return [self.make_row(row, [name for part in row for name in parts[part]]) for row in rows]

    def count_values(self, names: Iterable[str]) -> int:
        """Returns the number of values of the named parameters."""
        return sum(self.sizes[name] for name in names)

    def make_row(self, parts: list[str], names: list[str]) -> tuple[str, int, str]:
        """Returns a row of the table: one part, or several blocks, with these parameters."""
        title = parts[0]
        if len(parts) > 1:
            title = f"blocks {parts[0].removeprefix('block ')}-{parts[-1].removeprefix('block ')}"
        size, num_trainable = self.count_values(names), self.count_trainable(names)
        if num_trainable == size:
            return title, size, "trains"
        if num_trainable == 0:
            return title, size, "frozen"
        kind = " of adapters" if self.adapters.intersection(names) else ""
        return title, size, f"{num_trainable:,}{kind} train"

    def describe(self) -> str:
        """The table as text."""
        lines = [f"  {part:<14} {size:>13,}  {state}" for part, size, state in self.table()]
        share = self.num_trainable / self.num_total
        lines.append(f"  {'total':<14} {self.num_total:>13,}  {self.num_trainable:,} train ({share:.1%})")
        return "\n".join(lines)


# --- what the settings mean -----------------------------------------------------------------------------------------


def resolve_num_blocks(config: FreezeConfig, structure: ModelStructure) -> int:
    """Returns how many blocks freeze.layers freezes in this model, from the bottom up. Raises InputError if it has too few
    blocks, or shares one block and would freeze a part of it."""
    value, depth = config.layers, len(structure.blocks)
    if value == "all":
        return depth
    if isinstance(value, str):
        fraction = parse_fraction(value)
        assert fraction is not None  # FreezeConfig checked it
        require(not structure.shared or fraction in (0, 1), "freeze.layers", value, SHARED_BLOCK)
        return int(fraction * depth + 0.5)
    message = f"this backbone has {depth} {'block' if depth == 1 else 'blocks'}"
    if structure.shared:
        message += f"; {SHARED_BLOCK}"
    require(abs(value) <= depth, "freeze.layers", value, message)
    return value if value >= 0 else depth + value


def check_stages(config: FreezeConfig, structure: ModelStructure) -> None:
    """Raises InputError if a stage of freeze.unfreeze freezes blocks that trained in the stage before."""
    num_frozen_before = resolve_num_blocks(config, structure)
    for stage in config.unfreeze:
        num_frozen = resolve_num_blocks(config.at(int(stage["epoch"])), structure)
        message = f"must not freeze blocks that trained before: until then, {num_frozen_before} blocks are frozen"
        require(num_frozen <= num_frozen_before, "freeze.unfreeze", stage, message)
        num_frozen_before = num_frozen


# --- applied to a model ---------------------------------------------------------------------------------------------


def apply_freezing(
    model: nn.Module,
    config: FreezeConfig,
    structure: ModelStructure | None = None,
    *,
    adapters: frozenset[str] = frozenset(),
    new: frozenset[str] = frozenset(),
) -> FreezePlan:
    """Sets requires_grad of every parameter as the config says, and returns the plan.

    If the model has adapters, only their parameters and the `new` ones train. Raises InputError if a pattern matches no
    parameter, if all adapters would be frozen, or if nothing would train.
    """
    structure = structure or analyze_structure(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    frozen = set(structure.unused)
    if config.embeddings:
        frozen.update(structure.embeddings)
    for names in structure.blocks[: resolve_num_blocks(config, structure)]:
        frozen.update(names)
    if config.patterns:
        frozen.update(find_matches(config.patterns, list(sizes)))
    if adapters:
        message = (
            "freezes all adapters, and only the head would train; name fewer parameters, or set adapter.kind to none"
        )
        require(not adapters <= frozen, "freeze.patterns", " ".join(config.patterns), message)
        frozen.update(sizes.keys() - adapters - new)
    if len(frozen) == len(sizes):
        raise InputError(
            "freeze: everything would be frozen, the head too, and nothing would train; "
            "see freeze.patterns and freeze.layers"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return FreezePlan(
        structure=structure,
        frozen=frozenset(frozen),
        sizes=sizes,
        num_prefix_blocks=count_constant_blocks(model),
        adapters=adapters,
    )


def find_matches(patterns: Sequence[str], names: list[str]) -> set[str]:
    """Returns the names of parameters in which one of the regular expressions matches. InputError if one matches none, or takes
    longer than SECONDS_TO_MATCH: some never end."""
    search = LimitedFunction(
        lambda pattern: [name for name in names if re.search(pattern, name)], seconds=SECONDS_TO_MATCH
    )
    found: set[str] = set()
    with contextlib.closing(search):
        for pattern in patterns:
            try:
                matches = search(pattern)
            except LimitError as error:
                raise InputError(
                    f"freeze.patterns ({pattern}): {error} to match the names; write it more simply"
                ) from None
            require(bool(matches), "freeze.patterns", pattern, f"matches no parameter (a name looks like {names[0]})")
            found.update(matches)
    return found


def count_constant_blocks(model: nn.Module) -> int:
    """Returns the number of blocks, from the bottom, whose output needs no gradient; -1 if the input of block 0 needs one."""
    _, stack = find_stack(model)
    inputs: list[torch.Tensor] = []

    def keep_input(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        inputs.append(arguments[0] if arguments else keywords["hidden_states"])

    handle = stack[0].register_forward_pre_hook(keep_input, with_kwargs=True)
    try:
        _, outputs = record_calls(model, stack)
    finally:
        handle.remove()
    if inputs[0].requires_grad:
        return -1
    depth = 0
    for block in stack:
        if any(output.requires_grad for output in outputs[block]):
            break
        depth += 1
    return depth


def find_eval_modules(model: nn.Module, *, has_adapters: bool = False) -> list[nn.Module]:
    """Returns the modules that stay in eval mode during training. Each counts alone, without its children.

    - Every module whose parameters are all frozen, with all modules inside it. If the model has adapters, only below the
      boundary: dropout belongs to the training of the blocks above it, whose weights are frozen.
    - Every module without parameters that runs below the boundary, such as T5's dropout, which runs above it again.
    - If the input of block 0 is constant, the module that runs the stack: BART's encoder drops out by its own mode.
    """
    stack_name, stack = find_stack(model)
    order: list[nn.Module] = []  # of the calls

    def record(module: nn.Module, _: Any) -> None:
        order.append(module)

    handles = [module.register_forward_pre_hook(record) for module in model.modules()]
    try:
        depth = count_constant_blocks(model)
    finally:
        for handle in handles:
            handle.remove()
    below = order[: find_boundary(order, stack, depth)]
    modules: list[nn.Module] = []
    for module in model.modules():
        parameters = list(module.parameters())
        is_frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        if is_frozen and (module in below or not has_adapters):
            modules += module.modules()
    if depth >= 0:
        modules += [module for module in below if not any(True for _ in module.parameters())]
        modules.append(model.get_submodule(stack_name.rpartition(".")[0]))
    return list(dict.fromkeys(modules))


def find_boundary(order: list[nn.Module], stack: nn.ModuleList, depth: int) -> int:
    """Returns the position of the boundary above `depth` constant blocks in the order of the calls."""
    if depth < 0:
        return 0
    if depth < len(stack):
        return order.index(stack[depth])
    inside_last = set(stack[-1].modules())
    return max(position for position, module in enumerate(order) if module in inside_last)


def set_train_mode(model: nn.Module, eval_modules: Iterable[nn.Module]) -> None:
    """Puts the model into train mode, except for the given modules."""
    model.train()
    for module in eval_modules:
        module.training = False  # not eval(), which includes the modules inside
