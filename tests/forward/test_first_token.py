"""The last block for the first token only: the same logits and gradients in every family that allows it, and no cut elsewhere."""

from typing import Any

import pytest
import torch
from support import tiny
from support.forwards import assert_same, compute_outcome, make, make_batch

from hf_finetune.forward import first_token
from hf_finetune.forward.first_token import (
    Cuts,
    apply_cuts,
    are_same_gradients,
    compute_gradients,
    find_first_token_cuts,
    make_first_query_forward,
)
from hf_finetune.model.structure import find_stack

PLAIN = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")  # one query in the attention
OTHERS = ("mpnet", "deberta-v2", "modernbert")  # attention in full, one token after it
UNCUT = ("gpt2", "llama", "qwen2", "qwen3", "t5", "bart", "albert")


def list_kinds(cuts: Cuts) -> set[str]:
    """The names of the functions that the modules run instead."""
    return {forward.__name__ for forward in cuts.values()}


def test_every_family_is_in_one_of_the_lists() -> None:
    assert sorted(tiny.FAMILIES) == sorted((*PLAIN, *OTHERS, *UNCUT))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", PLAIN)
def test_the_one_query_attention_is_on(family: str, attention: str) -> None:
    """If this fails after an update of transformers, look for renamed attributes: see first_token.PLAIN_ATTENTION."""
    model, plan = make(family, 2)
    model.set_attn_implementation(attention)
    cuts, (_, stack) = find_first_token_cuts(model, plan), find_stack(model)
    assert list_kinds(cuts) == {"forward_first_query", "forward_first_token", "forward_in_fp32"}
    (attention_module,) = [module for module, forward in cuts.items() if forward.__name__ == "forward_first_query"]
    assert attention_module in set(stack[-1].modules())


@pytest.mark.parametrize("family", OTHERS)
def test_one_token_after_the_attention_is_on(family: str) -> None:
    """If this fails after an update of transformers, the last block is computed for all tokens."""
    kinds = list_kinds(find_first_token_cuts(*make(family, 2)))
    assert "forward_first_token" in kinds
    assert "forward_first_query" not in kinds


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [*PLAIN, *OTHERS])
def test_logits_and_gradients_are_those_of_the_complete_block(family: str, attention: str) -> None:
    model, plan = make(family, 2)
    if family not in ("mpnet", "deberta-v2"):
        model.set_attn_implementation(attention)
    cuts = find_first_token_cuts(model, plan)
    assert cuts
    for batch in (make_batch(model, extra=2), make_batch(model, [(2, 9, 3)]), make_batch(model, [(2,)])):
        expected = compute_outcome(model, batch)
        with apply_cuts(cuts):
            assert_same(compute_outcome(model, batch), expected, 1e-5)


@pytest.mark.parametrize("family", [*PLAIN, *OTHERS])
def test_the_last_feed_forward_gets_one_token_and_the_other_blocks_get_all(family: str) -> None:
    model, plan = make(family, 1)
    cuts, (_, stack) = find_first_token_cuts(model, plan), find_stack(model)
    num_tokens: dict[int, set[int]] = {number: set() for number in range(4)}
    for number, block in enumerate(stack):
        for module in block.modules():
            if isinstance(module, torch.nn.Linear) and 64 in module.weight.shape:  # the feed-forward's width
                module.register_forward_pre_hook(
                    lambda _, arguments, number=number: num_tokens[number].add(arguments[0].shape[1])
                )
    with apply_cuts(cuts):
        model(**make_batch(model))
    assert num_tokens == {0: {9}, 1: {9}, 2: {9}, 3: {1}}


# --- no cut ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", UNCUT)
def test_families_that_read_another_token_are_not_cut(family: str) -> None:
    assert find_first_token_cuts(*make(family, "all" if family == "albert" else 2)) == {}


def test_a_head_that_reads_all_tokens_is_not_cut() -> None:
    assert find_first_token_cuts(*make("modernbert", 2, classifier_pooling="mean")) == {}


def test_a_head_that_reads_all_tokens_a_little_is_not_cut() -> None:
    model, plan = make("bert", 2)
    model.bert.encoder.register_forward_hook(
        lambda _, __, output: output.__class__(output[0] + 1e-3 * output[0].mean(1, keepdim=True))
    )
    assert find_first_token_cuts(model, plan) == {}


def test_a_last_block_that_does_not_train_is_not_cut() -> None:
    assert find_first_token_cuts(*make("bert", "all")) == {}


# --- one query ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "boolean", "additive"])
def test_one_query_is_the_first_row_of_attention(kind: str) -> None:
    model, _ = make("bert", 2)
    model.set_attn_implementation("eager" if kind == "additive" else "sdpa")
    attention = model.bert.encoder.layer[3].attention.self
    hidden_states = torch.randn(3, 5, 32)
    allowed = torch.ones(3, 1, 5, 5, dtype=torch.bool)
    allowed[1, :, :, 3:] = False
    mask = {"none": None, "boolean": allowed, "additive": torch.zeros(3, 1, 5, 5).masked_fill(~allowed, -1e30)}[kind]
    expected = attention(hidden_states, attention_mask=mask)[0][:, :1]
    output = make_first_query_forward(attention)(hidden_states, attention_mask=mask)[0]
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fault", ["no value bias", "token 1", "no mask"])
def test_a_wrong_cut_is_not_taken(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """The check on the probe is sharp: a cut that is only a little wrong is refused."""

    def make_wrong_forward(module: torch.nn.Module) -> Any:
        right_forward = make_first_query_forward(module)

        def wrong_forward(hidden_states: torch.Tensor, attention_mask: Any = None, **_: Any) -> Any:
            if fault == "token 1":
                return right_forward(hidden_states.roll(-1, 1), attention_mask)
            if fault == "no mask":
                return right_forward(hidden_states, None)
            return right_forward(hidden_states, attention_mask)[0] - module.value.bias, None

        return wrong_forward

    model, plan = make("bert", 2)
    with torch.no_grad():
        model.bert.encoder.layer[3].attention.self.value.bias.fill_(0.01)
    monkeypatch.setattr(first_token, "make_first_query_forward", make_wrong_forward)
    kinds = list_kinds(find_first_token_cuts(model, plan))
    assert "forward_first_token" in kinds
    assert "wrong_forward" not in kinds


@pytest.mark.parametrize(("error", "is_same"), [(2e-5, True), (1e-2, False), (1.0, False)])
def test_gradients_may_differ_by_the_order_of_sums_alone(error: float, *, is_same: bool) -> None:
    """A model of 135 million parameters on two threads differs by 2e-5: its cuts must not vanish."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    inputs = torch.randn(4, 8)

    def compute_full() -> torch.Tensor:
        loss: torch.Tensor = model(inputs).square().sum()
        return loss

    gradients = compute_gradients(model, lambda: compute_full() * (1 + error))
    assert are_same_gradients(gradients, compute_gradients(model, compute_full)) == is_same
