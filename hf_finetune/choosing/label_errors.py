"""The likeliest wrong labels of training data, from the out-of-fold predictions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.choosing.out_of_fold import OUT_OF_FOLD
from hf_finetune.config.sections import require
from hf_finetune.run.scored import ScoredExamples, read_scored
from hf_finetune.statistics.label_errors import find_label_errors, find_multi_label_errors
from hf_finetune.system.console import align_columns, print_message
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import write_atomically
from hf_finetune.tasks.example_scores import MOST_LABELS, BestProbabilities

LABEL_ERRORS = "label_errors.jsonl"  # in the folder of the folds
NUM_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class LikelyError:
    """A label that is likely wrong.

    Attributes:
        place: The number of the example among the out-of-fold predictions.
        origin: Its file and line.
        label: What it is labelled with.
        suggestion: The label that the model is confident of; of several labels one to add (+) or to remove (-).
        probability: The probability of what it is labelled with.
    """

    place: int
    origin: str
    label: str
    suggestion: str
    probability: float


def explain_unchecked(scored: ScoredExamples) -> str:
    """Returns why the labels cannot be checked; "" if they can."""
    scores = scored.scores
    if scores.labels is None or not scores.label_names or scores.probabilities is None:
        return f"the task {scored.task} has no classes with probabilities, whose labels could be compared"
    if scores.has_several_labels and isinstance(scores.probabilities, BestProbabilities):
        return (
            f"of {len(scores.label_names):,} labels the {scores.probabilities.numbers.shape[1]} best probabilities of each text "
            f"are known; with several labels a text all must be, which is so with up to {MOST_LABELS} labels"
        )
    return ""


def find_likely_errors(scored: ScoredExamples) -> list[LikelyError]:
    """Returns the labels that are likely wrong, the likeliest first. InputError if they cannot be checked."""
    if reason := explain_unchecked(scored):
        raise InputError(reason)
    scores, labels, names = scored.scores, scored.scores.labels or (), scored.scores.label_names
    probabilities: Any = scores.probabilities
    numbers: Any = scores.label_numbers
    if scores.has_several_labels:
        found = find_multi_label_errors(probabilities, numbers.todense())
        suggestions = [
            f"{'+' if wanted else '-'}{names[label]}"
            for label, wanted in zip(found.given, found.suggested, strict=True)
        ]
    else:
        if isinstance(probabilities, BestProbabilities):
            quality = find_own_probabilities(probabilities, numbers, scores.losses)
            found = find_label_errors(probabilities.values, numbers, quality, probabilities.numbers)
        else:
            found = find_label_errors(probabilities, numbers)
        suggestions = [names[label] for label in found.suggested]
    return [
        LikelyError(
            place=int(place),
            origin=scored.where(int(place)),
            label=" ".join(labels[place]) if isinstance(labels[place], list) else str(labels[place]),
            suggestion=suggestion,
            probability=float(quality),
        )
        for place, suggestion, quality in zip(found.examples, suggestions, found.quality, strict=True)
    ]


def find_own_probabilities(best: BestProbabilities, labels: Any, losses: Any) -> Any:
    """Returns the probability of each example's label [N]: where it is not among the best ones, that of its loss."""
    is_own = best.numbers == labels[:, None]
    return np.where(is_own.any(axis=1), (best.values * is_own).sum(axis=1), np.exp(-losses))


def report_errors(folder: Path, scored: ScoredExamples, errors: list[LikelyError], num_shown: int = NUM_SHOWN) -> None:
    """Writes all likely wrong labels into the folder, and prints the likeliest ones."""
    lines = []
    for error in errors:
        entry: dict[str, Any] = {
            "file": scored.files[error.place],
            "line": int(scored.lines[error.place]),
            "label": (scored.scores.labels or ())[error.place],
            "suggestion": error.suggestion,
            "probability": round(error.probability, 6),
        }
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    write_atomically(folder / LABEL_ERRORS, "".join(lines).encode("utf-8", "surrogatepass"))
    if not errors:
        print_message("labels      none is likely wrong")
        return
    among = f"in {len(scored):,} rows" if scored.scores.has_several_labels else f"of {len(scored):,}"
    print_message(f"labels      {len(errors):,} {among} are likely wrong: {folder / LABEL_ERRORS}; the likeliest:\n")
    rows = [["line", "label", "the model says", "probability of the label"]]
    rows += [[error.origin, error.label, error.suggestion, f"{error.probability:.4f}"] for error in errors[:num_shown]]
    print_message(align_columns(rows, left=True))


def show_label_errors(folders: Sequence[Path], num_shown: int) -> None:
    """Prints the likeliest wrong labels by the folds in a folder, or by the mean probabilities of the folds in several.

    Raises InputError if a folder has no out-of-fold predictions, or if the mean of several cannot be computed.
    """
    require(num_shown >= 0, "top", num_shown, "must be 0 or more")
    scored = average_scored([read_out_of_fold(folder) for folder in folders], folders)
    report_errors(folders[0], scored, find_likely_errors(scored), num_shown)


def read_out_of_fold(folder: Path) -> ScoredExamples:
    """Returns the out-of-fold predictions in a folder. InputError if there are none, or if their labels cannot be checked."""
    path = folder / OUT_OF_FOLD
    if not path.exists():
        raise InputError(
            f"{folder}: has no {OUT_OF_FOLD}; hf-finetune train RECIPE --folds 5 --data.train FILE makes it"
        )
    scored = read_scored(path)
    if reason := explain_unchecked(scored):
        raise InputError(f"{path}: {reason}")
    return scored


def average_scored(parts: Sequence[ScoredExamples], folders: Sequence[Path]) -> ScoredExamples:
    """Returns the examples that all folders have, with the mean of their probabilities. Prints how many others there are.

    Raises InputError if there is none, or if the probabilities have no mean.
    """
    first, names = parts[0], parts[0].scores.label_names
    if len(parts) == 1:
        return first
    places = [{key: place for place, key in enumerate(list_keys(part))} for part in parts]
    shared = [key for key in places[0] if all(key in each for each in places)]
    if not shared or any(part.scores.label_names != names for part in parts):
        raise InputError(
            f"{', '.join(map(str, folders))}: are the folds of different data or labels; name folds of the same"
        )
    if any(isinstance(part.scores.probabilities, BestProbabilities) for part in parts):
        raise InputError(
            f"of {len(names):,} labels only the best probabilities of each text are known, which have no mean; name one folder"
        )
    if left_out := len({key[:2] for each in places for key in each}) - len(shared):
        print_message(
            f"labels      {left_out:,} rows are not checked: not all folders have them with the same text and label"
        )
    taken = [part.take(np.array([each[key] for key in shared])) for part, each in zip(parts, places, strict=True)]
    probabilities: Any = [part.scores.probabilities for part in taken]
    return replace(taken[0], scores=replace(taken[0].scores, probabilities=np.mean(probabilities, axis=0)))


def list_keys(scored: ScoredExamples) -> list[tuple[str, int, str]]:
    """Returns file, line and digest of each example."""
    return list(zip(scored.files, scored.lines, scored.digests, strict=True))
