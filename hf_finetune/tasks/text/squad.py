"""What SQuAD says of answers: how they are written, the best of many spans, and the counting of its official scripts."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError

# --- answers of a table ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns."""

    question: str
    context: str
    answers: str


OPTIONAL = ("id", "is_impossible")  # columns that are read where they are there


def answers_of(table: Table, row: int, columns: Columns) -> list[tuple[str, int]]:
    """The answers of a row, each with the character it begins at; none where the question cannot be answered.

    InputError with file and line where they are not written as SQuAD has them, or do not stand in the context.
    """
    where, value = f"{place(table, row)}: {columns.answers}", table.columns[columns.answers][row]
    if is_impossible(table, row):
        return []
    if isinstance(value, (list, tuple)) and all(isinstance(each, Mapping) for each in value):
        value = {key: [each.get(key) for each in value] for key in ("text", "answer_start")}
    texts, starts = (value.get(key) if isinstance(value, Mapping) else None for key in ("text", "answer_start"))
    if not isinstance(texts, (list, tuple)) or not isinstance(starts, (list, tuple)) or len(texts) != len(starts):
        raise InputError(
            f"{where} ({shortened(value)}) must be {{text: [...], answer_start: [...]}}, as many of one as of the other; "
            "empty lists where there is no answer"
        )
    context = table.columns[columns.context][row]
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: the text {text!r} is no answer; empty lists say that there is none")
        if not isinstance(start, int) or isinstance(start, bool):
            raise InputError(f"{where}: answer_start ({start}) of {shortened(text)!r} must be a whole number")
        if start < 0 or context[start : start + len(text)] != text:
            raise InputError(f"{where}: {misplaced(context, text, start)}")
    return list(zip(texts, starts, strict=True))


def is_impossible(table: Table, row: int) -> bool:
    """Whether the row says so itself, in a column is_impossible."""
    value = table.columns["is_impossible"][row] if "is_impossible" in table.columns else None
    return str(value).lower() in ("true", "1")


def misplaced(context: str, text: str, start: int) -> str:
    """What is wrong with an answer that does not stand where it should, and where it does."""
    places = [found.start() for found in re.finditer(re.escape(text), context)]
    hint = "it stands nowhere in the context"
    if places:
        hint = f"the nearest one begins at {min(places, key=lambda each: abs(each - start))}"
    there = context[start : start + len(text)] if start >= 0 else ""
    return f"answer_start ({start}) of {shortened(text)!r}: the context has {shortened(there)!r} there; {hint}"


def shortened(value: Any, longest: int = 60) -> str:
    """At most so many characters of a value, for an error."""
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def id_of(table: Table, row: int) -> str:
    """The question's id; where it has none, its number in the table, from 1."""
    value = table.columns["id"][row] if "id" in table.columns else None
    return str(row + 1) if value is None else str(value)


def place(table: Table, row: int) -> str:
    """`file:line` of a row, and the question's id where it has one: a SQuAD file has a line for nothing."""
    value = table.columns["id"][row] if "id" in table.columns else None
    return table.where(row) + ("" if value is None else f" (id {value})")


# --- the best span --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a question: characters begin to end of the context; "" and None where none is given.

    score: its probability among the spans that were tried. no_answer_score: the logits of no answer less those of the best
    span; None where every question has an answer, or the context has no span.
    """

    text: str
    begin: int | None
    end: int | None
    score: float
    no_answer_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of the context. logits: [T, 2] of start and end. begins, ends: [T] characters of each token, -1 outside the
    context."""

    logits: "np.ndarray[Any, Any]"
    begins: "np.ndarray[Any, Any]"
    ends: "np.ndarray[Any, Any]"


@dataclass(frozen=True, kw_only=True)
class Search:
    """num_best: starts and ends of each window that are tried. longest: tokens of an answer. null_threshold: of
    no_answer_score, above which none is given; None where every question has an answer."""

    num_best: int
    longest: int
    null_threshold: float | None


def best_answer(context: str, windows: Iterable[Window], search: Search) -> Answer:
    """The span with the largest sum of start and end logit over all windows of a question, a substring of the context.

    As transformers' run_qa.py has it: no answer scores what the first token does, in the window where that is least.
    """
    spans: dict[tuple[int, int], float] = {}
    null = np.inf
    for window in windows:
        null = min(null, float(window.logits[0].sum(dtype=np.float64)))
        for span, score in spans_of(window, search).items():
            spans[span] = max(score, spans.get(span, -np.inf))
    best = sorted(spans, key=lambda span: (-spans[span], span))[: search.num_best]
    scores = [spans[span] for span in best]
    if not best:  # a context without a token
        return Answer(text="", begin=None, end=None, score=1.0)
    odds = None
    if search.null_threshold is not None:
        odds = null - scores[0]
        scores.append(null)
    chances = np.exp(np.array(scores) - max(scores))
    chances /= chances.sum()
    if odds is not None and search.null_threshold is not None and odds > search.null_threshold:
        return Answer(text="", begin=None, end=None, score=float(chances[-1]), no_answer_score=odds)
    begin, end = best[0]
    return Answer(text=context[begin:end], begin=begin, end=end, score=float(chances[0]), no_answer_score=odds)


def spans_of(window: Window, search: Search) -> dict[tuple[int, int], float]:
    """Characters and score of the spans of a window that are tried: of the best starts with the best ends those that are in
    order and not too long; where there is no such pair, of all starts with all ends."""
    tokens = np.flatnonzero(window.begins >= 0)
    if not len(tokens):
        return {}
    starts, ends = (window.logits[tokens, side].astype(np.float64) for side in (0, 1))
    found: dict[tuple[int, int], float] = {}
    for count in (search.num_best, len(tokens)):
        first, last = (np.argsort(-logits, kind="stable")[:count] for logits in (starts, ends))
        width = last[None, :] - first[:, None]
        for i, j in zip(*np.nonzero((width >= 0) & (width < search.longest)), strict=True):
            span = int(window.begins[tokens[first[i]]]), int(window.ends[tokens[last[j]]])
            if span[0] < span[1]:
                found[span] = max(float(starts[first[i]] + ends[last[j]]), found.get(span, -np.inf))
        if found:
            break
    return found


# --- the official counting ------------------------------------------------------------------------------------------

ARTICLES = re.compile(r"\b(a|an|the)\b")

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and superfluous blanks, in the scripts' order."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def f1_of(answer: str, gold: str) -> float:
    """F1 over the words that both have. Of answers without a word: 1 where neither has one (there is no answer), else 0."""
    ours, theirs = normalized(answer).split(), normalized(gold).split()
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs))


def score_answers(
    answers: Sequence[str], golds: Sequence[Sequence[str]], *, unanswerable: bool = False
) -> dict[str, float]:
    """f1 and exact_match in [0, 1] (the scripts print percents): the best over a question's golds, the mean over questions.

    With unanswerable questions, which have no golds, as SQuAD 2.0's script counts, and its values of both kinds of questions
    besides (nan where there is none of a kind); else as that of 1.1.
    """
    exact, f1 = [], []
    for answer, allowed in zip(answers, golds, strict=True):
        if unanswerable:
            allowed = [gold for gold in allowed if normalized(gold)] or [""]
        exact.append(max((float(normalized(answer) == normalized(gold)) for gold in allowed), default=0.0))
        f1.append(
            max((f1_of(answer, gold) if unanswerable or normalized(gold) else 0.0 for gold in allowed), default=0.0)
        )
    values = {"f1": mean(f1), "exact_match": mean(exact)}
    if not unanswerable:
        return values
    for kind, chosen in (("HasAns", True), ("NoAns", False)):
        rows = [row for row, allowed in enumerate(golds) if bool(allowed) == chosen]
        values |= {f"{kind}_f1": mean([f1[row] for row in rows]), f"{kind}_exact": mean([exact[row] for row in rows])}
    return values


def mean(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return sum(values) / len(values) if values else float("nan")
