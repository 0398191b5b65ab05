"""A function in a process of its own: limits on time and memory, errors, and its end."""

import gc
import os
import re
import time
from typing import Any

import pytest

from hf_finetune.system import limited
from hf_finetune.system.limited import HAS_LIMITS, LimitedFunction, LimitError

pytestmark = pytest.mark.skipif(not HAS_LIMITS, reason="there are no limits on this system")


def test_results_and_errors_come_back() -> None:
    divide = LimitedFunction(lambda above, below: {"quotient": above / below, "process": os.getpid()})
    first, second = divide(6, 3), divide(9, 3)
    assert (first["quotient"], second["quotient"]) == (2, 3)
    assert first["process"] == second["process"] != os.getpid()
    with pytest.raises(RuntimeError, match=r"^ZeroDivisionError: division by zero"):
        divide(1, 0)
    assert divide(4, 2)["process"] == first["process"]


def test_a_call_that_does_not_end_is_ended_and_the_next_one_works() -> None:
    search = LimitedFunction(lambda pattern, text: bool(re.search(pattern, text)), seconds=0.5)
    started = time.monotonic()
    with pytest.raises(LimitError, match=r"^took more than 0\.5 seconds$"):
        search(r"(\w+\.?)+!", "bert.encoder.layer.11.attention.output.dense.weight")
    assert time.monotonic() - started < 5
    assert search("b", "abc")


def test_a_call_that_fills_the_memory_is_ended_and_the_next_one_works() -> None:
    repeat = LimitedFunction(lambda count: len(bytes(count)), megabytes=200)
    with pytest.raises(LimitError, match=r"^takes more than 200 MB of memory$"):
        repeat(10**10)
    assert repeat(10**6) == 10**6


def test_a_process_that_dies_is_an_error() -> None:
    call: Any = LimitedFunction(lambda code: os._exit(code))
    with pytest.raises(LimitError, match=r"^ended without an answer$"):
        call(3)


def test_a_process_without_calls_ends_and_the_next_call_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that lives during training would hold a copy of the weights as they were."""
    monkeypatch.setattr(limited, "SECONDS_IDLE", 0.1)
    function = LimitedFunction(os.getpid)
    first = function()
    assert os.waitpid(first, 0) == (first, 0)
    second = function()
    assert second not in (first, os.getpid())


def test_the_process_ends_with_the_function() -> None:
    process = (function := LimitedFunction(os.getpid))()
    os.kill(process, 0)
    del function
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_files_of_this_process_are_not_open_in_the_other_one() -> None:
    reading, writing = os.pipe()
    function = LimitedFunction(os.getpid)
    function()
    os.close(writing)
    assert os.read(reading, 1) == b""  # would wait for the other process if that had it open
    os.close(reading)
    function.close()
