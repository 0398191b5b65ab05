"""Replaying stored states: outputs and gradients of the whole model for every family, nothing computed below, nothing left."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import tiny
from support.forwards import assert_same, batch_of, make, outcome, stored

from hf_finetune.config.sections import FreezeConfig
from hf_finetune.forward import cached
from hf_finetune.forward.cached import CannotCacheError, find_cached_forward
from hf_finetune.forward.dropout import choose_masks
from hf_finetune.model import freezing

ENCODER_DECODERS = ("t5", "bart")
FAMILIES = [family for family in tiny.FAMILIES if family != "albert"]


def cases() -> Iterator[tuple[str, int | str]]:
    """Families and how much of them is frozen."""
    for family in FAMILIES:
        for blocks in ("all",) if family == "t5" else (1, 2, "all"):
            yield family, blocks


@pytest.mark.parametrize(("family", "blocks"), cases())
def test_a_replay_has_the_outputs_and_gradients_of_the_whole_model(family: str, blocks: int | str) -> None:
    model, plan = make(family, blocks)
    found = find_cached_forward(model, plan)
    batch = batch_of(model, extra=1)
    states = stored(found, model, batch["input_ids"].shape[1])
    whole = outcome(model, batch)
    with found.from_activations(states):
        assert_same(outcome(model, batch), whole)
    with found.from_activations(states.flip(0)), torch.no_grad():
        other = model(**batch).logits
    assert float((other - whole[0]).abs().max()) > 1e-3 * float(whole[0].abs().max()), "the states must matter"


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "llama", "bart"])
def test_dropout_is_the_same_replayed(family: str) -> None:
    """In training mode, what is constant in eval mode: masks belong to examples and places, so a replay has the same."""
    model, plan = make(family, 2)
    found, constant = find_cached_forward(model, plan), freezing.find_eval_modules(model)
    masks = choose_masks("stateless", 3, model, constant)
    batch = batch_of(model)
    states = stored(found, model, batch["input_ids"].shape[1])
    freezing.set_train_mode(model, constant)
    with masks(5, range(4)):
        whole = outcome(model, batch)
    with masks(5, range(4)), found.from_activations(states):
        assert_same(outcome(model, batch), whole)
    with masks(6, range(4)):
        other = outcome(model, batch)[0]
    assert family in ("llama", "modernbert") or not torch.equal(other, whole[0])  # these have no dropout


@pytest.mark.parametrize(("family", "blocks"), [("bert", 2), ("deberta-v2", 2), ("gpt2", 2), ("bart", "all")])
def test_nothing_below_the_boundary_is_computed(family: str, blocks: int | str) -> None:
    model, plan = make(family, blocks)
    found = find_cached_forward(model, plan)
    batch = batch_of(model)
    states = stored(found, model, batch["input_ids"].shape[1])
    frozen = {name.rpartition(".")[0] for name in plan.frozen}
    ran: list[str] = []
    for name, module in model.named_modules():
        if (
            module not in found.placeholders and isinstance(module, (torch.nn.Linear, torch.nn.LayerNorm))
        ) or "Conv1D" in type(module).__name__:
            module.register_forward_pre_hook(lambda _, __, name=name: ran.append(name))
    with found.from_activations(states):
        model(**batch)
    assert ran
    # DeBERTa norms its table of relative positions, which the upper blocks read
    assert {name for name in ran if name in frozen} <= {"deberta.encoder.LayerNorm"}
    ran.clear()
    found.compute_activations(batch)
    assert ran
    assert not {name for name in ran if name not in frozen}


def stop_within(model: Any, names: set[str]) -> None:
    """Looks at the model during a replay, and raises."""
    assert any("forward" in vars(module) for module in model.modules())
    assert model.state_dict().keys() == names
    raise RuntimeError("stop")


def test_nothing_is_left_behind() -> None:
    model, plan = make("bert", 2)
    model.train()
    model.bert.pooler.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    expected = model(**batch_of(model)).logits
    for name, module in model.named_modules():
        module.training = modes[name]
    found = find_cached_forward(model, plan)
    assert {name: module.training for name, module in model.named_modules()} == modes
    states = torch.zeros(4, 9, 32)
    with pytest.raises(RuntimeError, match="stop"), found.from_activations(states):
        stop_within(model, set(before))
    assert not any("forward" in vars(module) for module in model.modules())
    model.eval()
    assert torch.equal(model(**batch_of(model)).logits, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_forward_of_the_callers_own_is_put_back() -> None:
    """Accelerate gives a model a forward of its own for autocast."""
    module = torch.nn.Linear(2, 2)
    own = module.forward = lambda x: x
    with cached.replace_forwards({module: lambda x: x + 1}):
        assert module(1) == 2
    assert vars(module)["forward"] is own


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("bert", FreezeConfig(layers=2), "the embeddings train"),
        ("albert", FreezeConfig(embeddings=True, layers="all"), "one shared block many times"),
        ("t5", FreezeConfig(embeddings=True, layers=2), "need more of the lower ones than hidden states"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_the_reason(family: str, config: FreezeConfig, reason: str) -> None:
    model = tiny.make_model(family, layers=4)
    with pytest.raises(CannotCacheError, match=reason):
        find_cached_forward(model, freezing.apply_freezing(model, config))


def test_an_upper_block_that_looks_below_the_boundary_is_found() -> None:
    """A skip connection from the embeddings to the last block, which no shape gives away."""
    model, plan = make("bert", 2)
    seen: list[torch.Tensor] = []
    model.bert.embeddings.register_forward_hook(lambda _, __, output: seen.append(output))
    last = model.bert.encoder.layer[3]
    last.register_forward_hook(lambda _, __, output: output + 0.1 * seen[-1])
    with pytest.raises(CannotCacheError, match="more of the lower ones"):
        find_cached_forward(model, plan)


def test_replays_in_bf16_are_close() -> None:
    model, plan = make("bert", 2)
    found = find_cached_forward(model, plan)
    batch = batch_of(model)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = model(**batch).logits.float()
        with found.from_activations(stored(found, model, 9)):
            logits = model(**batch).logits.float()
    torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.1)
