"""What follows from out-of-fold predictions."""

import numpy as np
import pytest

from hf_finetune.choosing.out_of_fold import join_scored, measure_interval
from hf_finetune.run.scored import ScoredExamples
from hf_finetune.tasks.example_scores import ExampleScores, Rule


def make_part(columns: tuple[str, ...], line: int) -> ScoredExamples:
    """A fold of one example, whose numbers are its line and those after it."""
    rules: dict[str, Rule] = {name: ("mean", name) for name in columns}
    return ScoredExamples(
        task="tag",
        problem="",
        metric="words",
        scores=ExampleScores(
            rows=np.arange(1),
            metrics={**rules, "f1": ("entities", "f1")},
            columns=columns,
            numbers=np.arange(line, line + len(columns), dtype=np.float64)[None],
        ),
        files=["a.csv"],
        lines=[line],
        digests=["0"],
    )


def test_folds_with_different_columns_share_some() -> None:
    """A sum over all columns, such as f1 of all entity types, does not follow from those that are shared."""
    joined = join_scored([make_part(("PER", "words"), 7), make_part(("words", "LOC"), 2)])
    assert joined.scores.columns == ("words",)
    assert joined.scores.numbers.tolist() == [[2.0], [8.0]]
    assert joined.metrics == ("words",)
    assert joined.compute("words").tolist() == [5.0]
    assert join_scored([make_part(("words",), 7), make_part(("words",), 2)]).metrics == ("words", "f1")


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
