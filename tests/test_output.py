"""Standard output and standard error fail in the middle of a command: a reader that is gone, a full disk, an ASCII terminal."""

from pathlib import Path

import pytest
from support.shell import Shell

pytestmark = [pytest.mark.processes, pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")]

UNREAD = "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)"
FULL = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
ASCII = "encoding = 'ascii'"
WAYS = {"unread": UNREAD, "full": FULL, "both-full": f"{FULL}; os.dup2(1, 2)", "ascii": ASCII}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_ends_well_whatever_happens_to_its_output(shell: Shell, way: str) -> None:
    code, output, errors = shell.train(WAYS[way], way)
    assert code == 0
    assert shell.read_results(way) == shell.read_results("plain")
    reasons = {"unread": "Broken pipe", "full": "No space left on device"}
    if way in reasons:
        assert errors == f"warning: standard output cannot be written ({reasons[way]}); continuing without it\n"
    elif way == "ascii":
        assert r"gr\xf6\xdfe\u2192" in output


COMMANDS = {
    "predict": ["predict", "out/plain", "--text", "the old cat"],
    "predict a file": ["predict", "out/plain", "--data", "train.jsonl"],
    "evaluate": ["evaluate", "out/plain", "--data", "train.jsonl"],
    "inspect": ["inspect", "out/plain"],
    "checkpoints": ["checkpoints", "out/plain"],
    "cache": ["cache", "list"],
    "data": ["data", "train.jsonl"],
    "help": ["--help"],
    "settings": ["train", "classify", "--print_config", "--data.text_columns", "größe→"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_cannot_print_its_result_is_one_line(shell: Shell, name: str) -> None:
    code, _, errors = shell.run(UNREAD, *COMMANDS[name])
    assert code == (0 if name in ("predict a file", "help") else 141)
    assert "error" not in errors
    code, _, errors = shell.run(FULL, *COMMANDS[name])
    if name != "help":
        assert code == 2
        assert errors.splitlines()[-1] == "error: standard output: cannot be written: No space left on device"
    code, output, _ = shell.run(ASCII, *COMMANDS[name])
    assert code == 0
    if name in ("predict", "predict a file", "settings"):  # what programs read stays as it is
        assert "größe→" in output
    elif name == "data":
        assert r"gr\xf6\xdfe\u2192" in output
