"""Which tensors train. The model's stack of blocks is found by its structure, and what feeds it by autograd's graph, so
that no family's names are needed.
"""

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_finetune import heads
from hf_finetune.config import FreezeConfig, check, fraction_of
from hf_finetune.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of a model, bottom up: each parameter's name stands in exactly one.

    embeddings: all outside the blocks that the blocks' output depends on. blocks: the stack, in the order of the
    forward. rest: what comes after (pooler, final norm, decoder, head), by part. unused: reached by no output.
    shared: one block is run several times (ALBERT).
    """

    embeddings: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    rest: dict[str, tuple[str, ...]]
    unused: tuple[str, ...]
    shared: bool
    stack_name: str

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Every part's name and parameters, bottom up."""
        blocks = {f"block {number}": names for number, names in enumerate(self.blocks)}
        unused = {"unused": self.unused} if self.unused else {}
        return {"embeddings": self.embeddings, **blocks, **self.rest, **unused}


def find_stack(model: nn.Module, part: nn.Module | None = None) -> tuple[str, nn.ModuleList]:
    """The name and the modules of the block stack: the heaviest ModuleList of like modules in `part`, which is the encoder
    where there is one, if not given."""
    root: Any = model if part is None else part
    if part is None and getattr(model.config, "is_encoder_decoder", False):
        root = model.get_encoder()  # type: ignore[operator]
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0 or len({type(child) for child in module}) > 1:
            continue
        if root is not model and not any(module is part for part in root.modules()):
            continue
        weight = sum(parameter.numel() for parameter in module.parameters())
        if weight and (best is None or weight > best[0]):  # of nested lists the outer comes first and weighs no less
            best = (weight, name, module)
    if best is None:
        raise InputError(f"freeze: {type(model).__name__} has no stack of blocks that could be found")
    return best[1], best[2]


def probe_batch(model: nn.Module, length: int) -> dict[str, torch.Tensor]:
    """Two short inputs that every family takes, [2, length] for an odd length: as many end tokens in each, no padding."""
    config: Any = model.config
    end = config.eos_token_id if isinstance(config.eos_token_id, int) else config.pad_token_id or 0
    words = [[3 + (position + row) % 2 for position in range(length - 1)] for row in (0, 1)]
    ids = torch.tensor(
        [[word % config.vocab_size for word in row] + [min(end, config.vocab_size - 1)] for row in words]
    )
    ids = ids.to(next(model.parameters()).device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return batch | ({"decoder_input_ids": heads.decoder_inputs(model, ids)} if heads.writes(model) else {})


def probe(model: nn.Module, watched: Iterable[nn.Module]) -> tuple[Any, dict[nn.Module, list[torch.Tensor]]]:
    """Runs one short input with autograd on. Returns the logits and every output of the watched modules."""
    outputs: dict[nn.Module, list[torch.Tensor]] = {module: [] for module in watched}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        first = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(first, torch.Tensor):
            outputs[module].append(first)

    handles = [module.register_forward_hook(keep) for module in outputs]
    training = model.training
    try:
        model.eval()
        with torch.enable_grad():  # one input: a decoder may have no padding token to tell the ends of two
            logits = heads.run(model, {name: tensor[:1] for name, tensor in probe_batch(model, 3).items()})
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return logits, outputs


def leaves(tensor: torch.Tensor) -> set[int]:
    """Ids of the parameters that a tensor was computed from, read off autograd's graph without a backward."""
    seen: set[Any] = set()
    found: set[int] = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        waiting += [following for following, _ in node.next_functions]
    return found


def dissect(model: nn.Module) -> Anatomy:
    """The anatomy of a transformers model with a head. All parameters must still require gradients."""
    stack_name, stack = find_stack(model)
    logits, outputs = probe(model, stack)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    blocks = tuple(tuple(names[id(p)] for p in block.parameters() if id(p) in names) for block in stack)
    in_blocks = {name for block in blocks for name in block}
    last = [block_outputs[-1] for block_outputs in outputs.values() if block_outputs]
    if not last:
        raise InputError(f"freeze: {type(model).__name__} does not run its stack {stack_name}")
    below = {names[key] for tensor in last for key in leaves(tensor) if key in names}
    reached = below | {names[key] for key in leaves(logits) if key in names}
    prefix = heads.backbone_prefix(model)
    rest: dict[str, list[str]] = {}
    for name in names.values():
        if name not in in_blocks and name not in below and name in reached:
            part = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else "head"
            rest.setdefault(part, []).append(name)
    if "head" in rest:
        rest["head"] = rest.pop("head")  # topmost
    return Anatomy(
        embeddings=tuple(name for name in names.values() if name in below and name not in in_blocks),
        blocks=blocks,
        rest={part: tuple(members) for part, members in rest.items()},
        unused=tuple(name for name in names.values() if name not in reached and name not in in_blocks),
        shared=any(len(block_outputs) > 1 for block_outputs in outputs.values()),
        stack_name=stack_name,
    )


@dataclass(frozen=True, kw_only=True)
class FreezePlan:
    """Which parameters are frozen. `num_prefix_blocks` blocks above frozen embeddings have a constant output (-1: none
    has, not even the embeddings). `adapters` are the parameters of adapters."""

    anatomy: Anatomy
    frozen: frozenset[str]
    sizes: dict[str, int]
    num_prefix_blocks: int
    adapters: frozenset[str] = frozenset()

    @property
    def free(self) -> frozenset[str]:
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
        for part, names in self.anatomy.parts().items():
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


def resolve_num_blocks(config: FreezeConfig, anatomy: Anatomy) -> int:
    """How many blocks from the bottom up freeze.encoder_layers means on this model."""
    value, depth = config.encoder_layers, len(anatomy.blocks)
    if value == "all":
        return depth
    if isinstance(value, str):
        fraction = fraction_of(value)
        assert fraction is not None  # FreezeConfig checked it
        count = int(fraction * depth + 0.5) if not anatomy.shared else int(fraction == 1) * depth
        check(not anatomy.shared or fraction in (0, 1), "freeze.encoder_layers", value, SHARED_BLOCK)
        return count
    check(
        abs(value) <= depth,
        "freeze.encoder_layers",
        value,
        f"this backbone has {depth} {'block' if depth == 1 else 'blocks'}"
        + (f"; {SHARED_BLOCK}" if anatomy.shared else ""),
    )
    return value if value >= 0 else depth + value


def check_stages(config: FreezeConfig, anatomy: Anatomy) -> None:
    """Raises InputError where a stage of freeze.unfreeze freezes what trained before."""
    before = resolve_num_blocks(config, anatomy)
    for stage in config.unfreeze:
        count = resolve_num_blocks(config.at(int(stage["epoch"])), anatomy)
        check(
            count <= before,
            "freeze.unfreeze",
            stage,
            f"would freeze again what trains: {before} blocks are frozen before",
        )
        before = count


SHARED_BLOCK = 'this backbone runs one shared block many times: it is frozen whole ("all") or not at all (0)'


def apply(
    model: Any,
    config: FreezeConfig,
    anatomy: Anatomy | None = None,
    *,
    adapters: frozenset[str] = frozenset(),
    new: frozenset[str] = frozenset(),
) -> FreezePlan:
    """Sets requires_grad as the config says, and returns the plan. In a model with adapters nothing trains but their
    parameters and the `new` ones.

    Raises InputError where a pattern matches nothing, or nothing would train.
    """
    anatomy = anatomy or dissect(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    frozen = set(anatomy.unused)
    if config.embeddings:
        frozen.update(anatomy.embeddings)
    for names in anatomy.blocks[: resolve_num_blocks(config, anatomy)]:
        frozen.update(names)
    for pattern in config.patterns:
        matched = [name for name in sizes if re.search(pattern, name)]
        check(
            bool(matched), "freeze.patterns", pattern, f"matches no parameter (they are named like {next(iter(sizes))})"
        )
        frozen.update(matched)
    if adapters:
        frozen.update(sizes.keys() - adapters - new)
    if len(frozen) == len(sizes):
        raise InputError(
            "freeze: everything would be frozen, the head too, and nothing would train; "
            "see freeze.patterns and freeze.encoder_layers"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return FreezePlan(
        anatomy=anatomy,
        frozen=frozenset(frozen),
        sizes=sizes,
        num_prefix_blocks=constant_depth(model),
        adapters=adapters,
    )


def constant_depth(model: nn.Module) -> int:
    """Blocks whose output needs no gradient, from the bottom; -1 where the input of block 0 needs one."""
    _, stack = find_stack(model)
    first_input: list[torch.Tensor] = []

    def keep_input(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        first_input.append(arguments[0] if arguments else keywords["hidden_states"])

    handle = stack[0].register_forward_pre_hook(keep_input, with_kwargs=True)
    try:
        _, outputs = probe(model, stack)
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


def constant_modules(model: nn.Module, *, has_adapters: bool = False) -> list[nn.Module]:
    """The modules to keep in eval mode, each by itself: all in what is frozen (of a model with adapters, where everything is but
    them, below the boundary alone: dropout belongs to training the blocks above); what has no parameters (dropout) and
    runs below the boundary, even if above it again (T5's dropout); and, where the first block's input is constant, the
    module that runs the stack, since some (BART's encoder) drop out by a function and their own mode."""
    stack_name, stack = find_stack(model)
    ran: list[nn.Module] = []
    handles = [module.register_forward_pre_hook(lambda module, _: ran.append(module)) for module in model.modules()]
    try:
        depth = constant_depth(model)
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


def train_mode(model: nn.Module, constant: Iterable[nn.Module]) -> None:
    """model.train(), with what is constant left in eval mode."""
    model.train()
    for module in constant:
        module.training = False  # not eval(), which would take all inside along


# --- hf-finetune inspect --------------------------------------------------------------------------------------------


def inspect_rows(model: Any, plan: FreezePlan) -> list[dict[str, Any]]:
    """One row for every entry of the state_dict: name, part, shape, dtype, bytes, state (trains, frozen or buffer)."""
    part_of = {name: part for part, names in plan.anatomy.parts().items() for name in names}
    tied = {id(parameter): name for name, parameter in model.named_parameters()}
    rows = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner = tied.get(id(tensor))
        state = "buffer" if owner is None else "frozen" if owner in plan.frozen else "trains"
        rows.append(
            {
                "name": name,
                "part": part_of.get(owner or "", "buffers"),
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "bytes": tensor.numel() * tensor.element_size(),
                "state": state if owner in (None, name) else f"{state}, tied to {owner}",
            }
        )
    return rows


def format_rows(rows: list[dict[str, Any]], plan: FreezePlan, style: str) -> str:
    """The rows as json, csv, or a table with totals by part."""
    if style == "json":
        totals = [{"part": part, "parameters": size, "state": state} for part, size, state in plan.table()]
        return json.dumps(
            {
                "entries": rows,
                "parts": totals,
                "parameters": {"total": plan.num_total, "trainable": plan.num_trainable},
            },
            indent=2,
        )
    if style == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "shape": "x".join(map(str, row["shape"]))} for row in rows)
        return text.getvalue().rstrip("\n")
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"{row['name']:<{width}}  {'x'.join(map(str, row['shape'])) or 'scalar':>14}  "
        f"{row['dtype']:<8} {row['bytes']:>12,}  {row['state']}"
        for row in rows
    ]
    return "\n".join(
        [
            f"{'name':<{width}}  {'shape':>14}  {'dtype':<8} {'bytes':>12}  state",
            *lines,
            "",
            "by part:",
            plan.describe(),
        ]
    )
