"""Running from cached activations: outputs and gradients of the complete model in every family, nothing computed below the
boundary, the model unchanged afterwards."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny
from support.forwards import assert_same, capture_activations, compute_outcome, make, make_batch

from hf_finetune.config.sections import FreezeConfig
from hf_finetune.forward import cached
from hf_finetune.forward.cached import CannotCacheError, find_cached_forward
from hf_finetune.forward.dropout import choose_masks
from hf_finetune.model import freezing

FAMILIES = [family for family in tiny.FAMILIES if family != "albert"]


def cases() -> Iterator[tuple[str, int | str]]:
    """Families, and how much of each is frozen."""
    for family in FAMILIES:
        for blocks in ("all",) if family == "t5" else (1, 2, "all"):
            yield family, blocks


@pytest.mark.parametrize(("family", "blocks"), cases())
def test_outputs_and_gradients_are_those_of_the_complete_model(family: str, blocks: int | str) -> None:
    model, plan = make(family, blocks)
    forward = find_cached_forward(model, plan)
    batch = make_batch(model, extra=1)
    activations = capture_activations(forward, model, batch["input_ids"].shape[1])
    expected = compute_outcome(model, batch)
    with forward.from_activations(activations):
        assert_same(compute_outcome(model, batch), expected)
    with forward.from_activations(activations.flip(0)), torch.no_grad():
        logits = model(**batch).logits
    difference = float((logits - expected[0]).abs().max())
    assert difference > 1e-3 * float(expected[0].abs().max()), "the activations must matter"


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "llama", "bart"])
def test_dropout_is_the_same_from_cached_activations(family: str) -> None:
    """In train mode, with the frozen modules in eval mode. A mask belongs to an example and a call, so it does not change."""
    if family == "bart" and tiny.BART_DRAWS:
        pytest.skip("this version of transformers draws for layerdrop")
    model, plan = make(family, 2)
    forward, eval_modules = find_cached_forward(model, plan), freezing.find_eval_modules(model)
    masks = choose_masks("stateless", 3, model, eval_modules)
    batch = make_batch(model)
    activations = capture_activations(forward, model, batch["input_ids"].shape[1])
    freezing.set_train_mode(model, eval_modules)
    indices = np.arange(4)
    with masks.active(5, indices):
        expected = compute_outcome(model, batch)
    with masks.active(5, indices), forward.from_activations(activations):
        assert_same(compute_outcome(model, batch), expected)
    with masks.active(6, indices):
        logits = compute_outcome(model, batch)[0]
    has_dropout = family not in ("llama", "modernbert")
    assert torch.equal(logits, expected[0]) != has_dropout


@pytest.mark.parametrize(("family", "blocks"), [("bert", 2), ("deberta-v2", 2), ("gpt2", 2), ("bart", "all")])
def test_nothing_below_the_boundary_is_computed(family: str, blocks: int | str) -> None:
    model, plan = make(family, blocks)
    forward = find_cached_forward(model, plan)
    batch = make_batch(model)
    activations = capture_activations(forward, model, batch["input_ids"].shape[1])
    frozen = {name.rpartition(".")[0] for name in plan.frozen}
    calls: list[str] = []
    for name, module in model.named_modules():
        is_layer = isinstance(module, (torch.nn.Linear, torch.nn.LayerNorm)) and module not in forward.placeholders
        if is_layer or "Conv1D" in type(module).__name__:
            module.register_forward_pre_hook(lambda _, __, name=name: calls.append(name))
    with forward.from_activations(activations):
        model(**batch)
    assert calls
    # DeBERTa norms its table of relative positions, which the upper blocks read
    assert {name for name in calls if name in frozen} <= {"deberta.encoder.LayerNorm"}
    calls.clear()
    forward.compute_activations(batch)
    assert calls
    assert not {name for name in calls if name not in frozen}


def stop_within(model: Any, names: set[str]) -> None:
    """Raises while the model runs from cached activations."""
    assert any("forward" in vars(module) for module in model.modules())
    assert model.state_dict().keys() == names
    raise RuntimeError("stop")


def test_nothing_of_the_model_is_changed_afterwards() -> None:
    model, plan = make("bert", 2)
    expected = model(**make_batch(model)).logits
    model.train()
    model.bert.pooler.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forward = find_cached_forward(model, plan)
    assert {name: module.training for name, module in model.named_modules()} == modes
    with pytest.raises(RuntimeError, match="stop"), forward.from_activations(torch.zeros(4, 9, 32)):
        stop_within(model, set(tensors))
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model.eval()
    assert torch.equal(model(**make_batch(model)).logits, expected)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_a_forward_that_another_library_has_set_is_restored() -> None:
    """Accelerate sets a forward of its own for autocast."""
    module = torch.nn.Linear(2, 2)
    own_forward = module.forward = lambda x: x
    with cached.replace_forwards({module: lambda x: x + 1}):
        assert module(1) == 2
    assert vars(module)["forward"] is own_forward


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("bert", FreezeConfig(layers=2), "the embeddings train"),
        ("albert", FreezeConfig(embeddings=True, layers="all"), "one shared block many times"),
        ("t5", FreezeConfig(embeddings=True, layers=2), "need more of the lower ones than hidden states"),
    ],
)
def test_a_model_that_cannot_run_from_activations_is_refused_with_the_reason(
    family: str, config: FreezeConfig, reason: str
) -> None:
    model = tiny.make_model(family, layers=4)
    with pytest.raises(CannotCacheError, match=reason):
        find_cached_forward(model, freezing.apply_freezing(model, config))


def test_an_upper_block_that_reads_the_embeddings_is_found() -> None:
    """A skip connection from the embeddings to the last block, which no shape shows."""
    model, plan = make("bert", 2)
    embeddings: list[torch.Tensor] = []
    model.bert.embeddings.register_forward_hook(lambda _, __, output: embeddings.append(output))
    last = model.bert.encoder.layer[3]
    last.register_forward_hook(lambda _, __, output: output + 0.1 * embeddings[-1])
    with pytest.raises(CannotCacheError, match="more of the lower ones"):
        find_cached_forward(model, plan)


def test_outputs_in_bf16_are_close() -> None:
    model, plan = make("bert", 2)
    forward = find_cached_forward(model, plan)
    batch = make_batch(model)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = model(**batch).logits.float()
        with forward.from_activations(capture_activations(forward, model, 9)):
            logits = model(**batch).logits.float()
    torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.1)
