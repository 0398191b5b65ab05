"""A run shows a bar on a terminal, and plain lines elsewhere."""

import io
import sys
from typing import Any

import pytest

from hf_finetune.run.progress_view import ProgressBar
from hf_finetune.training.loop import Update


def make_update(number: int) -> Update:
    return Update(
        number=number, epoch=1, loss=0.25, gradient_norm=1.0, learning_rates={}, num_examples=8, num_tokens=200, num_targets=8.0,
        seconds=0.5, skipped=False,
    )  # fmt: skip


class Machine:
    """As much of a Runtime as the bar needs."""

    is_main = True

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Screen(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_without_a_terminal_each_logged_update_is_a_plain_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine: Any = Machine()
    monkeypatch.setattr(sys, "stderr", error := io.StringIO())
    bar = ProgressBar(4, 1, machine)
    bar.advance(make_update(2), log=True)
    bar.advance(make_update(3), log=False)
    bar.say("measured")
    bar.close()
    assert [line.rsplit(maxsplit=3)[0] for line in machine.lines[:1]] == [
        "update 2/4  epoch 1  loss 0.2500  400 tokens/s"
    ]
    assert machine.lines[1:] == ["measured"]
    assert error.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_with_loss_and_rate_and_no_line_for_an_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine: Any = Machine()
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    bar = ProgressBar(4, 1, machine)
    bar.advance(make_update(2), log=True)
    bar.bar.refresh()
    bar.say("measured")
    bar.close()
    assert machine.lines == ["measured"]
    assert "2/4" in screen.getvalue()
    assert "loss=0.2500" in screen.getvalue()
    assert "update/s" in screen.getvalue() or "s/update" in screen.getvalue()
