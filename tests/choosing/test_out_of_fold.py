"""What follows from out-of-fold predictions."""

import numpy as np
import pytest

from hf_finetune.choosing.out_of_fold import measure_interval
from hf_finetune.run.scored import ScoredExamples
from hf_finetune.tasks.example_scores import ExampleScores


@pytest.mark.parametrize(("count", "num_resamples"), [(1_000, 1_000), (100_000, 200)])
def test_many_examples_have_fewer_resamples(count: int, num_resamples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = ExampleScores(rows=np.arange(count), metrics={"accuracy": ("at_most",)})
    scored = ScoredExamples(
        task="classify",
        problem="single_label",
        metric="accuracy",
        scores=scores,
        files=["a.csv"] * count,
        lines=range(count),
        digests=["0"] * count,
    )
    sizes = []

    def compute(self: ScoredExamples, metric: str, weights: np.ndarray) -> np.ndarray:
        sizes.append(len(weights))
        return weights[:, 0]

    monkeypatch.setattr(ScoredExamples, "compute", compute)
    assert measure_interval(scored) is not None
    assert sum(sizes) == 1 + num_resamples  # the first one has each example once
