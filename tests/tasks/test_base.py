"""The contract of tasks: what a subclass must define, and what it gets from its base class."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig, TaskSettings
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.data.features import Array, Batch, Features
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import (
    Columns,
    CountedObjective,
    Encoding,
    EvaluationOutput,
    GeneratingScoring,
    InBatchObjective,
    Objective,
    Outputs,
    Scoring,
    SummedObjective,
    Task,
)

REQUIRED = {
    Columns: {"spec", "make_row"},
    Encoding: {"encoded_columns", "tokenize", "labels"},
    Objective: {"start_update", "evaluate", "mean", "timing_loss"},
    SummedObjective: {"loss"},
    CountedObjective: {"count", "sum_loss"},
    InBatchObjective: {"embed", "batch_loss"},
    Scoring: {"metric_names", "reduce", "compute_metrics", "make_predictions"},
    GeneratingScoring: {"metric_names", "reduce", "compute_metrics", "make_predictions", "generate"},
    Task: {"make_columns", "from_state", "describe_for_card"},
}


@pytest.mark.parametrize(("base", "names"), REQUIRED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_subclass_that_lacks_a_required_method_cannot_be_constructed(base: type, names: set[str]) -> None:
    empty = type("Empty", (base,), {})
    with pytest.raises(TypeError, match="abstract") as caught:
        empty()
    assert all(name in str(caught.value) for name in names)
    assert empty.__abstractmethods__ == names  # type: ignore[attr-defined]
    for missing in names:
        methods: dict[str, Any] = dict.fromkeys(names - {missing}, lambda self: None)
        with pytest.raises(TypeError, match=missing):
            type("Incomplete", (base,), methods)()


@pytest.mark.parametrize("kind", TASKS)
def test_every_task_is_a_task_with_settings_of_its_own(kind: str) -> None:
    task_class = load_task(kind)
    assert issubclass(task_class, Task)
    assert task_class.Settings(kind=kind).kind == kind
    assert task_class.Settings is not TaskSettings


# --- the smallest task ----------------------------------------------------------------------------------------------


class WordColumns(Columns):
    """One column."""

    @property
    def spec(self) -> ColumnSpec:
        return ColumnSpec(inputs=("text",))

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        return {"text": texts[0]}


class WordEncoding(Encoding):
    """One token a text: the number of its words, which is also its target."""

    def encoded_columns(self) -> tuple[str, ...]:
        return ("text",)

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        counts = np.array([len(text.split()) for text in table.columns["text"]], dtype=np.int32)
        return {"input_ids": counts, "offsets": np.arange(len(counts) + 1), "truncated": np.array(0)}

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Array:
        return arrays["input_ids"].astype(np.float32)


class WordObjective(SummedObjective):
    """Absolute errors."""

    def loss(self, outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, float]:
        assert batch.labels is not None
        return (outputs - batch.labels).abs().sum(), float(len(outputs))


class WordScoring(Scoring):
    """The largest error."""

    metric_names = ("largest_error",)

    def reduce(self, outputs: torch.Tensor, batch: Batch) -> list[Array]:
        return list(outputs.numpy())

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        labels = features.get_labels(indices)
        return {"largest_error": float(np.max(np.abs(np.array(outputs) - labels)))}

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        for output in outputs:
            yield {"words": float(output)}


class WordTask(Task):
    """Counts words."""

    @classmethod
    def make_columns(cls, config: RunConfig) -> WordColumns:
        return WordColumns()

    @classmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> "WordTask":
        return cls(
            columns=cls.make_columns(config),
            encoding=WordEncoding(),
            objective=WordObjective(),
            scoring=WordScoring(),
            head=HeadSpec(auto_class="AutoModel"),
            pipeline_tag="text-classification",
            problem="words",
        )

    def describe_for_card(self) -> str:
        return "counting words."


class FixedRunner:
    """A runner whose model returns the same outputs for any features, and the text "a b" as token ids."""

    def __init__(self, outputs: Sequence[float]) -> None:
        self.outputs = np.array(outputs)
        self.requested: list[int] = []

    def compute_outputs(self, indices: Array, reduce: Any = None) -> EvaluationOutput:
        self.requested = indices.tolist()
        return EvaluationOutput(loss=0.5, outputs=list(self.outputs[indices]))

    def generate_texts(self, generate: Any, indices: Array) -> list[str]:
        return ["a b" for _ in indices]


CONFIG = RunConfig(model=ModelConfig(backbone="-"), data=DataConfig(train=("-",)), task=TaskSettings(kind="words"))


def make_features(*texts: str) -> tuple[WordTask, Table, Features]:
    """Returns a task, a table of texts and its features."""
    task = WordTask.from_table(CONFIG, None)  # type: ignore[arg-type]
    table = Table(columns={"text": list(texts)}, files=["rows.csv"] * len(texts), lines=list(range(len(texts))))
    arrays = task.encoding.tokenize(table, None, 8)
    features = Features(
        inputs={"input_ids": arrays["input_ids"]},
        offsets=arrays["offsets"],
        labels=task.encoding.labels(table, arrays),
        num_truncated=3,
    )
    return task, table, features


def test_a_task_needs_no_more_than_the_required_methods() -> None:
    task, table, features = make_features("a", "a b", "a b c")
    runner = FixedRunner([1.0, 2.5, 0.0])
    values = task.scoring.evaluate(runner, features, table, metric="largest_error", indices=np.array([0, 1]))
    assert values == {"loss": 0.5, "largest_error": 0.5}
    assert runner.requested == [0, 1]
    predictions = list(task.scoring.predict(runner, features, table))
    assert predictions == [{"words": 1.0}, {"words": 2.5}, {"words": 0.0}]
    assert runner.requested == [0, 1, 2]
    assert list(task.scoring.make_document(iter(predictions))) == predictions
    assert task.scoring.default_metric == "largest_error"
    assert task.encoding.describe(features, table, 8) == [
        ("input", "at most 8 tokens; 3 training texts are longer and were cut")
    ]
    assert (task.state_dict(), task.read_state(None), task.label_names) == ({}, {}, ())
    inference = task.for_inference(None)
    assert (inference.encoding, inference.scoring) == (task.encoding, task.scoring)


def test_a_metric_that_a_task_does_not_have_is_an_error_with_its_setting() -> None:
    scoring = WordScoring()
    assert [scoring.check_metric(name) for name in ("loss", "largest_error")] == ["loss", "largest_error"]
    with pytest.raises(InputError, match=r"^--metric \(f1\): must be one of loss, largest_error$"):
        scoring.check_metric("f1", "--metric")


def test_two_encodings_have_different_names() -> None:
    other = type("OtherEncoding", (WordEncoding,), {})
    assert WordEncoding().name != other().name


# --- objectives -----------------------------------------------------------------------------------------------------


def make_batch(labels: torch.Tensor | None, size: int = 3) -> Batch:
    """Returns a batch that has all that a loss reads."""
    indices = np.arange(size)
    return Batch(
        feature_indices=indices,
        sequence_indices=indices,
        sequence_counts=np.ones(size, dtype=np.int64),
        inputs={},
        labels=labels,
    )


def test_the_mean_of_a_summed_loss_is_over_all_targets_and_not_a_mean_of_means() -> None:
    objective, (_, _, features) = WordObjective(), make_features("a", "b c")
    sums = [(3.0, 1.0), (1.0, 3.0)]
    assert objective.mean(sums, [], features, np.arange(2)) == 1.0
    assert math.isnan(objective.mean([(0.0, 0.0)], [], features, np.arange(2)))
    assert objective.evaluate(torch.ones(3), make_batch(torch.zeros(3))) == (3.0, 3.0)
    assert objective.evaluate(torch.ones(3), make_batch(None)) == (0.0, 0.0)
    update_loss = objective.start_update(None)  # type: ignore[arg-type]
    assert (update_loss.total, update_loss.num_targets) == (None, None)


class CountedWords(CountedObjective):
    """The errors of WordObjective, whose number is known before."""

    def count(self, batch: Batch) -> float:
        return float(len(batch.feature_indices))

    def sum_loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert batch.labels is not None
        return (outputs - batch.labels).abs().sum()


class DerivedWords(CountedWords):
    """Overrides loss(), as objectives derived from a task's own could before there was sum_loss()."""

    def loss(self, outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, float]:
        return 2 * self.sum_loss(outputs, batch), 2.0


def test_training_and_evaluation_take_the_same_loss() -> None:
    """Also if a derived class overrides loss(): then only it knows the number of targets."""
    outputs, batch = torch.ones(3), make_batch(torch.zeros(3))

    class Forwards:
        def count_targets(self, count: Any) -> float:
            number: float = count(batch)
            return number

    counted = CountedWords().start_update(Forwards())  # type: ignore[arg-type]
    assert (float(counted.micro_batch(outputs, batch)[0]), counted.num_targets) == (3.0, 3.0)
    assert CountedWords().evaluate(outputs, batch) == (3.0, 3.0)
    derived = DerivedWords().start_update(Forwards())  # type: ignore[arg-type]
    assert derived.num_targets is None
    assert derived.micro_batch(outputs, batch) == (6.0, 2.0) == DerivedWords().evaluate(outputs, batch)


class SpreadObjective(InBatchObjective):
    """The squared distances of all embeddings from their mean."""

    def embed(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return outputs**2

    def batch_loss(
        self, embeddings: torch.Tensor, counts: Array, features: Features, indices: Array
    ) -> tuple[torch.Tensor, float]:
        return ((embeddings - embeddings.mean(0)) ** 2).sum(), float(len(counts))


class FixedForwards:
    """Forward passes whose outputs are known."""

    def __init__(self, outputs: torch.Tensor, features: Features) -> None:
        self.outputs, self.features, self.indices = outputs, features, np.arange(len(outputs))

    def embed_all(self, embed: Any) -> torch.Tensor:
        embeddings: torch.Tensor = embed(self.outputs, None)
        return embeddings.detach()

    def find_positions(self, batch: Batch) -> list[int]:
        positions: list[int] = batch.sequence_indices.tolist()
        return positions


@pytest.mark.parametrize("groups", [[[0, 1, 2, 3, 4]], [[0, 3], [1, 4, 2]], [[4], [3], [2], [1], [0]]])
def test_micro_batches_give_the_gradient_of_the_loss_of_the_batch(groups: list[list[int]]) -> None:
    objective, (_, _, features) = SpreadObjective(), make_features("a", "b", "c", "d", "e")
    outputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected, count = objective.batch_loss(
        objective.embed(outputs, None),  # type: ignore[arg-type]
        np.ones(5),
        features,
        np.arange(5),
    )
    (gradient,) = torch.autograd.grad(expected, outputs)
    update_loss = objective.start_update(FixedForwards(outputs, features))
    assert update_loss.num_targets == count
    torch.testing.assert_close(update_loss.total, expected.detach())
    for group in groups:
        batch = make_batch(None, len(group))
        batch.sequence_indices[:] = group
        surrogate, _ = update_loss.micro_batch(outputs[group], batch)
        surrogate.backward()
    torch.testing.assert_close(outputs.grad, gradient)


def test_an_in_batch_loss_is_evaluated_in_groups_of_a_fixed_size() -> None:
    objective, (_, _, features) = SpreadObjective(), make_features(*["a"] * 100)
    outputs = [np.full((1, 2), number, dtype=np.float32) for number in range(100)]
    stacked = torch.from_numpy(np.concatenate(outputs))
    sums = [float(objective.batch_loss(part, np.ones(1), features, np.arange(1))[0]) for part in stacked.split(64)]
    assert objective.EVALUATION_SIZE == 64
    assert objective.mean([], outputs, features, np.arange(100)) == pytest.approx(sum(sums) / 100)
    unlabeled = Features(inputs={}, offsets=np.arange(101), labels=None, num_truncated=0)
    assert math.isnan(objective.mean([], outputs, unlabeled, np.arange(100)))


# --- generated texts ------------------------------------------------------------------------------------------------


class WritingScoring(GeneratingScoring, WordScoring):
    """Predicts the generated text."""

    def generate(self, model: Any, batch: Batch) -> list[Array]:
        return [np.array([1]) for _ in batch.feature_indices]

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        for text in outputs:
            yield {"text": text}


def test_predictions_of_a_generating_task_are_its_texts() -> None:
    _, table, features = make_features("a", "b")
    assert list(WritingScoring().predict(FixedRunner([0, 0]), features, table)) == [{"text": "a b"}] * 2
