"""Pushing to a double of the Hub on loopback: checked before training, one commit, nothing lost where it fails."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from support import tiny
from support.configs import make_small_config
from support.hub_server import HubServer

from hf_finetune import cli
from hf_finetune.export import hub
from hf_finetune.export.predict import Predictor
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

TOKEN = "hf_adaWritesEverything"
READ_TOKEN = "hf_adaReadsOnly"
BOB_TOKEN = "hf_bobIsReaderOfTeam"
USERS: dict[str, dict[str, Any]] = {
    TOKEN: {"name": "ada", "role": "write", "orgs": ["team"]},
    READ_TOKEN: {"name": "ada", "role": "read", "orgs": ["team"]},
    BOB_TOKEN: {"name": "bob", "role": "write", "orgs": {"team": "read", "crew": "contributor"}},
}
SETTINGS = {"train.max_updates": 4, "train.learning_rate": 1e-2}
COMMIT = r"/api/models/ada/clf/commit/"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The double, with this process's client set to it and to ada's token."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer(users=USERS) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server


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
    return files | {"results.json": (run_dir / "results.json").read_bytes()}


def pushed_files(server: HubServer, repo_id: str = "ada/clf") -> dict[str, bytes]:
    return {
        name: content for name, content in server.repos[f"models/{repo_id}"].files.items() if name != ".gitattributes"
    }


def count_commits(server: HubServer, repo_id: str = "ada/clf") -> int:
    """Commits since the one that a repository opens with."""
    return len(server.repos[f"models/{repo_id}"].commits) - 1


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
    assert pushed_files(server) == expected_files(run_dir)
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "results.json"}
    assert set(pushed_files(server)) == names
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


def test_a_commit_whose_answer_is_lost_is_an_error_and_the_next_push_changes_nothing(
    server: HubServer, run_dir: Path
) -> None:
    server.drop_next("POST", COMMIT)
    with pytest.raises(InputError, match=r"^the push to ada/clf failed: .+$"):
        hub.push(run_dir, "ada/clf")
    assert count_commits(server) == 1
    hub.push(run_dir, "ada/clf")
    assert count_commits(server) == 1
    assert pushed_files(server) == expected_files(run_dir)


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/repos/create"), ("POST", COMMIT)])
def test_a_refused_push_is_an_error_and_the_next_one_does_it(
    server: HubServer, run_dir: Path, method: str, path: str
) -> None:
    server.fail_next(method, path, status=500)
    with pytest.raises(InputError, match=r"^the push to ada/clf failed: .+$"):
        hub.push(run_dir, "ada/clf")
    assert server.faults == []
    hub.push(run_dir, "ada/clf")
    assert pushed_files(server) == expected_files(run_dir)
    assert count_commits(server) == 1


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
    server.fail_next("POST", "/commit/", status=503)
    monkeypatch.setattr(sys, "argv", ["hf-finetune"])  # the recipe's own is put there
    assert cli.main(["train", "classify", *words]) == 0

    results = json.loads((config.run_dir / "results.json").read_text(encoding="utf-8"))
    assert results["status"] == "finished"
    Predictor.from_pretrained(str(config.run_dir))
    warning, _, command = capsys.readouterr().out.partition("warning: the push to ada/clf failed: ")[2].partition("\n")
    assert warning
    (line,) = [line for line in command.splitlines() if line.startswith("  hf-finetune push")]
    assert TOKEN not in warning + command

    assert cli.main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out.startswith(f"pushed to {server.endpoint}/ada/clf/commit/")
    repo = server.repos["models/ada/clf"]
    branch = options.get("hub.revision", "main")
    assert set(repo.find_commit(branch).files) == {*expected_files(config.run_dir), ".gitattributes"}
    assert repo.private == options.get("hub.private", False)


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


def test_a_broken_file_of_the_run_is_an_error_and_not_a_traceback(
    server: HubServer, run_dir: Path, tmp_path: Path
) -> None:
    import shutil

    broken = Path(shutil.copytree(run_dir, tmp_path / "broken"))
    (broken / "model" / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"the push to ada/broken failed: "):
        hub.push(broken, "ada/broken")
