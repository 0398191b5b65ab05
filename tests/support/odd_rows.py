"""Rows that are read without an error and are odd: their texts, labels and sizes. One maker for each task."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from support import tagged, tiny

TEXTS = [
    "a", "?", ".", "0", "-1e9", "123 45.6 7", "nan", "null", "True", "cat", "CAT", "Cat", "zzz qqq", "the cat", " cat ",
    "\U0001f600", "\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467",  # emoji, joined ones too
    "\u0301", "\u0308\u0301\u0308", "a\u0301\u0301\u0301", "caf\u00e9", "cafe\u0301",  # combining marks
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u202ecat dog\u202c", "\u4e2d\u6587",
    "\u200b", "\u200b\u200d\ufeff", "a\u200db", "\u00ad", "a\0b", "\0\0", "\x07", "cat\x1bdog", "\ufffd", "\ufffe", "\U000f0000",
    "[CLS]", "[SEP]", "[SEP] [SEP] [SEP]", "[PAD] [PAD]", "[MASK] cat [MASK]", "[UNK]", "<s> </s>", "<pad>", "<|im_end|>",
    "{{ messages }}", "{% raw %}", "%s {0}", "<b>cat</b>", "\\n", "'", '"', "''''", "cat\tdog\r\ndog", "cat\u2028dog",
    "cat\u0085dog", "cat " * 3000, "x" * 100_000, "\u0301" * 5000, "\U0001f600" * 2000,
]  # fmt: skip
LABELS = [
    "a", "A", "\u0430", "\u00e9", "e\u0301", "0", "00", "1", "1.0", "true", "O", "B-", "nan", "None", "a b", "a|b", "-", "[PAD]",
    "\U0001f600", "x" * 300,
]  # fmt: skip
WORDS = [text for text in TEXTS if len(text) < 20 and not any(character.isspace() for character in text)]
SPLITS = ("train", "validation", "test")
Rows = list[dict[str, Any]]


def draw_texts(draw: random.Random, count: int) -> list[str]:
    """Odd texts: different ones, equal ones, or odd ones among plain ones."""
    kind = draw.randrange(4)
    if kind == 0:
        return [draw.choice(TEXTS)] * count
    few = draw.sample(TEXTS, draw.randint(1, len(TEXTS)))
    plain = [row["text"] for row in tiny.make_rows(6)]
    return [draw.choice(few if kind < 3 or draw.random() < 0.3 else plain) for _ in range(count)]


def draw_labels(draw: random.Random, count: int) -> list[str]:
    """Labels of two to four names that look alike, at times one of a single row."""
    names = draw.sample(LABELS, draw.randint(2, 4))
    if draw.random() < 0.3:
        return [names[0], *(draw.choice(names[1:]) for _ in range(count - 1))]
    return [names[number % len(names)] for number in range(count)]


def make_classified(draw: random.Random, count: int) -> Rows:
    """Texts with a label, several labels, or a number."""
    texts, kind = draw_texts(draw, count), draw.randrange(4)
    labels: Sequence[Any] = draw_labels(draw, count)
    if kind == 0:
        labels = [[label, *draw.sample(labels, draw.randint(0, 1))] for label in labels]
    elif kind == 1:
        labels = [draw.choice([0.5, -3.25, 1e6, 1e-30, 0.0]) for _ in range(count)]
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]


def make_tagged(draw: random.Random, count: int) -> Rows:
    """Words of which some make no token, and their tags."""
    rows = []
    for _ in range(count):
        words = [draw.choice(WORDS) for _ in range(draw.choice([1, 1, 2, 5, 80]))]
        rows.append({"tokens": words, "tags": [draw.choice(["O", "B-a", "I-a", "B-A"]) for _ in words]})
    return rows


def make_pairs(draw: random.Random, count: int) -> Rows:
    """Pairs of texts; at times the texts of a pair are equal."""
    others = draw_texts(draw, count)
    texts = list(others) if draw.random() < 0.4 else draw_texts(draw, count)
    return [{"anchor": one, "positive": other} for one, other in zip(texts, others, strict=True)]


def make_ranked(draw: random.Random, count: int) -> Rows:
    """Queries with one to five documents, of which one is relevant; some documents are equal."""
    rows = []
    for number, query in enumerate(draw_texts(draw, count)):
        documents = draw_texts(draw, draw.randint(1, 5))
        relevant = documents[number % len(documents)]  # equal documents have equal labels
        labels = [int(document == relevant) for document in documents]
        rows.append({"query": f"{query} {number}", "documents": documents, "labels": labels})
    return rows


def make_questions(draw: random.Random, count: int) -> Rows:
    """Questions whose answers stand at the beginning, at the end, are all of the context, or one character."""
    rows = []
    for number, (question, text) in enumerate(zip(draw_texts(draw, count), draw_texts(draw, count), strict=True)):
        context, kind = draw.choice([text, f"the {text} cat", f"{text}{text}"]), draw.randrange(5)
        size = {0: len(context), 1: 1}.get(kind, draw.randint(1, min(9, len(context))))
        start = draw.choice([0, len(context) - size])
        if not context[start : start + size].strip():
            start, size = 0, len(context)
        answer = context[start : start + size]
        answers = {"text": [answer], "answer_start": [start]} if kind < 4 else {"text": [], "answer_start": []}
        rows.append({"id": f"q{number}", "question": question, "context": context, "answers": answers})
    return rows


def make_choices(draw: random.Random, count: int) -> Rows:
    """Prompts with two to four choices, of which some are equal."""
    rows = []
    for stem in draw_texts(draw, count):
        choices = draw_texts(draw, draw.randint(2, 4))
        rows.append({"stem": stem, "choices": choices, "label": draw.randrange(len(choices))})
    return rows


def make_conversations(draw: random.Random, count: int) -> Rows:
    """Conversations; in one of twenty data sets, some answers are empty."""
    rows, share = [], 0.2 * (draw.random() < 1 / 20)
    for _ in range(count):
        messages: list[dict[str, str]] = []
        for _ in range(draw.randint(1, 3)):
            answer = "" if draw.random() < share else draw.choice(TEXTS)
            messages += [{"role": "user", "content": draw.choice(TEXTS)}, {"role": "assistant", "content": answer}]
        rows.append({"messages": messages})
    return rows


def make_texts(draw: random.Random, count: int) -> Rows:
    """Texts alone."""
    return [{"text": text} for text in draw_texts(draw, count)]


def make_documents(column: str) -> Callable[[random.Random, int], Rows]:
    """Texts with a short text, often of one token."""

    def make(draw: random.Random, count: int) -> Rows:
        texts, targets = draw_texts(draw, count), [draw.choice(["cat", "a", draw.choice(TEXTS)]) for _ in range(count)]
        return [{"document": text, column: target} for text, target in zip(texts, targets, strict=True)]

    return make


def make_tokenizer(draw: random.Random, family: str) -> Any:
    """One whose unknown words are one token, or one that makes no token of control characters and accents."""
    if family in ("bert", "distilbert") and draw.random() < 0.5:
        tokenizer = tagged.word_piece()
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
        return tokenizer
    return tiny.make_tokenizer(ends_only=family in ("t5", "bart"))
