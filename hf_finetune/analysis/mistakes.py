"""The worst and the least certain examples of a run, from its file of scored examples."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.analysis.run_files import RunFiles
from hf_finetune.analysis.tables import NOTHING, format_metric
from hf_finetune.data.findings import cut
from hf_finetune.run.details import order_by_doubt, order_by_error
from hf_finetune.run.scored import FOLDER, ScoredExamples, read_scored
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.example_scores import BestProbabilities

NUM_SHOWN = 12  # of each list
LONGEST_TEXT = 240  # characters
WITH_LINES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt")  # files of which a line is a row


def read_split(run: RunFiles, split: str) -> ScoredExamples | None:
    """Returns the scored examples of a split, None if the run has none. InputError if the file is damaged."""
    path = run.folder / FOLDER / f"{split}.jsonl"
    return read_scored(path) if path.is_file() else None


def make_mistakes(run: RunFiles, split: str) -> dict[str, Any]:
    """Returns the examples to look at: `worst` and `doubtful`, each with its origin, and a `note` if there are none."""
    try:
        scored = read_split(run, split)
    except InputError as error:
        return {"note": str(error), "worst": [], "doubtful": []}
    if scored is None:
        note = f"There is no {FOLDER}/{split}.jsonl: the run is not finished, or an earlier version made it."
        return {"note": note, "worst": [], "doubtful": []}
    worst = [place for place in order_by_error(scored.scores, scored.metric).tolist() if is_wrong(scored, place)]
    doubtful = order_by_doubt(scored.scores)
    places = {"worst": worst[:NUM_SHOWN], "doubtful": [] if doubtful is None else doubtful[:NUM_SHOWN].tolist()}
    texts = read_texts(scored, {place for some in places.values() for place in some}, run.settings)
    shown = {name: [describe(scored, place, texts.get(place)) for place in some] for name, some in places.items()}
    return {"note": "" if shown["worst"] else "No example is wrong.", **shown}


def is_wrong(scored: ScoredExamples, place: int) -> bool:
    """True if the prediction is not what is right; also if an example has no such thing, as that of a language model."""
    labels, predictions = scored.scores.labels, scored.scores.predictions
    return labels is None or predictions is None or labels[place] != predictions[place]


def describe(scored: ScoredExamples, place: int, text: str | None) -> dict[str, str]:
    """Returns an example as the page shows it."""
    scores = scored.scores
    loss = (
        NOTHING
        if scores.losses is None or np.isnan(scores.losses[place])
        else format_metric(float(scores.losses[place]))
    )
    return {
        "where": scored.where(place),
        "label": describe_value(scores.labels, place),
        "prediction": describe_value(scores.predictions, place),
        "confidence": describe_confidence(scores.probabilities, place),
        "loss": loss,
        "text": cut(text or "", LONGEST_TEXT),
    }


def describe_value(values: Sequence[Any] | None, place: int) -> str:
    """Returns a label or a prediction as text."""
    if values is None:
        return NOTHING
    value = values[place]
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    return cut(f"{value:.4f}" if isinstance(value, float) else str(value), 120)


def describe_confidence(probabilities: Any, place: int) -> str:
    """Returns the largest probability of an example."""
    if probabilities is None:
        return NOTHING
    values = probabilities.values if isinstance(probabilities, BestProbabilities) else probabilities
    return f"{float(np.max(values[place])):.3f}"


def read_texts(scored: ScoredExamples, places: Iterable[int], settings: Mapping[str, Any]) -> dict[int, str]:
    """Returns the texts of examples whose files are still there: of JSON lines those of the text columns, else the line."""
    texts: dict[int, str] = {}
    by_file: dict[str, list[int]] = {}
    for place in places:
        if not scored.is_in_memory:
            by_file.setdefault(scored.files[place], []).append(place)
    for name, some in by_file.items():
        path = Path(name)
        if path.suffix not in WITH_LINES or not path.is_file():
            continue
        wanted = {int(scored.lines[place]): place for place in some}
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(islice(file, max(wanted)), 1):
                if number in wanted:
                    texts[wanted[number]] = pick_text(line, settings)
    return texts


def pick_text(line: str, settings: Mapping[str, Any]) -> str:
    """Returns the text columns of a line of JSON, joined; any other line as it is."""
    columns = settings.get("data.text_columns") or []
    try:
        row = json.loads(line)
    except ValueError:
        return line
    values = [row[name] for name in columns if name in row] if isinstance(row, dict) else []
    texts = [" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values]
    return " | ".join(texts) or line
