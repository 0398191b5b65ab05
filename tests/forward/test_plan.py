"""A forward plan as a whole: dropout, and what remains of it afterwards."""

import numpy as np
import pytest
import torch
from support.forwards import assert_same, capture_activations, compute_outcome, make, make_batch

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
