"""This process as a client of the double of the Hub (hub_server.py)."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http, disable_progress_bars, enable_progress_bars

from hf_finetune.export import hub_requests
from support.hub_server import HubServer

TOKEN = "hf_adaWritesEverything"
USERS: dict[str, dict[str, Any]] = {TOKEN: {"name": "ada", "role": "write", "orgs": ["team"]}}


@contextlib.contextmanager
def serve_hub(
    monkeypatch: pytest.MonkeyPatch, home: Path, users: Mapping[str, Mapping[str, Any]] = USERS
) -> Iterator[HubServer]:
    """The double, with this process's client set to it and to ada's token. home: A folder for caches."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)  # as for a user; the double has no Xet
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    disable_progress_bars()
    with HubServer(users=users) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server
    enable_progress_bars()


def skip_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Returns a list that gets the seconds of each wait between requests. Nothing waits; the clock goes on as if it did."""
    seconds: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(seconds), sleep=seconds.append)
    monkeypatch.setattr(hub_requests, "time", clock)
    monkeypatch.setattr(_http, "time", clock)
    return seconds


def make_run(folder: Path) -> Path:
    """What a push reads of a finished run: weights that go into LFS, a card, and small files."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (model / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    (model / "README.md").write_text("---\nlicense: mit\n---\n# A model\n", encoding="utf-8")
    (folder / "results.json").write_text(json.dumps({"status": "finished"}, indent=2), encoding="utf-8")
    return folder


def read_pushed(server: HubServer, repo_id: str = "ada/clf", revision: str = "main") -> dict[str, bytes]:
    """The files of a repository, without the one that it opens with."""
    files = server.repos[f"models/{repo_id}"].find_commit(revision).files
    return {name: file.content for name, file in files.items() if name != ".gitattributes"}


def count_commits(server: HubServer, repo_id: str = "ada/clf") -> int:
    """Commits of the main branch since the one that a repository opens with; 0 without the repository."""
    repo = server.repos.get(f"models/{repo_id}")
    return len(repo.commits) - 1 if repo else 0


def assert_pushed_once(server: HubServer, run_dir: Path, repo_id: str = "ada/clf") -> None:
    """The repository has all files of a run of make_run(), and one commit."""
    expected = {path.name: path.read_bytes() for path in (run_dir / "model").iterdir()}
    results = json.loads((run_dir / "results.json").read_text("utf-8"))
    results.pop("push", None)
    expected["results.json"] = json.dumps(results, indent=2).encode()
    assert read_pushed(server, repo_id) == expected
    assert count_commits(server, repo_id) == 1
