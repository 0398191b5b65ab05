"""`hf-finetune report` and `hf-finetune compare`: their options and their calls."""

import argparse
from typing import Any

from hf_finetune.system.output import open_standard_output


def add_report(commands: Any) -> None:
    """Adds the parser of hf-finetune report."""
    report = commands.add_parser(
        "report", help="write a page about runs: curves, scores, mistakes, what is frozen, data, settings, time"
    )
    report.add_argument("runs", metavar="RUN", nargs="+", help="run folders; several are shown next to one another")
    report.add_argument(
        "--out",
        metavar="FILE.html",
        help="file to write (default: report.html in the run's folder; of several runs, here)",
    )
    report.set_defaults(function=run_report)


def add_compare(commands: Any) -> None:
    """Adds the parser of hf-finetune compare."""
    compare = commands.add_parser(
        "compare", help="compare runs: settings that differ, metrics with paired intervals, seconds, memory"
    )
    compare.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run folders; runs that differ in their seed only count as one, with means",
    )
    compare.add_argument(
        "--against", metavar="RUN", help="the run that the others are compared with (default: the first)"
    )
    compare.add_argument("--format", choices=("table", "json", "csv"), default="table", help="format of the comparison")
    compare.set_defaults(function=run_compare)


def run_report(options: argparse.Namespace) -> None:
    """Runs hf-finetune report."""
    from hf_finetune.analysis.report import write_report

    print(write_report(options.runs, options.out))


def run_compare(options: argparse.Namespace) -> None:
    """Runs hf-finetune compare."""
    from hf_finetune.analysis.comparison import compare_runs
    from hf_finetune.analysis.comparison_formats import format_comparison
    from hf_finetune.analysis.run_files import read_runs

    comparison = compare_runs(read_runs(options.runs), options.against)
    print(format_comparison(comparison, options.format), file=open_standard_output())
