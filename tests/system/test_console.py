"""Messages of a run: plain lines on standard output, unless the program has configured the logger."""

import contextlib
import io
import logging
from collections.abc import Iterator

import pytest

from hf_finetune.system.console import (
    LOGGER,
    StdoutHandler,
    align_columns,
    configure_logging,
    print_message,
)


@pytest.fixture(autouse=True)
def _fresh_logger() -> Iterator[None]:
    """The logger as it is after an import of the package, and as it was before after the test."""
    before = (list(LOGGER.handlers), LOGGER.level, LOGGER.propagate)
    LOGGER.handlers, LOGGER.propagate = [], True
    LOGGER.setLevel(logging.NOTSET)
    yield
    LOGGER.handlers, LOGGER.propagate = before[0], before[2]
    LOGGER.setLevel(before[1])


def test_messages_are_plain_lines_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging()
    print_message("loss 1.5 (100%)\n")
    print_message()
    assert capsys.readouterr() == ("loss 1.5 (100%)\n\n\n", "")


def test_messages_follow_a_later_redirection() -> None:
    configure_logging()
    with contextlib.redirect_stdout(io.StringIO()) as output:
        print_message("line")
    assert output.getvalue() == "line\n"


def test_nothing_is_printed_twice_if_the_root_logger_prints_too(capsys: pytest.CaptureFixture[str]) -> None:
    root_handler = StdoutHandler()
    logging.getLogger().addHandler(root_handler)
    try:
        configure_logging()
        print_message("line")
    finally:
        logging.getLogger().removeHandler(root_handler)
    assert capsys.readouterr().out == "line\n"


def test_a_program_can_silence_the_messages(capsys: pytest.CaptureFixture[str]) -> None:
    LOGGER.setLevel(logging.WARNING)
    configure_logging()
    print_message("line")
    assert capsys.readouterr().out == ""


def test_a_handler_of_the_program_is_the_only_one(capsys: pytest.CaptureFixture[str]) -> None:
    LOGGER.addHandler(logging.NullHandler())
    configure_logging()
    print_message("line")
    assert len(LOGGER.handlers) == 1
    assert capsys.readouterr().out == ""


def test_a_table_shows_control_characters_of_the_data_as_escapes() -> None:
    rows = [
        ["label", "n"],
        ["red \x1b[31m", "1"],
        ["two\nlines\u2028", "2"],
        ["half \ud800", "3"],
        ["خوش\u200cنویسی", "4"],
    ]
    lines = align_columns(rows, left=True).splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "label", "red \\x1b[31m", "two\\nlines\\u2028", "half \\ud800", "خوش\u200cنویسی"
    ]  # fmt: skip
