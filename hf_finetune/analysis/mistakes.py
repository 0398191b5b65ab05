"""The worst and the least certain examples of a run, from its file of scored examples."""

from typing import Any

from hf_finetune.analysis.run_files import RunFiles
from hf_finetune.analysis.tables import NOTHING
from hf_finetune.analysis.texts import read_texts
from hf_finetune.data.findings import cut
from hf_finetune.run.details import order_by_doubt
from hf_finetune.run.mistakes import LONGEST_TEXT, describe_example, find_mistakes
from hf_finetune.run.scored import FOLDER, ScoredExamples, read_scored
from hf_finetune.system.errors import InputError

NUM_SHOWN = 12  # of each list
COLUMNS = {"right": "", "predicted": "", "probability": "number", "loss": "number"}  # with their styles


def read_split(run: RunFiles, split: str) -> ScoredExamples | None:
    """Returns the scored examples of a split, None if the run has none. InputError if the file is damaged."""
    path = run.folder / FOLDER / f"{split}.jsonl"
    return read_scored(path) if path.is_file() else None


def make_mistakes(run: RunFiles, split: str) -> dict[str, Any]:
    """Returns the examples to look at: `worst` and `doubtful`, each with its origin and `columns`, the pairs of a name and a
    style; a `note` if there are none, and a `text_note` if not all have their text."""
    nothing: dict[str, Any] = {"text_note": "", "columns": [], "worst": [], "doubtful": []}
    try:
        scored = read_split(run, split)
    except InputError as error:
        return {"note": str(error), **nothing}
    if scored is None:
        note = f"There is no {FOLDER}/{split}.jsonl: the run is not finished, or an earlier version made it."
        return {"note": note, **nothing}
    worst = find_mistakes(scored)
    doubtful = order_by_doubt(scored.scores)
    places = {"worst": worst[:NUM_SHOWN], "doubtful": [] if doubtful is None else doubtful[:NUM_SHOWN].tolist()}
    texts, text_note = read_texts(run, scored, split, {place for some in places.values() for place in some})
    shown = {name: [describe(scored, place, texts.get(place)) for place in some] for name, some in places.items()}
    examples = [example for some in shown.values() for example in some]
    columns = [entry for entry in COLUMNS.items() if any(example[entry[0]] != NOTHING for example in examples)]
    note = "" if shown["worst"] else "No example is wrong."
    return {"note": note, "text_note": text_note, "columns": columns, **shown}


def describe(scored: ScoredExamples, place: int, text: str | None) -> dict[str, str]:
    """Returns an example as the page shows it."""
    known = {name: value or NOTHING for name, value in describe_example(scored, place, text).items()}
    return {**known, "text": cut(text or "", LONGEST_TEXT)}
