"""The exceptions that a user meets."""

import contextlib

import pytest

from hf_finetune.system.errors import InputError, StoppedError, first_line


def test_a_notebook_shows_one_line_without_secrets() -> None:
    assert InputError("data.train (hf_0123456789abcdefghijkl): no")._render_traceback_() == [
        "InputError: data.train (hf_***): no"
    ]
    assert StoppedError("SIGINT: saved")._render_traceback_() == ["Stopped: SIGINT: saved"]


def test_a_program_that_catches_exceptions_does_not_hide_that_it_was_stopped() -> None:
    def run() -> None:
        with contextlib.suppress(Exception):
            raise StoppedError("SIGINT")

    with pytest.raises(StoppedError):
        run()


def test_the_first_line_of_an_error_is_never_blank() -> None:
    assert first_line(ValueError("\n  broken\nmore")) == "broken"
    assert first_line(KeyError()) == "KeyError"
