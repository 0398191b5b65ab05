"""What a run shows: live in a pseudo-terminal, in lines without one, with --quiet and as JSON. It leaves a terminal in order."""

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest
from support.script_server import is_running
from support.shell import Shell
from support.terminal import Screen, Terminal

pytestmark = [pytest.mark.processes, pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")]

LONG = ("--train.epochs", "2000", "--evaluation.every", "5", "--checkpoint.every", "100000")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal of 100 columns."""
    made = Terminal()
    yield made
    made.close()


def find_lines(terminal: Terminal, *texts: str) -> list[str]:
    """The lines with all of these texts, on any of the screens that were seen."""
    return [line for screen in terminal.seen for line in screen if all(text in line for text in texts)]


def test_a_run_is_shown_live_and_leaves_only_its_lines(shell: Shell, terminal: Terminal) -> None:
    scripts = shell.train_on(terminal, "live", "--train.epochs", "60", "--evaluation.every", "20")
    terminal.watch(scripts)
    assert scripts.wait() == 0
    assert find_lines(terminal, "epoch", "/", "updates", " left")
    (line, *_) = find_lines(terminal, "loss", "tokens/s", "accuracy", "best", "MB")
    assert len(line) <= 100
    last = terminal.screen.show()
    assert any(line.startswith("saved ckpt_") for line in last)
    assert any("hf-finetune predict out/live" in line for line in last)
    assert not [line for line in last if " updates " in line and " left" in line]
    assert not [line for line in last if line.startswith("update ")]  # the bar showed them
    assert not [line for line in last if "evaluating" in line or "starting" in line]
    assert terminal.screen.cursor_is_shown
    assert "\x1b[?25l" not in terminal.output  # a process that is killed could not show it again


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_the_terminal_in_order(shell: Shell, terminal: Terminal, name: str) -> None:
    scripts = shell.train_on(terminal, name, *LONG)
    terminal.watch(scripts, until="accuracy 0.")
    os.kill(scripts.processes[0], getattr(signal, name))
    terminal.watch(scripts)
    assert scripts.wait() == 75, terminal.output
    *_, last = terminal.screen.show()
    assert last.startswith(f"stopped by {name}: the run is saved up to ")
    assert [line for line in terminal.screen.show() if line.startswith(f"{name}: saving, then stopping")]
    assert terminal.screen.column == 0
    assert terminal.screen.cursor_is_shown


def test_a_run_continues_if_its_terminal_is_resized_and_if_it_goes(shell: Shell) -> None:
    terminal = Terminal()
    scripts = shell.train_on(terminal, "resized", *LONG)
    terminal.watch(scripts, until=" left")
    terminal.resize(40)
    begin = len(terminal.output)
    end, last = time.monotonic() + 30, "━"
    while "━" in last and time.monotonic() < end:  # until a view without a bar is drawn
        terminal.read()
        *_, last = ["━", *(part for part in terminal.output[begin:].split("\r\n") if " updates" in part)]
    assert "━" in terminal.output[:begin]
    assert "━" not in last  # there is no room for a bar
    terminal.close()
    time.sleep(0.6)
    assert all(map(is_running, scripts.processes))
    os.kill(scripts.processes[0], signal.SIGTERM)
    assert scripts.wait(30) == 75


@pytest.mark.parametrize(("environment", "is_live"), [({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, True)])
def test_what_a_terminal_cannot_do_is_left_out(
    shell: Shell, terminal: Terminal, environment: dict[str, str], is_live: bool
) -> None:
    name = next(iter(environment))
    scripts = shell.train_on(terminal, name, "--train.epochs", "8", **environment)
    terminal.watch(scripts)
    assert scripts.wait() == 0
    assert ("\x1b[" in terminal.output) == is_live
    assert bool(find_lines(terminal, "update 1/")) != is_live
    assert "\x1b[3" not in terminal.output  # no colour


def test_without_a_terminal_there_are_lines(shell: Shell) -> None:
    code, output, errors = shell.train("", "lines", "--train.batch_size", "16", "--tracking.log_every", "2")
    assert (code, errors) == (0, "")
    (line, *_) = [line for line in output.splitlines() if line.startswith("update 2/")]
    _, epoch, loss, speed, left = line.split("  ")
    results = json.loads((shell.folder / "out" / "lines" / "results.json").read_text())
    assert epoch == f"epoch {2 / results['updates']:.2f}"
    assert loss.startswith("loss ")
    assert speed.endswith(" tokens/s")
    assert left == "0.0 min left"


def test_quiet_prints_the_final_line_and_warnings(shell: Shell) -> None:
    code, output, errors = shell.train("", "quiet", "--quiet")
    assert (code, errors) == (0, "")
    *warnings, last = output.splitlines()
    assert last.startswith("best accuracy on validation ")
    assert last.endswith("; the model is in out/quiet/model")
    assert all(line.startswith("warning: ") for line in warnings)
    assert shell.train("", "quiet", "--quiet")[1].splitlines()[-1].endswith(last)  # which is finished
    code, output, errors = shell.train("", "quiet2", "--quiet", "--train.epochs", "0")
    assert (code, output) == (2, "")
    assert errors.startswith("error: train.epochs")


def test_json_is_an_object_a_line_and_nothing_else(shell: Shell) -> None:
    code, output, _ = shell.train("", "json", "--json", "--train.on_update", "builtins:print")
    assert code == 0
    events = [json.loads(line) for line in output.splitlines()]
    kinds = [event["event"] for event in events]
    assert {*kinds} - {"warning"} == {"phase", "start", "update", "evaluation", "save", "end"}
    assert kinds.count("start") == kinds.count("end") == 1
    assert kinds[-1] == "end"
    results = json.loads((shell.folder / "out" / "json" / "results.json").read_text())
    assert events[-1]["results"]["best"] == results["best"]
    assert events[-1]["results"]["seconds"] == results["seconds"]
    evaluation = next(event for event in events if event["event"] == "evaluation")
    assert evaluation["metrics"]["accuracy"] == evaluation["best"]["value"] == results["best"]["value"]
    update = next(event for event in events if event["event"] == "update")
    assert {"update", "total_updates", "epoch", "loss", "tokens_per_second", "seconds_left", "peak_memory_mb"} <= {
        *update
    }
    code, output, errors = shell.train("", "json", "--json", "--quiet")
    assert (code, output) == (2, "")
    assert errors.startswith("error: --quiet: does not go with --json")


def test_a_run_continues_if_nobody_reads_them(shell: Shell) -> None:
    unread = "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)"
    code, _, errors = shell.train(unread, "unread-json", "--json")
    assert code == 0
    assert errors == "warning: standard output cannot be written (Broken pipe); continuing without it\n"
    assert shell.read_results("unread-json")["test"]


def test_the_screen_of_these_tests_draws_as_terminals_do() -> None:
    screen = Screen()
    screen.feed("one\r\ntwo\r\nthree\r\x1b[2K\x1b[1A\x1b[2Kfour\x1b[31m!\x1b[0m\r\n\x1b[?25l")
    assert screen.show() == ["one", "four!"]
    assert not screen.cursor_is_shown
