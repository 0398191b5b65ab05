"""`hf-finetune push`: what it prints, its exit codes, --pending and --dry-run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub_client import assert_pushed_once, make_run, serve_hub, skip_waits
from support.hub_faults import FOREVER
from support.hub_server import HubServer

from hf_finetune import cli
from hf_finetune.export.pending_pushes import PENDING, Target, push_run


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The double, with this process's client set to it. The current folder is an empty one."""
    skip_waits(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with serve_hub(monkeypatch, tmp_path) as server:
        yield server


def leave_pending(server: HubServer, *names: str) -> None:
    """Makes runs in outputs/, whose push to ada/NAME has failed."""
    server.fail_next("POST", "/commit/", status=503, times=FOREVER)
    for name in names:
        push_run(make_run(Path("outputs") / name), Target(repo_id=f"ada/{name}"))
        assert (Path("outputs") / name / PENDING).is_dir()
    server.faults.clear()


def test_a_push_prints_where_the_run_is(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("run"))
    assert cli.main(["push", "run", "--repo-id", "ada/clf"]) == 0
    assert capsys.readouterr().out == (
        f"run is pushed to {server.endpoint}/ada/clf/commit/{server.repos['models/ada/clf'].commits[0].oid}\n"
    )


def test_a_push_that_fails_is_one_line_and_pending(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("run"))
    server.fail_next("POST", "/commit/", status=403, message="the repository is frozen")
    assert cli.main(["push", "run", "--repo-id", "ada/clf"]) == 2
    output = capsys.readouterr()
    assert output.err == ("error: the push to ada/clf failed: 403 Forbidden: the repository is frozen.\n")
    assert cli.main(["push", "--pending", "run"]) == 0
    assert_pushed_once(server, Path("run"))


def test_pending_pushes_are_made_once(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    leave_pending(server, "one", "two")
    capsys.readouterr()
    assert cli.main(["push", "--pending"]) == 0
    assert [line.split(" is pushed to ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "outputs/one",
        "outputs/two",
    ]
    assert cli.main(["push", "--pending"]) == 0
    assert capsys.readouterr().out == "no push is pending in outputs\n"
    for name in ("one", "two"):
        assert_pushed_once(server, Path("outputs") / name, f"ada/{name}")


def test_only_the_named_runs_are_pushed(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    leave_pending(server, "one", "two")
    assert cli.main(["push", "--pending", "outputs/two"]) == 0
    assert (Path("outputs/one") / PENDING).is_dir()
    assert_pushed_once(server, Path("outputs/two"), "ada/two")


def test_a_pending_push_that_fails_again_does_not_stop_the_others(
    server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_pending(server, "one", "two")
    server.fail_next("POST", "/ada/one/commit/", status=503, times=FOREVER)
    capsys.readouterr()
    assert cli.main(["push", "--pending"]) == 2
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert lines[-2] == "error: 1 of 2 pushes failed, and are still pending"
    assert lines[-1].startswith("  outputs/one: the push to ada/one failed: Server error '503 Service Unavailable'")
    assert (Path("outputs/one") / PENDING).is_dir()
    assert_pushed_once(server, Path("outputs/two"), "ada/two")


@pytest.mark.processes
def test_two_commands_that_make_the_same_pending_push_are_one_commit(server: HubServer) -> None:
    leave_pending(server, "one")
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = cli.main(["push", "--pending"])
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert_pushed_once(server, Path("outputs/one"), "ada/one")
    assert not (Path("outputs/one") / PENDING).exists()


def test_a_dry_run_lists_files_and_card_and_sends_nothing(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    run_dir = make_run(Path("run"))
    card = run_dir / "model" / "README.md"
    card.write_text(card.read_text("utf-8") + 'AutoModel.from_pretrained("model")\n', encoding="utf-8")
    before = sorted(run_dir.rglob("*"))
    assert cli.main(["push", "run", "--repo-id", "ada/clf", "--revision", "first", "--dry-run"]) == 0
    assert capsys.readouterr().out == (
        "run would be pushed to ada/clf, branch first. Nothing is sent.\n"
        "  README.md          68 bytes\n"
        "  config.json        22 bytes\n"
        "  model.safetensors  102,400 bytes\n"
        "  results.json       26 bytes\n"
        "4 files, 0.1 MB\n"
        "\n"
        "README.md:\n"
        '---\nlicense: mit\n---\n# A model\nAutoModel.from_pretrained("ada/clf")\n\n'
    )
    assert server.requests == []
    assert sorted(run_dir.rglob("*")) == before


def test_a_dry_run_lists_what_a_push_sends(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("run"))
    assert cli.main(["push", "run", "--repo-id", "ada/clf"]) == 0
    capsys.readouterr()
    assert cli.main(["push", "run", "--repo-id", "ada/clf", "--dry-run"]) == 0
    listed = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.endswith(" bytes"))
    files = server.repos["models/ada/clf"].files
    sent = {name: f"{len(content):,}" for name, content in files.items() if name != ".gitattributes"}
    assert listed == sent


def test_a_dry_run_of_pending_pushes(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    leave_pending(server, "one")
    num_requests = len(server.requests)
    capsys.readouterr()
    assert cli.main(["push", "--pending", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("outputs/one would be pushed to ada/one, branch main. Nothing is sent.\n")
    assert len(server.requests) == num_requests
    assert (Path("outputs/one") / PENDING).is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "the following arguments are required: --repo-id; see hf-finetune push --help"),
        ([], "the following arguments are required: RUN, --repo-id; see hf-finetune push --help"),
        (["run", "two", "--repo-id", "a/b"], "several runs go with --pending; see hf-finetune push --help"),
        (["nowhere", "--repo-id", "a/b"], "nowhere: no such run folder"),
        (["--pending", "nowhere"], "nowhere: no such run folder"),
        (["run", "--repo-id", "clf", "--dry-run"], "--repo-id (clf): must be user/name"),
        (
            ["run", "--repo-id", "ada/clf", "--pending"],
            "--pending: pushes to where the runs were to be pushed; leave out --repo-id, --private and --revision",
        ),
    ],
)
def test_bad_usage_is_one_line(
    server: HubServer, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    make_run(Path("run"))
    try:
        code = cli.main(["push", *words])
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    assert code == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")
    assert server.requests == []
