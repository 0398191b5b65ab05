"""The last block for the first token alone: the same logits and gradients, found by proof, in every family that allows it."""

from typing import Any

import pytest
import torch
from support import tiny
from support.forwards import assert_same, batch_of, make, outcome, stored

from hf_finetune.forward import first_token
from hf_finetune.forward.cached import find_cached_forward
from hf_finetune.forward.dropout import choose_masks
from hf_finetune.forward.first_token import (
    FULL_FORWARD,
    ForwardPlan,
    apply_cuts,
    find_first_token_cuts,
    first_query,
    first_tokens,
)
from hf_finetune.model import freezing
from hf_finetune.model.structure import find_stack

PLAIN = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
OTHERS = ("mpnet", "deberta-v2", "modernbert")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [*PLAIN, *OTHERS])
def test_logits_and_gradients_are_those_of_the_whole_block(family: str, attention: str) -> None:
    model, plan = make(family, 2)
    if family not in ("mpnet", "deberta-v2"):
        model.set_attn_implementation(attention)
    cuts = find_first_token_cuts(model, plan)
    assert first_tokens in cuts.values()
    assert (first_query in cuts.values()) == (family in PLAIN)
    for batch in (batch_of(model, extra=2), batch_of(model, [(2, 9, 3)]), batch_of(model, [(2,)])):
        whole = outcome(model, batch)
        with apply_cuts(cuts):
            assert_same(outcome(model, batch), whole, 1e-5)


@pytest.mark.parametrize("family", [*PLAIN, *OTHERS])
def test_dropout_is_the_same_for_one_token(family: str) -> None:
    """The first token's masks do not depend on how many tokens are computed; replayed as well."""
    model, plan = make(family, 2)
    cuts, found, constant = (
        find_first_token_cuts(model, plan),
        find_cached_forward(model, plan),
        freezing.find_eval_modules(model),
    )
    masks = choose_masks("stateless", 3, model, constant)
    batch = batch_of(model)
    states = stored(found, model, batch["input_ids"].shape[1])
    freezing.set_train_mode(model, constant)
    with masks(5, range(4)):
        whole = outcome(model, batch)
    for given in (None, states):
        with masks(5, range(4)), ForwardPlan(cached=found, first_token=cuts)(given):
            assert_same(outcome(model, batch), whole, 1e-5)


@pytest.mark.parametrize("family", [*PLAIN, *OTHERS])
def test_the_last_feed_forward_gets_one_token_and_the_other_blocks_all(family: str) -> None:
    model, plan = make(family, 1)
    cuts, (_, stack) = find_first_token_cuts(model, plan), find_stack(model)
    tokens: dict[int, set[int]] = {number: set() for number in range(4)}
    for number, block in enumerate(stack):
        for module in block.modules():
            if isinstance(module, torch.nn.Linear) and 64 in module.weight.shape:  # the feed-forward's width
                module.register_forward_pre_hook(lambda _, given, number=number: tokens[number].add(given[0].shape[1]))
    with apply_cuts(cuts):
        model(**batch_of(model))
    assert tokens == {0: {9}, 1: {9}, 2: {9}, 3: {1}}


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3", "t5", "bart", "albert"])
def test_families_that_read_another_token_are_left_alone(family: str) -> None:
    assert find_first_token_cuts(*make(family, "all" if family == "albert" else 2)) == {}


def test_a_head_that_reads_all_tokens_is_left_alone() -> None:
    assert find_first_token_cuts(*make("modernbert", 2, classifier_pooling="mean")) == {}


def test_a_head_that_reads_all_tokens_a_little_is_left_alone() -> None:
    model, plan = make("bert", 2)
    model.bert.encoder.register_forward_hook(
        lambda _, __, out: out.__class__(out[0] + 1e-3 * out[0].mean(1, keepdim=True))
    )
    assert find_first_token_cuts(model, plan) == {}


def test_a_last_block_that_does_not_train_is_left_alone() -> None:
    assert find_first_token_cuts(*make("bert", "all")) == {}


@pytest.mark.parametrize("mask", [None, "boolean", "additive"])
def test_one_query_is_the_first_row_of_attention(mask: str | None) -> None:
    model, _ = make("bert", 2)
    model.set_attn_implementation("eager" if mask == "additive" else "sdpa")
    attention = model.bert.encoder.layer[3].attention.self
    states = torch.randn(3, 5, 32)
    allowed = torch.ones(3, 1, 5, 5, dtype=torch.bool)
    allowed[1, :, :, 3:] = False
    given: Any = {None: None, "boolean": allowed, "additive": torch.zeros(3, 1, 5, 5).masked_fill(~allowed, -1e30)}[
        mask
    ]
    expected = attention(states, attention_mask=given)[0][:, :1]
    torch.testing.assert_close(first_query(attention)(states, attention_mask=given)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", ["no value bias", "token 1", "no mask"])
def test_a_wrong_cut_is_not_taken(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """The proof is sharp: of a cut that is only a little wrong nothing is left."""

    def altered(module: torch.nn.Module) -> Any:
        honest = first_query(module)

        def forward(hidden_states: torch.Tensor, attention_mask: Any = None, **_: Any) -> Any:
            if wrong == "token 1":
                return honest(hidden_states.roll(-1, 1), attention_mask)
            if wrong == "no mask":
                return honest(hidden_states, None)
            return honest(hidden_states, attention_mask)[0] - module.value.bias, None

        return forward

    model, plan = make("bert", 2)
    with torch.no_grad():
        model.bert.encoder.layer[3].attention.self.value.bias.fill_(0.01)
    monkeypatch.setattr(first_token, "first_query", altered)
    assert altered not in find_first_token_cuts(model, plan).values()


def test_shortcuts_leave_nothing_behind() -> None:
    model, plan = make("bert", 2)
    shortcuts = ForwardPlan(cached=find_cached_forward(model, plan), first_token=find_first_token_cuts(model, plan))
    with pytest.raises(RuntimeError, match="stop"), shortcuts(torch.zeros(4, 9, 32)):
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in model.modules())
    batch = batch_of(model)
    expected = model(**batch).logits
    with FULL_FORWARD(None):
        assert torch.equal(model(**batch).logits, expected)


def test_tiny_families_are_all_covered() -> None:
    known = {*PLAIN, *OTHERS, "gpt2", "llama", "qwen2", "qwen3", "t5", "bart", "albert"}
    assert set(tiny.FAMILIES) == known
