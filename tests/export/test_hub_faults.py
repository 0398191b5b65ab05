"""A push to a Hub that fails in every way: nothing is pushed twice, nothing is lost, nothing hangs, and the reason is named.

docs/reliability.md has the table of these faults; its rows are those of FAULTS.
"""

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http
from support.hub_client import TOKEN, assert_pushed_once, make_run, serve_hub, skip_waits
from support.hub_faults import FOREVER, Fault, Reply
from support.hub_server import HubError, HubServer

from hf_finetune import cli
from hf_finetune.export import hub, hub_requests
from hf_finetune.system.errors import InputError

WHOAMI, CREATE, HEAD = "/api/whoami-v2", "/api/repos/create", "/api/models/ada/clf(/revision/.*)?$"
PREUPLOAD, COMMIT = "/api/models/ada/clf/preupload/", "/api/models/ada/clf/commit/"
BATCH, PUT, VERIFY = r"/ada/clf\.git/info/lfs/objects/batch", r"/info/lfs/objects/[0-9a-f]{64}", "/objects/verify"
GARBAGE = Reply(body=b"<html>welcome to the hotel</html>", headers={"Content-Type": "text/html"})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The double, with this process's client set to it."""
    with serve_hub(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between requests, in seconds, which are not waited."""
    return skip_waits(monkeypatch)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """What a push reads of a finished run."""
    return make_run(tmp_path / "run")


def push(run_dir: Path) -> int:
    """The exit code of a push."""
    return cli.main(["push", str(run_dir), "--repo-id", "ada/clf"])


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault, and what comes of a push that meets it: `reason` is a part of the message if it fails."""

    fault: Callable[[], Fault]
    code: int
    reason: str = ""
    request_seconds: float = 5.0


def status(path: str, code: int, times: float = 1, method: str = "POST", **headers: str) -> Case:
    """A push that meets a status."""
    reply = HubError(code, "says the test", headers={name.replace("_", "-"): value for name, value in headers.items()})
    passes = code not in (400, 401, 403) and times < FOREVER and "3600" not in headers.values()
    return Case(
        fault=lambda: Fault(method=method, path_regex=path, times=times, reply=reply.reply),
        code=0 if passes else 2,
        reason={400: "Bad request for commit endpoint: says the test"}.get(code, f"{code} "),
    )


def ending(path: str, how: Any, times: float = 1, method: str = "POST", effect: Any = "none", code: int = 0) -> Case:
    """A push whose connection ends without an answer."""
    return Case(
        fault=lambda: Fault(method=method, path_regex=path, times=times, ending=how, effect=effect),
        code=code,
        reason="does not answer" if how == "silence" else "",
        request_seconds=0.25 if how == "silence" else 5.0,
    )


def garbage(path: str, times: float, method: str = "POST", reply: Reply = GARBAGE) -> Case:
    """A push that gets an answer with status 200 that is not the Hub's."""
    return Case(
        fault=lambda: Fault(method=method, path_regex=path, times=times, reply=reply),
        code=0 if times < FOREVER else 2,
        reason="the Hub's answer cannot be read",
    )


FAULTS: dict[str, dict[str, Case]] = {
    "401, 403 or another refusal": {
        "401 at whoami": dataclasses.replace(
            status(WHOAMI, 401, FOREVER, "GET"), reason="the Hub rejects the token: Invalid user token."
        ),
        "403 at create": status(CREATE, 403, FOREVER),
        "400 at commit": status(COMMIT, 400),
        "401 at commit": status(COMMIT, 401),
        "403 at commit": status(COMMIT, 403),
    },
    "429 or 5xx, some times": {
        "503 twice at whoami": status(WHOAMI, 503, 2, "GET"),
        "503 twice at create": status(CREATE, 503, 2),
        "503 twice at the head": status(HEAD, 503, 2, "GET"),
        "503 twice at preupload": status(PREUPLOAD, 503, 2),
        "503 twice at the LFS batch": status(BATCH, 503, 2),
        "503 at the LFS put": status(PUT, 503, 1, "PUT"),
        "503 at the LFS verification": status(VERIFY, 503),
        "409 at commit": status(COMMIT, 409),
        "412 at commit": status(COMMIT, 412),
        "500 at commit": status(COMMIT, 500),
        "503 twice at commit": status(COMMIT, 503, 2),
        "429 at commit": status(COMMIT, 429),
        "503 when the commit is read back": status("/tree/", 503, 2, "GET"),
    },
    "429 that asks for a wait of seconds": {
        "429 at whoami": status(WHOAMI, 429, 2, "GET", Retry_After="3"),
        "429 at preupload": status(PREUPLOAD, 429, 2, Retry_After="3"),
        "429 at commit": status(COMMIT, 429, 2, Retry_After="3"),
        "429 at commit, by rate limit": status(COMMIT, 429, 2, RateLimit='"api";r=0;t=3'),
    },
    "429 that asks for an hour": {
        "429 at whoami": status(WHOAMI, 429, FOREVER, "GET", Retry_After="3600"),
        "429 at preupload": status(PREUPLOAD, 429, FOREVER, Retry_After="3600"),
        "429 at commit": status(COMMIT, 429, FOREVER, Retry_After="3600"),
    },
    "429 or 5xx without end": {
        "503 at whoami": status(WHOAMI, 503, FOREVER, "GET"),
        "503 at create": status(CREATE, 503, FOREVER),
        "503 at preupload": status(PREUPLOAD, 503, FOREVER),
        "503 at the LFS put": status(PUT, 503, FOREVER, "PUT"),
        "429 at commit": status(COMMIT, 429, FOREVER),
        "500 at commit": status(COMMIT, 500, FOREVER),
    },
    "the connection is cut, some times": {
        "FIN at whoami": ending(WHOAMI, "close", method="GET"),
        "RST at create": ending(CREATE, "reset"),
        "FIN at the LFS put": ending(PUT, "close", method="PUT"),
        "RST at the LFS put": ending(PUT, "reset", method="PUT"),
        "FIN before the commit": ending(COMMIT, "close"),
        "RST before the commit": ending(COMMIT, "reset"),
    },
    "the connection is cut without end": {
        "FIN at the LFS put": ending(PUT, "close", FOREVER, "PUT", code=2),
        "RST before the commit": ending(COMMIT, "reset", FOREVER, code=2),
    },
    "the commit happens, and its answer is lost": {
        "FIN": ending(COMMIT, "close", effect="done"),
        "RST": ending(COMMIT, "reset", effect="done"),
        "cut after ten bytes": ending(COMMIT, "cut", effect="done"),
        "no answer": ending(COMMIT, "silence", effect="done"),
    },
    "an answer that is not the Hub's, once": {
        "HTML at whoami": garbage(WHOAMI, 1, "GET"),
        "HTML at create": garbage(CREATE, 1),
        "HTML at preupload": garbage(PREUPLOAD, 1),
        "HTML at commit": garbage(COMMIT, 1),
        "a list at create": garbage(CREATE, 1, reply=Reply(body=b"[]")),
        "an empty object at commit": garbage(COMMIT, 1, reply=Reply(body=b"{}")),
        "bytes at commit": garbage(COMMIT, 1, reply=Reply(body=b"\xff\xfe\x00")),
    },
    "an answer that is not the Hub's, without end": {
        "HTML at whoami": garbage(WHOAMI, FOREVER, "GET"),
        "HTML at commit": garbage(COMMIT, FOREVER),
        "null at commit": garbage(COMMIT, FOREVER, reply=Reply(body=b"null")),
    },
    "the Hub says that it is done, and nothing is, once": {
        "create": Case(fault=lambda: Fault(method="POST", path_regex=CREATE, effect="claimed"), code=0),
        "commit": Case(fault=lambda: Fault(method="POST", path_regex=COMMIT, effect="claimed"), code=0),
    },
    "the Hub says that it is done, and nothing is, without end": {
        "commit": Case(
            fault=lambda: Fault(method="POST", path_regex=COMMIT, effect="claimed", times=FOREVER),
            code=2,
            reason="404 ",
        ),
    },
    "no answer, once": {
        "whoami": ending(WHOAMI, "silence", method="GET"),
        "create": ending(CREATE, "silence"),
        "the head": ending(HEAD, "silence", method="GET"),
        "preupload": ending(PREUPLOAD, "silence"),
        "LFS put": ending(PUT, "silence", method="PUT"),
        "commit": ending(COMMIT, "silence"),
        "reading back": ending("/tree/", "silence", method="GET"),
    },
    "no answer, without end": {
        "whoami": ending(WHOAMI, "silence", FOREVER, "GET", code=2),
        "create": ending(CREATE, "silence", FOREVER, code=2),
        "the head": ending(HEAD, "silence", FOREVER, "GET", code=2),
        "preupload": ending(PREUPLOAD, "silence", FOREVER, code=2),
        "LFS put": ending(PUT, "silence", FOREVER, "PUT", code=2),
        "commit": ending(COMMIT, "silence", FOREVER, code=2),
        "reading back": ending("/tree/", "silence", FOREVER, "GET", code=2),
    },
    "a slow answer": {
        "commit": Case(
            fault=lambda: Fault(method="POST", path_regex=COMMIT, effect="done", seconds=0.5),
            code=0,
        ),
    },
}
CASES = {f"{kind}: {name}": case for kind, cases in FAULTS.items() for name, case in cases.items()}

# The rows of the table that the tests of processes below make true
OTHERS = {
    "SIGTERM or SIGKILL": "that of the signal",
    "SIGINT (Ctrl-C)": "130",
    "two pushes of one run at the same time": "0, 0",
}


def test_the_table_in_the_docs_has_these_faults_and_their_exit_codes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text("utf-8")
    table = page.partition("<!-- hub: ")[2].partition("<!-- end of hub -->")[0].splitlines()[3:]
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[2].removesuffix(" |") for line in table}
    codes = {kind: {str(case.code) for case in cases.values()} for kind, cases in FAULTS.items()}
    assert rows == {kind: code for kind, (code,) in codes.items()} | OTHERS
    limits = hub_requests.PATIENT
    waits = [min(limits.longest_wait, limits.first_wait * 2**number) for number in range(limits.attempts - 1)]
    assert (limits.request_seconds, limits.failing_seconds, waits) == (60, 180, [1, 2, 4, 8, 8])
    assert (hub_requests.BRIEF.request_seconds, hub_requests.BRIEF.attempts) == (10, 1)


@pytest.mark.parametrize("name", CASES)
def test_a_push_that_meets_a_fault(
    server: HubServer,
    run_dir: Path,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    case = CASES[name]
    limits = hub_requests.Limits(request_seconds=case.request_seconds, failing_seconds=20, attempts=6)
    monkeypatch.setattr(hub_requests, "PATIENT", limits)
    server.disturb(case.fault())
    begin = time.monotonic()
    assert push(run_dir) == case.code
    assert time.monotonic() - begin < 15
    output = capsys.readouterr()
    if case.code == 0:
        assert server.faults == [], "the push has met the fault"
        assert_pushed_once(server, run_dir)
    else:
        message = output.err.strip().splitlines()[-1]
        assert message.startswith("error: ")
        assert case.reason in message
        assert "Request ID: " not in message.removeprefix("error: ")[:60]
        assert TOKEN not in output.out + output.err
        assert sum(waits) <= 30, "the budget, and the wait that was under way"
    server.faults.clear()
    assert push(run_dir) == 0
    assert_pushed_once(server, run_dir)


def test_a_wait_that_the_hub_asks_for_is_waited(
    server: HubServer, run_dir: Path, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail_next("POST", COMMIT, status=429, headers={"Retry-After": "17"})
    assert push(run_dir) == 0
    assert waits == [17.0]
    assert "the push to ada/clf: 429 Too Many Requests" in capsys.readouterr().out


def test_a_wait_that_is_longer_than_the_budget_is_not_begun(
    server: HubServer, run_dir: Path, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail_next("POST", PREUPLOAD, status=429, headers={"Retry-After": "3600"}, times=FOREVER)
    assert push(run_dir) == 2
    assert waits == []
    assert "429 Too Many Requests: A failure that the test requested; the Hub asks to wait 3600 s" in (
        capsys.readouterr().err
    )


def test_a_conflict_at_create_is_not_asked_again_without_end(
    server: HubServer, run_dir: Path, waits: list[float]
) -> None:
    """huggingface_hub asks again at once, for ever."""
    conflict = "Cannot create repo: another conflicting operation is in progress"
    server.fail_next("POST", CREATE, status=409, message=conflict, times=FOREVER)
    assert push(run_dir) == 2
    assert [path for _, path in server.requests].count(CREATE) == hub_requests.PATIENT.attempts
    assert waits == [1, 2, 4, 8, 8]


def test_waits_and_failed_requests_end_with_the_budget(
    server: HubServer, run_dir: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_requests, "PATIENT", hub_requests.Limits(request_seconds=5, failing_seconds=4, attempts=99))
    server.fail_next("POST", COMMIT, status=503, times=FOREVER)
    assert push(run_dir) == 2
    assert waits == [1, 2]


def test_a_refusal_is_not_asked_again(server: HubServer, run_dir: Path, waits: list[float]) -> None:
    server.fail_next("POST", COMMIT, status=403, times=FOREVER)
    assert push(run_dir) == 2
    assert waits == []
    assert [path for _, path in server.requests if path.startswith(COMMIT)] == [f"{COMMIT}main"]


def test_the_clients_own_factory_is_back_after_a_push(server: HubServer, run_dir: Path) -> None:
    before = _http._GLOBAL_CLIENT_FACTORY
    made: list[Any] = []

    def make_client() -> Any:
        made.append(before())
        return made[-1]

    _http.set_client_factory(make_client)
    try:
        hub.push(run_dir, "ada/clf")
        assert made, "a program's own client is used"
        assert constants.HF_HUB_DISABLE_XET is False
        assert _http._GLOBAL_CLIENT_FACTORY is make_client
    finally:
        _http.set_client_factory(before)


def test_a_file_that_the_hub_holds_with_other_bytes_is_named(
    server: HubServer, run_dir: Path, waits: list[float]
) -> None:
    """The Hub takes the weights, and keeps others."""
    hub.push(run_dir, "ada/clf")
    objects = server.repos["models/ada/clf"]
    new = bytes(1000)
    (run_dir / "model" / "model.safetensors").write_bytes(new)
    (run_dir / "model" / "config.json").write_text("{}", encoding="utf-8")

    def damage(*arguments: Any, **options: Any) -> Any:
        commit = add_commit(*arguments, **options)
        head = objects.history[objects.branches["main"]]
        broken = {name: file for name, file in head.files.items() if name != "config.json"}
        objects.history[head.oid] = type(head)(**{**vars(head), "files": broken})
        return commit

    add_commit = objects.add_commit
    objects.add_commit = damage  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"but config\.json cannot be read back from the Hub$"):
        hub.push(run_dir, "ada/clf")


# --- processes ------------------------------------------------------------------------------------------------------


def fork_push(run_dir: Path) -> int:
    """Starts a push in a fork of this process, and returns its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = push(run_dir)
        finally:
            os._exit(code)
    return child


def wait_for_request(server: HubServer, part: str) -> None:
    """Waits until the server has got a request."""
    end = time.monotonic() + 30
    while not any(part in path for _, path in server.requests):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize(("method", "path"), [("PUT", "/info/lfs/objects/"), ("POST", COMMIT)])
def test_a_push_that_is_stopped_and_made_again_is_one_commit(
    server: HubServer, run_dir: Path, number: signal.Signals, method: str, path: str
) -> None:
    server.disturb(Fault(method=method, path_regex=path, effect="done", seconds=1.0))
    child = fork_push(run_dir)
    wait_for_request(server, COMMIT if method == "POST" else "/info/lfs/objects/")
    time.sleep(0.1)
    os.kill(child, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == (130 if number == signal.SIGINT else -number)
    server.faults.clear()
    assert push(run_dir) == 0
    assert_pushed_once(server, run_dir)


@pytest.mark.processes
def test_two_pushes_at_once_are_one_commit(server: HubServer, run_dir: Path) -> None:
    # Both have read the same head, and that no file is there, when the first of them commits
    server.disturb(Fault(method="POST", path_regex=PREUPLOAD, effect="done", seconds=1.0, times=2))
    children = [fork_push(run_dir) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert [path for _, path in server.requests].count(f"{COMMIT}main") == 2
    assert_pushed_once(server, run_dir)
