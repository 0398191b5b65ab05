"""The loss from hidden states before the vocabulary projection, against torch's on all logits."""

import pytest
import torch
from torch.nn import functional as F

from hf_finetune.data.features import IGNORED
from hf_finetune.tasks import losses
from hf_finetune.tasks.losses import score_tokens
from hf_finetune.tasks.projected_loss import score_projected


def make_case(seed: int, size: int = 23) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [1, 9, 6], weight [size, 6], bias and targets; the last target is ignored."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, 9, 6, generator=generator) * 2
    targets = torch.randint(0, size, (1, 9), generator=generator)
    targets[0, -1] = IGNORED
    return (
        states,
        torch.randn(size, 6, generator=generator),
        torch.randn(size, generator=generator),
        targets,
    )


@pytest.mark.parametrize("at_once", [2**24, 60])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("trained", [(True, True, True), (True, False, False), (False, True, True), (True, True, None)])
def test_loss_and_gradients_are_torchs_on_all_logits(
    monkeypatch: pytest.MonkeyPatch, trained: tuple[bool | None, ...], smoothing: float, at_once: int
) -> None:
    """With and without a trained projection or a bias, in chunks of 2 tokens and at once."""
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    *inputs, targets = make_case(1)
    ours, theirs = (
        [
            None if train is None else each.clone().requires_grad_(train)
            for each, train in zip(inputs, trained, strict=True)
        ]
        for _ in range(2)
    )
    total = score_projected(*ours, targets, smoothing).total
    expected = F.cross_entropy(F.linear(*theirs)[0], targets[0], reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(total, expected)
    (total / 7).backward()
    (expected / 7).backward()
    for own, other in zip(ours, theirs, strict=True):
        if own is not None:
            torch.testing.assert_close(own.grad, other.grad)


def test_scores_without_a_graph_are_those_of_each_token() -> None:
    states, weight, bias, targets = make_case(2)
    with torch.no_grad():
        scores = score_projected(states, weight, bias, targets, 0.1)
        logits = F.linear(states, weight, bias)[0]
    assert scores.entropies is not None
    assert scores.is_correct is not None
    total, num_correct, _ = score_tokens(logits, targets[0])
    assert float(scores.entropies.sum()) == pytest.approx(total, rel=1e-6)
    assert int(scores.is_correct.sum()) == num_correct
    expected = F.cross_entropy(logits, targets[0], reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(scores.total, expected)


def test_tied_weights_get_the_gradients_of_both_uses() -> None:
    _, weight, _, targets = make_case(3)
    ours, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    ids = torch.arange(9)
    score_projected(F.embedding(ids, ours)[None], ours, None, targets).total.backward()
    F.cross_entropy(F.linear(F.embedding(ids, theirs), theirs), targets[0], reduction="sum").backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_without_a_target_the_loss_is_zero_and_has_gradients_of_zero() -> None:
    states, weight, _, targets = make_case(4)
    states.requires_grad_()
    weight.requires_grad_()
    total = score_projected(states, weight, None, torch.full_like(targets, IGNORED), 0.1).total
    total.backward()
    assert float(total.detach()) == 0.0
    assert not states.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_products_run_in_its_type_and_sums_in_fp32(dtype: torch.dtype) -> None:
    states, weight, bias, targets = make_case(5)
    ours, theirs = states.clone().requires_grad_(), states.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        total = score_projected(ours, weight, bias, targets).total
        logits = F.linear(theirs, weight, bias)
    assert logits.dtype == dtype
    expected = F.cross_entropy(logits.float()[0], targets[0], reduction="sum")
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
    total.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-2, atol=2e-2)


def test_a_loss_is_propagated_once() -> None:
    states, weight, bias, targets = make_case(6)
    total = score_projected(states.requires_grad_(), weight, bias, targets).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="freed by an earlier backward pass"):
        total.backward()
