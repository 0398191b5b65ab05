"""The lines that a run prints. They go through the logger "hf_finetune", so that a program can redirect or silence them:

logging.getLogger("hf_finetune").setLevel(logging.WARNING)
"""

import logging
import sys

LOGGER = logging.getLogger("hf_finetune")


class StdoutHandler(logging.Handler):
    """Prints log records on standard output. Looks up sys.stdout at each record, so that redirected output is honoured."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the record's message and flushes. A closed pipe raises an error, as it does for print()."""
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
