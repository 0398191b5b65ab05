"""losses.py against torch's own, and against sums written out."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from hf_finetune.data.features import IGNORED
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.classify import distribution, weights_line, weights_of
from hf_finetune.tasks.losses import cross_entropy

WEIGHTS = (0.5, 1.0, 4.0, 2.5)


def made(seed: int, shape: tuple[int, ...] = (6, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [..., 4], and labels of which about a quarter are ignored, the first never."""
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
    """With weights, without, smoothed, for flat and for nested labels, the gradients too."""
    for shape in ((30,), (6, 5)):
        logits, labels = made(seed, shape)
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        total, count = cross_entropy(ours, labels, label_smoothing=smoothing, class_weights=weights)
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
    logits, labels = made(3)
    total, count = cross_entropy(logits, labels, focal_gamma=gamma, class_weights=weights)
    expected, weighed = 0.0, 0.0
    for scores, label in zip(logits.reshape(-1, 4).tolist(), labels.reshape(-1).tolist(), strict=True):
        if label == IGNORED:
            continue
        probability = math.exp(scores[label]) / sum(map(math.exp, scores))
        weight = weights[label] if weights else 1.0
        expected -= weight * (1 - probability) ** gamma * math.log(probability)
        weighed += weight
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert count == pytest.approx(weighed)


def test_a_focal_loss_counts_sure_targets_less() -> None:
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.1, 0.0]])
    label = torch.tensor([0])

    def left(logits: torch.Tensor) -> float:
        return float(cross_entropy(logits, label, focal_gamma=2)[0] / cross_entropy(logits, label)[0])

    assert left(sure) < 1e-6 < 0.2 < left(unsure)


def test_ignored_labels_alone_are_nothing() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    total, count = cross_entropy(logits, torch.full((2, 3), IGNORED), class_weights=WEIGHTS)
    assert (float(total.detach()), count) == (0.0, 0.0)


def test_half_precision_is_summed_in_full() -> None:
    logits, labels = made(4)
    total, _ = cross_entropy(logits.bfloat16(), labels)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, cross_entropy(logits.bfloat16().float(), labels)[0])


@pytest.mark.parametrize("seed", range(5))
def test_balanced_weights_are_scikit_learns(seed: int) -> None:
    labels = np.random.default_rng(seed).choice(["a", "b", "c", "d"], size=200, p=[0.7, 0.2, 0.07, 0.03])
    names, counts = np.unique(labels, return_counts=True)
    ours = weights_of(["balanced"], names.tolist(), dict(zip(names.tolist(), counts.tolist(), strict=True)))
    assert ours == pytest.approx(compute_class_weight("balanced", classes=names, y=labels).tolist())


def test_a_label_that_training_lacks_weighs_one() -> None:
    assert weights_of(["balanced"], ["a", "b", "c"], {"a": 3, "c": 1}) == pytest.approx((4 / 6, 1.0, 2.0))


def test_named_weights() -> None:
    assert weights_of([], ["a", "b"], {}) == ()
    assert weights_of(["b=2.5", "x=y=3"], ["a", "b", "x=y"], {}) == (1.0, 2.5, 3.0)
    assert weights_line(["a", "b"], (1.0, 2.5)) == [("weights", "a 1, b 2.5")]
    assert weights_line(["a", "b"], ()) == []


@pytest.mark.parametrize("asked", ["b", "b=", "b=heavy", "b=0", "b=-1", "b=inf", "b=nan", "z=2", "=2"])
def test_weights_that_cannot_be(asked: str) -> None:
    with pytest.raises(InputError, match=r"task\.class_weights"):
        weights_of([asked], ["a", "b"], {"a": 1, "b": 1})


def test_a_distribution_shows_the_frequent_first() -> None:
    assert distribution({"a": 1, "b": 2000}) == "b 2,000, a 1"
    assert distribution(dict.fromkeys("abcdefghij", 1)).endswith("h 1, and 2 more")
