"""Pushes that a run still has to make: noted in its folder before they begin, and removed when the commit is read back."""

import contextlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hf_finetune.config.sections import HubConfig
from hf_finetune.export import hub
from hf_finetune.system.errors import InputError, redact
from hf_finetune.system.files import is_missing, remove_quietly, write_atomically
from hf_finetune.system.locks import HeldError, hold_lock

PENDING = "pending_pushes"  # folder in that of a run, with a file for each push
LOCK_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a run is pushed to. private: For a new repository. revision: The branch, None for the main one."""

    repo_id: str
    private: bool = False
    revision: str | None = None

    def find_note(self, run_dir: Path) -> Path:
        """Returns the file that says that this push is pending."""
        name = quote(f"{self.repo_id}@{self.revision or 'main'}", safe="@")
        return run_dir / PENDING / f"{name}.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a push. results.json has it as `push`.

    Attributes:
        status: pushed, or pending.
        commit: The URL of the commit. None if the push is pending.
        reason: Why it is pending.
    """

    repo_id: str
    revision: str | None
    status: str
    commit: str | None = None
    reason: str | None = None


def push_run(run_dir: Path, target: Target) -> Outcome:
    """Pushes a run. If that fails, or if the process is killed, a note of it is left in the run folder.

    Where that folder cannot be written, the push is made without a note. Raises InputError if there is no finished model.
    """
    hub.collect_files(run_dir, target.repo_id)  # what can never be pushed is not noted
    note_push(run_dir, target)
    commit, reason = None, None
    try:
        commit = hub.push(run_dir, target.repo_id, private=target.private, revision=target.revision)
    except InputError as error:
        reason = redact(str(error))
    outcome = Outcome(
        repo_id=target.repo_id,
        revision=target.revision,
        status="pending" if commit is None else "pushed",
        commit=commit,
        reason=reason,
    )
    record_outcome(run_dir, outcome)
    if commit is not None:  # at last: after a kill, the next push finds all files there, and records it
        note = target.find_note(run_dir)
        remove_quietly(note)
        with contextlib.suppress(OSError):  # other pushes are pending
            note.parent.rmdir()
    return outcome


def note_push(run_dir: Path, target: Target) -> None:
    """Notes that a run is to be pushed, so that `push --pending` makes it if this process does not. A run does it before its
    results.json, with which it is finished."""
    note = target.find_note(run_dir)
    with contextlib.suppress(InputError, OSError):
        note.parent.mkdir(exist_ok=True)
        write_atomically(note, json.dumps(asdict(target), indent=2).encode())


def find_target(options: HubConfig) -> Target:
    """Returns where the settings of a run push it to."""
    return Target(repo_id=str(options.repo_id), private=options.private, revision=options.revision)


def record_outcome(run_dir: Path, outcome: Outcome) -> None:
    """Writes what came of a push into results.json, if the run has one that can be written."""
    path = run_dir / "results.json"
    # The lock is for two pushes of one run that end at the same time
    lock = hold_lock(run_dir / ".push.lock", lambda _: None, seconds=LOCK_SECONDS)
    with contextlib.suppress(InputError, OSError, ValueError, HeldError), lock:
        results: dict[str, Any] = json.loads(path.read_text("utf-8"))
        write_atomically(path, json.dumps({**results, "push": asdict(outcome)}, indent=2).encode())


def list_pending(run_dir: Path) -> Iterator[Target]:
    """Yields the pushes that a run still has to make. Raises InputError if a note of one cannot be read."""
    for path in sorted((run_dir / PENDING).glob("*.json")):
        try:
            target = Target(**json.loads(path.read_text("utf-8")))
            hub.check_name(target.repo_id, str(path))
        except FileNotFoundError:  # another process has made this push
            continue
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: is not a note of a pending push ({error}); remove it") from None
        yield target


def make_command(run_dir: Path, target: Target) -> str:
    """Returns the command that makes a push which has failed."""
    words = ["hf-finetune", "push"]
    if not is_missing(target.find_note(run_dir)):
        return shlex.join([*words, "--pending", str(run_dir)])
    words += [str(run_dir), "--repo-id", target.repo_id]
    words += ["--private"] if target.private else []
    words += ["--revision", target.revision] if target.revision else []
    return shlex.join(words)
