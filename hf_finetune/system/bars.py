"""Bars of what takes long: on a run's screen, in a notebook or on a terminal; elsewhere a line every ten seconds."""

import sys
import time
from importlib.util import find_spec
from typing import Any, Self

from hf_finetune.system.console import allows_bars, is_notebook, print_message
from hf_finetune.system.screen import can_show, find_screen

QUIET_SECONDS = 2.0  # what takes less shows no bar
SECONDS_BETWEEN_LINES = 10.0  # if there is no terminal


def make_progress_bar(
    *, is_main: bool, desc: str, total: int | None = None, initial: int = 0, unit: str, delay: float = 0.0
) -> Any:
    """Returns a bar as tqdm makes it. Its `disable` is True if it cannot be shown.

    Args:
        is_main: True on the process that shows bars.
        desc: What takes long.
        total, initial: How much there is, if that is known, and how much of it was done before.
        unit: Of these counts.
        delay: Seconds before it is shown.
    """
    screen = find_screen()
    if is_main and screen is not None and total is not None:
        return screen.add_row(desc, total, done=initial, unit=unit, delay=delay)
    options: dict[str, Any] = {"desc": desc, "total": total, "initial": initial, "unit": f" {unit}", "delay": delay}
    is_shown = is_main and allows_bars()
    if is_shown and is_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget(**options)
    if not (is_shown and can_show(sys.stderr)):
        return HiddenBar()
    from tqdm import tqdm

    return tqdm(**options, leave=False, dynamic_ncols=True)


class HiddenBar:
    """A bar that is not shown. A disabled one of tqdm makes a semaphore, which a process that is stopped leaves behind."""

    disable = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Has nothing to remove."""


class LongTask:
    """Shows how far something is that may take long, as a bar or in lines.

    Args:
        name: What it is.
        total: How much there is.
        unit: Of that count.
        done: How much was done before.
        is_shown: False to show nothing.
    """

    def __init__(self, name: str, total: int, unit: str, *, done: int = 0, is_shown: bool = True) -> None:
        self.name, self.total, self.unit, self.done, self.first = name, total, unit, done, done
        self.is_shown = is_shown
        self.began = self.said = time.monotonic()
        self.bar = make_progress_bar(
            is_main=is_shown, desc=name, total=total, initial=done, unit=unit, delay=QUIET_SECONDS
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, count: int) -> None:
        """Counts what was done."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.is_shown and self.bar.disable and now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            left = (now - self.began) / (self.done - self.first) * (self.total - self.done)
            print_message(
                f"{self.name:<12}{self.done:,} of {self.total:,} {self.unit}, {left / 60:.1f} min left",
                event="progress",
                task=self.name,
                done=self.done,
                total=self.total,
                seconds_left=round(left, 1),
            )

    def close(self) -> None:
        """Removes the bar."""
        self.bar.close()
