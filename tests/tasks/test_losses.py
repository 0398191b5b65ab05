"""Losses against torch's own, and against sums written out."""

import math

import pytest
import torch
from torch.nn import functional as F

from hf_finetune.data.features import IGNORED
from hf_finetune.tasks import losses
from hf_finetune.tasks.losses import count_targets, cross_entropy, score_tokens, sum_token_entropy

WEIGHTS = (0.5, 1.0, 4.0, 2.5)


def make_batch(seed: int, shape: tuple[int, ...] = (6, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [..., 4], and labels. About a quarter of the labels are ignored, but never the first."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, 4, generator=generator) * 3
    labels = torch.randint(0, 4, shape, generator=generator)
    ignored = torch.rand(shape, generator=generator) < 0.25
    ignored.view(-1)[0] = False
    return logits, labels.masked_fill(ignored, IGNORED)


@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sum_over_count_is_torchs_mean(seed: int, smoothing: float, weights: tuple[float, ...]) -> None:
    """Loss and gradients, with and without weights and smoothing, for flat and for nested labels."""
    for shape in ((30,), (6, 5)):
        logits, labels = make_batch(seed, shape)
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        total, count = (
            cross_entropy(ours, labels, label_smoothing=smoothing, class_weights=weights),
            count_targets(labels, weights),
        )
        loss = torch.nn.CrossEntropyLoss(
            weight=torch.tensor(weights) if weights else None, label_smoothing=smoothing, ignore_index=IGNORED
        )(theirs.reshape(-1, 4), labels.reshape(-1))
        torch.testing.assert_close(total / count, loss)
        (total / count).backward()
        loss.backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_loss_is_the_sum_written_out(gamma: float, weights: tuple[float, ...]) -> None:
    logits, labels = make_batch(3)
    total, count = (
        cross_entropy(logits, labels, focal_gamma=gamma, class_weights=weights),
        count_targets(labels, weights),
    )
    expected, total_weight = 0.0, 0.0
    for scores, label in zip(logits.reshape(-1, 4).tolist(), labels.reshape(-1).tolist(), strict=True):
        if label == IGNORED:
            continue
        probability = math.exp(scores[label]) / sum(map(math.exp, scores))
        weight = weights[label] if weights else 1.0
        expected -= weight * (1 - probability) ** gamma * math.log(probability)
        total_weight += weight
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert count == pytest.approx(total_weight)


def test_focal_loss_weighs_probable_targets_less() -> None:
    probable, improbable = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.1, 0.0]])
    label = torch.tensor([0])

    def compute_factor(logits: torch.Tensor) -> float:
        return float(cross_entropy(logits, label, focal_gamma=2) / cross_entropy(logits, label))

    assert compute_factor(probable) < 1e-6 < 0.2 < compute_factor(improbable)


def test_the_sum_over_ignored_labels_is_zero() -> None:
    logits = torch.randn(2, 3, 4)
    logits[0, 0, 0] = 1e4  # a probability of 1, where the power of the focal loss has no gradient
    logits.requires_grad_()
    labels, factors = torch.full((2, 3), IGNORED), torch.ones(2, 3)
    for options in ({}, {"focal_gamma": 2.0}, {"focal_gamma": 0.5}, {"example_weights": factors}):
        total = cross_entropy(logits, labels, class_weights=WEIGHTS, **options)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(total, logits)
        assert float(total.detach()) == 0.0
        assert not gradient.any()
    assert (
        count_targets(labels, WEIGHTS) == count_targets(labels, example_weights=factors) == count_targets(labels) == 0.0
    )


def test_factors_of_labels_count_in_the_sum_and_in_the_number() -> None:
    """As if a label with the factor 2 were there twice, and one with the factor 0 not at all."""
    logits, labels = make_batch(6, (12,))
    factors = torch.tensor([0.0, 1.0, 2.0] * 4)
    again = torch.repeat_interleave(torch.arange(12), factors.long())
    for options in ({}, {"class_weights": WEIGHTS}, {"class_weights": WEIGHTS, "focal_gamma": 2.0}):
        total = cross_entropy(logits, labels, example_weights=factors, **options)  # type: ignore[arg-type]
        expected = cross_entropy(logits[again], labels[again], **options)  # type: ignore[arg-type]
        torch.testing.assert_close(total, expected)
    assert count_targets(labels, WEIGHTS, factors) == pytest.approx(count_targets(labels[again], WEIGHTS))


def test_16_bit_logits_are_summed_in_fp32() -> None:
    logits, labels = make_batch(4)
    total = cross_entropy(logits.bfloat16(), labels)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, cross_entropy(logits.bfloat16().float(), labels))


# --- the whole vocabulary -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("at_once", [2**24, 64])
def test_token_entropy_is_torchs_cross_entropy_with_its_gradient(
    monkeypatch: pytest.MonkeyPatch, seed: int, smoothing: float, at_once: int
) -> None:
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    labels[torch.rand(3, 7, generator=generator) < 0.3] = IGNORED
    ours = torch.randn(3, 7, 11, generator=generator, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    total = sum_token_entropy(ours, labels, smoothing)
    expected = F.cross_entropy(theirs.reshape(-1, 11), labels.reshape(-1), reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(total, expected)
    (total / 3).backward()
    (expected / 3).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_token_entropy_of_16_bit_logits_is_computed_in_fp32() -> None:
    logits = torch.randn(5, 13).bfloat16().requires_grad_()
    total = sum_token_entropy(logits, torch.arange(5))
    torch.testing.assert_close(total, F.cross_entropy(logits.detach().float(), torch.arange(5), reduction="sum"))
    total.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_token_entropy_without_targets_is_zero_and_has_a_gradient() -> None:
    logits = torch.randn(4, 6, requires_grad=True)
    total = sum_token_entropy(logits, torch.full((4,), IGNORED))
    total.backward()
    assert float(total.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("at_once", [2**24, 20])
def test_scores_of_a_sequence_are_entropy_correct_tokens_and_targets(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    logits, labels = make_batch(5, (12,))
    total, num_correct, count = score_tokens(logits, labels)
    assert total == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-5)
    assert num_correct == int((logits.argmax(-1) == labels).sum())
    assert count == int((labels != IGNORED).sum())
