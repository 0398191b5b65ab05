"""Pushes a run to the Hub: access is checked before training; a push is one commit, read back; a failed one costs nothing."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, RepoFile
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_finetune.export.hub_requests import REQUEST_ERRORS, OutageError, UnconfirmedError, find_reason, persist
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import hash_file


def check_name(repo_id: str, key: str = "hub.repo_id") -> None:
    """Raises InputError if this cannot be the name of a repository. key: The setting or option to name in errors."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise InputError(f"{key} ({repo_id}): must be user/name")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{key} ({repo_id}): {find_reason(error)}") from None


def check_access(repo_id: str, key: str = "hub.repo_id", *, is_brief: bool = False) -> None:
    """Raises InputError if the name cannot be a repository, or if there is no token that may write to it.

    Raises OutageError if the Hub cannot tell at present. key: The setting or option to name in errors. is_brief: Asks the Hub
    once, for a few seconds.
    """
    check_name(repo_id, key)
    try:
        name, namespaces, role = persist(find_rights, "asking the Hub who the token belongs to", is_brief=is_brief)
    except LocalTokenNotFoundError:
        raise InputError("hub.push: there is no token; set HF_TOKEN, or run `hf auth login`") from None
    except OutageError as error:
        raise OutageError(f"hub.push: the Hub cannot be reached: {error}") from None
    except HfHubHTTPError as error:
        raise InputError(f"hub.push: the Hub rejects the token: {find_reason(error)}") from None
    except REQUEST_ERRORS as error:
        raise InputError(f"hub.push: the Hub cannot be asked: {find_reason(error)}") from None
    namespace = repo_id.split("/")[0]
    if namespace not in namespaces:
        raise InputError(f"{key} ({repo_id}): the token belongs to {name}, who cannot write to {namespace}")
    if role == "read":
        raise InputError("hub.push: the token can only read; create a token that can write")


def find_rights() -> tuple[str, set[str], str | None]:
    """Returns whom the token belongs to, the namespaces that its owner may write to, and the role of the token."""
    who: dict[str, Any] = HfApi().whoami()
    writable = {org["name"] for org in who.get("orgs", ()) if org.get("roleInOrg") != "read"}
    return who["name"], {who["name"], *writable}, who.get("auth", {}).get("accessToken", {}).get("role")


def push(run_dir: Path, repo_id: str, *, private: bool = False, revision: str | None = None) -> str:
    """Pushes model, tokenizer, card and results to the Hub in one commit, reads it back, and returns its URL.

    private: for a new repository. revision: the branch, created if needed. Pushing the same content again makes no commit, also
    if an earlier push was cut off or its answer was lost. Raises InputError with the reason if the push fails (OutageError if it
    may succeed later); the run folder is not changed.
    """
    files = collect_files(run_dir, repo_id)
    message = f"Fine-tuned model of run {run_dir.name}"
    try:
        return persist(
            lambda: push_files(repo_id, files, message, private=private, revision=revision), f"the push to {repo_id}"
        )
    except OutageError as error:
        raise OutageError(f"the push to {repo_id} failed: {error}") from None
    except REQUEST_ERRORS as error:
        raise InputError(f"the push to {repo_id} failed: {find_reason(error)}") from None


def collect_files(run_dir: Path, repo_id: str) -> dict[str, Path | bytes]:
    """Returns what a push sends, by the name in the repository: the path of a file, or its content if the Hub gets another one.

    Raises InputError if the run has no finished model, or if a file cannot be read.
    """
    model_dir = run_dir / "model"
    if not any((model_dir / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"{run_dir}: has no finished model to push (there is no model/config.json)")
    paths = {path.relative_to(model_dir).as_posix(): path for path in sorted(model_dir.rglob("*")) if path.is_file()}
    if (run_dir / "results.json").is_file():
        paths["results.json"] = run_dir / "results.json"
    files: dict[str, Path | bytes] = {}
    for name, path in paths.items():
        try:
            files[name] = prepare_content(path, repo_id)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # JSON of other types, too
            raise InputError(f"the push to {repo_id} failed: {path} cannot be read: {error}") from None
    return files


def prepare_content(path: Path, repo_id: str) -> Path | bytes:
    """Returns the path of a file to push, or its content if the Hub gets another one.

    results.json is sent without what it says of pushes, so that a push does not change what the next one sends. The card shows
    how to load the model from the Hub. An adapter names its pretrained model as model.backbone did; if that was a folder of this
    machine, only by the last part of its path.
    """
    if path.name == "adapter_config.json":
        settings = json.loads(path.read_text("utf-8"))
        recorded = json.loads((path.parent / "config" / "config.json").read_text("utf-8")).get("hf_finetune") or {}
        base = settings["base_model_name_or_path"]
        last = Path(base).name if Path(base).is_absolute() else base
        settings["base_model_name_or_path"] = recorded.get("backbone", last).partition("#")[0]
        return json.dumps(settings, indent=2).encode()
    if path.name == "results.json":
        results = json.loads(path.read_text("utf-8"))
        return json.dumps({key: value for key, value in results.items() if key != "push"}, indent=2).encode()
    if path.name != "README.md":
        return path
    call = re.compile(r'(from_pretrained|load_adapter|SentenceTransformer)\("[^"]*"(?=[),])')
    return call.sub(rf'\1("{repo_id}"', path.read_text("utf-8")).encode()


def push_files(
    repo_id: str, files: Mapping[str, Path | bytes], message: str, *, private: bool, revision: str | None
) -> str:
    """Commits the files that the branch does not have yet, reads the commit back, and returns its URL.

    Safe to repeat: the commit names the head that was read before. If another one has happened since (this one, whose answer was
    lost, or that of another push), the Hub refuses it.
    """
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    head = api.model_info(repo_id, revision=revision).sha
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision, parent_commit=head)
    check_commit(api, repo_id, commit.oid, files)
    return str(commit.commit_url)


def check_commit(api: HfApi, repo_id: str, commit: str, files: Mapping[str, Path | bytes]) -> None:
    """Raises UnconfirmedError unless the Hub has each file in the commit, with its digest."""
    entries = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    held = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    wrong = [name for name, content in files.items() if name not in held or not is_same(held[name], content)]
    if wrong:
        raise UnconfirmedError(f"the commit was accepted, but {', '.join(wrong)} cannot be read back from the Hub")


def is_same(entry: RepoFile, content: Path | bytes) -> bool:
    """True if a file on the Hub has this content, by the digest that the Hub keeps: sha256 of a large file, git's of another."""
    if entry.lfs is not None:
        digest = hash_file(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
        return bool(digest == entry.lfs.sha256)
    blob = content.read_bytes() if isinstance(content, Path) else content
    return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest() == entry.blob_id
