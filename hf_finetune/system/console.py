"""The lines of a run. They go through the logger "hf_finetune", so that a program can redirect or silence them:

logging.getLogger("hf_finetune").setLevel(logging.WARNING)

A line about an event carries it as `record.event`, such as {"event": "evaluation", "update": 40, ...}.
"""

import contextlib
import json
import logging
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from hf_finetune.system.json_text import replace_nan
from hf_finetune.system.output import guard_output
from hf_finetune.system.screen import Screen, can_show

LOGGER = logging.getLogger("hf_finetune")
WARNING = "warning: "
CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of control characters, half characters, and line ends

# How a run is shown: live on a terminal and in lines elsewhere; in lines; warnings and the final line; a JSON object an event
LOOKS = ("auto", "lines", "quiet", "json")


class StdoutHandler(logging.Handler):
    """Prints log records on standard output. Looks up sys.stdout at each record, so that redirected output is honoured.

    Attributes:
        show: Prints a record; print_line, or another look of show_run().
        goes_with_bars: False if bars would be in the way: of a run that is shown in lines or as JSON.
    """

    def __init__(self) -> None:
        super().__init__()
        self.show: Callable[[logging.LogRecord], None] = print_line
        self.goes_with_bars = True

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the record. An error is that of print(): none in a run (system.output)."""
        self.show(record)


def print_line(record: logging.LogRecord) -> None:
    """Prints the record's message and flushes."""
    print(record.getMessage(), file=sys.stdout, flush=True)


def print_if_important(record: logging.LogRecord) -> None:
    """Prints the record's message if it is a warning, or about the end of a run."""
    if record.levelno >= logging.WARNING or get_event(record).get("event") == "end":
        print(record.getMessage().strip(), file=sys.stdout, flush=True)


def get_event(record: logging.LogRecord) -> dict[str, Any]:
    """Returns the event that a record is about; {} if it is a line only."""
    return getattr(record, "event", {})


def print_json(record: logging.LogRecord, stream: TextIO | None) -> None:
    """Prints the record's event as a JSON object, and a warning as an event; nothing without a stream."""
    event = get_event(record)
    if not event and record.levelno >= logging.WARNING:
        event = {"event": "warning", "text": record.getMessage().strip().removeprefix(WARNING)}
    if event and stream is not None:
        print(json.dumps(replace_nan(event)), file=stream, flush=True)  # ASCII alone: any encoding of the stream has it


def print_above(record: logging.LogRecord, screen: Screen) -> None:
    """Prints the record's message above the screen, which shows by itself what is below the level of lines."""
    event = get_event(record)
    if record.levelno >= logging.INFO:
        screen.print_line(record.getMessage())
    elif event.get("event") == "phase":
        screen.begin_phase(event["phase"])


def configure_logging() -> None:
    """Prints the package's messages as plain lines. Leaves a handler or a level that the program has set unchanged."""
    if LOGGER.handlers:
        return
    LOGGER.addHandler(StdoutHandler())
    LOGGER.propagate = False  # else a program that configured the root logger would print every line twice
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)


def print_message(text: str = "", *, level: int | None = None, **event: Any) -> None:
    """Prints a message of a run.

    Args:
        text: The lines. Those that begin with `warning:` are a warning.
        level: That of the logger; by the text if not given.
        event: What the message is about, `event` being its name. The values go into JSON.
    """
    if level is None:
        level = logging.WARNING if text.lstrip().startswith(WARNING) else logging.INFO
    LOGGER.log(level, "%s", text, extra={"event": event})


def find_own_handler() -> StdoutHandler | None:
    """Returns the handler that configure_logging() has set; None if the program has set others."""
    return next((handler for handler in LOGGER.handlers if isinstance(handler, StdoutHandler)), None)


@contextlib.contextmanager
def show_run(look: str = "auto") -> Iterator[None]:
    """Shows a run within the block in one of LOOKS. Handlers and levels that the program has set stay unchanged."""
    configure_logging()
    handler = find_own_handler()
    if handler is None or not LOGGER.isEnabledFor(logging.INFO):
        yield
        return
    before = handler.show, handler.goes_with_bars, LOGGER.level
    handler.goes_with_bars = look == "auto" and is_notebook()
    with guard_output(is_run=True), contextlib.ExitStack() as stack:
        if look == "quiet":
            handler.show = print_if_important
            LOGGER.setLevel(logging.DEBUG)
        elif look == "json":
            stream = sys.stdout if is_main_process() else None
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # for what others print
            handler.show = lambda record: print_json(record, stream)
            LOGGER.setLevel(logging.DEBUG)
        elif look == "auto" and is_main_process() and not is_notebook() and can_show(sys.stdout):
            screen = stack.enter_context(Screen().shown())
            handler.show = lambda record: print_above(record, screen)
            LOGGER.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            handler.show, handler.goes_with_bars, level = before
            LOGGER.setLevel(level)


def is_main_process() -> bool:
    """True if this is the process of a run that prints, also before they know of each other."""
    return os.environ.get("RANK", "0") == "0"


def is_notebook() -> bool:
    """True if this process is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


def allows_bars() -> bool:
    """True if bars are wanted besides the messages."""
    handler = find_own_handler()
    return LOGGER.level <= logging.INFO and (handler is None or handler.goes_with_bars)


def label_lines(label: str, lines: Iterable[str]) -> list[str]:
    """Returns the lines with the label in a column before the first one."""
    return [f"{label if number == 0 else '':<12}{line}" for number, line in enumerate(lines)]


def escape_controls(text: str) -> str:
    """Returns text of the data with its line ends and control characters, which would change the terminal, as escapes."""
    return "".join(repr(sign)[1:-1] if unicodedata.category(sign) in CONTROLS else sign for sign in text)


def align_columns(rows: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Returns the rows of a table as lines with aligned columns. left: Cells begin at the same place, instead of ending there."""
    rows = [[escape_controls(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    side = "<" if left else ">"
    lines = ["  ".join(f"{cell:{side}{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(f"  {line}".rstrip() for line in lines)
