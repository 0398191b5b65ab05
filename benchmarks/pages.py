"""Writes what benchmarks measured: JSON files in benchmarks/results/ and tables in the pages of docs/.

    make docs               or: python benchmarks/pages.py [--check]

With a folder `out`, everything goes there instead, and no file of the repository changes.

The line above each table names the version, the commit and the machine it was measured with, and which code has changed since.
Results files hold a digest of each part of hf_finetune, so that this needs no git. The command writes the lines again; --check
only says which are untrue.
"""

import argparse
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_finetune import __version__

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIRST_VERSION = "0.1"  # results without a version were measured with it
LINE = "Measured with version "  # begins the line above a table
CHANGED = "changed since"

# The results files of each table, under benchmarks/, and the parts of hf_finetune that it measures
SPEED = ("cache", "data", "forward", "model", "run", "tasks", "training", "train.py")
QUALITY = ("forward", "model", "tasks", "training")
TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "benchmark": ("results/*.json", (*SPEED, "export")),
    "other tasks": ("results/tasks/*.json", (*SPEED, "export")),
    "scaling": ("results/scaling.json", SPEED),
    "fixed costs": ("results/fixed_costs.json", (*SPEED, "export", "system")),
    "dry run": ("results/dry_run.json", (*SPEED, "choosing", "export", "system")),
    "profile": ("results/profile.json", ("forward", "model", "tasks", "training")),
    "batch lengths": ("results/batch_lengths.json", ("data", "forward", "model", "tasks", "training")),
    "labelled tokens": ("results/labelled_tokens.json", ("forward", "model", "tasks", "training")),
    "crash": ("results/soak.json", ("cache", "run", "system", "train.py")),
    "resume": ("results/reliability.json", ("data", "run", "training", "train.py")),
    "memory by rows": ("results/data.json", ("data",)),
    "data": ("results/data.json", ("data", "export")),
    "results": ("results.json", QUALITY),
    "comparisons": ("results/comparisons.json", QUALITY),
    "long texts": ("results/long_texts.json", QUALITY),
    "head start": ("results/head_start.json", QUALITY),
    "advice": ("results/advice.json", (*SPEED, "choosing")),
    "time to accuracy": ("results/time_to_accuracy.json", (*SPEED, "choosing", "export", "system")),
    "sweep": ("results/sweep.json", (*SPEED, "choosing", "export", "system")),
    "wrong labels": ("results/label_errors.json", (*QUALITY, "choosing", "statistics")),
}
PARTS = sorted({part for _, parts in TABLES.values() for part in parts})


# --- results and tables ---------------------------------------------------------------------------------------------


def write_results(name: str, content: Any, out: Path | None) -> None:
    """Writes `NAME.json` into benchmarks/results/, or into `out`."""
    path = (out or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


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


# --- what a result was measured with --------------------------------------------------------------------------------


def describe_origin() -> dict[str, Any]:
    """Returns what each results file holds besides its figures: version, commit, machine, and digests of the code."""
    code = {part: hash_code(part) for part in PARTS}
    return {"version": __version__, "commit": find_commit(), "machine": describe_machine(), "code": code}


@functools.cache
def hash_code(part: str) -> str:
    """Returns a digest of a folder or file of hf_finetune."""
    path = ROOT / "hf_finetune" / part
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        digest.update(f"{file.relative_to(ROOT).as_posix()}\n{file.read_text(encoding='utf-8')}\n".encode())
    return digest.hexdigest()[:12]


def find_commit() -> str | None:
    """Returns the commit of this checkout, with "+" if hf_finetune/ has other changes; None without git."""
    words = ("rev-parse", "--short=10", "HEAD"), ("status", "--porcelain", "--", "hf_finetune")
    try:
        commit, changes = (
            subprocess.run(["git", *each], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout
            for each in words
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip() + ("+" if changes.strip() else "")


def describe_machine() -> str:
    """Returns the name of the processor, the number of its cores, and the instruction set that decides its speed."""
    name, instructions = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
        flags = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
        instructions = name_instructions(flags)
    return f"{name}, {os.cpu_count()} cores" + (f", {instructions}" if instructions else "")


def name_instructions(flags: str) -> str:
    """Returns the fastest instruction set for matrix products among a processor's flags, or ""."""
    names = {
        "amx_bf16": "AMX",
        "avx512_bf16": "AVX512-BF16",
        "avx512f": "AVX512",
        "avx2": "AVX2",
        "sve": "SVE",
        "asimd": "NEON",
    }
    return next((name for flag, name in names.items() if flag in flags.split()), "")


def measure_load() -> float | None:
    """Returns the load average of the last minute, before a run; None if the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


# --- the line above a table -----------------------------------------------------------------------------------------


def describe_version(marker: str, results: Iterable[Mapping[str, Any]]) -> str:
    """Returns the line above a table: version, commit, machine, load before the runs, and which code has changed since."""
    results = list(results)
    versions = join_distinct(result.get("version", FIRST_VERSION) for result in results)
    commits = join_distinct(result["commit"] for result in results if result.get("commit"))
    machines = join_distinct(result["machine"] for result in results if result.get("machine"))
    loads = [load for result in results for load in result.get("load", ()) if load is not None]
    line = f"{LINE}{versions} {f'at commit {commits}' if commits else '(no commit recorded)'}"
    line += f" on {machines}" if machines else ""
    line += f", load {min(loads):.1f} to {max(loads):.1f} before the runs" if loads else ""
    changed = find_changed_code(marker, results)
    where = f"; {', '.join(changed)} {'has' if len(changed) == 1 else 'have'} {CHANGED}" if changed else ""
    return f"{line}{where}.\n"


def join_distinct(values: Iterable[Any]) -> str:
    """Returns the distinct values in order, with "and" between them."""
    return " and ".join(sorted({str(value) for value in values}))


def find_changed_code(marker: str, results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the parts of hf_finetune that a table measures and that have changed since; "the code" if no digest is recorded."""
    changed = set()
    for result in results:
        if "code" not in result:
            return ["the code"]
        changed |= {part for part in TABLES[marker][1] if result["code"].get(part) != hash_code(part)}
    return [f"hf_finetune/{part}" for part in sorted(changed)]


def load_results(marker: str) -> list[Mapping[str, Any]]:
    """Returns the results of a table that is in the repository."""
    found: list[Mapping[str, Any]] = []
    for path in sorted((ROOT / "benchmarks").glob(TABLES[marker][0])):
        content = json.loads(path.read_text(encoding="utf-8"))
        if marker == "benchmark" and "medians" not in content:
            continue
        if marker in ("results", "advice"):
            found += content.values()
        elif isinstance(content, list):
            found += content
        else:
            found += content.get("origins", {"all": content}).values()
    return found or [{}]


def find_lines() -> Iterator[tuple[Path, str, str]]:
    """Yields page, marker and first line of each measured table of the pages; a place without a table is waiting for one."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        for marker, line in re.findall(r"^<!-- ([\w ]+) -->\n(?!<!-- end of)(.*)$", text, flags=re.MULTILINE):
            if marker in TABLES or line.startswith(LINE):
                yield page, marker, line


def main() -> None:
    """Writes the line of each table again, or says which are untrue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a line is untrue")
    options = parser.parse_args()
    untrue = []
    for page, marker, line in find_lines():
        true = describe_version(marker, load_results(marker)).strip()
        # Which parts have changed grows with time, and is only named when the line is written
        if not line.startswith(true.partition(";")[0].rstrip(".")) or (CHANGED in line) != (CHANGED in true):
            untrue.append(f"{page.relative_to(ROOT)}: {marker}: {line[:100]} -> {true}")
        if not options.check:
            start, text = f"<!-- {marker} -->\n", page.read_text(encoding="utf-8")
            rest = "" if line.startswith(LINE) else f"\n{line}\n"
            page.write_text(text.replace(f"{start}{line}\n", f"{start}{true}\n{rest}"), encoding="utf-8")
    if options.check and untrue:
        raise SystemExit("\n".join(["the lines of these tables are untrue; `make docs` writes them again:", *untrue]))


if __name__ == "__main__":
    main()
