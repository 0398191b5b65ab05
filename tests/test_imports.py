"""Imports between the folders of the package go one way, types and imports inside functions included."""

import ast
from pathlib import Path

import hf_finetune

PACKAGE = Path(hf_finetune.__file__).parent
# From the bottom up. docs/design.md has the same line.
ORDER = (
    "system < statistics < config < data, model < forward, tasks < training < run < cache, export, analysis < train "
    "< choosing < api, recipe < verify, cli_choosing, cli_data, cli_predict, cli_push, cli_runs < cli"
)
RANK = {name: rank for rank, names in enumerate(ORDER.split(" < ")) for name in names.split(", ")}
ENTRIES = {"__init__", "__main__", "recipes"}  # they may import anything, and nothing imports them


def imports() -> set[tuple[str, str]]:
    """Pairs of folder (or top-level file) and the one that it imports from."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.ImportFrom) or not node.level, f"{path}: a relative import"
            parts = (getattr(node, "module", None) or "").split(".") if isinstance(node, ast.ImportFrom) else []
            if parts[:1] == ["hf_finetune"]:
                targets = parts[1:2] or [alias.name for alias in node.names]  # type: ignore[attr-defined]
                found |= {(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), target) for target in targets}
    return found


def test_imports_go_one_way() -> None:
    used = {(one, other) for one, other in imports() if one != other and one not in ENTRIES and other != "__version__"}
    assert {one for one, _ in used} == RANK.keys() - {"system", "statistics"}
    assert [(one, other) for one, other in sorted(used) if RANK[other] >= RANK[one]] == []


def test_the_design_page_has_the_same_line() -> None:
    assert ORDER in (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
