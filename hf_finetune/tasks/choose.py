"""Multiple choice: which of two or more texts goes with a stem, their number free by row. B rows, S sequences, C choices."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_finetune.config.sections import RunConfig, require
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Batch, Features
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Kept, Task

if TYPE_CHECKING:
    import numpy as np
    import torch

# How labels name the right choice; where several readings fit as many training rows, the first of them is meant
READINGS = {
    "name": "the choices' own names",
    "text": "the choices' texts",
    "letter": "letters, from A",
    "index": "indices, from 0",
}


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The choices of a row, and their names where the data give them (`{"text": [...], "label": ["A", "B", ...]}`)."""

    texts: tuple[str, ...]
    names: tuple[str, ...] = ()

    def index(self, label: Any, reading: str) -> int | None:
        """The choice, from 0, that a label read in this way means; None where it means none, or several."""
        if isinstance(label, bool) or label is None:
            return None
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if reading == "index":
            is_number = isinstance(label, int) or (isinstance(label, str) and label.strip().isdecimal())
            return int(label) if is_number and 0 <= int(label) < len(self.texts) else None
        if not isinstance(label, str):
            return None
        word = label.strip()
        if reading == "letter":
            number = ord(word.upper()) - ord("A") if len(word) == 1 else -1
            return number if 0 <= number < min(26, len(self.texts)) else None
        among = self.names if reading == "name" else self.texts
        places = [place for place, each in enumerate(among) if each.strip() == word]
        return places[0] if len(places) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Choice(Task):
    """reading: how labels name the right choice, one of READINGS."""

    stem_columns: tuple[str, ...]
    choice_columns: tuple[str, ...]
    label_column: str
    reading: str = "index"
    label_smoothing: float = 0.0

    name = "choice"
    problem = "multiple_choice"
    auto_class = "AutoModelForMultipleChoice"
    pipeline_tag = "multiple-choice"

    @classmethod
    def form(cls, config: RunConfig) -> ColumnSpec:
        data = config.data
        require(bool(task.choice_columns), "task.choice_columns", "[]",
              "names the column of lists of choices, or two or more columns of one choice each")  # fmt: skip
        require(data.label_column is not None, "data.label_column", None, "names the column of the right choice")
        return ColumnSpec(
            inputs=(*data.text_columns, *task.choice_columns[:2]),
            labels=(str(data.label_column),),
            optional=task.choice_columns[2:],
            texts=data.text_columns,
            together=data.text_columns,
        )

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Choice":
        """Tells by all training rows how labels are to be read."""
        task = cls.from_facts(config, {})
        rows = [(table.columns[task.label_column][row], task.choices(table, row)) for row in range(len(table))]
        fitting = dict.fromkeys(READINGS, 0)
        for reading in READINGS:
            fitting[reading] = sum(choices.index(label, reading) is not None for label, choices in rows)
        if any(fitting.values()):
            task = replace(task, reading=max(fitting, key=lambda reading: fitting[reading]))  # of equal ones the first
        for row in range(len(table)):
            task.right_choice(table, row)
        return task

    @classmethod
    def from_facts(cls, config: RunConfig, facts: Mapping[str, Any]) -> "Choice":
        return cls(
            stem_columns=config.data.text_columns,
            choice_columns=config.task.choice_columns,
            label_column=str(config.data.label_column),
            reading=facts.get("reading", "index"),
            label_smoothing=config.train.label_smoothing,
        )

    def facts(self) -> dict[str, Any]:
        return {"reading": self.reading}

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("accuracy",)

    # --- rows

    def choices(self, table: Table, row: int) -> Choices:
        """The choices of a row. InputError with file and line where they are fewer than two, or no texts."""
        value: Any
        names: Any = ()
        if len(self.choice_columns) == 1:
            column, value = self.choice_columns[0], table.columns[self.choice_columns[0]][row]
            if isinstance(value, Mapping):  # as ARC and CommonsenseQA have it on the Hub
                value, names = value.get("text"), value.get("label") or ()
            if not isinstance(value, (list, tuple)):
                raise InputError(
                    f"{table.where(row)}: {column} ({value}) is no list of choices; see task.choice_columns"
                )
            found = list(value)
        else:
            column, found = ", ".join(self.choice_columns), [table.columns[name][row] for name in self.choice_columns]
            while found and (
                found[-1] is None or found[-1] == ""
            ):  # a row with fewer choices leaves the last ones empty
                found.pop()
        for number, text in enumerate(found):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{table.where(row)}: {column}: choice {number} ({text!r}) is no text")
        if len(found) < 2:
            raise InputError(f"{table.where(row)}: {column}: two or more choices are needed, it has {len(found)}")
        if names and len(names) != len(found):
            raise InputError(f"{table.where(row)}: {column}: {len(names)} labels for {len(found)} choices")
        return Choices(texts=tuple(found), names=tuple(map(str, names)))

    def right_choice(self, table: Table, row: int) -> int:
        """The right choice of a row, from 0. InputError with file and line where the label names none."""
        label, choices = table.columns[self.label_column][row], self.choices(table, row)
        found = choices.index(label, self.reading)
        if found is None:
            raise InputError(
                f"{table.where(row)}: {self.label_column} ({label}) names none of the {len(choices.texts)} choices, or several; "
                f"labels are {READINGS[self.reading]}, as in most training rows"
            )
        return found

    # --- data

    def encoded_columns(self) -> tuple[str, ...]:
        return (*self.stem_columns, *self.choice_columns)

    def encoding_settings(self) -> dict[str, Any]:
        return {"stem_columns": len(self.stem_columns)}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> "dict[str, np.ndarray[Any, Any]]":
        """A sequence for each choice: the stem's columns joined with a blank, and the choice."""
        import numpy as np

        choices = [self.choices(table, row).texts for row in range(len(table))]
        counts = [len(texts) for texts in choices]
        stems = [" ".join(table.columns[name][row] for name in self.stem_columns) for row in range(len(table))]
        repeated = [stem for stem, count in zip(stems, counts, strict=True) for _ in range(count)]
        arrays = tokenize([repeated, [text for texts in choices for text in texts]], tokenizer, max_length)
        return {**arrays, "rows": np.cumsum([0, *counts], dtype=np.int64)}

    def labels(self, table: Table, arrays: "Mapping[str, np.ndarray[Any, Any]]") -> "np.ndarray[Any, Any]":
        """The right choice of each row, [N] int64, from 0."""
        import numpy as np

        return np.array([self.right_choice(table, row) for row in range(len(table))], dtype=np.int64)

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        import numpy as np

        cut = f"{features.num_truncated:,} stems with a choice are longer and were cut"
        counts = Counter(features.count_sequences(np.arange(len(features))).tolist())
        shown = ", ".join(f"{count} in {rows:,} rows" for count, rows in sorted(counts.items()))
        assert isinstance(features.labels, np.ndarray)
        right = ", ".join(
            f"{rows:,} times {place}" for place, rows in sorted(Counter(features.labels.tolist()).items())
        )
        return [
            ("input", f"at most {max_length} tokens; {cut}"),
            ("choices", f"{shown}; labels are {READINGS[self.reading]}; the right one is {right}"),
        ]

    # --- forward

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Sum over rows of the cross entropy among a row's own choices, and the number of rows."""
        import torch

        assert batch.labels is not None
        counts = torch.as_tensor(batch.sequence_counts, device=outputs.device)
        logits = torch.nn.utils.rnn.pad_sequence(
            list(outputs.float()[:, 0].split(batch.sequence_counts.tolist())),
            batch_first=True,
            padding_value=float("-inf"),
        )
        chances = logits.log_softmax(-1)  # [B, C]
        own = torch.arange(logits.shape[1], device=outputs.device) < counts[:, None]
        right = chances.gather(1, batch.labels[:, None])[:, 0]
        even = chances.masked_fill(~own, 0.0).sum(-1) / counts
        return -((1 - self.label_smoothing) * right + self.label_smoothing * even).sum(), float(len(counts))

    def keep(self, outputs: "torch.Tensor", batch: Batch) -> "list[np.ndarray[Any, Any]]":
        """Logits [C] of each row's choices."""
        import numpy as np

        return np.split(outputs.float()[:, 0].cpu().numpy(), np.cumsum(batch.sequence_counts)[:-1])

    # --- use

    def metrics(
        self, metric: str, kept: Kept, features: Features, table: Table, rows: "np.ndarray[Any, Any]"
    ) -> dict[str, float]:
        import numpy as np

        chosen = np.array([logits.argmax() for logits in kept])
        return {"accuracy": float((chosen == features.get_labels(rows)).mean())}

    def predictions(self, kept: Kept, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """For each row: choice (its index, from 0), its text, and the probability of every choice."""
        from scipy.special import softmax

        for row, logits in enumerate(kept):
            best = int(logits.argmax())
            probabilities = [float(chance) for chance in softmax(logits)]
            yield {"choice": best, "text": self.choices(table, row).texts[best], "probabilities": probabilities}

    def row_of_texts(self, texts: Sequence[str]) -> dict[str, Any]:
        stems, most = len(self.stem_columns), len(self.choice_columns)
        count = len(texts) - stems
        if count < 2 or (most > 1 and count > most):
            some = "two or more choices" if most == 1 else "two choices" if most == 2 else f"two to {most} choices"
            stem = "stem" if stems == 1 else f"{stems} texts of the stem ({', '.join(self.stem_columns)})"
            raise InputError(f"--text: takes the {stem} and then {some}, not {len(texts)} texts")
        row: dict[str, Any] = dict(zip(self.stem_columns, texts, strict=False))
        if most == 1:
            return {**row, self.choice_columns[0]: list(texts[stems:])}
        return row | dict(zip(self.choice_columns, [*texts[stems:], *[None] * (most - count)], strict=True))

    def card(self) -> str:
        return "multiple choice: which of two or more texts goes with a stem."
