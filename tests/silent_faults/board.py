"""Runs every fault of this folder against transformers.Trainer, sentence-transformers and hf_finetune: `make board`.

Each fault is a file: its docstring says what goes wrong, and three functions say what each package does (parts.Finding).
"""

import argparse
import contextlib
import importlib
import io
import logging
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from silent_faults.parts import Finding

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- board: made by tests/silent_faults/board.py -->\n", "<!-- end of board -->"
PACKAGES = {"trainer": "transformers", "sentence_transformers": "sentence-transformers", "ours": "hf-finetune"}
NO_FAULTS = {"__init__", "board", "parts", "test_board"}


def list_faults() -> list[ModuleType]:
    """The modules of this folder that are faults."""
    names = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NO_FAULTS)
    return [importlib.import_module(f"silent_faults.{name}") for name in names]


def run_fault(fault: ModuleType, package: str) -> Finding:
    """What a package does when it meets a fault. Its output is left out."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        finding: Finding = getattr(fault, package)(Path(folder))
    return finding


def describe(fault: ModuleType) -> str:
    """The first line of a fault's docstring."""
    return (fault.__doc__ or "").partition("\n")[0].removesuffix(".")


def make_table(findings: dict[str, dict[str, Finding]]) -> str:
    """The table of the page. findings: by the fault's description, and the package."""
    head = [
        f"{name if package != 'trainer' else 'transformers.Trainer'} {version(name)}"
        for package, name in PACKAGES.items()
    ]
    head[-1] = "hf-finetune"
    lines = [f"| fault | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for fault, row in findings.items():
        cells = [
            f"**{finding.verdict}**: {finding.detail}" if finding.detail else finding.verdict
            for finding in row.values()
        ]
        lines.append(f"| {fault} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rewrites the table in docs/reliability.md."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    logging.disable(logging.WARNING)
    findings = {
        describe(fault): {package: run_fault(fault, package) for package in PACKAGES} for fault in list_faults()
    }
    table = make_table(findings)
    print(table)
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table}{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
