"""Imports without the garbage collector, and the start of a process."""

import gc
import subprocess
import sys
import time

import pytest

from hf_finetune.system import startup

COMMAND = """
import gc, time
time.sleep(0.3)
from hf_finetune.system.startup import find_process_start, quick_imports
with quick_imports(is_command=True):
    assert not gc.isenabled()
    kept = [[] for _ in range(1000)]
assert gc.isenabled()
print(time.perf_counter() - find_process_start(), gc.get_freeze_count())
"""


def test_the_collector_is_paused_only_while_imports_run() -> None:
    frozen = gc.get_freeze_count()
    with startup.quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with startup.quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert gc.get_freeze_count() == frozen  # a program that lives on collects its garbage


def test_a_command_is_timed_from_the_start_of_its_process_and_never_collects_what_it_imported() -> None:
    began = time.perf_counter()
    output = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, check=True).stdout
    seconds = time.perf_counter() - began
    age, num_frozen = map(float, output.split())
    assert 0.3 < age < seconds + 0.05
    assert num_frozen > 1000


def test_what_a_process_did_before_is_not_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook that runs a recipe after an hour, and a script that downloads for an hour and then becomes Python."""
    now = time.perf_counter()
    monkeypatch.setattr(startup, "LOADED", now)
    monkeypatch.setattr(startup, "find_process_start", lambda: now - 1)
    assert startup.find_command_start() == now - 1
    monkeypatch.setattr(startup, "find_process_start", lambda: now - 3600)
    assert startup.find_command_start() is None
    monkeypatch.setattr(startup, "LOADED", now - 3599)
    assert startup.find_command_start() is None


def test_the_start_is_known_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    expected = startup.find_process_start()
    monkeypatch.setattr(startup, "PROCESS_STATUS", startup.Path(str(tmp_path)) / "missing")
    assert startup.find_process_start() == pytest.approx(expected, abs=2.0)  # psutil's start is one of whole seconds
