"""A stop signal ends a run at once if there is nothing to save; else it is recorded."""

import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hf_finetune.system import signals as signals_module
from hf_finetune.system.errors import StoppedError
from hf_finetune.system.signals import STOP_SIGNALS, StopSignals


def work_on() -> None:
    """Is busy for five seconds, unless a signal ends it. A single call of sleep() would be completed first."""
    for _ in range(500):
        time.sleep(0.01)


def test_a_signal_raises_at_once_if_there_is_nothing_to_save() -> None:
    signals = StopSignals()
    with pytest.raises(StoppedError, match="SIGTERM"), signals.install():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_each_signal_is_recorded_and_a_repeated_one_ends_the_process(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_finetune.system.signals.SAME_SIGNAL_SECONDS", -1)
    signals, before = StopSignals(), signal.signal(number, signal.SIG_DFL)
    ended: list[int] = []
    try:
        with signals.install(), signals.deferred():
            signal.raise_signal(number)
            assert signals.received == number.name
            monkeypatch.setattr(os, "kill", lambda _, sent: ended.append(sent))
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)
    # At a limit on processor time the signal comes each second, until the run has saved or the higher limit kills it
    assert ended == ([] if number is signal.SIGXCPU else [number])


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As SIGHUP after nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals().install():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_module_that_is_being_imported_is_imported_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nis_complete = True\n"
    (tmp_path / "interrupted_module.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    def load() -> None:
        importlib.import_module("interrupted_module")
        work_on()

    with pytest.raises(StoppedError, match="SIGINT"), StopSignals().install():
        load()
    assert sys.modules["interrupted_module"].is_complete


def test_a_signal_that_arrives_where_python_ignores_errors_comes_again() -> None:
    class Interrupted:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    report_ignored = sys.unraisablehook
    went_on = []

    def stop_in_finalizer() -> None:
        Interrupted()
        went_on.append(True)
        work_on()

    with pytest.raises(StoppedError, match="SIGTERM"), StopSignals().install():
        stop_in_finalizer()
    assert went_on
    assert sys.unraisablehook is report_ignored


def test_an_ignored_error_of_no_signal_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        def __del__(self) -> None:
            raise StoppedError

    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda ignored: reported.append(type(ignored.exc_value)))
    with StopSignals().install():
        Stopped()
    assert reported == [StoppedError]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has this process count as a notebook's kernel, in which each signal counts."""
    monkeypatch.setattr("hf_finetune.system.signals.is_notebook", lambda: True)
    monkeypatch.setattr("hf_finetune.system.signals.SAME_SIGNAL_SECONDS", -1)


@pytest.mark.usefixtures("notebook")
def test_a_second_signal_of_a_notebook_comes_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)

    signals, went_on = StopSignals(), []

    def stop_in_finalizer() -> None:
        os.kill(os.getpid(), signal.SIGXCPU)
        Interrupted()
        went_on.append(signals.received)
        work_on()

    with pytest.raises(KeyboardInterrupt) as stopped, signals.install(), signals.deferred():
        stop_in_finalizer()
    assert not isinstance(stopped.value, StoppedError)
    assert went_on == ["SIGXCPU"]  # the first signal stays received


@pytest.mark.usefixtures("notebook")
@pytest.mark.parametrize("received", ["", "SIGTERM"])
@pytest.mark.parametrize("call", ["installs", "restores"])
def test_a_signal_while_the_handlers_change_leaves_none_behind(
    received: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals, set_handlers, calls = StopSignals(), signals_module.set_handlers, ["restores", "installs"]
    signals.received = received

    def interrupt(handlers: Any) -> None:
        is_interrupted = calls and calls.pop() == call
        if is_interrupted and call == "restores":
            os.kill(os.getpid(), signal.SIGINT)
        set_handlers(handlers)
        if is_interrupted:
            os.kill(os.getpid(), signal.SIGINT)

    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    report_ignored = sys.unraisablehook
    monkeypatch.setattr(signals_module, "set_handlers", interrupt)
    with pytest.raises(KeyboardInterrupt) as stopped, signals.install():
        pass
    assert isinstance(stopped.value, StoppedError) == (not received)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert sys.unraisablehook is report_ignored


@pytest.mark.usefixtures("notebook")
def test_a_second_signal_does_not_end_the_kernel_of_a_notebook() -> None:
    signals = StopSignals()

    def interrupt_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped, signals.install(), signals.deferred():
        interrupt_twice()
    assert not isinstance(stopped.value, StoppedError)


def test_a_deferred_signal_is_recorded_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    signals = StopSignals()
    with signals.install(), signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == "SIGTERM"
    assert signals.ends_at_once
    assert capsys.readouterr().err == "SIGTERM: saving, then stopping; a second signal stops without saving\n"


def test_the_handlers_of_the_program_return_after_the_block() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopSignals().install():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_outside_the_main_thread_no_handler_is_installed() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    during = []

    def run() -> None:
        with StopSignals().install():
            during.extend(signal.getsignal(number) for number in STOP_SIGNALS)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert during == before
