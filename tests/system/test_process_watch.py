"""Who is silent, what is said of it, and by whom. tests/test_stopping.py stops real processes."""

import os
import re
import sys
import threading
import time
from collections.abc import Callable

import pytest

from hf_finetune.system import process_watch
from hf_finetune.system.process_watch import STORE, ProcessWatch, describe_place, watch_processes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time on."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setenv("MASTER_ADDR", "head")
    monkeypatch.setattr(process_watch, "BEATS_A_WARNING", 4500)  # pauses of 10 ms

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    return pass_time


def test_a_process_is_silent_if_its_beats_do_not_change(clock: Callable[[float], None]) -> None:
    watch = ProcessWatch(1, 4, patience_seconds=600)
    clock(44)
    assert watch.find_silent() == {}
    clock(2)
    assert watch.find_silent() == {}  # a store that has never answered shows nothing
    watch.has_answered = True
    assert watch.find_silent().keys() == {STORE}  # as long as it does not answer, nothing is known of the others
    watch.seen_at[STORE] = time.monotonic()
    assert watch.find_silent() == {0: 46, 2: 46, 3: 46}
    watch.take(0, 5, has_left=False)
    watch.take(2, 0, has_left=True)  # its run has ended
    watch.take(3, 0, has_left=False)
    assert watch.find_silent() == {3: 46}
    clock(30)
    watch.take(0, 5, has_left=False)
    watch.seen_at[STORE] = time.monotonic()
    assert watch.find_silent() == {3: 76}
    clock(20)
    watch.seen_at[STORE] = time.monotonic()
    assert watch.find_silent() == {0: 50, 3: 96}


@pytest.mark.parametrize(("process", "speaks"), [(0, False), (1, True), (2, False)])
def test_one_process_speaks_for_all(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str], process: int, speaks: bool
) -> None:
    """0 is silent, and so is what it says of itself."""
    watch = ProcessWatch(process, 3, patience_seconds=600)
    clock(50)
    for one in (1, 2, STORE):
        watch.seen_at[one] = time.monotonic()
    if process:
        watch.say("line")
        assert capsys.readouterr().err == ("line\n" if speaks else "")


def test_a_process_that_answers_again_is_reported_and_one_that_does_not_ends_the_run(
    clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch, ended = ProcessWatch(0, 2, patience_seconds=120), list[int]()

    def end(code: int) -> None:
        ended.append(code)
        watch.ended.set()

    monkeypatch.setattr(os, "_exit", end)
    said: list[str] = []
    # Seconds, and whether it beats. The first time this process was stopped, with all others
    times = iter([(900, False), (40, False), (20, False), (1, True), *[(40, False)] * 3, (10, False)])
    pauses = watch.ended.wait

    def wait(seconds: float) -> bool:
        passed, beats = next(times)
        clock(passed)
        watch.seen_at[STORE] = time.monotonic()
        watch.take(1, watch.beats[1] + beats, has_left=False)
        return pauses(0)

    monkeypatch.setattr(watch.ended, "wait", wait)
    monkeypatch.setattr(watch, "say", said.append)
    with pytest.raises(StopIteration):
        watch.look()
    name = "process 1 of 2 (unknown host)"
    assert said[0].startswith(
        f"warning: waiting for {name}, which has given no sign of life for 60 s. This process is at "
    )
    assert said[1] == f"{name} answers again"
    assert said[2].startswith(f"warning: waiting for {name}")
    assert said[3] == (
        f"error: {name} has given no sign of life for 2 minutes (run.patience_minutes): the run ends; the same command continues "
        "it from its last checkpoint"
    )
    assert ended == [75]


class Store:
    """A store of keys and values, whose connection breaks at the call with this number."""

    def __init__(self, values: dict[str, int], breaks_at: int = 0) -> None:
        self.values, self.breaks_at, self.calls = values, breaks_at, 0

    def add(self, key: str, count: int) -> int:
        self.calls += 1
        if self.calls == self.breaks_at:
            raise RuntimeError("connection reset")
        self.values[key] = self.values.get(key, 0) + count
        return self.values[key]

    def set(self, key: str, value: str) -> None:
        self.values[key] = 1

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys) and not keys[0].startswith("name/")


def test_a_connection_that_breaks_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the process would take the store for dead, and end a run in which nothing is wrong."""
    watch, values = ProcessWatch(0, 2, patience_seconds=0.2), dict[str, int]()
    stores = iter([Store(values, breaks_at=5), Store(values)])
    monkeypatch.setattr(watch, "connect", lambda: next(stores))
    monkeypatch.setattr(watch, "look", lambda: None)
    with watch.at_work():
        limit = time.monotonic() + 20
        while values.get("beat/0", 0) < 6:
            assert time.monotonic() < limit
            time.sleep(0.01)
        assert watch.has_answered
    assert next(stores, None) is None
    assert "left/0" in values


def test_a_process_that_fails_does_not_say_that_it_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, values = ProcessWatch(0, 2, patience_seconds=0.2), dict[str, int]()
    monkeypatch.setattr(watch, "connect", lambda: Store(values))
    with pytest.raises(OSError, match="a disk"), watch.at_work():
        raise OSError("a disk")
    assert "left/0" not in values


def test_a_store_that_was_never_reached_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise RuntimeError("no connection")

    watch, ended = ProcessWatch(0, 2, patience_seconds=0.1), list[int]()
    monkeypatch.setattr(watch, "connect", refuse)
    monkeypatch.setattr(os, "_exit", ended.append)
    with watch.at_work():
        time.sleep(0.4)
    assert ended == []
    assert capsys.readouterr().err == "warning: the processes do not watch each other: their store cannot be reached\n"


def test_the_place_is_the_call_of_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []

    def all_reduce(seconds: float) -> bool:
        def wrapper() -> None:
            places.append(describe_place(sys._getframe()))

        wrapper()
        return True

    watch = ProcessWatch(0, 2, patience_seconds=120)
    monkeypatch.setattr(watch.ended, "wait", all_reduce)
    watch.look()
    assert re.fullmatch(r"all_reduce\(\) in look\(\) \(system/process_watch\.py, line \d+\)", places[0])
    assert describe_place(sys._getframe()) == describe_place(None) == "an unknown place"


def test_a_single_process_is_not_watched() -> None:
    before = threading.active_count()
    with watch_processes(0, 1, 30):
        assert threading.active_count() == before
