"""The likeliest wrong labels of training data, from the out-of-fold predictions."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.choosing.out_of_fold import OUT_OF_FOLD, make_dense
from hf_finetune.run.scored import ScoredExamples, read_scored
from hf_finetune.statistics.label_errors import find_label_errors, find_multi_label_errors
from hf_finetune.system.console import align_columns, print_message
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import write_atomically

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


def find_likely_errors(scored: ScoredExamples) -> list[LikelyError] | None:
    """Returns the labels that are likely wrong, the likeliest first; None if the task has no classes with probabilities."""
    probabilities, names = make_dense(scored), scored.scores.label_names
    if probabilities is None or scored.scores.labels is None:
        return None
    numbers: Any = scored.scores.label_numbers
    labels = scored.scores.labels
    if scored.scores.has_several_labels:
        found = find_multi_label_errors(probabilities, np.asarray(numbers.todense()))
        suggestions = [
            f"{'+' if wanted else '-'}{names[label]}"
            for label, wanted in zip(found.given, found.suggested, strict=True)
        ]
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
    print_message(
        f"labels      {len(errors):,} of {len(scored):,} are likely wrong: {folder / LABEL_ERRORS}; the likeliest:\n"
    )
    rows = [["line", "label", "the model says", "probability of the label"]]
    rows += [[error.origin, error.label, error.suggestion, f"{error.probability:.4f}"] for error in errors[:num_shown]]
    print_message(align_columns(rows, left=True))


def show_label_errors(folder: Path, num_shown: int) -> None:
    """Prints the likeliest wrong labels of the folds in a folder. Raises InputError if it has no out-of-fold predictions."""
    path = folder / OUT_OF_FOLD
    if not path.exists():
        raise InputError(
            f"{folder}: has no {OUT_OF_FOLD}; hf-finetune train RECIPE --folds 5 --data.train FILE makes it"
        )
    scored = read_scored(path)
    errors = find_likely_errors(scored)
    if errors is None:
        raise InputError(
            f"{path}: the task {scored.task} has no classes with probabilities, whose labels could be compared"
        )
    report_errors(folder, scored, errors, num_shown)
