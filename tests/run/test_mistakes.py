"""The worst mistakes as Markdown, which TensorBoard's own renderer shows as the texts that they are."""

import html
import re

import numpy as np
from tensorboard.plugins.text.text_plugin import text_array_to_html

from hf_finetune.data.table import Table
from hf_finetune.run.mistakes import LONGEST_TEXT, NUM_SHOWN, format_mistakes, keep_different_tags
from hf_finetune.run.scored import ScoredExamples
from hf_finetune.tasks.example_scores import ExampleScores

HOSTILE = [
    "<script>alert(1)</script>", "**bold** _it_ `code` ~~gone~~ $x$ a|b \\ \\* {x}", "[x](javascript:alert(1))",
    "![x](http://127.0.0.1/pixel.png)", "# heading\n\n1. list\n\n---", "&lt;b&gt; &amp; &#60;b", "www.example.com a@b.example",
    "größe → 日本 🙂", "<!-- hidden", "> quoted", "- item", "    code", "a_b_c *d* e",
]  # fmt: skip


def make_scored(texts: list[str], predictions: list[str] | None) -> tuple[ScoredExamples, Table]:
    """Returns scored examples, each worse than the one before, and their rows."""
    count = len(texts)
    scored = ScoredExamples(
        task="classify",
        problem="single_label",
        metric="accuracy",
        scores=ExampleScores(
            rows=np.arange(count),
            metrics={"loss": ("loss",)},
            labels=None if predictions is None else ["good"] * count,
            predictions=predictions,
            losses=np.arange(count, dtype=float),
            probabilities=None if predictions is None else np.full((count, 2), 0.5),
        ),
        files=["data/a_file.jsonl"] * count,
        lines=list(range(1, count + 1)),
        digests=["0"] * count,
    )
    table = Table(columns={"text": texts, "other": [None] * count}, files=scored.files, lines=scored.lines)
    return scored, table


def render(markdown: str) -> str:
    """Returns the HTML that TensorBoard makes of a text."""
    return str(text_array_to_html(np.array(markdown.encode()), enable_markdown=True))


def test_texts_are_shown_as_they_are_with_file_and_line() -> None:
    scored, table = make_scored(HOSTILE, ["bad"] * len(HOSTILE))
    page = render(format_mistakes("test", scored, table, ["text"]))
    assert set(re.findall(r"<(\w+)", page)) == {"p", "ol", "li", "strong"}
    items = [re.sub(r"<[^>]+>", "", item) for item in re.findall(r"<li>(.*?)</li>", page, flags=re.S)]
    assert len(items) == len(HOSTILE)
    for item, text, line in zip(items, reversed(HOSTILE), range(len(HOSTILE), 0, -1), strict=True):
        head, shown = html.unescape(item).strip().split("\n", 1)
        assert head == f"right good, predicted bad, probability 0.500, loss {line - 1:.4f}, data/a_file.jsonl:{line}"
        assert shown.strip() == " ".join(text.split())


def test_right_examples_are_left_out_and_long_texts_are_cut() -> None:
    scored, table = make_scored(["short", "x" * 1000, "y"], ["good", "bad", "good"])
    shown = format_mistakes("test", scored, table, ["text", "other"])
    assert shown.startswith("The worst 1 of 1 wrong examples; test has 3 examples.")
    assert "x" * (LONGEST_TEXT - 3) + "&#46;&#46;&#46;" in shown
    assert "x" * LONGEST_TEXT not in shown
    assert "other" not in shown.split("text: ")[1]  # it has no text
    scored, table = make_scored(["a"], ["good"])
    assert format_mistakes("test", scored, table, ["text"]) == "None of the 1 examples of test is wrong."


def test_examples_without_labels_are_the_worst_of_all() -> None:
    scored, table = make_scored([f"text {number}" for number in range(30)], None)
    shown = format_mistakes("validation", scored, table, ["text"])
    assert shown.startswith(f"The worst {NUM_SHOWN} of 30 examples; validation has 30 examples.")
    assert "right" not in shown
    assert shown.index("text 29") < shown.index("text 28")


def test_what_cannot_be_encoded_or_printed_is_replaced() -> None:
    scored, table = make_scored(["a\udc80b\x00c\x02d"], ["bad\ud800"])
    page = render(format_mistakes("test", scored, table, ["text"]))
    assert "a\ufffdb\ufffdc\ufffdd" in page
    assert "bad\ufffd" in page


def test_of_tags_those_that_differ_are_shown_with_their_words() -> None:
    right, predicted = ["O", "B-place", "I-place"], ["O", "B-place", "O"]
    assert keep_different_tags(["in", "New", "York"], right, predicted) == (["York I-place"], ["York O"])
    assert keep_different_tags(["a longer text"], right, predicted) == (["word 3: I-place"], ["word 3: O"])
