"""A stop signal ends a run at once if there is nothing to save; else it is recorded."""

import os
import signal
import threading

import pytest

from hf_finetune.system.errors import StoppedError
from hf_finetune.system.signals import STOP_SIGNALS, StopSignals


def test_a_signal_raises_at_once_if_there_is_nothing_to_save() -> None:
    signals = StopSignals()
    with pytest.raises(StoppedError, match="SIGTERM"), signals.install():
        os.kill(os.getpid(), signal.SIGTERM)


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
