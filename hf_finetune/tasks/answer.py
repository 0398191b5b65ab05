"""Extractive question answering, with unanswerable questions. N windows, B of a batch, T tokens.

A question with its context is one feature, or, where the context is long, several windows that overlap.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_finetune.config.sections import RunConfig, require
from hf_finetune.data.features import Batch, Features
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Kept, Task
from hf_finetune.tasks.text import squad
from hf_finetune.tasks.text.squad import Answer, Columns

if TYPE_CHECKING:
    import numpy as np
    import torch

DEFAULT_OVERLAP = 128  # tokens, as doc_stride of BERT's run_squad.py and transformers' run_qa.py

CHUNK = 1000  # questions that are tokenized at once


@dataclass(frozen=True, kw_only=True)
class Answering(Task):
    """unanswerable: training has questions without an answer, so that none may be given."""

    columns: Columns
    window_overlap: int | None
    longest_answer: int
    num_best: int
    null_threshold: float
    unanswerable: bool = False

    name = "answering"
    problem = "question_answering"
    auto_class = "AutoModelForQuestionAnswering"
    pipeline_tag = "question-answering"
    settings = frozenset({"window_overlap", "longest_answer", "num_best", "null_threshold"})

    @classmethod
    def form(cls, config: RunConfig) -> ColumnSpec:
        texts = config.data.text_columns
        require(len(texts) == 2, "data.text_columns", list(texts), "takes two columns, the question and the context")
        require(config.data.label_column is not None, "data.label_column", None, "names the column of the answers")
        smoothing = config.train.label_smoothing
        require(not smoothing, "train.label_smoothing", smoothing, "is not for positions: question answering has none")
        return ColumnSpec(
            inputs=texts,
            labels=(str(config.data.label_column),),
            optional=squad.OPTIONAL,
            texts=texts,
            together=texts[1:],
        )

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Answering":
        task = cls.from_facts(config, {})
        found = [bool(squad.answers_of(table, row, task.columns)) for row in range(len(table))]
        if not any(found):
            raise InputError(f"data.label_column ({task.columns.answers}): no training question has an answer")
        return replace(task, unanswerable=not all(found))

    @classmethod
    def from_facts(cls, config: RunConfig, facts: Mapping[str, Any]) -> "Answering":
        question, context = config.data.text_columns
        return cls(
            columns=Columns(question=question, context=context, answers=str(config.data.label_column)),
            window_overlap=config.task.window_overlap,
            longest_answer=config.task.longest_answer,
            num_best=config.task.num_best,
            null_threshold=config.task.null_threshold,
            unanswerable=bool(facts.get("unanswerable", False)),
        )

    def facts(self) -> dict[str, Any]:
        return {"unanswerable": self.unanswerable}

    @property
    def metric_names(self) -> tuple[str, ...]:
        of_kinds = ("HasAns_f1", "HasAns_exact", "NoAns_f1", "NoAns_exact") if self.unanswerable else ()
        return ("f1", "exact_match", *of_kinds)

    def model_settings(self) -> dict[str, Any]:
        return {"num_labels": 2}  # start and end, whatever the backbone was trained for

    # --- windows

    def encoded_columns(self) -> tuple[str, ...]:
        return (self.columns.question, self.columns.context)

    def encoding_settings(self) -> dict[str, Any]:
        return {"window_overlap": self.window_overlap}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> "dict[str, np.ndarray[Any, Any]]":
        """Windows of question and context. extras: begins and ends, the characters of the context that each token stands
        for, -1 outside it.

        A question longer than half a window is cut to that (and counted as truncated); windows share no more than half of
        what the question leaves of them.
        """
        import numpy as np

        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"model.backbone: its tokenizer ({type(tokenizer).__name__}) does not say where tokens stand in the text; "
                "question answering needs a fast one (tokenizer.json)"
            )
        room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
        require(room >= 4, "data.max_length", max_length, "leaves no room for a question and a context")
        overlap = DEFAULT_OVERLAP if self.window_overlap is None else self.window_overlap
        require(self.window_overlap is None or overlap <= room // 2, "task.window_overlap", overlap,
              f"windows of {max_length} tokens can share {room // 2}; see data.max_length")  # fmt: skip
        asked = [text.strip() for text in table.columns[self.columns.question]]
        questions, lengths = fit_questions(asked, tokenizer, room // 2)
        windows: list[list[dict[str, np.ndarray[Any, Any]]]] = [[] for _ in questions]
        by_overlap: dict[int, list[int]] = defaultdict(list)
        for row, length in enumerate(lengths):
            by_overlap[min(overlap, (room - length) // 2)].append(row)
        for shared, rows in by_overlap.items():
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                contexts = [table.columns[self.columns.context][row] for row in chunk]
                encoded = tokenizer([questions[row] for row in chunk], contexts, truncation="only_second", stride=shared,
                                    max_length=max_length, return_overflowing_tokens=True)  # fmt: skip
                for number, encoding in zip(encoded["overflow_to_sample_mapping"], encoded.encodings, strict=True):
                    has_types = "token_type_ids" in encoded
                    windows[chunk[number]].append(arrays_of(encoding, contexts[number], has_types=has_types))
        flat = [window for of_row in windows for window in of_row]
        return {
            **{name: np.concatenate([window[name] for window in flat]) for name in flat[0]},
            "offsets": np.cumsum([0, *(len(window["input_ids"]) for window in flat)], dtype=np.int64),
            "examples": np.repeat(np.arange(len(windows)), [len(of_row) for of_row in windows]),
            "truncated": np.array(sum(kept != whole for kept, whole in zip(questions, asked, strict=True))),
        }

    def labels(self, table: Table, arrays: "Mapping[str, np.ndarray[Any, Any]]") -> "np.ndarray[Any, Any]":
        """[N, 2] int64: the tokens in which the first answer begins and ends; 0 and 0, the first token, of a window that does
        not hold it whole, as in BERT's run_squad.py."""
        import numpy as np

        firsts = [next(iter(squad.answers_of(table, row, self.columns)), None) for row in range(len(table))]
        targets = np.zeros((len(arrays["examples"]), 2), dtype=np.int64)
        for window, row in enumerate(arrays["examples"]):
            if (answer := firsts[row]) is not None:
                start, stop = arrays["offsets"][window : window + 2]
                targets[window] = tokens_of(answer, arrays["begins"][start:stop], arrays["ends"][start:stop])
        return targets

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        import numpy as np

        labels, examples = features.labels, features.example_indices
        assert isinstance(labels, np.ndarray)
        assert examples is not None
        lines = [f"{len(table):,} questions in {len(features):,} windows of at most {max_length} tokens"]
        if features.num_truncated:
            lines.append(f"questions longer than half a window, and cut: {features.num_truncated:,}")
        answered = np.array([bool(squad.answers_of(table, row, self.columns)) for row in range(len(table))])
        held = np.zeros(len(table), dtype=bool)
        held[examples[labels.any(-1)]] = True
        cut = int((answered & ~held).sum())
        without = int((~answered).sum())
        count = f"{int(answered.sum()):,} questions with an answer, {without:,} without"
        lost = f"whole in no window, and not trained on: {cut:,}" if cut else "each answer is whole in a window"
        return [("input", "; ".join(lines)), ("answers", f"{count}; {lost}")]

    # --- forward

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Half the cross entropies of start and end over a window's own tokens, and the number of windows. Padding takes no
        part, so that the loss does not depend on what a window is batched with."""
        from torch.nn import functional as F

        assert batch.labels is not None
        logits = outputs.float().masked_fill(batch.inputs["attention_mask"][..., None] == 0, float("-inf"))
        return F.cross_entropy(logits, batch.labels, reduction="sum") / 2, float(len(batch.labels))

    def keep(self, outputs: "torch.Tensor", batch: Batch) -> "list[np.ndarray[Any, Any]]":
        """Start and end logits [T, 2] of each window's tokens."""
        lengths = batch.inputs["attention_mask"].sum(-1).tolist()
        return [row[:length] for row, length in zip(outputs.float().cpu().numpy(), lengths, strict=True)]

    # --- answers

    def answers(
        self, kept: Kept, features: Features, table: Table, rows: "np.ndarray[Any, Any]"
    ) -> Iterator[tuple[int, Answer]]:
        """The rows of the table that these windows are of, in its order, and the answer to each."""
        windows: dict[int, list[squad.Window]] = defaultdict(list)
        for row, logits in zip(rows.tolist(), kept, strict=True):
            tokens = slice(*features.offsets[row : row + 2])
            begins, ends = (features.extras[name][tokens] for name in ("begins", "ends"))
            windows[features.get_example(row)].append(squad.Window(logits=logits, begins=begins, ends=ends))
        threshold = self.null_threshold if self.unanswerable else None
        search = squad.Search(num_best=self.num_best, longest=self.longest_answer, null_threshold=threshold)
        for example in sorted(windows):
            context = table.columns[self.columns.context][example]
            yield example, squad.best_answer(context, windows[example], search)

    def metrics(
        self, metric: str, kept: Kept, features: Features, table: Table, rows: "np.ndarray[Any, Any]"
    ) -> dict[str, float]:
        """In [0, 1]; as SQuAD 2.0 counts where training or these rows have unanswerable questions, else as 1.1."""
        found = dict(self.answers(kept, features, table, rows))
        golds = [[text for text, _ in squad.answers_of(table, row, self.columns)] for row in found]
        texts = [answer.text for answer in found.values()]
        values = squad.score_answers(texts, golds, unanswerable=self.unanswerable or not all(golds))
        return {name: values[name] for name in self.metric_names}

    def predictions(self, kept: Kept, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """id, answer, score, begin and end (characters of the context; null where there is no answer), and, of a model that
        may give none, no_answer_score, which task.null_threshold is compared with."""
        import numpy as np

        for row, answer in self.answers(kept, features, table, np.arange(len(features))):
            found = {"id": squad.id_of(table, row), "answer": answer.text, "score": answer.score,
                     "begin": answer.begin, "end": answer.end}  # fmt: skip
            yield {**found, "no_answer_score": answer.no_answer_score} if self.unanswerable else found

    def document(self, predictions: Sequence[Mapping[str, Any]]) -> Any:
        """What SQuAD's evaluation scripts read: the answer of each id."""
        answers = {row["id"]: row["answer"] for row in predictions}
        if len(answers) != len(predictions):
            raise InputError(
                "--out: of a .json file every question needs an id of its own; .jsonl takes them as they are"
            )
        return answers

    def row_of_texts(self, texts: Sequence[str]) -> dict[str, Any]:
        if len(texts) != 2:
            raise InputError(f"--text: takes two texts, the question and the context, not {len(texts)}")
        return dict(zip((self.columns.question, self.columns.context), texts, strict=True))

    def card(self) -> str:
        none = " Some of its questions have no answer in the context." if self.unanswerable else ""
        return f"extractive question answering: the answer is a part of the context.{none}"


def fit_questions(questions: Sequence[str], tokenizer: Any, most: int) -> tuple[list[str], list[int]]:
    """The questions, those of more than `most` tokens cut, and the tokens of each."""
    fitting, lengths = [], []
    for start in range(0, len(questions), CHUNK):
        # verbose: else it warns of inputs that are too long, which these are not
        encoded = tokenizer(list(questions[start : start + CHUNK]), add_special_tokens=False, verbose=False)
        for question, encoding in zip(questions[start : start + CHUNK], encoded.encodings, strict=True):
            while len(encoding.ids) > most:  # a word that is cut may become more tokens
                question = question[: min(encoding.offsets[most - 1][1], len(question) - 1)]
                encoding = tokenizer([question], add_special_tokens=False, verbose=False).encodings[0]
            fitting.append(question)
            lengths.append(len(encoding.ids))
    return fitting, lengths


def arrays_of(encoding: Any, context: str, *, has_types: bool) -> "dict[str, np.ndarray[Any, Any]]":
    """Ids, token types where there are any, and the characters of each token of a window, without blanks at their ends."""
    import numpy as np

    begins, ends = np.full((2, len(encoding.ids)), -1, dtype=np.int32)
    for token, (sequence, (begin, end)) in enumerate(zip(encoding.sequence_ids, encoding.offsets, strict=True)):
        if sequence == 1:
            while begin < end and context[begin].isspace():  # byte-level tokens hold the blank before the word
                begin += 1
            while begin < end and context[end - 1].isspace():
                end -= 1
            begins[token], ends[token] = begin, end
    found = {"input_ids": np.array(encoding.ids, dtype=np.int32), "begins": begins, "ends": ends}
    return found | ({"token_type_ids": np.array(encoding.type_ids, dtype=np.int32)} if has_types else {})


def tokens_of(answer: tuple[str, int], begins: "np.ndarray[Any, Any]", ends: "np.ndarray[Any, Any]") -> tuple[int, int]:
    """The tokens of a window in which an answer begins and ends; 0 and 0 where the window does not hold it whole."""
    import numpy as np

    text, place = answer
    start = place + len(text) - len(text.lstrip())
    end = place + len(text.rstrip())
    inside = np.flatnonzero(begins >= 0)
    if not len(inside) or begins[inside[0]] > start or ends[inside[-1]] < end:
        return 0, 0
    first = int(np.searchsorted(begins[inside], start, side="right")) - 1
    last = int(np.searchsorted(ends[inside], end, side="left"))
    return int(inside[first]), int(inside[last])
