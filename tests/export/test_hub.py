"""Pushing to a double of the Hub on loopback: checked before training, one commit, nothing lost where it fails."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from support import tiny
from support.configs import make_small_config
from support.hub_client import TOKEN, count_commits, read_pushed, serve_hub, skip_waits
from support.hub_faults import FOREVER, Fault
from support.hub_server import HubServer
from support.runs import run_until

from hf_finetune import cli
from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import HubConfig
from hf_finetune.export import hub, hub_requests
from hf_finetune.export.pending_pushes import Target, list_pending
from hf_finetune.export.predict import Predictor
from hf_finetune.recipe import report_errors
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune, finish_run

READ_TOKEN = "hf_adaReadsOnly"
BOB_TOKEN = "hf_bobIsReaderOfTeam"
USERS: dict[str, dict[str, Any]] = {
    TOKEN: {"name": "ada", "role": "write", "orgs": ["team"]},
    READ_TOKEN: {"name": "ada", "role": "read", "orgs": ["team"]},
    BOB_TOKEN: {"name": "bob", "role": "write", "orgs": {"team": "read", "crew": "contributor"}},
}
SETTINGS = {"train.max_updates": 4, "train.learning_rate": 1e-2}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The double, with this process's client set to it and to ada's token."""
    with serve_hub(monkeypatch, tmp_path, USERS) as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between requests, in seconds, which are not waited."""
    return skip_waits(monkeypatch)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Path:
    """A finished run that has not been pushed."""
    folder = tmp_path_factory.mktemp("pushed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))
        return finetune(make_small_config(folder, backbones("bert"), **SETTINGS)).run_dir


def expected_files(run_dir: Path) -> dict[str, bytes]:
    """What a push of the run must put into a repository."""
    files = {path.name: path.read_bytes() for path in (run_dir / "model").iterdir()}
    # The card says how to load the model from where it is
    files["README.md"] = files["README.md"].replace(b'from_pretrained("model")', b'from_pretrained("ada/clf")')
    results = json.loads((run_dir / "results.json").read_text("utf-8"))
    results.pop("push", None)  # what came of a push is not pushed
    return files | {"results.json": json.dumps(results, indent=2).encode()}


# --- before training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo_id", ["ada/clf", "team/clf.v2_x-1"])
def test_a_token_that_may_write_to_the_namespace_passes(server: HubServer, repo_id: str) -> None:
    hub.check_access(repo_id)
    assert ("GET", "/api/whoami-v2") in server.requests
    assert {method for method, _ in server.requests} == {"GET"}
    assert server.repos == {}


@pytest.mark.parametrize(
    "repo_id",
    ["clf", "ada/", "/clf", "ada/clf/x", "ada/c lf", "", "https://hub/ada/clf", "ada/-clf", "ada/c..d", "ada/x.git"],
)
def test_a_bad_name_is_an_error_without_a_request(server: HubServer, repo_id: str) -> None:
    with pytest.raises(InputError, match=rf"^hub\.repo_id \({re.escape(repo_id)}\): ."):
        hub.check_access(repo_id)
    assert server.requests == []


def test_without_a_token_the_error_says_how_to_get_one(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"^hub\.push: there is no token; set HF_TOKEN, or run `hf auth login`$"):
        hub.check_access("ada/clf")


def test_a_token_that_the_hub_does_not_know_is_an_error_that_does_not_show_it(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_somebodyElsesToken")
    with pytest.raises(InputError, match=r"^hub\.push: the Hub rejects the token") as caught:
        hub.check_access("ada/clf")
    assert "somebodyElses" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_that_may_only_read_is_an_error(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    with pytest.raises(InputError, match=r"^hub\.push: the token can only read; create a token that can write$"):
        hub.check_access("ada/clf")


@pytest.mark.parametrize(("token", "repo_id"), [(TOKEN, "bob/clf"), (TOKEN, "crew/clf"), (BOB_TOKEN, "team/clf")])
def test_a_namespace_that_the_tokens_owner_may_not_write_to_is_an_error(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, token: str, repo_id: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    owner, namespace = USERS[token]["name"], repo_id.split("/")[0]
    pattern = rf"^hub\.repo_id \({repo_id}\): the token belongs to {owner}, who cannot write to {namespace}$"
    with pytest.raises(InputError, match=pattern):
        hub.check_access(repo_id)


def test_a_contributor_of_an_organisation_may_push_to_it(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", BOB_TOKEN)
    hub.check_access("crew/clf")
    assert ("GET", "/api/whoami-v2") in server.requests  # the Hub was asked, and allowed it


def test_a_hub_that_cannot_be_reached_is_an_error_of_one_line(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"^hub\.push: .*cannot be reached: .+$") as caught:
        hub.check_access("ada/clf")
    assert "\n" not in str(caught.value)


def test_in_offline_mode_the_error_says_so(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^hub\.push: .*(?i:offline)"):
        hub.check_access("ada/clf")


def test_access_is_checked_before_anything_is_read(
    server: HubServer, backbones: Callable[..., Path], tmp_path: Path
) -> None:
    config = make_small_config(tmp_path, backbones("bert"), **SETTINGS, **{"hub.push": True, "hub.repo_id": "bob/clf"})
    (tmp_path / "train-single_label.jsonl").unlink()
    with pytest.raises(InputError, match=r"^hub\.repo_id \(bob/clf\)"):
        finetune(config)
    assert server.repos == {}


def test_nothing_is_asked_of_the_hub_unless_a_push_is_asked_for(
    server: HubServer, backbones: Callable[..., Path], tmp_path: Path
) -> None:
    finetune(make_small_config(tmp_path, backbones("bert"), **SETTINGS, **{"hub.repo_id": "ada/clf"}))
    assert server.requests == []


# --- the push -------------------------------------------------------------------------------------------------------


def test_a_push_is_one_commit_with_model_tokenizer_card_and_results(server: HubServer, run_dir: Path) -> None:
    address = hub.push(run_dir, "ada/clf")
    assert read_pushed(server) == expected_files(run_dir)
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "results.json"}
    assert set(read_pushed(server)) == names
    assert count_commits(server) == 1
    repo = server.repos["models/ada/clf"]
    assert address == f"{server.endpoint}/ada/clf/commit/{repo.commits[0].oid}"
    assert not repo.private


def test_pushing_again_makes_no_commit_and_gives_the_same_address(server: HubServer, run_dir: Path) -> None:
    addresses = {hub.push(run_dir, "ada/clf") for _ in range(2)}
    assert len(addresses) == 1
    assert count_commits(server) == 1


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_private_where_asked(server: HubServer, run_dir: Path, private: bool) -> None:
    hub.push(run_dir, "team/clf", private=private)
    assert server.repos["models/team/clf"].private == private


def test_a_push_to_a_branch_makes_it_and_leaves_main_alone(server: HubServer, run_dir: Path) -> None:
    addresses = {hub.push(run_dir, "ada/clf", revision="candidate") for _ in range(2)}
    repo = server.repos["models/ada/clf"]
    assert count_commits(server) == 0
    assert len(repo.list_commits("candidate")) == 2
    assert set(expected_files(run_dir)) <= set(repo.find_commit("candidate").files)
    assert addresses == {f"{server.endpoint}/ada/clf/commit/{repo.branches['candidate']}"}


def test_a_folder_without_a_finished_model_is_an_error_without_a_request(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no finished model to push \(there is no model/config\.json\)$"):
        hub.push(tmp_path, "ada/clf")
    assert server.requests == []


# --- a run that pushes ----------------------------------------------------------------------------------------------


def test_a_run_pushes_at_its_end_and_no_token_is_written_or_said(
    server: HubServer, backbones: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"hub.push": True, "hub.repo_id": "ada/clf", "hub.private": True, "hub.revision": "first"}
    run_dir = finetune(make_small_config(tmp_path, backbones("bert"), **SETTINGS, **settings)).run_dir
    repo = server.repos["models/ada/clf"]
    assert {name for name in repo.find_commit("first").files if name != ".gitattributes"} == set(
        expected_files(run_dir)
    )
    assert repo.private
    output = capfd.readouterr()
    assert f"pushed to {server.endpoint}/ada/clf/commit/" in output.out
    assert TOKEN not in output.out + output.err
    written = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {"config.yaml", "environment.json", "README.md"} <= {path.name for path in written}
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert not [name for name, file in repo.find_commit("first").files.items() if TOKEN.encode() in file.content]


@pytest.mark.parametrize("options", [{}, {"hub.private": True, "hub.revision": "first"}])
def test_a_push_that_fails_costs_nothing_and_the_command_it_prints_does_it_later(
    server: HubServer,
    backbones: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
) -> None:
    config = make_small_config(tmp_path, backbones("bert"), **SETTINGS)
    words = ["--output_dir", config.output_dir, "--name", config.name, "--model.backbone", config.model.backbone]
    words += ["--hub.push", "true", "--hub.repo_id", "ada/clf", "--train.max_updates", "2", "--data.max_length", "32"]
    for split in ("train", "validation", "test"):
        words += [f"--data.{split}", str(tmp_path / f"{split}-single_label.jsonl")]
    for key, value in options.items():
        words += [f"--{key}", str(value).lower()]
    server.fail_next("POST", "/commit/", status=503, times=FOREVER)
    monkeypatch.setattr(sys, "argv", ["hf-finetune"])  # the recipe's own is put there
    assert cli.main(["train", "classify", *words]) == 0

    results = json.loads((config.run_dir / "results.json").read_text(encoding="utf-8"))
    assert results["status"] == "finished"
    Predictor.from_pretrained(str(config.run_dir))
    warning, _, command = capsys.readouterr().out.partition("warning: the push to ada/clf failed: ")[2].partition("\n")
    assert warning
    (line,) = [line for line in command.splitlines() if line.startswith("  hf-finetune push")]
    assert TOKEN not in warning + command

    server.faults.clear()
    assert cli.main(shlex.split(line)[1:]) == 0
    assert f" is pushed to {server.endpoint}/ada/clf/commit/" in capsys.readouterr().out
    repo = server.repos["models/ada/clf"]
    branch = options.get("hub.revision", "main")
    assert set(repo.find_commit(branch).files) == {*expected_files(config.run_dir), ".gitattributes"}
    assert repo.private == options.get("hub.private", False)


WHOAMI = "/api/whoami-v2"


@pytest.mark.parametrize("ending", ["status", "silence", "reset"])
def test_a_run_trains_while_the_hub_is_out_and_is_pushed_at_its_end(
    server: HubServer,
    backbones: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ending: Any,
) -> None:
    """Also a run that was stopped half-way and is called again: the check is made at each start."""
    brief = hub_requests.Limits(request_seconds=0.5, failing_seconds=0.5, attempts=1)
    monkeypatch.setattr(hub_requests, "BRIEF", brief)
    if ending == "status":
        server.fail_next("GET", WHOAMI, status=503, times=2)
    else:
        server.disturb(Fault(method="GET", path_regex=WHOAMI, times=2, ending=ending))
    config = make_small_config(
        tmp_path,
        backbones("bert"),
        **{**SETTINGS, "hub.push": True, "hub.repo_id": "ada/clf", "checkpoint.every": 2},
    )
    run_until(config, 2, monkeypatch)
    result = finetune(config)
    output = capsys.readouterr().out
    assert output.count("warning: hub.push: the Hub cannot be reached: ") == 2
    assert server.faults == []
    assert count_commits(server) == 1
    assert result.results["push"]["status"] == "pushed"
    assert read_pushed(server) == expected_files(config.run_dir)
    assert finetune(config).results["push"] == result.results["push"]
    assert count_commits(server) == 1


def test_a_token_that_is_revoked_during_training_costs_the_push_alone(
    server: HubServer, backbones: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "hub.push": True, "hub.repo_id": "ada/clf", "hub.on_failure": "error"}
    config = make_small_config(tmp_path, backbones("bert"), **settings)
    owner = server.users[TOKEN]

    def revoke(*arguments: Any) -> Any:
        del server.users[TOKEN]
        return finish_run(*arguments)

    monkeypatch.setattr("hf_finetune.train.finish_run", revoke)
    with pytest.raises(InputError) as caught:
        finetune(config)
    message = str(caught.value)
    assert message.startswith("the push to ada/clf failed: ")
    assert message.endswith(
        f"; the run is complete; make the push later with: hf-finetune push --pending {config.run_dir}"
    )
    assert TOKEN not in message
    results = json.loads((config.run_dir / "results.json").read_text("utf-8"))
    assert results["status"] == "finished"
    assert results["push"]["status"] == "pending"
    Predictor.from_pretrained(str(config.run_dir))
    server.users[TOKEN] = owner
    assert cli.main(["push", "--pending", str(config.run_dir)]) == 0
    assert read_pushed(server) == expected_files(config.run_dir)


@pytest.mark.parametrize(("on_failure", "code"), [("warn", 0), ("error", 2)])
def test_the_exit_code_of_a_run_says_whether_its_push_failed(
    server: HubServer,
    backbones: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    on_failure: str,
    code: int,
) -> None:
    """The run is finished before: the second call trains nothing and pushes alone."""
    config = make_small_config(tmp_path, backbones("bert"), **SETTINGS)
    finetune(config)
    server.fail_next("POST", "/commit/", status=503, times=FOREVER)
    pushing = dataclasses.replace(
        config,
        hub=HubConfig(push=True, repo_id="ada/clf", on_failure=on_failure),  # type: ignore[arg-type]
    )
    capsys.readouterr()
    assert report_errors(lambda: finetune(pushing) and None) == code
    output = capsys.readouterr()
    assert "the push to ada/clf failed" in (output.err if code else output.out)
    assert json.loads((config.run_dir / "results.json").read_text("utf-8"))["push"]["status"] == "pending"
    server.faults.clear()
    assert report_errors(lambda: finetune(pushing) and None) == 0
    assert json.loads((config.run_dir / "results.json").read_text("utf-8"))["push"]["status"] == "pushed"
    assert count_commits(server) == 1


@pytest.mark.processes
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_in_its_push_is_pushed_by_the_same_command(
    server: HubServer, run_dir: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    copied = Path(shutil.copytree(run_dir, tmp_path / "run"))
    config = load_config({}, ["--config", str(copied / "config.yaml"), "--output_dir", str(tmp_path)])
    pushing = dataclasses.replace(config, hub=HubConfig(push=True, repo_id="ada/clf"))
    server.disturb(Fault(method="POST", path_regex="/commit/", effect="done", seconds=1.0))
    child = os.fork()
    if child == 0:
        end = 1
        try:
            end = report_errors(lambda: finetune(pushing) and None)
        finally:
            os._exit(end)
    limit = time.monotonic() + 60
    while not any("/commit/" in path for _, path in server.requests):
        assert time.monotonic() < limit
        time.sleep(0.01)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    assert list(list_pending(copied)) == [Target(repo_id="ada/clf")]
    assert finetune(pushing).results["push"]["status"] == "pushed"
    assert list(list_pending(copied)) == []
    assert read_pushed(server) == expected_files(copied)
    assert count_commits(server) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--repo-id", "ada/clf"], "nowhere: no such run folder"),
        ([".", "--repo-id", "ada/clf"], ".: has no finished model to push (there is no model/config.json)"),
        ([".", "--repo-id", "clf"], "--repo-id (clf): must be user/name"),
        ([".", "--repo-id", "bob/clf"], "--repo-id (bob/clf): the token belongs to ada, who cannot write to bob"),
    ],
)
def test_a_push_by_hand_that_cannot_be_is_an_error_of_one_line(
    server: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["push", *words]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")
    assert server.repos == {}


# --- what is on the Hub loads by its name ---------------------------------------------------------------------------

LOAD = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

torch.set_num_threads(1)
texts = json.loads(sys.argv[1])
model = AutoModelForSequenceClassification.from_pretrained("ada/clf")
tokenizer = AutoTokenizer.from_pretrained("ada/clf")
with torch.inference_mode():
    logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.tolist()
from hf_finetune import Predictor
rows = list(Predictor.from_pretrained("ada/clf").predict([{"text": text} for text in texts]))
print(json.dumps({"logits": logits, "labels": model.config.id2label, "rows": rows}))
"""


@pytest.mark.processes
def test_from_pretrained_by_name_gives_the_logits_of_the_run(server: HubServer, run_dir: Path, tmp_path: Path) -> None:
    hub.push(run_dir, "ada/clf", private=True)
    texts = [row["text"] for row in tiny.make_rows(6, seed=9)]
    command = [sys.executable, "-c", LOAD, json.dumps(texts)]
    environment = server.environment(TOKEN, tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])

    predictor = Predictor.from_pretrained(str(run_dir))
    features = predictor.encode(predictor.make_table([{"text": text} for text in texts]), has_labels=False)
    outputs = predictor.make_runner(features).compute_outputs(np.arange(len(features))).outputs
    expected = [logits.tolist() for logits in outputs]
    assert [value for row in loaded["logits"] for value in row] == pytest.approx(
        [value for row in expected for value in row], abs=1e-6
    )
    assert loaded["labels"] == {"0": "animals", "1": "food", "2": "tools"}
    rows = list(predictor.predict([{"text": text} for text in texts]))
    assert [row["label"] for row in loaded["rows"]] == [row["label"] for row in rows]
    for ours, theirs in zip(loaded["rows"], rows, strict=True):
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-6)


@pytest.mark.parametrize(("name", "content"), [("model/adapter_config.json", "{"), ("results.json", "[]")])
def test_a_broken_file_of_the_run_is_an_error_and_not_a_traceback(
    server: HubServer, run_dir: Path, tmp_path: Path, name: str, content: str
) -> None:
    broken = Path(shutil.copytree(run_dir, tmp_path / "broken"))
    (broken / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=rf"the push to ada/broken failed: \S+{name} cannot be read: "):
        hub.push(broken, "ada/broken")
