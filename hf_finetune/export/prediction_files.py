"""Files of predictions, finished completely or not at all, and predictions on standard output."""

import errno
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from hf_finetune.data.parts import Part, is_stream
from hf_finetune.data.sources import find_files
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_formats import Entry, choose_ending, format_json, format_line, write_entries
from hf_finetune.export.prediction_progress import PartialFile, Progress, digest_command, skip_rows
from hf_finetune.export.prediction_rows import PredictionOptions, predict_part, read_input
from hf_finetune.system.bars import make_progress_bar
from hf_finetune.system.errors import InputError, StoppedError
from hf_finetune.system.files import explain_failures, rename, replace_atomically, sync_folder
from hf_finetune.system.signals import StopSignals

SECONDS_BETWEEN_SAVES = 1.0
MOST_NOTES = 10  # rows that cannot be predicted and are named

Line = tuple[str, str]  # a prediction as JSON, and why the row cannot be predicted, "" if it was
PredictParts = Callable[[Iterator[Part]], Iterator[tuple[Part, Iterable[Line]]]]  # parts and their lines, in order


@dataclass(frozen=True, kw_only=True)
class Job:
    """The predictions that a command asks for.

    Args:
        predictor: The model, with the options (PredictionOptions.prepare).
        locations: The files to read, a pipe, or "-".
        options: What is predicted.
        predict: Predicts parts; by this process alone if not given.
    """

    predictor: Predictor
    locations: Sequence[str]
    options: PredictionOptions
    predict: PredictParts | None = None

    def read(self) -> Iterator[Part]:
        """Yields the parts of the input from its first row on."""
        return read_input(self.predictor, self.locations, self.options)

    def predict_parts(self, parts: Iterator[Part]) -> Iterator[tuple[Part, Iterable[Line]]]:
        """Yields parts and their lines, in order."""
        if self.predict is not None:
            yield from self.predict(parts)
            return
        for part in parts:
            yield part, format_part(self.predictor, part, self.options)


def make_job(
    predictor: Predictor,
    data: str | Sequence[str],
    options: PredictionOptions,
    predict: PredictParts | None = None,
) -> Job:
    """Returns the job of a command. InputError if the task does not have the options."""
    locations = [data] if isinstance(data, str) else list(data)
    return Job(predictor=options.prepare(predictor), locations=locations, options=options, predict=predict)


def format_part(predictor: Predictor, part: Part, options: PredictionOptions) -> Iterator[Line]:
    """Yields the lines of a part."""
    for row in predict_part(predictor, part, options):
        yield format_json(row.entry), row.problem


def predict_file(predictor: Predictor, data: str | Sequence[str], out: str, **options: Any) -> int:
    """Writes the prediction of every row to a file, and returns their number (write_predictions).

    options: Those of PredictionOptions.
    """
    check_out(Path(out), options.get("keep", ()))
    return write_predictions(make_job(predictor, data, PredictionOptions(**options)), Path(out)).num_lines


def check_out(out: Path, keep: Sequence[str]) -> None:
    """Raises InputError if there is no folder for the file, no format with its ending, or no place for the kept columns."""
    with explain_failures(out.parent):
        has_folder, goes_through, is_folder = out.parent.is_dir(), is_special(out), out.is_dir()
    if not has_folder:
        raise InputError(f"--out ({out}): there is no folder {out.parent}")
    if not goes_through:
        if is_folder:
            raise InputError(f"--out ({out}): is a folder; name a file")
        if choose_ending(out) == ".txt" and keep:
            raise InputError(
                f"--keep ({keep[0]}): a .txt file has only the label of each row; write a .csv file instead"
            )


def is_special(path: Path) -> bool:
    """True for a pipe, a terminal or /dev/null: written to, not replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_is_no_input(job: Job, out: Path) -> None:
    """Raises InputError if the file is one of those that are read: its rows would be lost."""
    if is_stream(job.locations) or not out.exists():
        return
    for path in find_files(job.locations, "--data"):
        if path.samefile(out):
            raise InputError(f"--out ({out}): is a file of --data, whose rows would be lost; name another file")


def write_predictions(job: Job, out: Path) -> Progress:
    """Writes the prediction of every row to a file in the format of its ending, and returns what was done.

    The file is finished completely or not at all. The lines so far are kept next to it (export.prediction_progress), and the
    same command continues after them.
    """
    with explain_failures(out.parent):
        goes_through = is_special(out)
    if goes_through:
        with out.open("w", encoding="utf-8") as file:
            return print_predictions(job, file, str(out))
    with explain_failures(out.parent):
        check_is_no_input(job, out)
        out = out.resolve()  # the target of a link is written, not the link
    partial, signals = PartialFile(out, digest_command(job.predictor, job.options)), StopSignals()
    with partial.lock(), signals.install():
        try:
            parts = find_place(job, partial)
            progress = write_parts(job, parts, partial, is_line_file=choose_ending(out) == ".txt", signals=signals)
            check_any(progress)
        except StoppedError as error:
            raise StoppedError(f"{error}; {partial.describe_progress()}") from None
        with signals.deferred():
            finish_file(job, partial, out)
    return progress


def find_place(job: Job, partial: PartialFile) -> Iterator[Part]:
    """Returns the parts that are not done. Prints on standard error where the command continues."""
    parts = job.read()
    if not partial.progress.num_rows:
        if partial.unfit:
            print(f"{partial.path.name} {partial.unfit}: beginning again", file=sys.stderr, flush=True)
        return parts
    if skip_rows(parts, partial.progress):
        print(
            f"continuing after {partial.progress.num_rows:,} rows of {partial.path.name}", file=sys.stderr, flush=True
        )
        return parts
    if is_stream(job.locations):
        raise InputError(f"{partial.path}: has predictions of other rows than those that come now; remove the file")
    print(f"{partial.path.name} has predictions of other rows: beginning again", file=sys.stderr, flush=True)
    partial.begin_again()
    return job.read()


def write_parts(
    job: Job, parts: Iterator[Part], partial: PartialFile, *, is_line_file: bool, signals: StopSignals
) -> Progress:
    """Writes the lines of the parts, and saves the state now and then. Returns the progress after all of them."""
    partial.open()
    progress, saved_at = partial.progress, time.monotonic()
    with make_bar(progress.num_rows, has_out=True) as bar:
        for part, lines in job.predict_parts(parts):
            outcomes: list[str] = []
            for line, problem in lines:
                if is_line_file:
                    format_line(json.loads(line))  # an error now instead of at the end
                partial.write(line)
                say_problem(problem, progress.num_problems + sum(map(bool, outcomes)))
                outcomes.append(problem)
            progress = progress.after(part, outcomes)
            bar.update(len(part.table))
            if time.monotonic() > saved_at + SECONDS_BETWEEN_SAVES:
                with signals.deferred():
                    partial.save(progress)
                saved_at = time.monotonic()
                if signals.received:
                    raise StoppedError(signals.received)
    with signals.deferred():
        partial.save(progress)
    return partial.progress


def finish_file(job: Job, partial: PartialFile, out: Path) -> None:
    """Makes the finished file of the lines, and removes these."""

    def read_lines() -> Iterator[Entry]:
        with partial.path.open("rb") as file:
            for line in file:
                yield json.loads(line)

    def write(file: BinaryIO) -> None:
        write_entries(file, out, read_lines, job.predictor.task.scoring, has_kept=bool(job.options.keep))

    if out.suffix == ".jsonl":
        with explain_failures(out.parent):
            rename(partial.path, out)
            sync_folder(out.parent)
    else:
        replace_atomically(out, write, 0)
    partial.remove()


def print_predictions(job: Job, file: TextIO, name: str) -> Progress:
    """Writes lines of JSON to a file that is open, such as standard output, as they are predicted. Returns what was done.

    Ends without an error if nobody reads on, as in `| head`. InputError if the file cannot be written.
    """
    progress = Progress(command="")
    with make_bar(0, has_out=False) as bar:
        for part, lines in job.predict_parts(job.read()):
            outcomes: list[str] = []
            for line, problem in lines:
                if not write_line(line, file, name):
                    return progress
                say_problem(problem, progress.num_problems + sum(map(bool, outcomes)))
                outcomes.append(problem)
            progress = progress.after(part, outcomes)
            bar.update(len(part.table))
    check_any(progress)
    return progress


def write_line(line: str, file: TextIO, name: str) -> bool:
    """Writes a line at once. False if nobody reads it. InputError if it cannot be written."""
    try:
        file.write(f"{line}\n")
        file.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            return False
        raise InputError(f"{name}: cannot be written: {error.strerror}") from None
    return True


def say_problem(problem: str, num_before: int) -> None:
    """Prints on standard error why a row cannot be predicted; of many rows, the first. num_before: The number of earlier ones."""
    if problem and num_before <= MOST_NOTES:
        shown = problem if num_before < MOST_NOTES else "more rows; they are counted at the end"
        print(f"null: {shown}", file=sys.stderr, flush=True)


def check_any(progress: Progress) -> None:
    """Raises InputError if there are rows and none of them can be predicted."""
    if progress.num_problems and progress.num_problems == progress.num_rows:
        raise InputError(f"none of the {progress.num_rows:,} rows can be predicted: {progress.first_problem}")


def make_bar(num_done: int, *, has_out: bool) -> Any:
    """Returns the progress bar, on standard error. It is not shown if the predictions go to a terminal."""
    is_free = has_out or sys.stdout is None or not sys.stdout.isatty()
    return make_progress_bar(is_main=is_free, initial=num_done, unit="rows", desc="predicting")
