"""SQuAD: the best span of the model's logits, and the metrics of its official scripts.

T tokens of a window.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_finetune.data.features import Array

# --- the best span --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a question.

    Args:
        text: A substring of the context; "" if there is no answer.
        begin: Position of its first character in the context; None if there is no answer.
        end: Position after its last character; None if there is no answer.
        score: Its probability among the spans that were tried.
        no_answer_score: Sum of the logits for no answer, minus that of the best span. None if every question of training has an
            answer, or if the context has no span.
    """

    text: str
    begin: int | None
    end: int | None
    score: float
    no_answer_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of the context, with the model's outputs.

    Args:
        logits: Of the answer's start and end [T, 2].
        char_starts, char_ends: The characters of the context that each token stands for; -1 outside the context [T].
    """

    logits: Array
    char_starts: Array
    char_ends: Array


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the best span is searched.

    Args:
        num_best: Number of start positions, and of end positions, that are tried in each window.
        longest: Most tokens of an answer.
        null_threshold: No answer is given if its no_answer_score is above this; None if there is always an answer.
    """

    num_best: int
    longest: int
    null_threshold: float | None


def find_best_answer(context: str, windows: Iterable[Window], search: Search) -> Answer:
    """Returns the span with the largest sum of start and end logit over all windows of a question.

    As in transformers' run_qa.py, the score of no answer is the sum of the first token's logits, in the window where it is least.
    """
    scores_of_spans: dict[tuple[int, int], float] = {}
    null_score = np.inf
    for window in windows:
        null_score = min(null_score, float(window.logits[0].sum(dtype=np.float64)))
        for span, score in find_spans(window, search).items():
            scores_of_spans[span] = max(score, scores_of_spans.get(span, -np.inf))
    best = sorted(scores_of_spans, key=lambda span: (-scores_of_spans[span], span))[: search.num_best]
    if not best:  # a context without a token
        return Answer(text="", begin=None, end=None, score=1.0)
    scores = [scores_of_spans[span] for span in best]
    no_answer_score = None
    if search.null_threshold is not None:
        no_answer_score = null_score - scores[0]
        scores.append(null_score)
    probabilities = np.exp(np.array(scores) - max(scores))
    probabilities /= probabilities.sum()
    if no_answer_score is not None and search.null_threshold is not None and no_answer_score > search.null_threshold:
        return Answer(text="", begin=None, end=None, score=float(probabilities[-1]), no_answer_score=no_answer_score)
    begin, end = best[0]
    return Answer(
        text=context[begin:end], begin=begin, end=end, score=float(probabilities[0]), no_answer_score=no_answer_score
    )


def find_spans(window: Window, search: Search) -> dict[tuple[int, int], float]:
    """Returns characters (begin, end) and score of the spans of a window that are tried.

    These are all pairs of the best starts and the best ends that are in order and not too long. If there is no such pair, all
    starts and all ends are tried.
    """
    tokens = np.flatnonzero(window.char_starts >= 0)
    if not len(tokens):
        return {}
    start_logits, end_logits = (window.logits[tokens, side].astype(np.float64) for side in (0, 1))
    spans: dict[tuple[int, int], float] = {}
    for count in (search.num_best, len(tokens)):
        starts, ends = (np.argsort(-logits, kind="stable")[:count] for logits in (start_logits, end_logits))
        width = ends[None, :] - starts[:, None]
        for i, j in zip(*np.nonzero((width >= 0) & (width < search.longest)), strict=True):
            span = int(window.char_starts[tokens[starts[i]]]), int(window.char_ends[tokens[ends[j]]])
            if span[0] < span[1]:
                spans[span] = max(float(start_logits[starts[i]] + end_logits[ends[j]]), spans.get(span, -np.inf))
        if spans:
            break
    return spans


# --- metrics of the official scripts --------------------------------------------------------------------------------

ARTICLES = re.compile(r"\b(a|an|the)\b")

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Returns a text in lower case without ASCII punctuation, articles and extra white space, in the order of the scripts."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def compute_f1(answer: str, reference: str) -> float:
    """Returns F1 over the words that two answers share. If one has no words, it is 1 if the other has none either, else 0."""
    words, reference_words = normalize_answer(answer).split(), normalize_answer(reference).split()
    if not words or not reference_words:
        return float(words == reference_words)
    num_shared = sum((Counter(words) & Counter(reference_words)).values())
    return 2 * num_shared / (len(words) + len(reference_words))


def score_answers(
    answers: Sequence[str], references: Sequence[Sequence[str]], *, unanswerable: bool = False
) -> dict[str, float]:
    """Returns f1 and exact_match in [0, 1]; the official scripts print percents.

    The metrics are the means over questions of score_each(). If `unanswerable`, both are also given for the questions with and
    without an answer (nan if there are none).
    """
    columns = score_each(answers, references, unanswerable=unanswerable)
    return {name: compute_mean([value for value in values if value is not None]) for name, values in columns.items()}


def score_each(
    answers: Sequence[str], references: Sequence[Sequence[str]], *, unanswerable: bool = False
) -> dict[str, list[float | None]]:
    """Returns the metrics of each question by their names, None if a metric is of other questions.

    A question scores its best over its references. If `unanswerable`, the metrics are those of SQuAD 2.0's script: a question
    without references is right if the answer is empty. Else they are those of the script of 1.1.
    """
    exact, f1 = [], []
    for answer, allowed in zip(answers, references, strict=True):
        if unanswerable:
            allowed = [reference for reference in allowed if normalize_answer(reference)] or [""]
        exact.append(
            max((float(normalize_answer(answer) == normalize_answer(reference)) for reference in allowed), default=0.0)
        )
        f1.append(
            max(
                (
                    compute_f1(answer, reference) if unanswerable or normalize_answer(reference) else 0.0
                    for reference in allowed
                ),
                default=0.0,
            )
        )
    columns: dict[str, list[float | None]] = {"f1": [*f1], "exact_match": [*exact]}
    if not unanswerable:
        return columns
    for name, has_answer in (("HasAns", True), ("NoAns", False)):
        is_of_name = [bool(allowed) == has_answer for allowed in references]
        for key, values in ((f"{name}_f1", f1), (f"{name}_exact", exact)):
            columns[key] = [value if known else None for value, known in zip(values, is_of_name, strict=True)]
    return columns


def compute_mean(values: Sequence[float]) -> float:
    """Returns the mean; nan if there are no values."""
    return sum(values) / len(values) if values else float("nan")
