"""A run shows a bar on a terminal, and plain lines elsewhere."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_finetune.run.progress_view import ProgressView
from hf_finetune.training.loop import Update
from hf_finetune.training.progress import Progress
from hf_finetune.training.schedule import Schedule


def make_update(number: int) -> Update:
    return Update(
        number=number, epoch=1, loss=0.25, gradient_norm=1.0, learning_rates={}, num_examples=8, num_tokens=200, num_targets=8.0,
        padding_share=0.25, seconds=0.5, skipped=False,
    )  # fmt: skip


class Machine:
    """As much of a Runtime as the view needs."""

    is_main = True
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def say(self, text: str, **event: Any) -> None:
        self.said.append((text, event))


def make_view(progress: Progress) -> tuple[ProgressView, Machine]:
    machine = Machine()
    schedule = Schedule(updates_per_epoch=2, total_updates=4)
    run: Any = SimpleNamespace(runtime=machine, schedule=schedule, metric="accuracy")
    return ProgressView(run, progress), machine


def test_without_a_terminal_each_logged_update_is_a_plain_line() -> None:
    view, machine = make_view(Progress(update=1))
    view.advance(make_update(2), log=False)
    view.advance(make_update(3), log=True)
    view.close()
    ((text, event),) = machine.said
    assert text.startswith("update 3/4  epoch 1.50  loss 0.2500  400 tokens/s  ")
    assert text.endswith(" min left")
    assert (event["event"], event["level"], event["epoch"], event["loss"]) == ("update", None, 1.5, 0.25)


def test_the_line_of_an_evaluation_has_the_best_value_so_far() -> None:
    history = ({"update": 1, "epoch": 1, "accuracy": 0.5},)
    progress = Progress(update=2, best_value=0.5, best_update=1, history=history)
    view, machine = make_view(progress)
    assert view.scores == "accuracy 0.5000 best 0.5000"
    view.show_evaluation(progress, {"accuracy": 0.25}, "epoch 1  validation")
    assert view.scores == "accuracy 0.2500 best 0.5000"
    ((text, event),) = machine.said
    assert text == "epoch 1  validation"
    assert event["best"] == {"metric": "accuracy", "value": 0.5, "update": 1}
    assert (event["metrics"], event["is_best"]) == ({"accuracy": 0.25}, False)


def test_in_a_notebook_there_is_a_bar_and_no_line_for_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[dict[str, Any]] = []

    class Widget:
        """As much of a widget of tqdm as the view needs."""

        disable = False

        def __init__(self, **options: Any) -> None:
            bars.append(options)

        def update(self, count: int) -> None:
            bars[0]["initial"] += count

        def set_description_str(self, text: str, refresh: bool) -> None:
            bars[0]["desc"] = text

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            bars[0]["postfix"] = text

    monkeypatch.setattr("hf_finetune.system.bars.is_notebook", lambda: True)
    monkeypatch.setattr("tqdm.notebook.tqdm", Widget)
    view, machine = make_view(Progress(update=1))
    view.advance(make_update(2), log=True)
    assert [event["level"] for _, event in machine.said] == [logging.DEBUG]
    assert (bars[0]["initial"], bars[0]["total"], bars[0]["desc"]) == (2, 4, "epoch 1.00")
    assert bars[0]["postfix"].startswith("loss 0.2500  400 tokens/s  ")
