"""The file of scored examples: what is written is read, and what a run writes."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs import CutOffError

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.table import Table
from hf_finetune.run.scored import ScoredExamples, digest_rows, read_scored, write_scored
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.example_scores import BestProbabilities, ExampleScores
from hf_finetune.tasks.scoring import EvaluationOutput, KeepingRunner
from hf_finetune.train import finetune

SHORT: dict[str, Any] = {"train.epochs": 2, "cache.activations": "off", "tracking.trackers": []}


def make_scored(**scores: Any) -> ScoredExamples:
    """Returns three scored examples."""
    made = {"rows": np.array([0, 1, 4]), "metrics": {"accuracy": ("labels", "accuracy")}} | scores
    return ScoredExamples(
        task="classify",
        problem="single_label",
        metric="accuracy",
        scores=ExampleScores(**made),
        files=["a.csv", "a.csv", "b\udc80.csv"],
        lines=[2, 3, 17],
        digests=["01", "02", "03"],
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a file, its header first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8", errors="surrogatepass").splitlines()]


NAMES = tuple(f"label {number}" for number in range(60))


@pytest.mark.parametrize(
    ("scores", "line"),
    [
        (
            {
                "labels": ["yes", "no", "yes"],
                "predictions": ["yes", "yes", "no"],
                "label_names": ("no", "yes"),
                "losses": np.array([0.125, np.inf, 1 / 3]),
                "probabilities": np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]]),
            },
            {"label": "yes", "prediction": "no", "loss": 0.333333333, "probabilities": [1, 0]},
        ),
        (
            {
                "labels": ["label 2", "label 1", "label 59"],
                "predictions": ["label 2", "label 2", "label 2"],
                "label_names": NAMES,
                "probabilities": BestProbabilities(
                    numbers=np.array([[2, 1, 5, 4, 3]] * 3), values=np.array([[0.5, 0.25, 0.1, 0.05, 0.01]] * 3)
                ),
            },
            {
                "label": "label 59",
                "prediction": "label 2",
                "loss": None,
                "probabilities": {"label 2": 0.5, "label 1": 0.25, "label 5": 0.1, "label 4": 0.05, "label 3": 0.01},
            },
        ),
        (
            {
                "columns": ("a", "b"),
                "numbers": np.array([[1.0, 2.5], [np.nan, 0.0], [3.0, np.nan]]),
                "metrics": {"mean": ("mean", "a")},
                "probabilities": [np.array([0.5, 0.5]), np.array([1.0]), np.array([0.25, 0.25, 0.5])],
            },
            {"label": None, "prediction": None, "loss": None, "probabilities": [0.25, 0.25, 0.5], "numbers": [3, None]},
        ),
        (
            {
                "columns": tuple(f"right/{number}" for number in range(30)),
                "numbers": np.vstack([np.arange(30.0), np.zeros(30), np.eye(30)[4] * 1.5]),
                "metrics": {"mean": ("mean", "right/4")},
            },
            {"label": None, "prediction": None, "loss": None, "numbers": {"right/4": 1.5}},
        ),
    ],
    ids=["probabilities", "many_labels", "numbers", "many_numbers"],
)
def test_what_is_written_is_read(tmp_path: Path, scores: dict[str, Any], line: dict[str, Any]) -> None:
    path, scored = tmp_path / "scored" / "test.jsonl", make_scored(**scores)
    assert write_scored(path, scored) == path.stat().st_size
    header, *lines = read_lines(path)
    assert {key: header[key] for key in ("format", "task", "problem", "metric", "examples")} == {
        "format": 1, "task": "classify", "problem": "single_label", "metric": "accuracy", "examples": 3,
    }  # fmt: skip
    assert lines[2] == {"row": 4, "file": "b\udc80.csv", "line": 17, "digest": "03", **line}
    again = read_scored(path)
    metric = again.metrics[0]
    assert again.compute(metric) == pytest.approx(scored.compute(metric))
    assert again.compute(metric, np.array([[3.0, 0.0, 0.0]])) == pytest.approx(
        scored.compute(metric, np.array([[3.0, 0.0, 0.0]]))
    )
    assert [again.where(place) for place in range(3)] == ["a.csv:2", "a.csv:3", "b\udc80.csv:17"]
    write_scored(tmp_path / "again.jsonl", again)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


def test_a_file_that_is_none_of_scored_examples_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    with pytest.raises(InputError, match=r"test\.jsonl: cannot be read: No such file"):
        read_scored(path)
    write_scored(path, make_scored(labels=["a", "b", "a"], predictions=["a", "a", "a"], label_names=("a", "b")))
    content = path.read_text(encoding="utf-8", errors="surrogatepass").splitlines()
    for lines, message in (
        ([], "is not a file of scored examples"),
        (["[]"], "is not a file of scored examples"),
        (['{"text": "a"}'], "is not a file of scored examples"),
        ([*content, "{}"], "has 4 examples instead of 3"),
        (content[:2], "has 1 examples instead of 3"),
        ([*content[:3], "{}"], "is not a file of scored examples"),
        ([content[0].replace('"format": 1', '"format": 9'), *content[1:]], "has format 9"),
    ):
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        with pytest.raises(InputError, match=message):
            read_scored(path)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"file.*cannot be read or written"):
        write_scored(tmp_path / "file" / "test.jsonl", make_scored())


def test_digests_tell_texts_and_labels_apart() -> None:
    table = Table(columns={"text": ["a", "b", "a"], "other": [1, 2, 3]}, files=["x"] * 3, lines=[1, 2, 3])
    first, second, third = digest_rows(table, ["text"], ["yes", "yes", "yes"])
    assert first == third != second
    assert digest_rows(table, ["text"], ["yes", "yes", "no"])[2] != third
    assert digest_rows(table, ["text", "missing"], None)[0] == digest_rows(table, ["text"], None)[2]


def test_a_run_writes_the_examples_of_its_best_evaluation_with_file_and_line(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    result = finetune(make_config(**SHORT, **{"train.learning_rate": 1e-2}))
    for split in ("validation", "test"):
        scored = read_scored(result.run_dir / "scored" / f"{split}.jsonl")
        assert scored.compute("accuracy")[0] == result.results[split]["accuracy"]
        assert scored.compute("loss")[0] == pytest.approx(result.results[split]["loss"], rel=1e-6)
        assert [*scored.scores.rows] == list(range(24))
        rows = [json.loads(line) for line in Path(scored.files[0]).read_text(encoding="utf-8").splitlines()]
        assert [rows[line - 1]["label"] for line in scored.lines] == scored.scores.labels
        assert np.asarray(scored.scores.probabilities).sum(1) == pytest.approx(np.ones(24))


def test_a_run_that_was_resumed_after_its_best_evaluation_writes_the_same_examples(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(make_config(**SHORT, name="whole"))

    def stop(*_: Any, **__: Any) -> None:
        raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.train.evaluate_exported", stop)
        with pytest.raises(CutOffError):
            finetune(make_config(**SHORT, name="resumed"))
    resumed = finetune(make_config(**SHORT, name="resumed"))
    for split in ("validation", "test"):
        ours, theirs = (run.run_dir / "scored" / f"{split}.jsonl" for run in (resumed, whole))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_split_that_is_too_large_is_left_out_with_the_way_to_its_examples(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in ("kept", "training_run", "scored_splits"):
        monkeypatch.setattr(f"hf_finetune.run.{module}.MOST_KEPT", 23)
    result = finetune(make_config(**SHORT))
    assert not (result.run_dir / "scored").exists()
    assert "scored/test.jsonl is left out: 24 examples are more than 23" in caplog.text
    assert f"hf-finetune evaluate {result.run_dir} --data FILE --scored OUT.jsonl writes it" in caplog.text


def test_outputs_that_are_too_large_are_left_out(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "hf_finetune.run.kept.MOST_BYTES", 24 * 24 - 1
    )  # a loss, a class number and three probabilities
    result = finetune(make_config(**SHORT))
    assert not (result.run_dir / "scored").exists()
    for split in ("validation", "test"):
        line = (
            f"scored/{split}.jsonl is left out: the outputs of its examples have 576 bytes, more than 575; hf-finetune"
        )
        assert line in caplog.text


def test_training_holds_the_outputs_of_the_best_evaluation_alone(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation that was not the best has left memory before the next one begins, that of the checks before training too."""
    made: list[weakref.ref[Any]] = []
    before: list[int] = []
    compute = KeepingRunner.compute_outputs

    def compute_and_count(self: KeepingRunner, *inputs: Any) -> EvaluationOutput:
        before.append(sum(reference() is not None for reference in made))
        result = compute(self, *inputs)
        made.append(weakref.ref(result.outputs))
        return result

    monkeypatch.setattr(KeepingRunner, "compute_outputs", compute_and_count)
    result = finetune(make_config(**SHORT | {"train.epochs": 4}, **{"train.learning_rate": 1e-30}))
    assert result.results["best"]["update"] == 8  # that of the first epoch; the others are no better
    assert before == [0, 0, 1, 1, 1, 1]  # the checks, four epochs, and the test split
