"""The live part of a terminal, under the lines of a run: what it is doing now, and bars of what takes long.

A thread draws it a few times a second. It changes no mode of the terminal and never hides the cursor, so that a process that is
killed leaves the terminal in order.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import RenderableType

DRAWS_PER_SECOND = 4
BAR_WIDTH, LABEL_WIDTH = 24, 10  # columns
WIDTH_FOR_BARS = 64  # columns of a terminal; on a narrower one there are only numbers

# What the terminal shows in each phase of a run (run.training_run.PHASES)
PHASES = {
    "load": "loading libraries, data and model",
    "encode": "encoding the text",
    "cache": "deciding on the cache",
    "check": "checking before training",
    "evaluate": "evaluating",
    "save": "saving",
    "export": "exporting the model",
}


@dataclass(kw_only=True)
class Row:
    """A bar of the screen.

    Attributes:
        screen: Which it is on.
        label: What takes long.
        total, done: How much there is, and how much of it is done.
        unit: Of these counts.
        details: A line under the bar; "" for none.
        delay: Seconds before the row is drawn: what takes less would only flicker.
    """

    screen: "Screen"
    label: str
    total: int
    done: int = 0
    unit: str = ""
    details: str = ""
    delay: float = 0.0
    disable = False  # as that of a tqdm bar

    def __post_init__(self) -> None:
        self.first, self.began = self.done, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, count: int) -> None:
        """Counts what was done."""
        self.done += count

    def set_description_str(self, label: str, refresh: bool = True) -> None:
        """Changes the label, as that of a tqdm bar."""
        self.label = label

    def set_postfix_str(self, details: str, refresh: bool = True) -> None:
        """Changes the details, as those of a tqdm bar."""
        self.details = details

    def close(self) -> None:
        """Removes the bar."""
        with contextlib.suppress(ValueError):  # it is removed
            self.screen.rows.remove(self)

    def make_text(self, now: float) -> str:
        """Returns the text after the bar: how much is done, and the time that the rest takes at the speed so far."""
        text = f"{self.done:,}/{self.total:,} {self.unit}"
        if num_done := self.done - self.first:
            text += f"  {format_duration((now - self.began) / num_done * (self.total - self.done))} left"
        return text


class Screen:
    """The live part of a terminal. At most one is shown.

    Attributes:
        rows: The bars, from top to bottom.
        phase: What the run does now, which is shown if it is in PHASES and has no bar.
        phase_began: By time.monotonic().
        notices: Lines of signal handlers, which cannot print while a line may be in the middle of being printed.
    """

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.rows: list[Row] = []
        self.phase, self.phase_began = "load", time.monotonic()
        self.live: Any = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[Self]:
        """Shows the screen on standard output until the block ends, and what others print above it."""
        from rich.console import Console
        from rich.live import Live

        class SteadyConsole(Console):
            """A console that leaves the cursor visible: a process that is killed could not show it again."""

            def show_cursor(self, show: bool = True) -> bool:
                return False

        streams = sys.stdout, sys.stderr
        console = SteadyConsole(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self.live = Live(
            console=console,
            get_renderable=self.render,
            refresh_per_second=DRAWS_PER_SECOND,
            transient=True,
            redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
            vertical_overflow="crop",
        )
        SHOWN.append(self)
        try:
            self.live.start(refresh=True)
            yield self
        finally:
            SHOWN.remove(self)
            try:
                self.live.stop()
            finally:
                sys.stdout, sys.stderr = streams  # if a signal has interrupted the start or the end of it
            for notice in self.notices:
                print(notice, file=sys.stderr, flush=True)

    def print_line(self, text: str) -> None:
        """Prints a line above the bars, which the terminal wraps."""
        from rich.text import Text

        self.live.console.print(Text(text), soft_wrap=True)

    def begin_phase(self, phase: str) -> None:
        """Shows what the run does from now on."""
        self.phase, self.phase_began = phase, time.monotonic()

    def add_row(self, label: str, total: int, **options: Any) -> Row:
        """Adds a bar, which its close() removes. options: Attributes of Row."""
        row = Row(screen=self, label=label, total=total, **options)
        self.rows.append(row)
        return row

    def render(self) -> "RenderableType":
        """Returns the lines of the screen."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        lines: list[RenderableType] = []
        rows = [row for row in self.rows if now - row.began >= row.delay]
        has_bars = self.live is not None and self.live.console.width >= WIDTH_FOR_BARS
        for row in rows:
            grid = Table.grid(padding=(0, 2, 0, 0))
            cells: list[RenderableType] = [Text(row.label.ljust(LABEL_WIDTH))]
            if has_bars:
                cells.append(ProgressBar(total=max(1, row.total), completed=row.done, width=BAR_WIDTH))
            cells.append(Text(row.make_text(now), no_wrap=True, overflow="ellipsis"))
            grid.add_row(*cells)
            lines.append(grid)
            if row.details:
                lines.append(Text(f"  {row.details}", no_wrap=True, overflow="ellipsis"))
        if self.phase in PHASES and not any(row.label == self.phase for row in rows):
            seconds = now - self.phase_began
            spinner = "-\\|/"[int(seconds * DRAWS_PER_SECOND) % 4]
            text = f"{self.phase.ljust(LABEL_WIDTH)}  {spinner} {PHASES[self.phase]}  {format_duration(seconds)}"
            lines.append(Text(text, no_wrap=True, overflow="ellipsis"))
        lines += [Text(notice, no_wrap=True, overflow="ellipsis") for notice in self.notices]
        return Group(*lines)


SHOWN: list[Screen] = []  # the screen that is shown, if there is one


def find_screen() -> Screen | None:
    """Returns the screen that is shown, or None."""
    return SHOWN[-1] if SHOWN else None


def can_show(stream: Any) -> bool:
    """True if the stream is a terminal on which lines can be drawn again."""
    is_terminal = stream is not None and not stream.closed and stream.isatty()
    return is_terminal and os.environ.get("TERM", "dumb" if os.name == "posix" else "") not in ("dumb", "unknown")


def format_duration(seconds: float) -> str:
    """Returns seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
