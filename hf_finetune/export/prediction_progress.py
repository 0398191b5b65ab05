"""How far a file of predictions is: the lines so far lie in OUT.partial, and OUT.partial.state says what they belong to.

A command that was stopped, at any point, continues after the last line that the state counts, if model, options and all rows
until there are the same. The finished file is byte for byte that of a command that nothing stopped.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
import transformers

from hf_finetune.data.parts import Part, say_note
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_rows import PredictionOptions
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import digest_tensors, remove_quietly, sync_folder, write_atomically
from hf_finetune.system.locks import HeldError, Lock

VERSION = 2  # of the state: raise it if the same command would give other lines, or another digest of them


begin_digest = hashlib.blake2b  # of lines; twice as fast as sha256


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the predictions of a command are.

    Args:
        command: Digest of all that the lines depend on but the rows (digest_command).
        num_rows: Rows that are done.
        num_lines: Their predictions; fewer if an example is several rows.
        num_problems: Those of them that cannot be predicted.
        first_problem: Why the first of these cannot.
        rows_digest: Digest of the rows that are done, part after part.
        num_bytes, digest: The length and digest of the lines.
    """

    command: str
    num_rows: int = 0
    num_lines: int = 0
    num_problems: int = 0
    first_problem: str = ""
    rows_digest: str = ""
    num_bytes: int = 0
    digest: str = begin_digest().hexdigest()

    def after(self, part: Part, outcomes: Sequence[str]) -> "Progress":
        """Returns the progress after another part. The bytes of its lines are counted by PartialFile.

        outcomes: For each line, what is wrong with its row; "" if it was predicted.
        """
        problems = [problem for problem in outcomes if problem]
        return replace(
            self,
            num_rows=self.num_rows + len(part.table),
            num_lines=self.num_lines + len(outcomes),
            num_problems=self.num_problems + len(problems),
            first_problem=self.first_problem or next(iter(problems), ""),
            rows_digest=chain_digest(self.rows_digest, part),
        )


def digest_command(predictor: Predictor, options: PredictionOptions) -> str:
    """Returns the digest of a model with its tokenizer, columns and options, and of the versions that compute."""
    weights = predictor.model.state_dict()
    tokenizer = predictor.tokenizer
    if tokenizer.is_fast:  # what it was called with last belongs to no model
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    described = {
        "versions": [VERSION, torch.__version__, transformers.__version__],
        "device": str(predictor.model.device),
        "model": [predictor.model.config.to_dict(), digest_tensors(weights, sorted(weights))],
        "tokenizer": [vocabulary, predictor.max_length],
        "data": asdict(predictor.config.data),
        "task": [predictor.config.task.kind, predictor.task.state_dict()],
        "options": asdict(replace(options, is_strict=False)),  # which changes no line
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def chain_digest(before: str, part: Part) -> str:
    """Returns the digest of rows and of those before them."""
    own = part.table.digest(list(part.table.columns))
    return hashlib.sha256(f"{before} {own} {sorted(part.problems.items())}".encode()).hexdigest()


def skip_rows(parts: Iterator[Part], progress: Progress) -> bool:
    """Reads on to the first row that is not done. False if the rows before it are not those that were predicted."""
    num_rows, digest = 0, ""
    while num_rows < progress.num_rows:
        part = next(parts, None)
        if part is None:
            return False
        num_rows, digest = num_rows + len(part.table), chain_digest(digest, part)
    return (num_rows, digest) == (progress.num_rows, progress.rows_digest)


class PartialFile:
    """The lines of a command that is not finished, and its state.

    Attributes:
        path: OUT.partial.
        progress: What the state says.
        unfit: Why the lines that are there are not continued, for the user; "" if they are, or if there are none.
    """

    def __init__(self, out: Path, command: str) -> None:
        self.path = out.with_name(f"{out.name}.partial")
        self.state_path = out.with_name(f"{out.name}.partial.state")
        self.lock_path = out.with_name(f"{out.name}.partial.lock")
        self.unfit = ""
        self.progress = self.read_progress(command)
        self.file: BinaryIO | None = None
        self.digest = begin_digest()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other commands from writing the same file until the block ends. InputError if one does. Lines that no state
        counts are removed at the end, and those without a prediction."""
        lock = Lock(self.lock_path)
        try:
            lock.acquire(say_note)
        except HeldError:
            raise InputError(f"{self.path}: another command is writing this file") from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}") from None
        try:
            yield
        finally:
            try:
                if self.file is not None:
                    with contextlib.suppress(OSError):  # of what a full disk has not taken; no state counts it
                        self.file.close()
                if not self.has_predictions:
                    self.remove()
            finally:
                lock.release()

    def read_progress(self, command: str) -> Progress:
        """Returns the progress of the command if there are intact lines of it, else that of a command that begins."""
        try:
            progress = Progress(**json.loads(self.state_path.read_text(encoding="utf-8")))
            with self.path.open("rb") as file:
                is_intact = hash_start(file, progress.num_bytes) == progress.digest
        except FileNotFoundError:
            return Progress(command=command)
        except (OSError, ValueError, TypeError):
            is_intact = False
        if is_intact and progress.command == command:
            return progress
        self.unfit = "is damaged"
        if is_intact:
            self.unfit = f"has {progress.num_rows:,} rows of a command with another model or other options"
        return Progress(command=command)

    @property
    def has_predictions(self) -> bool:
        """True if the state counts a row that was predicted: there is something to keep."""
        return self.progress.num_problems < self.progress.num_rows

    def describe_progress(self) -> str:
        """Returns what a command that was stopped has done, for the user."""
        if not self.has_predictions:
            return "no predictions are kept yet, and the same command begins at the first row"
        return f"{self.progress.num_rows:,} rows are in {self.path.name}, and the same command continues after them"

    def begin_again(self) -> None:
        """Forgets the lines."""
        self.progress = Progress(command=self.progress.command)

    def open(self) -> None:
        """Opens the file to write after the lines that the state counts. InputError if it cannot be written."""
        progress = self.progress
        try:
            self.file = self.path.open("r+b" if progress.num_bytes else "wb")
            self.digest = begin_digest()
            hash_start(self.file, progress.num_bytes, self.digest)
            self.file.truncate(progress.num_bytes)
        except OSError as error:
            raise self.writing_error(error) from None

    def write(self, line: str) -> None:
        """Writes a line. InputError if the disk is full."""
        assert self.file is not None
        content = f"{line}\n".encode()
        self.digest.update(content)
        try:
            self.file.write(content)
        except OSError as error:
            raise self.writing_error(error) from None

    def save(self, progress: Progress) -> None:
        """Makes the lines so far durable, and the state that counts them. InputError if the disk is full."""
        assert self.file is not None
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.progress = replace(progress, num_bytes=self.file.tell(), digest=self.digest.hexdigest())
        except OSError as error:
            raise self.writing_error(error) from None
        write_atomically(self.state_path, json.dumps(asdict(self.progress)).encode())

    def writing_error(self, error: OSError) -> InputError:
        """Returns the error for lines that cannot be written."""
        done = f"; {self.progress.num_rows:,} rows are kept, and the same command continues after them"
        return InputError(f"{self.path}: cannot be written: {error.strerror}{done if self.progress.num_rows else ''}")

    def remove(self) -> None:
        """Removes lines and state, after the finished file is there. If the disk does not allow it, the next command does."""
        for path in (self.path, self.state_path):
            remove_quietly(path)
        with contextlib.suppress(OSError):
            sync_folder(self.path.parent)


def hash_start(file: BinaryIO, num_bytes: int, digest: hashlib.blake2b | None = None) -> str:
    """Reads the first bytes of a file, and returns their digest. digest: Continues this one. ValueError if there are fewer."""
    digest = begin_digest() if digest is None else digest
    while num_bytes:
        content = file.read(min(num_bytes, 1 << 20))
        if not content:
            raise ValueError("the file is shorter")
        digest.update(content)
        num_bytes -= len(content)
    return digest.hexdigest()
