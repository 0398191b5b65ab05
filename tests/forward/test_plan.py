"""A forward plan as a whole: dropout, and what remains of it afterwards."""

import numpy as np
import pytest
import torch
import transformers
from support import tiny
from support.forwards import assert_same, capture_activations, compute_outcome, make, make_batch

from hf_finetune.config.sections import FreezeConfig
from hf_finetune.data.reading import TokenReading
from hf_finetune.forward.dropout import choose_masks
from hf_finetune.forward.plan import FULL_FORWARD, find_forward_plan
from hf_finetune.model import freezing


@pytest.mark.parametrize(
    "family",
    ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet", "deberta-v2", "modernbert"],
)
def test_dropout_is_the_same_for_one_token_and_from_cached_activations(family: str) -> None:
    """The first token's masks do not depend on the number of tokens that are computed."""
    model, freeze_plan = make(family, 2)
    plan, reason = find_forward_plan(model, freeze_plan)
    assert plan.cached is not None
    assert plan.first_token
    assert reason == ""
    eval_modules = freezing.find_eval_modules(model)
    masks = choose_masks("stateless", 3, model, eval_modules)
    batch = make_batch(model)
    activations = capture_activations(plan.cached, model, batch["input_ids"].shape[1])
    freezing.set_train_mode(model, eval_modules)
    with masks.active(5, np.arange(4)):
        expected = compute_outcome(model, batch)
    for start in (None, activations):
        with masks.active(5, np.arange(4)), plan.active(start):
            assert_same(compute_outcome(model, batch), expected, 1e-5)


def test_the_reason_why_activations_cannot_be_cached_is_returned() -> None:
    plan, reason = find_forward_plan(*make("t5", 2))
    assert plan.cached is None
    assert reason.startswith("its upper blocks need more of the lower ones")


def test_nothing_of_the_model_is_changed_afterwards() -> None:
    model, freeze_plan = make("bert", 2)
    plan, _ = find_forward_plan(model, freeze_plan)
    with pytest.raises(RuntimeError, match="stop"), plan.active(torch.zeros(4, 9, 32)):
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    batch = make_batch(model)
    expected = model(**batch).logits
    with FULL_FORWARD.active(None):
        assert torch.equal(model(**batch).logits, expected)


@pytest.mark.parametrize("num_read", [4, 35])
@pytest.mark.parametrize("is_complete", [False, True])
def test_outputs_are_those_of_the_tokens_that_are_read_whatever_was_computed(
    num_read: int, *, is_complete: bool
) -> None:
    """Without a head, only the last block is cut: not if most tokens are read, nor if all blocks are computed completely."""
    model = transformers.AutoModel.from_config(tiny.make_config("bert", layers=4)).eval()
    found, _ = find_forward_plan(
        model, freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=2)), reads_some_tokens=True
    )
    plan, batch = found.complete() if is_complete else found, make_batch(model)
    reading = TokenReading(positions=torch.arange(num_read), shape=(4, 9))
    with torch.no_grad():
        outputs = plan.run_model(model, batch, reading=reading)
        expected = model(**batch).last_hidden_state.flatten(0, 1)[:num_read]
    torch.testing.assert_close(outputs, expected[None])
