"""The parts of a model: embeddings, blocks, head. A forward pass is traced to find them, so no model family is known by name."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_finetune.model import heads
from hf_finetune.system.errors import InputError


@contextlib.contextmanager
def keep_modes(model: nn.Module) -> Iterator[None]:
    """Restores the mode (training or eval) of each module when the block ends."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode until the block ends, then restores the mode of each module."""
    with keep_modes(model):
        model.eval()
        yield


@dataclass(frozen=True, kw_only=True)
class ModelStructure:
    """The parts of a model, bottom up. The name of each parameter is in exactly one of them.

    Args:
        embeddings: Parameters outside the blocks that the output of the last block depends on.
        blocks: Parameters of each block, in the order of the forward pass.
        rest: Parameters of what follows the blocks (pooler, final norm, decoder, head), by part.
        unused: Parameters that no output depends on.
        shared: One block is run several times (ALBERT).
        stack_name: Name of the ModuleList of the blocks.
    """

    embeddings: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    rest: dict[str, tuple[str, ...]]
    unused: tuple[str, ...]
    shared: bool
    stack_name: str

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Returns the parameters of each part by its name, bottom up."""
        blocks = {f"block {number}": names for number, names in enumerate(self.blocks)}
        unused = {"unused": self.unused} if self.unused else {}
        return {"embeddings": self.embeddings, **blocks, **self.rest, **unused}


def find_stack(model: nn.Module, part: nn.Module | None = None) -> tuple[str, nn.ModuleList]:
    """Returns the name and the modules of the block stack: the ModuleList of modules of one type with the most parameters.

    Searches in `part` only; if it is not given, in the encoder of an encoder-decoder, else in the entire model. Raises
    InputError if there is none.
    """
    root: Any = model if part is None else part
    if part is None and getattr(model.config, "is_encoder_decoder", False):
        root = model.get_encoder()  # type: ignore[operator]
    inside = set(root.modules())
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or module not in inside or len({type(child) for child in module}) != 1:
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        if size and (best is None or size > best[0]):  # an outer list comes before a nested one, and is not smaller
            best = (size, name, module)
    if best is None:
        raise InputError(f"freeze: {type(model).__name__} has no stack of blocks that could be found")
    return best[1], best[2]


def make_probe_batch(model: nn.Module, length: int) -> dict[str, torch.Tensor]:
    """Returns a batch of two inputs without padding that every model family takes, [2, length]. `length` must be odd: only
    then do both inputs hold the end token equally often, which BART's classifier requires."""
    config: Any = model.config
    end = config.eos_token_id if isinstance(config.eos_token_id, int) else config.pad_token_id or 0
    rows = [[3 + (position + number) % 2 for position in range(length - 1)] for number in (0, 1)]
    ids = torch.tensor([[word % config.vocab_size for word in row] + [min(end, config.vocab_size - 1)] for row in rows])
    ids = ids.to(next(model.parameters()).device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if heads.is_sequence_to_sequence(model):
        batch["decoder_input_ids"] = heads.make_decoder_inputs(model, ids)
    return batch


def find_first_tensor(output: Any) -> Any:
    """Returns the hidden states in the output of a block."""
    return output[0] if isinstance(output, (tuple, list)) else output


def record_calls(model: nn.Module, watched: Iterable[nn.Module]) -> tuple[Any, dict[nn.Module, list[torch.Tensor]]]:
    """Runs one short input in eval mode with autograd on. Returns the logits, and the outputs of all calls of the watched
    modules."""
    outputs: dict[nn.Module, list[torch.Tensor]] = {module: [] for module in watched}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        hidden_states = find_first_tensor(output)
        if isinstance(hidden_states, torch.Tensor):
            outputs[module].append(hidden_states)

    # One input: a decoder that classifies the last token of each may have no padding token to find it by
    batch = {name: tensor[:1] for name, tensor in make_probe_batch(model, 3).items()}
    handles = [module.register_forward_hook(keep) for module in outputs]
    try:
        with eval_mode(model), torch.enable_grad():
            logits = heads.run_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return logits, outputs


def find_leaves(tensor: torch.Tensor) -> set[int]:
    """Returns the ids of the parameters that a tensor was computed from. Reads autograd's graph and runs no backward."""
    visited: set[Any] = set()
    leaves: set[int] = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        variable = getattr(node, "variable", None)  # of the node that accumulates a leaf's gradient
        if variable is not None:
            leaves.add(id(variable))
        waiting += [following for following, _ in node.next_functions]
    return leaves


def analyze_structure(model: nn.Module) -> ModelStructure:
    """Returns the parts of a transformers model with a head. All parameters must require gradients.

    Raises InputError if the model has no stack of blocks, or does not run it.
    """
    stack_name, stack = find_stack(model)
    logits, outputs = record_calls(model, stack)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    blocks = tuple(
        tuple(names[id(parameter)] for parameter in block.parameters() if id(parameter) in names) for block in stack
    )
    in_blocks = {name for block in blocks for name in block}
    last_outputs = [block_outputs[-1] for block_outputs in outputs.values() if block_outputs]
    if not last_outputs:
        raise InputError(f"freeze: {type(model).__name__} does not run its stack {stack_name}")
    feeding_blocks = {names[key] for tensor in last_outputs for key in find_leaves(tensor) if key in names}
    used = feeding_blocks | {names[key] for key in find_leaves(logits) if key in names}
    after_blocks = [
        name for name in names.values() if name in used and name not in feeding_blocks and name not in in_blocks
    ]
    return ModelStructure(
        embeddings=tuple(name for name in names.values() if name in feeding_blocks and name not in in_blocks),
        blocks=blocks,
        rest=group_by_part(model, after_blocks),
        unused=tuple(name for name in names.values() if name not in used and name not in in_blocks),
        shared=any(len(block_outputs) > 1 for block_outputs in outputs.values()),
        stack_name=stack_name,
    )


def group_by_part(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns the names of parameters above the blocks by part: the backbone's own modules, and last the head."""
    prefix = heads.find_backbone_prefix(model)
    parts: dict[str, list[str]] = {}
    for name in names:
        part = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else "head"
        parts.setdefault(part, []).append(name)
    if "head" in parts:
        parts["head"] = parts.pop("head")
    return {part: tuple(members) for part, members in parts.items()}
