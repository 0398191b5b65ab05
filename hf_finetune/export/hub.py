"""Pushes a run to the Hub: access is checked before training, a push is one commit, and a failed push loses nothing."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError  # type: ignore[attr-defined]
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_finetune.system.errors import InputError, redact

# What a push raises: errors of the Hub or the connection, of a file upload, of a card that the Hub rejects
PUSH_ERRORS = (HTTPError, OSError, RuntimeError, ValueError)


def check_access(repo_id: str, key: str = "hub.repo_id") -> None:
    """Raises InputError if the name cannot be a repository, or if there is no token that may write to it.

    key: the setting or option to name in errors.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise InputError(f"{key} ({repo_id}): must be user/name")
    try:
        validate_repo_id(repo_id)
        who: dict[str, Any] = HfApi().whoami()
    except HFValidationError as error:
        raise InputError(f"{key} ({repo_id}): {find_first_line(error)}") from None
    except LocalTokenNotFoundError:
        raise InputError("hub.push: there is no token; set HF_TOKEN, or run `hf auth login`") from None
    except PUSH_ERRORS as error:
        raise InputError(
            f"hub.push: the Hub rejects the token or cannot be reached: {find_first_line(error)}"
        ) from None
    namespace = repo_id.split("/")[0]
    writable = {org["name"] for org in who.get("orgs", ()) if org.get("roleInOrg") != "read"}
    if namespace not in {who["name"], *writable}:
        raise InputError(f"{key} ({repo_id}): the token belongs to {who['name']}, who cannot write to {namespace}")
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise InputError("hub.push: the token can only read; create a token that can write")


def push(run_dir: Path, repo_id: str, *, private: bool = False, revision: str | None = None) -> str:
    """Pushes model, tokenizer, card and results to the Hub in one commit, and returns its URL.

    private: for a new repository. revision: the branch, created if needed. Pushing the same content again makes no commit. Raises
    InputError with the reason if the push fails; the run folder is not changed.
    """
    model_dir = run_dir / "model"
    if not any((model_dir / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"{run_dir}: has no finished model to push (there is no model/config.json)")
    files = [(path, str(path.relative_to(model_dir))) for path in sorted(model_dir.rglob("*")) if path.is_file()]
    if (run_dir / "results.json").is_file():
        files.append((run_dir / "results.json", "results.json"))
    api = HfApi()
    try:
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=prepare_content(path, repo_id))
            for path, name in files
        ]
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=f"Fine-tuned model of run {run_dir.name}",
            revision=revision,
        )
    except PUSH_ERRORS as error:
        raise InputError(f"the push to {repo_id} failed: {find_first_line(error)}") from None
    return str(commit.commit_url)


def prepare_content(path: Path, repo_id: str) -> Path | bytes:
    """Returns the path of a file to push, or its content if the Hub gets another one.

    The card shows how to load the model from the Hub. An adapter names its pretrained model as model.backbone did; if that was a
    folder of this machine, only by the last part of its path.
    """
    if path.name == "adapter_config.json":
        settings = json.loads(path.read_text("utf-8"))
        recorded = json.loads((path.parent / "config" / "config.json").read_text("utf-8")).get("hf_finetune") or {}
        base = settings["base_model_name_or_path"]
        last = Path(base).name if Path(base).is_absolute() else base
        settings["base_model_name_or_path"] = recorded.get("backbone", last).partition("#")[0]
        return json.dumps(settings, indent=2).encode()
    if path.name != "README.md":
        return path
    call = re.compile(r'(from_pretrained|load_adapter|SentenceTransformer)\("[^"]*"(?=[),])')
    return call.sub(rf'\1("{repo_id}"', path.read_text("utf-8")).encode()


def find_first_line(error: Exception) -> str:
    """Returns the first line of an error that is not blank, without tokens."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redact(lines[0]) if lines else type(error).__name__
