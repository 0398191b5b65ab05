"""Text of data in Markdown: a parser finds nothing but that text."""

import html

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_finetune.system.markdown import code_block, code_span, escape_markdown, unescape_markdown

markdown_it = pytest.importorskip("markdown_it")

HOSTILE = [
    "<script>alert(1)</script>",
    "](javascript:alert(1))",
    "[x](javascript:alert(1))",
    "![x](http://127.0.0.1/pixel.png)",
    "a\n# heading\n---\n```\ncode",
    "&lt;b&gt; &amp; <b>",
    "**bold** _it_ __b__ `code` ``` ~~gone~~ $x$ a|b \\",
    "<!-- hidden",
    "a_b snake_case_name_",
    "größe→ 日本",
]
characters = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)


def find_text(source: str) -> str:
    """Returns the text of a paragraph in Markdown. Fails if there is anything else."""
    parser = markdown_it.MarkdownIt("gfm-like", {"linkify": False})
    opening, inline, closing = parser.parse(source)
    assert (opening.type, closing.type) == ("paragraph_open", "paragraph_close")
    assert {child.type for child in inline.children} <= {"text", "text_special"}, inline.children
    return "".join(child.content for child in inline.children)


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_is_text(text: str) -> None:
    escaped = escape_markdown(text)
    assert find_text(f"2 labels: {escaped}.") == f"2 labels: {' '.join(text.split())}."
    assert "<" not in escaped
    assert unescape_markdown(escaped) == " ".join(text.split())


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(text=characters)
def test_any_text_is_text(text: str) -> None:
    line = " ".join(text.split())
    assert find_text(f"x {escape_markdown(text)} y") == " ".join(f"x {line} y".split(" ")) if line else True
    assert unescape_markdown(escape_markdown(text)) == line


@pytest.mark.parametrize("text", [*HOSTILE, "`", "a`` ` ```", "x\n```\ny"])
def test_code_is_code(text: str) -> None:
    parser = markdown_it.MarkdownIt("commonmark")
    _, inline, _ = parser.parse(f"a {code_span(text)} b")
    before, code, after = inline.children
    assert (before.content, code.type, after.content) == ("a ", "code_inline", " b")
    assert code.content.split() == text.split()
    (block,) = parser.parse(code_block("yaml", text))
    assert (block.type, block.info, block.content) == ("fence", "yaml", f"{text}\n")
    assert html.escape(text) in html.escape(block.content)
