"""Bars of what takes long: on a screen, in a notebook, on standard error, or as lines."""

import sys
from types import SimpleNamespace

import pytest

from hf_finetune.system import bars
from hf_finetune.system.bars import LongTask, make_progress_bar
from hf_finetune.system.console import is_notebook


def test_without_a_terminal_there_is_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [100.0], []
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(bars, "print_message", lambda text, **event: said.append((text, event)))
    with LongTask("encode", 1000, "rows", done=200) as task:
        for _ in range(8):
            clock[0] += 4
            task.add(100)
    assert [text for text, _ in said] == [
        "encode      500 of 1,000 rows, 0.3 min left",
        "encode      800 of 1,000 rows, 0.1 min left",
    ]
    assert said[0][1] == {"event": "progress", "task": "encode", "done": 500, "total": 1000, "seconds_left": 20.0}
    quiet = LongTask("encode", 1000, "rows", is_shown=False)
    clock[0] += 100
    quiet.add(1000)
    quiet.close()
    assert len(said) == 2


def test_progress_is_a_widget_in_a_notebook_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from tqdm import tqdm
    from tqdm.notebook import tqdm as widget

    assert not is_notebook()
    assert make_progress_bar(is_main=True, desc="train", total=2, unit="updates").disable
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert is_notebook()
    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.system.bars.find_spec", lambda name: None)
        assert make_progress_bar(is_main=True, desc="train", unit="updates").disable  # without ipywidgets: plain lines
    assert make_progress_bar(is_main=False, desc="train", unit="updates").disable
    monkeypatch.setattr("tqdm.notebook.tqdm", lambda **options: ("widget", options["total"]))
    assert make_progress_bar(is_main=True, desc="train", total=2, unit="updates") == ("widget", 2)
    assert issubclass(widget, tqdm)
