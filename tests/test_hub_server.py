"""The double of the Hub, used by the real huggingface_hub, transformers and datasets."""

import base64
import hashlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from support.hub_server import HubServer

try:
    import httpx2 as httpx
except ModuleNotFoundError:  # huggingface_hub 1
    import httpx

USERS: dict[str, dict[str, Any]] = {
    "hf_ada": {"name": "ada", "role": "write", "orgs": ["team"]},
    "hf_ada_read": {"name": "ada", "role": "read", "orgs": ["team"]},
    "hf_bob": {"name": "bob", "role": "write", "orgs": {"team": "read"}},
    "hf_eve": {"name": "eve", "role": "write"},
}
LFS_URL = "/ada/model.git/info/lfs/objects"


@pytest.fixture(autouse=True)
def _online_without_xet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Does for the huggingface_hub imported in this process what HubServer.environment does for a new process."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer(users=USERS) as server:
        yield server


@pytest.fixture
def api(server: HubServer) -> HfApi:
    return HfApi(endpoint=server.endpoint, token="hf_ada")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pushed"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n", encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "model.safetensors").write_bytes(os.urandom(300_000))
    (folder / "sub dir" / "ünder.txt").write_text("below", encoding="utf-8")
    return folder


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def send(
    server: HubServer, method: str, path: str, *, body: bytes = b"", token: str | None = "hf_ada", **headers: str
) -> tuple[int, bytes]:
    """Sends one request that the client would never send. Returns status and body."""
    connection = http.client.HTTPConnection(server.endpoint.removeprefix("http://"))
    authorization = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, body=body, headers={**headers, **authorization})
    response = connection.getresponse()
    status, content = response.status, response.read()
    connection.close()
    return status, content


def commit_body(*operations: tuple[str, dict[str, Any]]) -> bytes:
    lines = [("header", {"summary": "by hand", "description": ""}), *operations]
    return b"".join(json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in lines)


def refusal(call: Callable[[], Any]) -> HfHubHTTPError:
    with pytest.raises(HfHubHTTPError) as caught:
        call()
    return caught.value


def run_python(server: HubServer, code: str, folder: Path) -> Any:
    """Runs code in a new process in `folder`. Returns its last printed line, read as JSON."""
    environment = server.environment("hf_ada", folder / "home")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_whoami_names_the_user_the_orgs_and_the_role_of_the_token(api: HfApi) -> None:
    ada = api.whoami()
    assert ada["name"] == "ada"
    assert [(org["name"], org["roleInOrg"]) for org in ada["orgs"]] == [("team", "write")]
    assert ada["auth"]["accessToken"]["role"] == "write"
    assert ada["auth"]["accessToken"]["displayName"]
    assert "fineGrained" not in ada["auth"]["accessToken"]
    assert api.whoami(token="hf_ada_read")["auth"]["accessToken"]["role"] == "read"
    assert [org["roleInOrg"] for org in api.whoami(token="hf_bob")["orgs"]] == ["read"]


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_a_pushed_folder_comes_back_byte_for_byte(server: HubServer, api: HfApi, folder: Path, repo_type: str) -> None:
    url = api.create_repo("team/thing", repo_type=repo_type, private=True)
    assert (url.repo_id, url.repo_type) == ("team/thing", repo_type)
    commit = api.upload_folder(repo_id="team/thing", repo_type=repo_type, folder_path=folder, commit_message="first")

    repo = server.repos[f"{repo_type}s/team/thing"]
    assert repo.private
    assert repo.files == {**read_folder(folder), ".gitattributes": repo.files[".gitattributes"]}
    assert [entry.title for entry in repo.commits] == ["first", "initial commit"]
    assert [path for method, path in server.requests if method == "PUT"], "no file was sent to LFS"

    assert sorted(api.list_repo_files("team/thing", repo_type=repo_type)) == sorted(repo.files)
    top = {entry.path for entry in api.list_repo_tree("team/thing", repo_type=repo_type)}
    assert top == {"sub dir"} | {path for path in repo.files if "/" not in path}
    below = [entry.path for entry in api.list_repo_tree("team/thing", "sub dir", repo_type=repo_type)]
    assert below == ["sub dir/ünder.txt"]
    history = api.list_repo_commits("team/thing", repo_type=repo_type)
    assert [entry.commit_id for entry in history] == [entry.oid for entry in repo.commits]
    assert api.repo_info("team/thing", repo_type=repo_type).sha == commit.oid == history[0].commit_id

    snapshot = Path(api.snapshot_download("team/thing", repo_type=repo_type))
    assert snapshot.name == commit.oid
    assert read_folder(snapshot) == repo.files


def test_a_file_is_sent_as_lfs_by_its_name_or_its_size(api: HfApi) -> None:
    api.create_repo("ada/model")
    contents = {"a.bin": b"1", "dir/b.pt": b"2", "c.txt": b"3", "big.txt": b"4" * 10_000_000, "none.bin": b""}
    api.create_commit("ada/model", [CommitOperationAdd(*item) for item in contents.items()], commit_message="all")
    entries = api.get_paths_info("ada/model", [*contents, "dir", "missing"])
    assert {entry.path for entry in entries} == {*contents, "dir"}
    lfs_paths = {entry.path for entry in entries if isinstance(entry, RepoFile) and entry.lfs is not None}
    assert lfs_paths == {"a.bin", "dir/b.pt", "big.txt"}, "the client itself keeps an empty file out of LFS"


def test_pushing_the_same_files_again_makes_no_commit(server: HubServer, api: HfApi, folder: Path) -> None:
    api.create_repo("ada/model")
    first = api.upload_folder(repo_id="ada/model", folder_path=folder)
    server.requests.clear()
    again = api.upload_folder(repo_id="ada/model", folder_path=folder)
    assert again.oid == first.oid
    assert ("POST", "/api/models/ada/model/preupload/main") in server.requests
    assert not [path for _, path in server.requests if "/commit/" in path], "the client compares hashes by itself"

    present = {"path": "config.json", "content": base64.b64encode(b"{}").decode(), "encoding": "base64"}
    status, reply = send(server, "POST", "/api/models/ada/model/commit/main", body=commit_body(("file", present)))
    assert (status, json.loads(reply)["commitOid"]) == (200, first.oid)
    assert len(server.repos["models/ada/model"].commits) == 2

    (folder / "config.json").write_text('{"a": 1}', encoding="utf-8")
    assert api.upload_folder(repo_id="ada/model", folder_path=folder).oid != first.oid
    assert len(server.repos["models/ada/model"].commits) == 3


def test_a_private_repo_does_not_exist_for_others(api: HfApi, folder: Path) -> None:
    api.create_repo("team/model", private=True)
    api.upload_folder(repo_id="team/model", folder_path=folder)
    for token in ("hf_eve", False):
        for call in (api.model_info, api.auth_check, api.list_repo_files, api.snapshot_download):
            with pytest.raises(RepositoryNotFoundError):
                call("team/model", token=token)
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download("team/model", "config.json", token=token)
    with pytest.raises(RepositoryNotFoundError):
        api.upload_folder(repo_id="team/model", folder_path=folder, token="hf_eve")
    assert api.repo_exists("team/model", token="hf_bob")


@pytest.mark.parametrize(
    ("token", "repo_id", "status"),
    [
        ("hf_unknown", "ada/model", 401),
        (False, "ada/model", 401),
        ("hf_ada_read", "ada/model", 403),
        ("hf_ada_read", "ada/new", 403),
        ("hf_eve", "ada/model", 403),
        ("hf_bob", "team/new", 403),
        ("hf_ada", "nobody/new", 403),
    ],
)
def test_only_a_write_token_of_the_namespace_may_create_and_commit(
    server: HubServer, api: HfApi, folder: Path, token: str | bool, repo_id: str, status: int
) -> None:
    api.create_repo("ada/model")
    assert refusal(lambda: api.create_repo(repo_id, token=token)).response.status_code == status
    if repo_id == "ada/model":
        for call in (
            lambda: api.upload_folder(repo_id=repo_id, folder_path=folder, token=token),
            lambda: api.create_branch(repo_id, branch="other", token=token),
            lambda: api.auth_check(repo_id, token=token, write=True),
        ):
            assert refusal(call).response.status_code == status
    assert list(server.repos) == ["models/ada/model"]
    assert len(server.repos["models/ada/model"].commits) == 1


def test_an_unknown_token_is_refused_even_if_none_is_needed(server: HubServer, api: HfApi) -> None:
    api.create_repo("ada/model")
    assert api.model_info("ada/model", token=False).id == "ada/model"
    assert refusal(lambda: api.model_info("ada/model", token="hf_unknown")).response.status_code == 401
    assert refusal(lambda: api.whoami(token="hf_unknown")).response.status_code == 401
    assert send(server, "GET", "/api/whoami-v2", token=None)[0] == 401


def test_creating_a_repo_twice_is_refused_unless_exist_ok(api: HfApi) -> None:
    url = api.create_repo("ada/model")
    assert refusal(lambda: api.create_repo("ada/model")).response.status_code == 409
    assert api.create_repo("ada/model", exist_ok=True) == url


def test_branches_and_revisions(server: HubServer, api: HfApi, folder: Path) -> None:
    api.create_repo("ada/model")
    first = api.upload_folder(repo_id="ada/model", folder_path=folder)
    api.create_branch("ada/model", branch="try/1")
    assert refusal(lambda: api.create_branch("ada/model", branch="try/1")).response.status_code == 409
    (folder / "config.json").write_text('{"a": 1}', encoding="utf-8")
    second = api.upload_folder(repo_id="ada/model", folder_path=folder, revision="try/1")
    refs = {ref.name: ref.target_commit for ref in api.list_repo_refs("ada/model").branches}
    assert refs == {"main": first.oid, "try/1": second.oid}
    assert len(server.repos["models/ada/model"].list_commits("try/1")) == 3
    for revision, content in {"main": "{}", "try/1": '{"a": 1}', first.oid: "{}"}.items():
        path = api.hf_hub_download("ada/model", "config.json", revision=revision)
        assert Path(path).read_text(encoding="utf-8") == content


def test_missing_things_raise_the_clients_own_exceptions(api: HfApi, folder: Path, tmp_path: Path) -> None:
    api.create_repo("ada/model")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("ada/other")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("without-namespace", revision="main")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("ada/model", revision="other")
    with pytest.raises(RevisionNotFoundError):
        api.upload_folder(repo_id="ada/model", folder_path=folder, revision="other")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("ada/model", "other")
    assert list(tmp_path.glob("cache/*/.no_exist/*/other")), "the client remembers this by X-Repo-Commit"
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("ada/model", "other"))
    with pytest.raises(RemoteEntryNotFoundError):
        api.delete_file("other", "ada/model")


def test_a_commit_may_delete_and_its_parent_must_be_the_head(server: HubServer, api: HfApi, folder: Path) -> None:
    api.create_repo("ada/model")
    first = api.upload_folder(repo_id="ada/model", folder_path=folder)
    deletions = [CommitOperationDelete("sub dir/"), CommitOperationDelete("empty.txt")]
    api.create_commit("ada/model", deletions, commit_message="less", parent_commit=first.oid)
    expected = {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert set(server.repos["models/ada/model"].files) == expected
    late = refusal(
        lambda: api.create_commit(
            "ada/model", [CommitOperationDelete("config.json")], commit_message="late", parent_commit=first.oid
        )
    )
    assert late.response.status_code == 412
    assert set(server.repos["models/ada/model"].files) == expected


def test_a_card_with_a_tab_is_refused_and_one_without_metadata_warns(api: HfApi, folder: Path) -> None:
    api.create_repo("ada/model")
    (folder / "README.md").write_text("---\nmodel-index:\n\t- name: x\n---\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a tab indents a line"):
        api.upload_folder(repo_id="ada/model", folder_path=folder)
    (folder / "README.md").write_text("# Bare\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_folder(repo_id="ada/model", folder_path=folder)


def test_a_failing_create_is_not_retried_by_the_client(server: HubServer, api: HfApi) -> None:
    server.fail_next("POST", "/api/repos/create", status=503)
    server.fail_next("GET", "/api/repos/create")
    assert refusal(lambda: api.create_repo("ada/model")).response.status_code == 503
    assert not server.repos
    assert [fault.method for fault in server.faults] == ["GET"], "only a request of the fault's method uses it up"
    api.create_repo("ada/model")
    assert list(server.repos) == ["models/ada/model"]


def test_the_client_retries_until_a_failing_preupload_and_a_cut_upload_pass(
    server: HubServer, api: HfApi, folder: Path
) -> None:
    api.create_repo("ada/model")
    server.fail_next("POST", "/preupload/main$", status=500)
    server.drop_next("PUT", LFS_URL)
    api.upload_folder(repo_id="ada/model", folder_path=folder)
    assert not server.faults
    assert [method for method, _ in server.requests].count("PUT") == 2
    assert set(read_folder(folder)) < set(server.repos["models/ada/model"].files)


def test_a_failing_commit_changes_nothing(server: HubServer, api: HfApi, folder: Path) -> None:
    api.create_repo("ada/model")
    server.fail_next("POST", "/commit/", times=2)
    for _ in range(2):
        failed = refusal(lambda: api.upload_folder(repo_id="ada/model", folder_path=folder))
        assert failed.response.status_code == 500
    assert len(server.repos["models/ada/model"].commits) == 1
    api.upload_folder(repo_id="ada/model", folder_path=folder)
    assert len(server.repos["models/ada/model"].commits) == 2


def test_a_commit_whose_answer_is_lost_is_on_the_server(server: HubServer, api: HfApi, folder: Path) -> None:
    api.create_repo("ada/model")
    server.drop_next("POST", "/commit/main")
    with pytest.raises(httpx.RemoteProtocolError):
        api.upload_folder(repo_id="ada/model", folder_path=folder)
    repo = server.repos["models/ada/model"]
    assert len(repo.commits) == 2
    assert api.upload_folder(repo_id="ada/model", folder_path=folder).oid == repo.commits[0].oid
    assert len(repo.commits) == 2


def test_a_closed_server_answers_no_kept_alive_connection() -> None:
    with HubServer(users=USERS) as server:
        api = HfApi(endpoint=server.endpoint, token="hf_ada")
        api.whoami()
    with pytest.raises(httpx.TransportError):
        api.whoami()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("content_range", "status", "body"),
    [("bytes=2-4", 206, b"234"), ("bytes=7-", 206, b"789"), ("bytes=-2", 206, b"89"), ("bytes=5-99", 206, b"56789")],
)
def test_a_range_gives_that_part_of_a_file(
    server: HubServer, api: HfApi, content_range: str, status: int, body: bytes
) -> None:
    api.create_repo("ada/model")
    api.upload_file(repo_id="ada/model", path_or_fileobj=b"0123456789", path_in_repo="digits.txt")
    address = "/ada/model/resolve/main/digits.txt"
    assert send(server, "GET", address, Range=content_range) == (status, body)
    assert send(server, "GET", address, Range="bytes=10-")[0] == 416


def test_lfs_takes_only_the_announced_content(server: HubServer, api: HfApi) -> None:
    api.create_repo("ada/model")
    oid = hashlib.sha256(b"whole").hexdigest()
    pointer = {"path": "model.bin", "algo": "sha256", "oid": oid, "size": 5}
    verify = json.dumps({"oid": oid, "size": 5}).encode()
    commit = "/api/models/ada/model/commit/main"
    assert send(server, "PUT", f"{LFS_URL}/{oid}", body=b"who")[0] == 400
    assert send(server, "POST", f"{LFS_URL}/verify", body=verify)[0] == 400
    assert send(server, "POST", commit, body=commit_body(("lfsFile", pointer)))[0] == 400
    assert len(server.repos["models/ada/model"].commits) == 1
    assert send(server, "PUT", f"{LFS_URL}/{oid}", body=b"whole", token=None)[0] == 200
    assert send(server, "POST", f"{LFS_URL}/verify", body=verify)[0] == 200
    assert send(server, "POST", f"{LFS_URL}/verify", body=verify.replace(b"5}", b"6}"))[0] == 400
    assert send(server, "POST", commit, body=commit_body(("lfsFile", pointer)))[0] == 200
    assert server.repos["models/ada/model"].files["model.bin"] == b"whole"


def test_what_the_double_lacks_is_answered_with_an_error(api: HfApi, folder: Path) -> None:
    api.create_repo("ada/model")
    for call in (
        lambda: api.create_tag("ada/model", tag="v1"),
        lambda: api.create_repo("ada/space", repo_type="space", space_sdk="static"),
        lambda: api.upload_folder(repo_id="ada/model", folder_path=folder, create_pr=True),
    ):
        refused = refusal(call)
        assert refused.response.status_code == 501
        assert "This double of the Hub" in str(refused)


def test_the_environment_leads_only_to_this_server(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE", "https_proxy"):
        monkeypatch.setenv(name, "1")
    environment = server.environment(None, tmp_path)
    hub_settings = {name: value for name, value in environment.items() if name.startswith(("HF_", "HUGGING"))}
    assert hub_settings == {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    assert not {"TRANSFORMERS_OFFLINE", "https_proxy"} & set(environment)
    assert server.environment("hf_ada", tmp_path)["HF_TOKEN"] == "hf_ada"


@pytest.mark.processes
def test_transformers_loads_a_pushed_model_and_tokenizer(server: HubServer, tmp_path: Path) -> None:
    code = """
import json, pathlib, torch
from huggingface_hub import create_repo, upload_folder
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hub", "##s", "the"]
pathlib.Path("vocab.txt").write_text("\\n".join(words))
sizes = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
model = BertModel(BertConfig(vocab_size=len(words), **sizes))
model.save_pretrained("model")
BertTokenizerFast("vocab.txt").save_pretrained("model")
create_repo("ada/model", private=True)
upload_folder(repo_id="ada/model", folder_path="model")
loaded = AutoModel.from_pretrained("ada/model").state_dict()
equal = [torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items()]
print(json.dumps([equal, AutoTokenizer.from_pretrained("ada/model")("the hubs").input_ids]))
"""
    equal, tokens = run_python(server, code, tmp_path)
    assert equal == [True] * len(equal) != []
    assert tokens == [2, 7, 5, 6, 3]
    assert {"config.json", "model.safetensors", "tokenizer.json"} < set(server.repos["models/ada/model"].files)
    assert any(path.endswith("/model.safetensors") for method, path in server.requests if method == "GET")


@pytest.mark.processes
def test_datasets_loads_pushed_json_lines_with_their_splits(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    rows = {split: [{"text": f"{split} {i}", "label": i % 2} for i in range(4)] for split in ("train", "test")}
    (tmp_path / "data").mkdir()
    for split, split_rows in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in split_rows)
        (tmp_path / "data" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    api.create_repo("ada/data", repo_type="dataset")
    api.upload_folder(repo_id="ada/data", repo_type="dataset", folder_path=tmp_path / "data")
    code = """
import json
from datasets import load_dataset
print(json.dumps({split: list(rows) for split, rows in load_dataset("ada/data").items()}))
"""
    assert run_python(server, code, tmp_path) == rows
