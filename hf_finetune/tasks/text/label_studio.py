"""Tasks of Label Studio as it exports them in full: an object with `data` and `annotations`, and which annotations count."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hf_finetune.data.row_adapter import Say
from hf_finetune.data.table import describe_value
from hf_finetune.system.errors import InputError

DATA = "data"
ANNOTATIONS = ("annotations", "completions")  # the second is that of old versions

CANCELLED = "were skipped by the annotator and are left out"
AGREE = "have several annotations, which agree"
TRUE = "have an annotation that is marked as ground truth, which is taken"

MOST_SHOWN = 5  # of what annotations disagree on


def is_task(row: Mapping[str, Any]) -> bool:
    """True if a row is a task of Label Studio."""
    return isinstance(row.get(DATA), Mapping) and isinstance(get_annotations(row), (list, tuple))


def get_annotations(row: Mapping[str, Any]) -> Any:
    """Returns the annotations of a task; None if it has none under their names."""
    return next((row[name] for name in ANNOTATIONS if name in row), None)


def find_annotations(row: Mapping[str, Any], entities: Any) -> Sequence[Any] | None:
    """Returns the entities of a row if they are annotations: those of a task, or a list of objects with results; else None."""
    if is_task(row) and entities is get_annotations(row):
        return list(entities)
    has_results = isinstance(entities, (list, tuple)) and bool(entities) and isinstance(entities[0], Mapping)
    return list(entities) if has_results and "result" in entities[0] else None


def was_skipped(annotations: Sequence[Any], where: str) -> bool:
    """True if a task has annotations and all were cancelled. InputError if one is not an object."""
    return bool(annotations) and not drop_cancelled(annotations, where)


def read_annotations(
    annotations: Sequence[Any],
    where: str,
    read: Callable[[list[Mapping[str, Any]]], Iterable[Any]],
    counts: Counter[str],
) -> list[Any] | None:
    """Returns what an annotation of a task holds; None if there is none that was not cancelled.

    InputError if several hold different things, in whatever order. Those that are marked as ground truth override the others.

    Args:
        annotations: All of the task.
        where: The task, for errors.
        read: Returns what the results of an annotation hold: values that can be hashed and sorted.
        counts: Gets the number of tasks with several annotations, by how one was found.
    """
    kept = drop_cancelled(annotations, where)
    true = [annotation for annotation in kept if annotation.get("ground_truth")] or kept
    counts[AGREE] += len(true) > 1
    counts[TRUE] += len(true) < len(kept)
    found = [list(read(list_results(annotation, where))) for annotation in true]
    if not found:
        return None
    disputed = sorted(set().union(*found).difference(set(found[0]).intersection(*found)))
    if disputed:
        shown = ", ".join([str(item) for item in disputed[:MOST_SHOWN]] + ["..."] * (len(disputed) > MOST_SHOWN))
        raise InputError(
            f"{where}: its {len(true)} annotations disagree on {shown}; keep one of them, mark it as ground truth, or remove "
            "the task"
        )
    return found[0]


def drop_cancelled(annotations: Sequence[Any], where: str) -> list[Mapping[str, Any]]:
    """Returns the annotations that were not cancelled. InputError if one is not an object."""
    for annotation in annotations:
        if not isinstance(annotation, Mapping):
            raise InputError(f"{where}: an annotation is {describe_value(annotation, 'an object with a result')}")
    return [annotation for annotation in annotations if not annotation.get("was_cancelled")]


def list_results(annotation: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """Returns the results of an annotation. InputError if they are anything but a list of objects."""
    results = annotation.get("result")
    if not isinstance(results, (list, tuple, type(None))):
        raise InputError(f"{where}: the result of an annotation is {describe_value(results, 'a list')}")
    for result in results or ():
        if not isinstance(result, Mapping):
            raise InputError(f"{where}: a result of an annotation is {describe_value(result, 'an object')}")
    return list(results or ())


def say_counts(counts: Counter[str], say: Say) -> None:
    """Says how many tasks each note is about."""
    for note, count in counts.items():
        if count:
            say(f"tasks that {note}: {count:,}")
