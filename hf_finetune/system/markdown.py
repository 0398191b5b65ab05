"""Text from data and settings in Markdown: shown as it is, whatever it holds. Markup in it would change the page, or run."""

import html
import re

# Between letters and digits _ is not markup, and names often have it
MARKUP = re.compile(r"[\\`*\[\]~#$|]|(?<![^\W_])_|_(?![^\W_])")

NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, surrogates


def escape_markdown(text: str) -> str:
    """Returns the text on one line, so that Markdown and HTML show its characters."""
    shown = MARKUP.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
    return shown.replace("://", "&colon;//").replace("www.", "www&period;").replace("@", "&commat;")


def escape_marks(text: str) -> str:
    """Returns the text on one line, with a character reference for each mark, so that any Markdown shows it: that of TensorBoard
    knows fewer backslashes. Control characters and what cannot be encoded are U+FFFD."""
    line = NOT_TEXT.sub("\ufffd", " ".join(text.split()))
    return re.sub(r"[!-/:-@\[-`{-~]", lambda mark: f"&#{ord(mark[0])};", line)


def unescape_markdown(text: str) -> str:
    """Returns the text of escape_markdown() for a terminal."""
    return html.unescape(re.sub(r"\\([\\`*\[\]~#$|_])", r"\1", text))


def code_span(text: str) -> str:
    """Returns the text on one line as inline code."""
    line = re.sub(r"[^\S ]+", " ", text)
    fence = "`" * (longest_fence(line) + 1)
    blank = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{blank}{line}{blank}{fence}"


def code_block(language: str, text: str) -> str:
    """Returns the text as a block of code."""
    fence = "`" * max(3, longest_fence(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def longest_fence(text: str) -> int:
    """Returns the number of the most backticks in a row."""
    return max(map(len, re.findall("`+", text)), default=0)
