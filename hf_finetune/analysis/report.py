"""The report on runs: one HTML file that needs nothing else, no network and no font.

Jinja escapes all text of users. A Content-Security-Policy lets the page run its own script and style alone, by their digests, so
that nothing that slipped through could run either.
"""

import base64
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_finetune import __version__
from hf_finetune.analysis import scores, sections
from hf_finetune.analysis.curves import make_charts
from hf_finetune.analysis.decisions import make_decisions
from hf_finetune.analysis.mistakes import make_mistakes
from hf_finetune.analysis.run_files import RunFiles, read_runs
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import write_atomically

PAGE = Path(__file__).with_name("page")
NUM_COLORS = 8  # of runs, in style.css


def write_report(folders: Sequence[str], out: str | None = None) -> Path:
    """Writes the report on runs, and returns its path.

    out: The file; report.html in the folder of the run if it is one, else report.html in the current folder.

    InputError if a folder is not that of a run, or the file cannot be written.
    """
    runs = read_runs(folders)
    path = Path(out) if out else (runs[0].folder if len(runs) == 1 else Path()) / "report.html"
    if path.is_dir():
        raise InputError(f"--out ({path}): is a folder; name a file, such as {path / 'report.html'}")
    content = make_report(runs).encode(errors="replace")  # half characters of the data, which UTF-8 does not have
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InputError(f"--out ({path}): cannot be written: {error.strerror}") from None
    return path


def make_report(runs: Sequence[RunFiles]) -> str:
    """Returns the page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    policy = {
        "default-src": "'none'",
        "script-src": digest(script),
        "style-src": digest(style),
        "img-src": "data:",  # the empty icon
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return environment.get_template("report.html").render(
        policy="; ".join(f"{name} {value}" for name, value in policy.items()),
        style=style,
        script=script,
        made=f"hf-finetune {__version__}, {time.strftime('%Y-%m-%d %H:%M')}",
        **make_content(runs),
    )


def digest(text: str) -> str:
    """Returns a text's sha256 as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def make_content(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Returns what the template shows."""
    split = scores.choose_split(runs)
    return {
        "title": ", ".join(run.label for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        "runs": [
            {
                "label": run.label,
                "color": number % NUM_COLORS,
                "folder": str(run.folder),
                "kind": run.kind,
                "backbone": str(run.settings.get("start_from") or run.settings.get("model.backbone", "")).split("#")[0],
                "missing": run.missing,
                "freeze": sections.make_freeze_picture(run),
                "parameters": sections.describe_parameters(run),
                "confusion": scores.make_confusion(run, split),
                "reliability": scores.make_reliability(run, split),
                "decisions": make_decisions(run, split),
                "mistakes": make_mistakes(run, split),
            }
            for number, run in enumerate(runs)
        ],
        "summary": sections.make_summary(runs),
        "split": split,
        "score_tables": scores.make_score_tables(runs),
        "label_scores": scores.make_label_scores(runs, split),
        "lengths": scores.make_length_table(runs, split),
        "has_details": any(run.results.get("details") for run in runs),
        "no_details": scores.NO_DETAILS,
        "charts": [chart.draw() for chart in make_charts(runs)],
        "data": sections.make_data_sections(runs),
        "settings": sections.make_settings_table(runs),
        "environment": sections.make_environment_table(runs),
        "phases": sections.list_phases(runs),
        "times": sections.make_time_bars(runs),
        "seconds": sections.make_time_table(runs),
        "not_recorded": sections.NOT_RECORDED,
    }
