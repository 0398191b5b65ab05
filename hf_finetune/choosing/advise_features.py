"""Hidden states at each depth of freezing, and gradients of the blocks above, of a sample of examples.

Features of the frozen part alone say how good a model is whose upper blocks stay as they are. Training these blocks changes what
they compute. For small changes that is linear in the weights, so the trained model is a linear function of the gradients of its
outputs by these weights (the tangent kernel: Jacot et al. 2018, arXiv:1806.07572; Malladi et al. 2023, arXiv:2210.05643, for
language models). One backward pass gives those of all blocks, and the kernel of a depth is the sum of those of the blocks above.

N examples, B examples of a batch, T tokens, H hidden, D depths (the blocks and the embeddings), L linear layers of a block, R
directions, K numbers of a sketch.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_finetune.data.features import Array, Batch, Features, collate
from hf_finetune.forward.first_token import find_read_tokens
from hf_finetune.forward.linear_head import returning_inputs
from hf_finetune.model import heads
from hf_finetune.model.structure import eval_mode, find_first_tensor, find_stack, make_probe_batch
from hf_finetune.run.training_run import TrainingRun

BATCH = 32
SKETCH = 16  # numbers that the inputs of a linear layer are projected to, and the gradients of its outputs
NUM_DIRECTIONS = 2  # of the head's input whose gradients are taken
Hook = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class DepthFeatures:
    """What a sample of N examples gives at each depth.

    Args:
        head_inputs: The inputs of the last linear layer, [N, H].
        hidden_states: The input of block 0 and the output of each block, where the head reads them, [N, D, H].
        gradients: Of each block, sketches of the gradients by the weights of its linear layers, [N, L, R K].
    """

    head_inputs: Array
    hidden_states: Array
    gradients: tuple[Array, ...]


def find_read_token(model: nn.Module) -> str:
    """Returns which tokens of the last block the head reads: first, last, or mean for anything else."""
    _, stack = find_stack(model)
    batch = make_probe_batch(model, 5)
    with eval_mode(model):
        is_read = find_read_tokens(model, stack[-1], batch)
    if is_read is not None and int(is_read.sum()) == len(is_read):
        if bool(is_read[:, 0].all()):
            return "first"
        if bool(is_read[:, -1].all()):
            return "last"
    return "mean"


def pool(hidden_states: torch.Tensor, mask: torch.Tensor, kind: str) -> torch.Tensor:
    """Returns one vector for each example [B, H] from hidden states [B, T, H]. mask: 1 for tokens, 0 for padding [B, T]."""
    if kind == "first":
        return hidden_states[:, 0]
    if kind == "last":
        return hidden_states[torch.arange(len(mask), device=mask.device), mask.sum(-1) - 1]
    weights = mask[..., None].to(hidden_states.dtype)
    return (hidden_states * weights).sum(1) / weights.sum(1)


@contextlib.contextmanager
def hooked(stack: nn.ModuleList, before: Hook, after: Hook) -> Iterator[None]:
    """Calls `before` with the hidden states that go into block 0, which takes what it returns, and `after` with each block's
    number and output."""

    def replace_input(_: nn.Module, arguments: Any, keywords: Any) -> Any:
        if arguments:
            return (before(arguments[0]), *arguments[1:]), keywords
        return arguments, {**keywords, "hidden_states": before(keywords["hidden_states"])}

    handles = [stack[0].register_forward_pre_hook(replace_input, with_kwargs=True)]
    for number, block in enumerate(stack):
        handles.append(
            block.register_forward_hook(lambda _, __, output, number=number: after(number, find_first_tensor(output)))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def iterate_batches(run: TrainingRun, features: Features, indices: Array) -> Iterator[tuple[Array, Batch]]:
    """Yields batches of features of about the same length, and their places among the indices."""
    order = np.argsort(features.get_lengths(indices), kind="stable")
    size = min(BATCH, run.config.train.micro_batch_size or BATCH)
    for start in range(0, len(order), size):
        places = order[start : start + size]
        batch = collate(features, indices[places], run.train_state.padding)
        yield places, run.task.encoding.prepare(batch, features, run.train_state.model, 0).to(run.runtime.device)


def compute_head_inputs(run: TrainingRun, layer: nn.Linear, features: Features, indices: Array) -> Array:
    """Returns the inputs of the last linear layer for the features at the indices, [N, H]."""
    model: Any = run.train_state.model
    inputs: Array = np.zeros((len(indices), layer.in_features), np.float32)
    with torch.no_grad(), eval_mode(model), returning_inputs(layer):
        for places, batch in iterate_batches(run, features, indices):
            inputs[places] = heads.run_model(model, batch.inputs).float().cpu().numpy()
    return inputs


def choose_directions(inputs: Array, columns: Array, seed: int) -> Array:
    """Returns directions of the head's input [R, H] along which the targets differ: random mixtures of the covariances of inputs
    [N, H] with each column of the targets [N, C]."""
    covariances = (columns - columns.mean(0)).T @ (inputs - inputs.mean(0))
    scaled = covariances / np.maximum(np.linalg.norm(covariances, axis=1, keepdims=True), 1e-12)
    num_classes = len(scaled)
    if num_classes <= NUM_DIRECTIONS:
        return scaled[:1]  # of two classes, one is the other's opposite
    mixed = np.random.default_rng(seed).normal(size=(NUM_DIRECTIONS, num_classes)) @ scaled
    return mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)


class GradientSketch:
    """Sketches of the gradients of single examples by the weights of linear layers.

    A layer's gradient is the sum over tokens of the outer product of its input and the gradient of its output. Random projections
    of both give a matrix of SKETCH x SKETCH, K numbers, whose products are, on average, those of the gradients.
    """

    def __init__(self, stack: nn.ModuleList, seed: int) -> None:
        self.stack = stack
        self.generator = torch.Generator().manual_seed(seed)
        self.projections: dict[tuple[nn.Module, int], torch.Tensor] = {}
        self.calls: list[tuple[int, nn.Module, torch.Tensor, torch.Tensor]] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Keeps the projected inputs and the outputs of all linear layers of the blocks until the next recording."""
        self.calls = []
        handles = []
        for number, block in enumerate(self.stack):
            for module in block.modules():
                weight = getattr(module, "weight", None)
                if not any(True for _ in module.children()) and getattr(weight, "ndim", 0) == 2:
                    handles.append(module.register_forward_hook(self.make_hook(number)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def make_hook(self, number: int) -> Hook:
        """Returns a hook that keeps a call of a linear layer in a block."""

        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            value = arguments[0] if arguments else None
            if (
                isinstance(value, torch.Tensor)
                and value.is_floating_point()
                and value.ndim == 3
                and output.requires_grad
            ):
                inputs = self.project(module, 0, value.detach().to(output.dtype))
                self.calls.append((number, module, inputs, output))

        return keep

    def project(self, module: nn.Module, side: int, values: torch.Tensor) -> torch.Tensor:
        """Returns values [B, T, n] as [B, T, SKETCH]. side: 0 for a layer's input, 1 for the gradient of its output."""
        if (module, side) not in self.projections:
            random = torch.randn(values.shape[-1], SKETCH, generator=self.generator) / SKETCH**0.5
            self.projections[module, side] = random.to(values)
        return values @ self.projections[module, side]

    def sketch(self, values: Sequence[torch.Tensor]) -> list[Array]:
        """Returns the sketches of the gradients of R values, each a sum over examples: [B, L, R K] of each block."""
        outputs = [output for _, _, _, output in self.calls]
        parts: list[list[list[torch.Tensor]]] = [[] for _ in self.stack]
        for place, value in enumerate(values):
            is_last = place == len(values) - 1
            gradients = torch.autograd.grad(value, outputs, retain_graph=not is_last, allow_unused=True)
            for block in parts:
                block.append([])
            for (number, module, inputs, output), gradient in zip(self.calls, gradients, strict=True):
                outer = torch.zeros(len(output), SKETCH, SKETCH, device=output.device)
                if gradient is not None:
                    outer = inputs.float().transpose(1, 2) @ self.project(module, 1, gradient).float()
                parts[number][-1].append(outer.flatten(1))
        self.calls = []
        return [torch.cat([torch.stack(layers, 1) for layers in block], -1).cpu().numpy() for block in parts]


def compute_features(
    run: TrainingRun, layer: nn.Linear, features: Features, indices: Array, directions: Array
) -> DepthFeatures:
    """Returns hidden states and gradients of the features at the indices.

    layer: The last linear layer. directions: Those of its input along which the gradients are taken, [R, H].
    """
    model: Any = run.train_state.model
    _, stack = find_stack(model)
    kind, sketch = find_read_token(model), GradientSketch(stack, run.config.seed)
    weights = torch.from_numpy(directions).float().to(run.runtime.device)
    inputs = np.zeros((len(indices), layer.in_features), np.float32)
    states: list[Array] = [np.zeros(0)] * (len(stack) + 1)
    gradients: list[Array] = [np.zeros(0)] * len(stack)

    def put(arrays: list[Array], number: int, places: Array, values: Array) -> None:
        if not arrays[number].size:
            arrays[number] = np.zeros((len(indices), *values.shape[1:]), np.float32)
        arrays[number][places] = values

    # Without dropout, attention on a CPU takes a kernel whose backward pass in 16 bit is many times slower than the plain one
    plain = sdpa_kernel(SDPBackend.MATH) if run.runtime.device.type == "cpu" else contextlib.nullcontext()
    with torch.enable_grad(), eval_mode(model), returning_inputs(layer), plain:
        for places, batch in iterate_batches(run, features, indices):
            mask = batch.inputs["attention_mask"]

            def keep(number: int, hidden_states: torch.Tensor, places: Array = places, mask: Any = mask) -> None:
                put(states, number + 1, places, pool(hidden_states.detach().float(), mask, kind).cpu().numpy())

            def begin_graph(hidden_states: torch.Tensor, keep: Hook = keep) -> torch.Tensor:
                keep(-1, hidden_states)
                return hidden_states.detach().requires_grad_()

            with hooked(stack, begin_graph, keep), sketch.recording():
                found = heads.run_model(model, batch.inputs).float()
            inputs[places] = found.detach().cpu().numpy()
            for number, block in enumerate(sketch.sketch((found @ weights.T).sum(0).unbind())):
                put(gradients, number, places, block)
    return DepthFeatures(head_inputs=inputs, hidden_states=np.stack(states, 1), gradients=tuple(gradients))
