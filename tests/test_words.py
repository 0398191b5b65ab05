"""The package's prose: no old words, and docstrings that begin with what a function does."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path for folder in ("hf_finetune", "recipes", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Words of the first edition. Each collides with a word of the field, or is not the field's word (docs/design.md, "Words").
OLD_WORDS = (
    r"rehears\w*", r"replay\w*", r"dissect\w*", r"anatom\w*", r"blot\w*", r"awake", r"judge\w*", r"anew", r"aside", r"so many",
    r"(?<!there )is no(?! longer)", r"goes on", r"go on", r"beside", r"(?<!leaves )behind", r"couples?_rows", r"coupled",
    r"known_alike", r"trainee", r"stand-?ins?", r"free_at_last", r"no_replay", r"facts", r"encoder_layers", r"prefix\.cache",
    r"prefix\.dir", r"prefix\.precision", r"whole(?! (?:numbers?|words?))",
)  # fmt: skip
PATTERN = re.compile(rf"\b(?:{'|'.join(OLD_WORDS)})\b", re.IGNORECASE)
# Names of others that hold such a word, and the table of old keys in the settings' errors
ALLOWED = {"encoder_layers", "prefix.cache", "prefix.dir", "prefix.precision"}
ALLOWED_IN = {
    "renamed.py",
    "loading.py",
    "values.py",
    "sections.py",
    "model_sections.py",
    "structure.py",
    "CHANGELOG.md",
}


def find_old_words(path: Path) -> list[str]:
    """`file:line: word` for each old word."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for number, line in enumerate(lines, 1)
        for match in PATTERN.finditer(line)
        if not (match[0] in ALLOWED and path.name in ALLOWED_IN)
    ]


def read_docstrings() -> list[str]:
    """All docstrings of the package."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [
        text
        for path in (ROOT / "hf_finetune").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds) and (text := ast.get_docstring(node))
    ]


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_there_are_no_old_words(path: Path) -> None:
    assert find_old_words(path) == []


def test_the_search_finds_old_words() -> None:
    assert PATTERN.findall("it is no list; the run goes on anew, a whole model") == [
        "is no",
        "goes on",
        "anew",
        "whole",
    ]
    assert PATTERN.findall("a whole number of tokens is no longer needed if there is no head") == []


def test_docstrings_say_what_a_function_does() -> None:
    """At most 2 % begin with the topic or a question word instead."""
    docstrings = read_docstrings()
    odd = [text for text in docstrings if re.match(r"(?:Of|What|Whether|Where)\b", text)]
    assert len(docstrings) > 700
    assert len(odd) < 0.02 * len(docstrings), odd
