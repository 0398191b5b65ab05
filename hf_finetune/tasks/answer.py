"""Extractive question answering: the answer is a part of the context, or there is none.

A question with its context is one feature or, if the context is long, several windows that overlap.

B features of a batch, N features of a split (windows), T tokens.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.features import Array, Batch, Features
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Columns, CountedObjective, Encoding, Outputs, Scoring, Task
from hf_finetune.tasks.example_scores import ExampleScores, Rule, group_by_row, sum_by_row
from hf_finetune.tasks.own_functions import MetricInputs
from hf_finetune.tasks.scoring import KeptOutputs
from hf_finetune.tasks.text import squad
from hf_finetune.tasks.text.answer_reader import OPTIONAL_COLUMNS, START, AnswerReader, get_id
from hf_finetune.tasks.text.contexts import encode_questions, find_answer_tokens

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """Settings of question answering.

    Args:
        window_overlap: Tokens that neighbouring windows of a long context share; 128, or half of a short window, if not given.
        longest_answer: Most tokens of an answer.
        num_best: Start positions, and end positions, that are tried in each window.
        null_threshold: Predict no answer if its score exceeds the best span's by more than this. Only used if training has
            questions without an answer.
    """

    window_overlap: int | None = None
    longest_answer: int = 30
    num_best: int = 20
    null_threshold: float = 0.0

    def __post_init__(self) -> None:
        overlap = self.window_overlap
        require(overlap is None or overlap >= 0, "task.window_overlap", overlap, "must be 0 or more")
        require(self.longest_answer >= 1, "task.longest_answer", self.longest_answer, "must be at least 1")
        require(self.num_best >= 1, "task.num_best", self.num_best, "must be at least 1")
        require(abs(self.null_threshold) < float("inf"), "task.null_threshold", self.null_threshold, "must be finite")


def get_settings(config: RunConfig) -> Settings:
    """Returns `config.task`, which is of this task."""
    assert isinstance(config.task, Settings)
    return config.task


@dataclass(frozen=True, kw_only=True)
class AnsweringColumns(Columns):
    """The columns of the question, the context and the answers."""

    reader: AnswerReader

    @property
    def spec(self) -> ColumnSpec:
        """Questions about the same context stay in one split."""
        texts = (self.reader.question, self.reader.context)
        return ColumnSpec(
            inputs=texts,
            labels=(self.reader.answers,),
            optional=OPTIONAL_COLUMNS,
            texts=texts,
            together=(self.reader.context,),
            alternatives=self.reader.alternatives,
            also_read=(START,),
            find_conversion=self.reader.find_conversion,
        )

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        if len(texts) != 2:
            raise InputError(f"--text: takes two texts, the question and the context, not {len(texts)}")
        return dict(zip((self.reader.question, self.reader.context), texts, strict=True))


@dataclass(frozen=True, kw_only=True)
class AnsweringEncoding(Encoding):
    """Questions and contexts to windows, answers to the tokens in which they begin and end.

    unanswerable: Training has questions without an answer.
    """

    rows_are_independent: ClassVar[bool] = True

    reader: AnswerReader
    window_overlap: int | None = None
    unanswerable: bool = False

    def encoded_columns(self) -> tuple[str, ...]:
        return (self.reader.question, self.reader.context)

    def encoding_settings(self) -> dict[str, Any]:
        return {"window_overlap": self.window_overlap}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Returns the arrays of text.contexts.encode_questions(): with char_starts [T] and char_ends [T]."""
        questions, contexts = table.columns[self.reader.question], table.columns[self.reader.context]
        return encode_questions(questions, contexts, tokenizer, max_length, self.window_overlap)

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Array:
        """Returns the tokens in which the first answer begins and ends, int64 [N, 2].

        They are 0 and 0, the first token, if the window does not hold the complete answer, as in BERT's run_squad.py.
        """
        answers = [self.reader.read(table, row) for row in range(len(table))]
        labels = np.zeros((len(arrays["examples"]), 2), dtype=np.int64)
        for window, row in enumerate(arrays["examples"]):
            if answers[row]:
                tokens = slice(*arrays["offsets"][window : window + 2])
                char_starts, char_ends = arrays["char_starts"][tokens], arrays["char_ends"][tokens]
                labels[window] = find_answer_tokens(answers[row][0], char_starts, char_ends)
        return labels

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """The windows; the questions with and without an answer; the answers that no window holds completely."""
        labels, examples = features.labels, features.example_indices
        assert isinstance(labels, np.ndarray)
        assert examples is not None
        windows = f"{len(table):,} questions in {len(features):,} windows of at most {max_length} tokens"
        if features.num_truncated:
            windows += f"; {features.num_truncated:,} questions are longer than half a window and were cut"
        has_answer = self.reader.find_answered(table)
        is_held = np.zeros(len(table), dtype=bool)
        is_held[examples[labels.any(-1)]] = True
        num_lost = int((has_answer & ~is_held).sum())
        lost = "each answer fits into a window"
        if num_lost:
            lost = f"{num_lost:,} answers fit into no window and are not trained on"
        answers = f"{self.reader.describe_unanswered(table, has_answer)}; {lost}"
        if num_found := self.reader.count_found(table):
            answers += f"; {num_found:,} answers have no answer_start and occur once in their context"
        return [("input", windows), ("answers", answers)]

    def find_row_warnings(self, table: Table) -> list[str]:
        """Answers that is_impossible contradicts; questions without an answer where training has none."""
        return self.reader.find_warnings(table, unanswerable=self.unanswerable)


@dataclass(frozen=True, kw_only=True)
class AnsweringObjective(CountedObjective):
    """Cross entropy of the tokens in which the answer begins and ends."""

    def count(self, batch: Batch) -> float:
        """The number of windows."""
        return float(len(batch.feature_indices))

    def sum_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Mean of the cross entropies of start and end, summed over windows. outputs: [B, T, 2].

        Padding is masked, so that the loss does not depend on the other windows of the batch.
        """
        from torch.nn import functional as F

        assert batch.labels is not None
        logits = outputs.float().masked_fill(batch.inputs["attention_mask"][..., None] == 0, float("-inf"))
        return F.cross_entropy(logits, batch.labels, reduction="sum") / 2


@dataclass(frozen=True, kw_only=True)
class AnsweringScoring(Scoring):
    """Logits to answers and SQuAD's metrics.

    Args:
        reader: Reads the answers.
        num_best, longest_answer, null_threshold: See Settings.
        unanswerable: Training has questions without an answer, so the model may give none.
    """

    reader: AnswerReader
    num_best: int = 20
    longest_answer: int = 30
    null_threshold: float = 0.0
    unanswerable: bool = False

    @property
    def metric_names(self) -> tuple[str, ...]:
        if self.unanswerable:
            return ("f1", "exact_match", "HasAns_f1", "HasAns_exact", "NoAns_f1", "NoAns_exact")
        return ("f1", "exact_match")

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Start and end logits of each window's tokens, without padding [T, 2]."""
        lengths = batch.inputs["attention_mask"].sum(-1).tolist()
        return [logits[:length] for logits, length in zip(outputs.float().cpu().numpy(), lengths, strict=True)]

    def find_answers(
        self, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> Iterator[tuple[int, squad.Answer]]:
        """Yields the rows of the table that the features at `indices` were made of, in order, each with its answer."""
        windows: dict[int, list[squad.Window]] = defaultdict(list)
        for feature, logits in zip(indices.tolist(), outputs, strict=True):
            tokens = slice(*features.offsets[feature : feature + 2])
            char_starts, char_ends = features.extras["char_starts"][tokens], features.extras["char_ends"][tokens]
            window = squad.Window(logits=logits, char_starts=char_starts, char_ends=char_ends)
            windows[features.get_example(feature)].append(window)
        threshold = self.null_threshold if self.unanswerable else None
        search = squad.Search(num_best=self.num_best, longest=self.longest_answer, null_threshold=threshold)
        for row in sorted(windows):
            yield row, squad.find_best_answer(table.columns[self.reader.context][row], windows[row], search)

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """In [0, 1]; those of SQuAD 2.0 if training or these rows have questions without an answer, else those of 1.1."""
        answers = dict(self.find_answers(outputs, features, table, indices))
        references = [[text for text, _ in self.reader.read(table, row)] for row in answers]
        texts = [answer.text for answer in answers.values()]
        values = squad.score_answers(texts, references, unanswerable=self.unanswerable or not all(references))
        return {name: values[name] for name in self.metric_names}

    def make_metric_inputs(self, outputs: Outputs, features: Features, table: Table, indices: Array) -> MetricInputs:
        """The text of each row's answer ("" for none), the list of its right answers, and the score of the answer [N]."""
        answers = dict(self.find_answers(outputs, features, table, indices))
        return MetricInputs(
            predictions=[answer.text for answer in answers.values()],
            references=[[text for text, _ in self.reader.read(table, row)] for row in answers],
            scores=np.array([answer.score for answer in answers.values()]),
        )

    def describe_examples(
        self, kept: KeptOutputs, features: Features, table: Table, names: Sequence[str]
    ) -> ExampleScores:
        """The metrics of each question, and the loss summed over its windows."""
        from scipy.special import log_softmax

        answers = dict(self.find_answers(kept.outputs, features, table, kept.indices))
        references = [[text for text, _ in self.reader.read(table, row)] for row in answers]
        texts = [answer.text for answer in answers.values()]
        scores = squad.score_each(texts, references, unanswerable=self.unanswerable or not all(references))
        rows, places = group_by_row(features, kept.indices)
        losses = [
            -log_softmax(logits.astype(np.float64), axis=0)[target, (0, 1)].mean()
            for logits, target in zip(kept.outputs, features.get_targets(kept.indices), strict=True)
        ]
        sums = sum_by_row(np.stack([losses, np.ones(len(losses))], 1), places, len(rows))
        metrics: dict[str, Rule] = {name: ("mean", name) for name in self.metric_names}
        return ExampleScores(
            rows=rows,
            metrics={"loss": ("ratio", "window_losses", "windows"), **metrics},
            columns=("window_losses", "windows", *self.metric_names),
            numbers=np.column_stack([sums, *(np.array(scores[name], dtype=np.float64) for name in self.metric_names)]),
            labels=references,
            predictions=texts,
            losses=sums[:, 0] / sums[:, 1],
        )

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """For each question id, answer, score, and begin and end (characters of the context; null if there is no answer). If the
        model may give no answer, also no_answer_score, which is compared with task.null_threshold."""
        for row, answer in self.find_answers(outputs, features, table, np.arange(len(features))):
            prediction: dict[str, Any] = {
                "id": get_id(table, row),
                "answer": answer.text,
                "score": answer.score,
                "begin": answer.begin,
                "end": answer.end,
            }
            if self.unanswerable:
                prediction["no_answer_score"] = answer.no_answer_score
            yield prediction

    def make_document(self, predictions: Iterator[Mapping[str, Any] | None]) -> Any:
        """The answer of each id, as SQuAD's evaluation scripts read it. InputError if two questions have the same id."""
        answers: dict[str, str] = {}
        for prediction in predictions:
            if prediction and "id" in prediction:  # else it could not be predicted
                if prediction["id"] in answers:
                    raise InputError(
                        f"--out: two questions have the id {prediction['id']}, and a .json file needs different ones; write a "
                        ".jsonl file instead"
                    )
                answers[prediction["id"]] = prediction["answer"]
        return answers


@dataclass(frozen=True, kw_only=True)
class Answering(Task):
    """Extractive question answering.

    Args:
        unanswerable: Training has questions without an answer, so the model may give none.
    """

    Settings = Settings
    auto_classes = ("AutoModelForQuestionAnswering",)

    encoding: AnsweringEncoding
    scoring: AnsweringScoring
    unanswerable: bool = False

    @classmethod
    def make_columns(cls, config: RunConfig) -> AnsweringColumns:
        texts, label, smoothing = config.data.text_columns, config.data.label_column, config.train.label_smoothing
        require(len(texts) == 2, "data.text_columns", list(texts), "must be two columns, the question and the context")
        require(label is not None, "data.label_column", None, "question answering needs the column of the answers")
        require(
            not smoothing, "train.label_smoothing", smoothing, "must be 0: question answering has no label smoothing"
        )
        question, context = texts
        return AnsweringColumns(reader=AnswerReader(question=question, context=context, answers=str(label)))

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Answering":
        """Finds out whether there are questions without an answer. InputError if no question has one."""
        reader = cls.make_columns(config).reader
        has_answer = reader.find_answered(table)
        if not has_answer.any():
            raise InputError(f"data.label_column ({reader.answers}): no training question has an answer")
        return cls.from_state(config, {"unanswerable": bool(not has_answer.all())})

    @classmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> "Answering":
        settings, columns = get_settings(config), cls.make_columns(config)
        unanswerable = bool(state.get("unanswerable", False))
        return cls(
            problem="question_answering",
            unanswerable=unanswerable,
            pipeline_tag="question-answering",
            # Two outputs, for start and end, even if the backbone was trained with another number
            head=HeadSpec(auto_class=cls.auto_classes[0], config_entries={"num_labels": 2}),
            columns=columns,
            encoding=AnsweringEncoding(
                reader=columns.reader, window_overlap=settings.window_overlap, unanswerable=unanswerable
            ),
            objective=AnsweringObjective(),
            scoring=AnsweringScoring(
                reader=columns.reader,
                num_best=settings.num_best,
                longest_answer=settings.longest_answer,
                null_threshold=settings.null_threshold,
                unanswerable=unanswerable,
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"unanswerable": self.unanswerable}

    def describe_for_card(self) -> str:
        text = "extractive question answering: the answer is a part of the context."
        return f"{text} Some of its questions have no answer in the context." if self.unanswerable else text
