"""The parts of a model: embeddings, blocks, head. Found by tracing a forward pass, not by family names."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_finetune.model import heads
from hf_finetune.system.errors import InputError


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode until the block ends, then restores the mode of each module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training


@dataclass(frozen=True, kw_only=True)
class ModelStructure:
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


def make_probe_batch(model: nn.Module, length: int) -> dict[str, torch.Tensor]:
    """Two short inputs that every family takes, [2, length] for an odd length: as many end tokens in each, no padding."""
    config: Any = model.config
    end = config.eos_token_id if isinstance(config.eos_token_id, int) else config.pad_token_id or 0
    words = [[3 + (position + row) % 2 for position in range(length - 1)] for row in (0, 1)]
    ids = torch.tensor(
        [[word % config.vocab_size for word in row] + [min(end, config.vocab_size - 1)] for row in words]
    )
    ids = ids.to(next(model.parameters()).device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return batch | (
        {"decoder_input_ids": heads.make_decoder_inputs(model, ids)} if heads.is_sequence_to_sequence(model) else {}
    )


def record_calls(model: nn.Module, watched: Iterable[nn.Module]) -> tuple[Any, dict[nn.Module, list[torch.Tensor]]]:
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
            logits = heads.run_model(model, {name: tensor[:1] for name, tensor in make_probe_batch(model, 3).items()})
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return logits, outputs


def find_leaves(tensor: torch.Tensor) -> set[int]:
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


def analyze_structure(model: nn.Module) -> ModelStructure:
    """The anatomy of a transformers model with a head. All parameters must still require gradients."""
    stack_name, stack = find_stack(model)
    logits, outputs = record_calls(model, stack)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    blocks = tuple(tuple(names[id(p)] for p in block.parameters() if id(p) in names) for block in stack)
    in_blocks = {name for block in blocks for name in block}
    last = [block_outputs[-1] for block_outputs in outputs.values() if block_outputs]
    if not last:
        raise InputError(f"freeze: {type(model).__name__} does not run its stack {stack_name}")
    below = {names[key] for tensor in last for key in find_leaves(tensor) if key in names}
    reached = below | {names[key] for key in find_leaves(logits) if key in names}
    prefix = heads.find_backbone_prefix(model)
    rest: dict[str, list[str]] = {}
    for name in names.values():
        if name not in in_blocks and name not in below and name in reached:
            part = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else "head"
            rest.setdefault(part, []).append(name)
    if "head" in rest:
        rest["head"] = rest.pop("head")  # topmost
    return ModelStructure(
        embeddings=tuple(name for name in names.values() if name in below and name not in in_blocks),
        blocks=blocks,
        rest={part: tuple(members) for part, members in rest.items()},
        unused=tuple(name for name in names.values() if name not in reached and name not in in_blocks),
        shared=any(len(block_outputs) > 1 for block_outputs in outputs.values()),
        stack_name=stack_name,
    )
