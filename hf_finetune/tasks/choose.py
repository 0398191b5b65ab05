"""Multiple choice: which of two or more texts is right for a prompt. The number of choices may differ from row to row.

B features of a batch, N features of a split, S sequences, C choices of a row.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Array, Batch, Features
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Columns, CountedObjective, Encoding, Outputs, Scoring, Task
from hf_finetune.tasks.example_scores import ExampleScores
from hf_finetune.tasks.own_functions import MetricInputs
from hf_finetune.tasks.scoring import KeptOutputs
from hf_finetune.tasks.text.choice_columns import ChoiceColumnFinder
from hf_finetune.tasks.text.choice_reader import READINGS, ChoiceReader

if TYPE_CHECKING:
    import torch

LARGEST_SHARE, FEWEST_ROWS = (
    0.95,
    20,
)  # a warning: one place has the right choice in more of the rows, of at least as many


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """Settings of multiple choice.

    Args:
        choice_columns: The column of lists of choices, or two or more columns of one choice each.
    """

    choice_columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChoiceColumns(Columns):
    """The columns of the prompt, the choices and the label."""

    prompts: tuple[str, ...]
    choices: tuple[str, ...]
    label: str

    @property
    def spec(self) -> ColumnSpec:
        """Rows with the same prompt stay in one split. A row may lack all but the first two choices."""
        finder = ChoiceColumnFinder(prompts=self.prompts, choices=self.choices, label=self.label)
        return ColumnSpec(
            inputs=(*self.prompts, *self.choices[:2]),
            labels=(self.label,),
            optional=self.choices[2:],
            texts=self.prompts,
            together=self.prompts,
            settings=dict.fromkeys(self.choices, "task.choice_columns"),
            alternatives=finder.alternatives,
            also_read=finder.also_read,
            find_conversion=finder.find_conversion,
        )

    @property
    def num_example_texts(self) -> int:
        """The texts of the prompt and two choices."""
        return len(self.prompts) + 2

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        num_prompts, num_columns = len(self.prompts), len(self.choices)
        count = len(texts) - num_prompts
        if count < 2 or (num_columns > 1 and count > num_columns):
            takes = {1: "two or more choices", 2: "two choices"}.get(num_columns, f"two to {num_columns} choices")
            prompt = "prompt" if num_prompts == 1 else f"{num_prompts} texts of the prompt ({', '.join(self.prompts)})"
            raise InputError(f"--text: takes the {prompt} and then {takes}, not {len(texts)} texts")
        row: dict[str, Any] = dict(zip(self.prompts, texts, strict=False))
        choices = list(texts[num_prompts:])
        if num_columns == 1:
            return {**row, self.choices[0]: choices}
        return row | dict(zip(self.choices, [*choices, *[None] * (num_columns - count)], strict=True))


@dataclass(frozen=True, kw_only=True)
class ChoiceEncoding(Encoding):
    """A sequence for each choice, and the index of the right one."""

    rows_are_independent: ClassVar[bool] = True

    prompts: tuple[str, ...]
    reader: ChoiceReader

    def encoded_columns(self) -> tuple[str, ...]:
        return (*self.prompts, *self.reader.choice_columns)

    def encoding_settings(self) -> dict[str, Any]:
        """The number of prompt columns: with another number, the same columns give other sequences."""
        return {"prompt_columns": len(self.prompts)}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Encodes each choice as a pair of texts: the prompt's columns, joined with a space, and the choice."""
        choices = [self.reader.read_choices(table, row).texts for row in range(len(table))]
        counts = [len(texts) for texts in choices]
        prompts = [" ".join(table.columns[name][row] for name in self.prompts) for row in range(len(table))]
        repeated = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        arrays = tokenize([repeated, [text for texts in choices for text in texts]], tokenizer, max_length)
        return {**arrays, "rows": np.cumsum([0, *counts], dtype=np.int64)}

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Array:
        """Returns the right choice of each row, from 0, int64 [N]."""
        return np.array([self.reader.read_label(table, row) for row in range(len(table))], dtype=np.int64)

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """The input; the numbers of choices; how labels are read; how often each index is right."""
        assert isinstance(features.labels, np.ndarray)
        num_choices = Counter(features.count_sequences(np.arange(len(features))).tolist())
        shown = ", ".join(f"{count} in {rows:,} rows" for count, rows in sorted(num_choices.items()))
        right = ", ".join(
            f"{index} in {rows:,} rows" for index, rows in sorted(Counter(features.labels.tolist()).items())
        )
        cut = f"{features.num_truncated:,} prompts with a choice are longer and were cut"
        return [
            ("input", f"at most {max_length} tokens; {cut}"),
            ("choices", f"{shown}; labels are {READINGS[self.reader.reading]}; the right one is {right}"),
        ]

    def find_warnings(self, tables: Mapping[str, Table]) -> list[str]:
        """Labels that can be read in two ways; a place that nearly always has the right choice."""
        table, reader, warnings = tables["train"], self.reader, []
        for reading in reader.find_other_readings(table):
            warnings.append(
                f"train: labels can be {READINGS[reader.reading]}, or {READINGS[reading]}, which name other choices; they are "
                f"read as {READINGS[reader.reading]}; letters (A, B, ...) or the choices' texts would be clear"
            )
        places = Counter(reader.read_label(table, row) for row in range(len(table)))
        ((place, count),) = places.most_common(1)
        if len(table) >= FEWEST_ROWS and count > LARGEST_SHARE * len(table):
            warnings.append(
                f"train: choice {place} (from 0) is the right one in {count:,} of {len(table):,} rows; look whether "
                f"{reader.label_column} is the column of the right choice (labels are {READINGS[reader.reading]})"
            )
        return warnings


@dataclass(frozen=True, kw_only=True)
class ChoiceObjective(CountedObjective):
    """Cross entropy among the choices of each row."""

    label_smoothing: float = 0.0

    @property
    def compares_scores(self) -> bool:
        return True

    def count(self, batch: Batch) -> float:
        """The number of rows."""
        return float(len(batch.feature_indices))

    def sum_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Loss summed over rows. outputs: a logit for each choice of all rows [S, 1].

        A softmax is taken over a row's own choices, so label smoothing is spread over these alone.
        """
        import torch

        assert batch.labels is not None
        counts = torch.as_tensor(batch.sequence_counts, device=outputs.device)
        logits = torch.nn.utils.rnn.pad_sequence(
            list(outputs.float()[:, 0].split(batch.sequence_counts.tolist())),
            batch_first=True,
            padding_value=float("-inf"),
        )
        log_probabilities = logits.log_softmax(-1)  # [B, C]
        is_choice = torch.arange(logits.shape[1], device=outputs.device) < counts[:, None]
        right = log_probabilities.gather(1, batch.labels[:, None])[:, 0]
        uniform = log_probabilities.masked_fill(~is_choice, 0.0).sum(-1) / counts
        return -((1 - self.label_smoothing) * right + self.label_smoothing * uniform).sum()


@dataclass(frozen=True, kw_only=True)
class ChoiceScoring(Scoring):
    """Logits to choices, probabilities and accuracy."""

    reader: ChoiceReader

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("accuracy",)

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Logits of each row's choices [C]."""
        return np.split(outputs.float()[:, 0].cpu().numpy(), np.cumsum(batch.sequence_counts)[:-1])

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        chosen = np.array([logits.argmax() for logits in outputs])
        return {"accuracy": float((chosen == features.get_labels(indices)).mean())}

    def make_metric_inputs(self, outputs: Outputs, features: Features, table: Table, indices: Array) -> MetricInputs:
        """Indices of choices [N], and the probabilities of each row's choices, a list of arrays [C]."""
        from scipy.special import softmax

        return MetricInputs(
            predictions=np.array([logits.argmax() for logits in outputs]),
            references=features.get_labels(indices),
            scores=[softmax(logits) for logits in outputs],
        )

    def describe_examples(
        self, kept: KeptOutputs, features: Features, table: Table, names: Sequence[str]
    ) -> ExampleScores:
        """Labels and predictions are the numbers of choices, from 0."""
        from scipy.special import log_softmax

        right = features.get_targets(kept.indices)
        chosen = np.array([logits.argmax() for logits in kept.outputs])
        logs = [log_softmax(logits.astype(np.float64)) for logits in kept.outputs]
        return ExampleScores(
            rows=kept.indices,
            metrics={"loss": ("loss",), "accuracy": ("mean", "correct")},
            columns=("correct",),
            numbers=(chosen == right).astype(np.float64)[:, None],
            labels=right.tolist(),
            predictions=chosen.tolist(),
            losses=np.array([-log[number] for log, number in zip(logs, right, strict=True)]),
            probabilities=[np.exp(log) for log in logs],
        )

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """For each row: choice (its index, from 0), its text, and the probability of every choice."""
        from scipy.special import softmax

        for row, logits in enumerate(outputs):
            best = int(logits.argmax())
            probabilities = [float(probability) for probability in softmax(logits)]
            text = self.reader.read_choices(table, row).texts[best]
            yield {"choice": best, "text": text, "probabilities": probabilities}


@dataclass(frozen=True, kw_only=True)
class Choice(Task):
    """Multiple choice.

    Args:
        reading: How labels name the right choice; a key of READINGS.
    """

    Settings = Settings
    auto_classes = ("AutoModelForMultipleChoice",)

    encoding: ChoiceEncoding
    scoring: ChoiceScoring
    reading: str = "index"

    @classmethod
    def make_columns(cls, config: RunConfig) -> ChoiceColumns:
        assert isinstance(config.task, Settings)
        prompts, choices, label = config.data.text_columns, config.task.choice_columns, config.data.label_column
        require(
            bool(choices),
            "task.choice_columns",
            "[]",
            "must be a column of lists of choices, or two or more columns of one choice each",
        )
        require(label is not None, "data.label_column", None, "multiple choice needs the column of the right choice")
        names = [*prompts, *choices, label]
        require(
            len(set(names)) == len(names),
            "task.choice_columns",
            list(choices),
            f"must differ from each other, from data.text_columns ({', '.join(prompts)}) and data.label_column ({label})",
        )
        return ChoiceColumns(prompts=prompts, choices=choices, label=str(label))

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Choice":
        """Finds the reading of labels that fits the most training rows. InputError at the first row that it does not fit."""
        columns = cls.make_columns(config)
        reader = ChoiceReader(choice_columns=columns.choices, label_column=columns.label)
        return cls.from_state(config, {"reading": reader.fit(table).reading})

    @classmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> "Choice":
        columns, reading = cls.make_columns(config), state.get("reading", "index")
        reader = ChoiceReader(choice_columns=columns.choices, label_column=columns.label, reading=reading)
        return cls(
            problem="multiple_choice",
            reading=reading,
            pipeline_tag="multiple-choice",
            head=HeadSpec(auto_class=cls.auto_classes[0]),
            columns=columns,
            encoding=ChoiceEncoding(prompts=columns.prompts, reader=reader),
            objective=ChoiceObjective(label_smoothing=config.train.label_smoothing),
            scoring=ChoiceScoring(reader=reader),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"reading": self.reading}

    def describe_for_card(self) -> str:
        return "multiple choice: which of two or more texts is right for a prompt."
