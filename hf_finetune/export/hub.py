"""Sharing a run on the Hub: checked before training, one commit, and nothing lost where it fails."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError  # type: ignore[attr-defined]
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_finetune.system.errors import InputError, redact

# What a push can fail with: the Hub's answer or the transport, a file upload, a card the Hub refuses.
PUSH_ERRORS = (HTTPError, OSError, RuntimeError, ValueError)


def check_access(repo_id: str, key: str = "hub.repo_id") -> None:
    """Raises InputError, before any training, where the name, the token or the right to write is missing."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise InputError(f"{key} ({repo_id}): must be user/name")
    try:
        validate_repo_id(repo_id)
        who: dict[str, Any] = HfApi().whoami()
    except HFValidationError as error:
        raise InputError(f"{key} ({repo_id}): {first_line(error)}") from None
    except LocalTokenNotFoundError:
        raise InputError("hub.push: there is no token; set HF_TOKEN or run `hf auth login`") from None
    except PUSH_ERRORS as error:
        raise InputError(
            f"hub.push: the Hub does not take the token, or cannot be reached: {first_line(error)}"
        ) from None
    namespace = repo_id.split("/")[0]
    writable = {org["name"] for org in who.get("orgs", ()) if org.get("roleInOrg") != "read"}
    if namespace not in {who["name"], *writable}:
        raise InputError(f"{key} ({repo_id}): the token is of {who['name']}, who cannot write to {namespace}")
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise InputError("hub.push: the token may only read; make one that may write")


def push(run_dir: Path, repo_id: str, *, private: bool = False, revision: str | None = None) -> str:
    """Puts model, tokenizer, card and results on the Hub in one commit; returns the address of the commit.

    Pushing the same again makes no commit. Raises InputError with what failed; the run folder is not touched.
    """
    model_dir = run_dir / "model"
    if not any((model_dir / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"{run_dir}: has no finished model to push (no model/config.json)")
    files = [(path, str(path.relative_to(model_dir))) for path in sorted(model_dir.rglob("*")) if path.is_file()]
    files += [(run_dir / name, name) for name in ("results.json",) if (run_dir / name).is_file()]
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=collect_files(path, repo_id))
                for path, name in files
            ],
            commit_message=f"Fine-tuned model of run {run_dir.name}",
            revision=revision,
        )
    except PUSH_ERRORS as error:
        raise InputError(f"the push to {repo_id} failed: {first_line(error)}") from None
    return str(commit.commit_url)


def collect_files(path: Path, repo_id: str) -> Path | bytes:
    """What is pushed of a file: the card says how to load the model from where it is pushed to, and an adapter names a
    pretrained model on this machine as the config did, or by the last part of its path."""
    if path.name == "adapter_config.json":
        settings = json.loads(path.read_text("utf-8"))
        noted = json.loads((path.parent / "config" / "config.json").read_text("utf-8")).get("hf_finetune") or {}
        base = settings["base_model_name_or_path"]
        last = Path(base).name if Path(base).is_absolute() else base
        settings["base_model_name_or_path"] = noted.get("backbone", last).partition("#")[0]
        return json.dumps(settings, indent=2).encode()
    if path.name != "README.md":
        return path
    named = re.compile(r'(from_pretrained|load_adapter|SentenceTransformer)\("[^"]*"(?=[),])')
    return named.sub(rf'\1("{repo_id}"', path.read_text("utf-8")).encode()


def first_line(error: Exception) -> str:
    """The first line that says something; tokens blotted out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redact(lines[0]) if lines else type(error).__name__
