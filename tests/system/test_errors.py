"""The exceptions that a user meets."""

import contextlib
import pickle

import pytest

from hf_finetune.system.errors import InputError, StoppedError, first_line


def test_a_notebook_shows_one_line_without_secrets() -> None:
    assert InputError("data.train (hf_0123456789abcdefghijkl): no")._render_traceback_() == [
        "InputError: data.train (hf_***): no"
    ]
    assert InputError("two\nthings:", "one\nof hf_0123456789abcdefghijkl", "another")._render_traceback_() == [
        "InputError: two things:",
        "  one of hf_***",
        "  another",
    ]
    assert StoppedError("SIGINT: saved")._render_traceback_() == ["Stopped: SIGINT: saved"]


def test_a_program_that_catches_exceptions_does_not_hide_that_it_was_stopped() -> None:
    def run() -> None:
        with contextlib.suppress(Exception):
            raise StoppedError("SIGINT")

    with pytest.raises(StoppedError):
        run()


def test_an_error_with_details_has_a_line_for_each_also_after_pickling() -> None:
    error = pickle.loads(pickle.dumps(InputError("two things:", "one", "another")))
    assert str(error) == "two things:\n  one\n  another"


def test_the_first_line_of_an_error_is_never_blank() -> None:
    assert first_line(ValueError("\n  broken\nmore")) == "broken"
    assert first_line(KeyError()) == "KeyError"
