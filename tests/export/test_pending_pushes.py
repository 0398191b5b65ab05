"""Pushes that are noted in the folder of a run until the Hub has them."""

import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.hub_client import assert_pushed_once, count_commits, make_run, serve_hub, skip_waits
from support.hub_faults import FOREVER, Fault
from support.hub_server import HubServer

from hf_finetune.config.sections import RunConfig
from hf_finetune.export.pending_pushes import PENDING, Target, find_target, list_pending, make_command, push_run
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

TARGET = Target(repo_id="ada/clf")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The double, with this process's client set to it."""
    skip_waits(monkeypatch)
    with serve_hub(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """What a push reads of a finished run."""
    return make_run(tmp_path / "run")


def read_outcome(run_dir: Path) -> dict[str, str | None]:
    """What results.json says of the last push."""
    outcome: dict[str, str | None] = json.loads((run_dir / "results.json").read_text("utf-8"))["push"]
    return outcome


def test_a_push_leaves_its_commit_in_results_json_and_nothing_pending(server: HubServer, run_dir: Path) -> None:
    outcome = push_run(run_dir, TARGET)
    assert read_outcome(run_dir) == {
        "repo_id": "ada/clf",
        "revision": None,
        "status": "pushed",
        "commit": f"{server.endpoint}/ada/clf/commit/{server.repos['models/ada/clf'].commits[0].oid}",
        "reason": None,
    }
    assert outcome.commit == read_outcome(run_dir)["commit"]
    assert not (run_dir / PENDING).exists()
    assert_pushed_once(server, run_dir)
    assert push_run(run_dir, TARGET) == outcome
    assert_pushed_once(server, run_dir)


def test_a_push_that_fails_is_pending_until_it_is_made(server: HubServer, run_dir: Path) -> None:
    server.fail_next("POST", "/commit/", status=503, times=FOREVER)
    outcome = push_run(run_dir, TARGET)
    assert outcome.status == "pending"
    assert "503 Service Unavailable" in str(outcome.reason)
    assert read_outcome(run_dir)["reason"] == outcome.reason
    assert list(list_pending(run_dir)) == [TARGET]
    assert shlex.split(make_command(run_dir, TARGET)) == ["hf-finetune", "push", "--pending", str(run_dir)]
    server.faults.clear()
    for target in list_pending(run_dir):
        assert push_run(run_dir, target).status == "pushed"
    assert list(list_pending(run_dir)) == []
    assert read_outcome(run_dir)["status"] == "pushed"
    assert_pushed_once(server, run_dir)


@pytest.mark.processes
def test_a_push_that_is_killed_is_pending(server: HubServer, run_dir: Path) -> None:
    server.disturb(Fault(method="POST", path_regex="/commit/", effect="done", seconds=1.0))
    child = os.fork()
    if child == 0:
        try:
            push_run(run_dir, TARGET)
        finally:
            os._exit(0)
    end = time.monotonic() + 30
    while not any("/commit/" in path for _, path in server.requests):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert list(list_pending(run_dir)) == [TARGET]
    push_run(run_dir, TARGET)
    assert list(list_pending(run_dir)) == []
    assert_pushed_once(server, run_dir)


def test_a_push_that_is_killed_before_it_is_recorded_is_pending(
    server: HubServer, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        (run_dir / ".results.json.writing").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.export.pending_pushes.record_outcome", die)
        with pytest.raises(KeyboardInterrupt):
            push_run(run_dir, TARGET)
    (target,) = list_pending(run_dir)
    assert push_run(run_dir, target).status == "pushed"
    assert read_outcome(run_dir)["status"] == "pushed"
    assert list(run_dir.glob(".*.writing")) == []
    assert_pushed_once(server, run_dir)


def test_a_run_that_is_killed_between_its_results_and_its_push_is_pending(
    server: HubServer, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    config = make_config(**{"hub.push": True, "hub.repo_id": "ada/clf", "train.max_updates": 1})
    monkeypatch.setattr("hf_finetune.train.push_if_requested", die)
    with pytest.raises(KeyboardInterrupt):
        finetune(config)
    assert (config.run_dir / "results.json").exists()
    assert list(list_pending(config.run_dir)) == [find_target(config.hub)]
    assert count_commits(server) == 0


def test_pushes_to_several_places_are_pending_each_for_itself(server: HubServer, run_dir: Path) -> None:
    server.fail_next("POST", "/commit/", status=403, times=FOREVER)
    targets = [
        Target(repo_id="ada/clf"),
        Target(repo_id="ada/clf", revision="try/1"),
        Target(repo_id="team/clf", private=True),
    ]
    for target in targets:
        push_run(run_dir, target)
    assert sorted(list_pending(run_dir), key=str) == sorted(targets, key=str)
    server.faults.clear()
    push_run(run_dir, targets[2])
    assert server.repos["models/team/clf"].private
    assert sorted(list_pending(run_dir), key=str) == sorted(targets[:2], key=str)


def test_a_run_folder_that_cannot_be_written_is_pushed(
    server: HubServer, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(run_dir.rglob("*"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr("hf_finetune.system.locks.Lock.acquire", refuse)
    assert push_run(run_dir, TARGET).status == "pushed"
    assert sorted(run_dir.rglob("*")) == before
    assert_pushed_once(server, run_dir)
    server.fail_next("POST", "/commit/", status=503, times=FOREVER)
    (run_dir / "model" / "config.json").write_text("{}", encoding="utf-8")
    target = Target(repo_id="ada/clf", private=True, revision="first")
    assert push_run(run_dir, target).status == "pending"
    command = ["hf-finetune", "push", str(run_dir), "--repo-id", "ada/clf", "--private", "--revision", "first"]
    assert shlex.split(make_command(run_dir, target)) == command


def test_a_run_without_a_model_is_not_noted(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no finished model to push"):
        push_run(tmp_path, TARGET)
    assert not (tmp_path / PENDING).exists()
    assert server.requests == []


@pytest.mark.parametrize("content", ["", "[]", '{"repo_id": "ada"}', '{"repo_id": "ada/x", "force": true}', "\udcff"])
def test_a_note_that_cannot_be_read_is_an_error_that_names_it(run_dir: Path, content: str) -> None:
    note = TARGET.find_note(run_dir)
    note.parent.mkdir()
    note.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as caught:
        list(list_pending(run_dir))
    assert str(caught.value).startswith(str(note))
    assert "\n" not in str(caught.value)


def test_a_note_stays_in_its_folder(run_dir: Path) -> None:
    for revision in ("../../x", "a/b", "é\\"):
        note = Target(repo_id="ada/clf", revision=revision).find_note(run_dir)
        assert note.parent.resolve() == (run_dir / PENDING).resolve()


def test_a_push_counts_one_commit_whatever_was_pending(server: HubServer, run_dir: Path) -> None:
    server.drop_next("POST", "/commit/", times=1)
    push_run(run_dir, TARGET)
    assert count_commits(server) == 1
