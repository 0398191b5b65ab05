"""Writes what benchmarks measured: JSON files in benchmarks/results/ and tables in the pages of docs/.

With a folder `out`, everything goes there instead, and no file of the repository changes.
"""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIRST_VERSION = "0.1"  # results without a version were measured with it


def write_results(name: str, content: Any, out: Path | None) -> None:
    """Writes `NAME.json` into benchmarks/results/, or into `out`."""
    folder = out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_table(text: str, marker: str, pages: Iterable[Path], out: Path | None) -> None:
    """Puts a table into each page that has its marker; or writes `MARKER.md` into `out`."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{marker}.md").write_text(f"{text}\n", encoding="utf-8")
        return
    for page in pages:
        if f"<!-- {marker} -->" in page.read_text(encoding="utf-8"):
            rewrite(page, text, marker)


def rewrite(page: Path, text: str, marker: str) -> None:
    """Replaces the text between `<!-- marker -->` and `<!-- end of marker -->` in a page."""
    start, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def describe_version(results: Iterable[Mapping[str, Any]]) -> str:
    """Returns the line above a table that names the versions of hf-finetune its results were measured with."""
    versions = sorted({str(result.get("version", FIRST_VERSION)) for result in results})
    return f"Measured with version {' and '.join(versions)}.\n"


def describe_machine() -> str:
    """Returns the name of the processor and the number of its cores."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"
