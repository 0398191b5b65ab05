"""The likeliest wrong labels, from made out-of-fold predictions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_ensemble_scores

from hf_finetune.choosing.label_errors import LABEL_ERRORS, find_likely_errors, report_errors, show_label_errors
from hf_finetune.choosing.out_of_fold import OUT_OF_FOLD
from hf_finetune.run.scored import ScoredExamples, read_scored, write_scored
from hf_finetune.system.console import configure_logging
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.example_scores import BestProbabilities, ExampleScores

NAMES = ("animals", "food", "tools")


def make_scored(labels: list[Any], probabilities: Any, names: tuple[str, ...] = NAMES) -> ScoredExamples:
    """Scored examples with these labels and probabilities."""
    count = len(labels)
    return ScoredExamples(
        task="classify",
        problem="single_label",
        metric="accuracy",
        scores=ExampleScores(
            rows=np.arange(count),
            metrics={},
            labels=labels,
            predictions=labels,
            probabilities=probabilities,
            label_names=names,
        ),
        files=["rows.csv"] * count,
        lines=list(range(2, count + 2)),
        digests=["0"] * count,
    )


def make_planted(count: int = 300) -> tuple[ScoredExamples, set[int]]:
    """Examples of which a model knows most labels, and the lines of those with another label."""
    generator = np.random.default_rng(0)
    right = generator.integers(3, size=count)
    logits = generator.normal(size=(count, 3))
    logits[np.arange(count), right] += 5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = generator.choice(count, 15, replace=False)
    given = right.copy()
    given[wrong] = (right[wrong] + 1) % 3
    return make_scored([NAMES[label] for label in given], probabilities), {int(place) + 2 for place in wrong}


def test_planted_errors_come_first_as_in_cleanlab() -> None:
    scored, lines = make_planted()
    errors = find_likely_errors(scored)
    found = [int(error.origin.removeprefix("rows.csv:")) for error in errors]
    assert len(set(found[:15]) & lines) >= 13
    theirs = find_label_issues(
        scored.scores.label_numbers,
        scored.scores.probabilities,
        filter_by="confident_learning",
        return_indices_ranked_by="self_confidence",
    )
    assert {error.place for error in errors} >= {*theirs.tolist()}


def test_several_labels_are_added_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = [["animals"]] * 20 + [["animals", "food"]] * 20 + [["food"]] * 20
    probabilities = np.array([[0.9, 0.1, 0.0]] * 20 + [[0.9, 0.9, 0.0]] * 20 + [[0.1, 0.9, 0.0]] * 20)
    probabilities[3] = [0.95, 0.97, 0.0]
    probabilities[30] = [0.96, 0.02, 0.0]
    scored = make_scored(labels, probabilities)
    errors = find_likely_errors(scored)
    assert {(error.origin, error.label, error.suggestion) for error in errors} == {
        ("rows.csv:5", "animals", "+food"),
        ("rows.csv:32", "animals food", "-food"),
    }
    configure_logging()
    report_errors(tmp_path, scored, errors)
    assert capsys.readouterr().out.startswith("labels      2 in 60 rows are likely wrong: ")


def make_many(count: int = 2000, num_labels: int = 80) -> tuple[ScoredExamples, ScoredExamples, set[int]]:
    """Examples of many labels with all probabilities, the same with the best ones, and the places of those that are wrong."""
    names = tuple(f"c{number}" for number in range(num_labels))
    generator = np.random.default_rng(0)
    right = generator.integers(num_labels, size=count)
    logits = generator.normal(size=(count, num_labels)) + 4 * np.eye(num_labels)[right]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = generator.choice(count, 100, replace=False)
    given = right.copy()
    given[wrong] = (right[wrong] + 1 + generator.integers(num_labels - 1, size=100)) % num_labels
    every = make_scored([names[label] for label in given], probabilities, names)
    numbers = np.argsort(-probabilities, axis=1)[:, :5]
    best = BestProbabilities(numbers=numbers, values=np.take_along_axis(probabilities, numbers, axis=1))
    losses = -np.log(probabilities[np.arange(count), given])
    some = replace(every, scores=replace(every.scores, probabilities=best, losses=losses))
    return every, some, {*wrong.tolist()}


def test_the_best_of_many_probabilities_find_the_errors_of_all(tmp_path: Path) -> None:
    """A label that is not among them has the probability of its loss, not 0."""
    every, some, wrong = make_many()
    write_scored(tmp_path / OUT_OF_FOLD, some)
    expected, found = find_likely_errors(every), find_likely_errors(read_scored(tmp_path / OUT_OF_FOLD))
    assert [(error.place, error.suggestion) for error in found] == [
        (error.place, error.suggestion) for error in expected
    ]
    assert [error.probability for error in found] == pytest.approx([error.probability for error in expected])
    assert min(error.probability for error in found) > 0
    assert len(wrong & {error.place for error in found[:100]}) > 50


def test_several_of_many_labels_are_not_checked(tmp_path: Path) -> None:
    names = tuple(f"c{number}" for number in range(80))
    best = BestProbabilities(numbers=np.array([[0, 1, 2, 3, 4]] * 10), values=np.full((10, 5), 0.99))
    scored = make_scored([list(names[:8])] * 10, best, names)  # a perfect model, of which five probabilities are known
    write_scored(tmp_path / OUT_OF_FOLD, scored)
    with pytest.raises(InputError, match=r"of 80 labels the 5 best .* with several labels a text all must be"):
        show_label_errors([tmp_path], 3)


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    scored, _ = make_planted()
    write_scored(tmp_path / OUT_OF_FOLD, scored)
    show_label_errors([tmp_path], 3)
    printed = capsys.readouterr().out
    assert printed.count("rows.csv:") == 3
    written = (tmp_path / LABEL_ERRORS).read_text(encoding="utf-8").splitlines()
    assert f"labels      {len(written)} of 300 are likely wrong" in printed
    first = json.loads(written[0])
    assert first.keys() == {"file", "line", "label", "suggestion", "probability"}
    report_errors(tmp_path, scored, [])
    assert "none is likely wrong" in capsys.readouterr().out


def test_tasks_without_classes(tmp_path: Path) -> None:
    write_scored(tmp_path / OUT_OF_FOLD, make_scored([1.0, 2.0], None, ()))
    with pytest.raises(InputError, match="the task classify has no classes with probabilities"):
        show_label_errors([tmp_path], 3)


def make_two(folder: Path) -> tuple[list[Path], list[Any]]:
    """Folders with the out-of-fold predictions of two models, and their probabilities."""
    first, _ = make_planted()
    noise = np.random.default_rng(1).dirichlet(np.ones(3), size=len(first))
    mixed = 0.6 * np.asarray(first.scores.probabilities) + 0.4 * noise
    parts = [first, replace(first, scores=replace(first.scores, probabilities=mixed))]
    folders = [folder / "one", folder / "two"]
    for path, part in zip(folders, parts, strict=True):
        write_scored(path / OUT_OF_FOLD, part)
    return folders, [part.scores.probabilities for part in parts]


def read_found(folder: Path) -> list[dict[str, Any]]:
    """The lines of the file of likely wrong labels."""
    return [json.loads(line) for line in (folder / LABEL_ERRORS).read_text(encoding="utf-8").splitlines()]


def test_the_mean_of_several_folders_is_that_of_cleanlab(tmp_path: Path) -> None:
    folders, probabilities = make_two(tmp_path)
    show_label_errors(folders, 3)
    labels = read_scored(folders[0] / OUT_OF_FOLD).scores.label_numbers
    settings = {"filter_by": "confident_learning", "return_indices_ranked_by": "self_confidence"}
    expected = find_label_issues(labels, np.mean(probabilities, axis=0), **settings)
    found = read_found(folders[0])
    assert [error["line"] - 2 for error in found] == expected.tolist()
    scores = get_label_quality_ensemble_scores(labels, probabilities, weight_ensemble_members_by="uniform")
    assert [error["probability"] for error in found] == pytest.approx(scores[expected], abs=1e-6)
    assert expected.tolist() != find_label_issues(labels, probabilities[0], **settings).tolist()


def test_rows_that_not_all_folders_have_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    folders, _ = make_two(tmp_path)
    second = read_scored(folders[1] / OUT_OF_FOLD)
    show_label_errors(folders, 3)
    before = {error["line"] for error in read_found(folders[0])}
    assert "not checked" not in capsys.readouterr().out
    changed = replace(
        second,
        digests=["1" if line in before else digest for line, digest in zip(second.lines, second.digests, strict=True)],
    )
    write_scored(folders[1] / OUT_OF_FOLD, changed.take(np.arange(len(second) - 1, -1, -1)))
    show_label_errors(folders, 3)
    assert f"labels      {len(before)} rows are not checked" in capsys.readouterr().out
    assert not before & {error["line"] for error in read_found(folders[0])}


def test_folders_without_a_mean(tmp_path: Path) -> None:
    folders, _ = make_two(tmp_path)
    scored = read_scored(folders[1] / OUT_OF_FOLD)
    write_scored(folders[1] / OUT_OF_FOLD, replace(scored, files=["others.csv"] * len(scored)))
    with pytest.raises(InputError, match=r"one, .*two: are the folds of different data or labels"):
        show_label_errors(folders, 3)
    _, some, _ = make_many(200)
    write_scored(tmp_path / OUT_OF_FOLD, some)
    with pytest.raises(InputError, match=r"of 80 labels only the best probabilities .* have no mean; name one folder"):
        show_label_errors([tmp_path, tmp_path], 3)
