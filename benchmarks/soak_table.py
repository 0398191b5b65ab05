"""The table of docs/reliability.md that says what came of killing runs. Imports nothing heavy."""

from pathlib import Path
from typing import Any

from pages import ROOT, describe_version

PAGE = ROOT / "docs" / "reliability.md"
SECONDS_TO_END = 20.0  # for the other process, if one of two is killed
FAILURES = (
    "saved updates lost",
    "differing tensors",
    "differing results.json",
    "differing metrics.jsonl",
    "differing lists of files",
    "differing pushed files",
    "pushes of several commits",
    "runs that could not continue",
    "starts that hang",
)


def make_table(results: dict[str, Any]) -> str:
    """Returns the table of the page."""
    found = results["failures"]

    def list_phases(counts: dict[str, int]) -> str:
        return ", ".join(f"{phase} {count:,}" for phase, count in counts.items())

    rows = {
        "kills (SIGKILL)": f"{results['kills']:,}",
        "aimed at": list_phases(results["aimed"]),
        "hit, as far as lines and files tell": list_phases(results["hit"]),
        "of runs with one process": f"{results.get('kills of 1', 0):,}",
        "of runs with two processes": f"{results.get('kills of 2', 0):,}, of which {results.get('kills of one of two', 0):,} "
        "hit one of the two",
        "of processes that import everything themselves": f"{results.get('kills of fresh processes', 0):,}",
        "of `hf-finetune push --pending`": f"{results.get('kills of push --pending', 0):,}",
        "runs": f"{results['runs']:,}, {results.get('runs of 2', 0):,} of them with two processes",
        "resumes from a checkpoint": f"{results.get('resumes', 0):,}",
        "checkpoints reported as saved": f"{results.get('checkpoints', 0):,}",
        "saved updates lost": found["saved updates lost"],
        "tensors compared": f"{results.get('tensors compared', 0):,}",
        "differing tensors": found["differing tensors"],
        "runs whose results.json, metrics.jsonl or list of files differ": f"{found['differing results.json']}, "
        f"{found['differing metrics.jsonl']}, {found['differing lists of files']}",
        "pushes": f"{results.get('pushes', 0):,}",
        "pushes with a missing or another file, or with a second commit": f"{found['differing pushed files']}, "
        f"{found['pushes of several commits']}",
        "runs that the same command could not continue, or that hung": f"{found['runs that could not continue']}, "
        f"{found['starts that hang']}",
        f"processes that did not end within {SECONDS_TO_END:.0f} s of the other's kill": f"{results.get('others killed', 0)}; "
        f"the slowest took {results['seconds until the other process had ended']:.1f} s",
    }
    lines = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    text = f"{describe_version('crash', [results])}\n" + "\n".join(lines)
    return f"{text}\n\n{results['machine']}, one core; {results['minutes']:.0f} minutes; seed {results['seed']}."


def write_heading(number: int, out: Path | None) -> None:
    """Writes the number of kills into the heading of the page."""
    if out is None:
        lines = PAGE.read_text(encoding="utf-8").split("\n")
        start = "## Results of killing a run "
        lines = [f"{start}{number:,} times" if line.startswith(start) else line for line in lines]
        PAGE.write_text("\n".join(lines), encoding="utf-8")
