"""The texts of scored examples, read again from the data of their run, with the readers that the run used.

A text is shown only if the digest of its example is that of the row: a file that has changed since shows no other text in its
place.
"""

import os.path
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hf_finetune.analysis.run_files import RunFiles
from hf_finetune.config.loading import load_config
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.data.hub_datasets import read_hub_dataset
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table
from hf_finetune.run.scored import ScoredExamples, digest_rows
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import cache_root


def read_texts(run: RunFiles, scored: ScoredExamples, split: str, places: Iterable[int]) -> tuple[dict[int, str], str]:
    """Returns the texts of the examples at `places`, as far as they are found, and a sentence about those that are not; "" if all
    are."""
    wanted = list(places)
    if not wanted:
        return {}, ""
    try:
        found = find_rows(read_rows(run, scored, split), scored, wanted)
    except (InputError, OSError) as error:
        return {}, f"Texts are not shown: {error}."
    if len(found) == len(wanted):
        return found, ""
    count = f"{len(wanted) - len(found)} of {len(wanted)} texts" if found else "Texts"
    return found, f"{count} are not shown: the data have changed since the run, and no longer have them."


def read_rows(run: RunFiles, scored: ScoredExamples, split: str) -> Table:
    """Returns the rows of the data in which those of a split are. InputError, with the reason, if they cannot be read."""
    if scored.is_in_memory:
        raise InputError("a program gave the rows, and a run does not keep them")
    if run.kind not in TASKS:
        raise InputError(f"the task is a class of your own ({run.kind}), and a report imports no code")
    config = load_config(dict(run.settings))
    data, spec, root = config.data, load_task(run.kind).make_columns(config).spec, cache_root(config.cache.dir)
    if data.dataset is None:
        source = split if getattr(data, split) else "train"  # from which it was drawn
        return read_table(getattr(data, source), data, f"data.{source}", spec, root=root)
    if not os.path.isdir(data.dataset):
        raise InputError(f"data.dataset ({data.dataset}) is not a folder, and a report asks nothing of the network")
    tables = read_hub_dataset(data, spec, root)
    return tables.get(split, tables["train"])


def find_rows(table: Table, scored: ScoredExamples, places: Iterable[int]) -> dict[int, str]:
    """Returns the texts of the examples at `places` whose rows are in the table: at the same line, and with the same digest."""
    wanted: dict[tuple[str, int], list[int]] = {}
    for place in places:
        wanted.setdefault((scored.files[place], int(scored.lines[place])), []).append(place)
    pairs = [
        (row, place)
        for row, (file, line) in enumerate(zip(table.files, table.lines, strict=True))
        for place in wanted.get((file, int(line)), ())
    ]
    if not pairs:
        return {}
    part = table.take(np.array([row for row, _ in pairs]))
    labels = None if scored.scores.labels is None else [scored.scores.labels[place] for _, place in pairs]
    digests = digest_rows(part, scored.inputs, labels)
    columns = [part.columns[name] for name in scored.inputs if name in part.columns]
    return {
        place: " | ".join(describe_cell(column[number]) for column in columns)
        for number, ((_, place), digest) in enumerate(zip(pairs, digests, strict=True))
        if digest == scored.digests[place]
    }


def describe_cell(value: Any) -> str:
    """Returns a cell as text: words and texts of a list one after the other, messages with their role."""
    if isinstance(value, Mapping):
        return ": ".join(map(describe_cell, value.values()))
    if isinstance(value, (list, tuple)):
        return " ".join(map(describe_cell, value))
    return "" if value is None else str(value)
