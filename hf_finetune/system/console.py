"""The lines that a run prints. They go through the logger "hf_finetune", so that a program can redirect or silence them:

logging.getLogger("hf_finetune").setLevel(logging.WARNING)
"""

import logging
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

LOGGER = logging.getLogger("hf_finetune")


class StdoutHandler(logging.Handler):
    """Prints log records on standard output. Looks up sys.stdout at each record, so that redirected output is honoured."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the record's message and flushes. An error is that of print(): none in a run (system.output)."""
        print(self.format(record), file=sys.stdout, flush=True)


def configure_logging() -> None:
    """Prints the package's messages as plain lines. Leaves a handler or a level that the program has set unchanged."""
    if LOGGER.handlers:
        return
    LOGGER.addHandler(StdoutHandler())
    LOGGER.propagate = False  # else a program that configured the root logger would print every line twice
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)


def print_message(text: str = "") -> None:
    """Prints a message of a run."""
    LOGGER.info(text)


def is_notebook() -> bool:
    """True if this process is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


def make_progress_bar(*, is_main: bool, **options: Any) -> Any:
    """Returns a tqdm bar: a widget in a notebook, a line of a terminal. Its `disable` is True if neither can be shown.

    Args:
        is_main: True on the process that shows bars.
        options: Arguments of tqdm.
    """
    if is_main and is_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget(**options)
    from tqdm import tqdm

    return tqdm(**options, disable=not (is_main and sys.stderr.isatty()))


def label_lines(label: str, lines: Iterable[str]) -> list[str]:
    """Returns the lines with the label in a column before the first one."""
    return [f"{label if number == 0 else '':<12}{line}" for number, line in enumerate(lines)]


def align_columns(rows: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Returns the rows of a table as lines with aligned columns. left: Cells begin at the same place, instead of ending there."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    side = "<" if left else ">"
    lines = ["  ".join(f"{cell:{side}{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(f"  {line}".rstrip() for line in lines)
