"""Rows that a model was trained on before: a run keeps hashes of its training rows, and a run that begins from its model finds
them among the rows that it evaluates."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.columns import hash_rows
from hf_finetune.data.duplicates import is_among
from hf_finetune.data.features import Array
from hf_finetune.data.findings import NUM_EXAMPLES, Finding, describe_share, join_examples, locate
from hf_finetune.data.report import DataReport, lists_lines
from hf_finetune.data.splits import Splits
from hf_finetune.data.table import Table
from hf_finetune.model.lineage import Lineage
from hf_finetune.run.data_report import list_compared_columns
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.files import write_atomically
from hf_finetune.tasks.base import Task

SEEN_ROWS = "seen_rows.npz"  # in the run's folder
MOST_ROWS = 2_000_000  # 16 MB; of more rows none are kept


@dataclass(frozen=True, kw_only=True)
class SeenRows:
    """Rows that a model was trained on.

    Args:
        hashes: Of the columns that the model saw, each once, in ascending order, [N] uint64.
        num_runs: The number of runs, up to the last one, whose rows they are.
    """

    hashes: Array
    num_runs: int


# --- before training ------------------------------------------------------------------------------------------------


def report_on_seen_rows(
    report: DataReport, splits: Splits, task: Task, config: RunConfig, lineage: Lineage
) -> DataReport:
    """Returns the report with the rows to evaluate that earlier runs of the model were trained on. If these runs have not kept
    their rows, drawn ones may be among them, which is a warning too.

    lineage: That of the model.
    """
    if not lineage.runs:
        return report
    tables = splits.tables()
    seen = None if lists_lines(tables["train"], task.columns.spec) else read_seen_rows(find_start(config))
    findings = [] if seen is None else find_seen_rows(tables, task, seen.hashes)
    drawn = [split for split in tables if split not in ("train", *splits.num_rows)]
    if drawn and (seen is None or seen.num_runs < len(lineage.runs)):
        sentence = (
            f"rows of {' and '.join(drawn)} may be rows that an earlier run of this model was trained on, if they were in its "
            "data; then the numbers are too good. Give files of rows that it has not seen"
        )
        findings.append(
            Finding(kind="perhaps_seen_rows", count=sum(len(tables[name]) for name in drawn), sentence=sentence)
        )
    return report.add(findings)


def find_seen_rows(tables: Mapping[str, Table], task: Task, hashes: Array) -> list[Finding]:
    """Returns a finding for each split that is evaluated and has rows with one of the hashes."""
    columns, findings = list_compared_columns(task), []
    for split, table in tables.items():
        if split == "train":
            continue
        rows = np.flatnonzero(is_among(hash_rows(table, columns), hashes))
        if len(rows):
            shown = join_examples([locate(table, int(row)) for row in rows[:NUM_EXAMPLES]])
            sentence = (
                f"{split}: {describe_share(len(rows), len(table), 'rows')} have the {' and '.join(columns)} of a row that an "
                f"earlier run of this model was trained on, such as {shown}; its numbers are too good: give rows that the "
                "model has not seen"
            )
            details = {"share": len(rows) / len(table)}
            findings.append(Finding(kind="seen_rows", split=split, count=len(rows), sentence=sentence, details=details))
    return findings


# --- the file of a run ----------------------------------------------------------------------------------------------


def write_seen_rows(run: TrainingRun) -> None:
    """Writes the rows that the model of a finished run was trained on, with those of earlier runs, into the run's folder.

    Not if the rows are a stream, or lines of text files, or too many: a later run then knows as much as without it.
    """
    table = run.splits.train
    if run.stream is not None or lists_lines(table, run.task.columns.spec) or len(table) > MOST_ROWS:
        return
    hashes, num_runs = hash_rows(table, list_compared_columns(run.task)), 1
    earlier = read_seen_rows(find_start(run.config)) if run.backbone.lineage.runs else None
    if earlier is not None:
        hashes, num_runs = np.concatenate([hashes, earlier.hashes]), num_runs + earlier.num_runs
    hashes.sort()
    hashes = hashes[np.append(True, hashes[1:] != hashes[:-1])]
    if len(hashes) <= MOST_ROWS:
        content = io.BytesIO()
        np.savez(content, hashes=hashes, num_runs=num_runs, digest=digest(hashes, num_runs))
        write_atomically(run.config.run_dir / SEEN_ROWS, content.getvalue())


def find_start(config: RunConfig) -> Path:
    """Returns the place of the model that a run begins from, if it is in a folder."""
    return Path(config.start_from or config.model.backbone)


def read_seen_rows(start: Path) -> SeenRows | None:
    """Returns the rows that a model was trained on; None if its run has not kept them, or if their file is damaged.

    start: The folder of the run, its model, or one of its checkpoints.
    """
    for folder in (start, start.parent, start.parent.parent):
        try:
            with np.load(folder / SEEN_ROWS, allow_pickle=False) as content:
                hashes, num_runs = content["hashes"], int(content["num_runs"])
                if str(content["digest"]) == digest(hashes, num_runs):
                    return SeenRows(hashes=hashes, num_runs=num_runs)
        except Exception:  # noqa: BLE001 - numpy, zipfile and tokenize raise what they like for damaged bytes
            continue
    return None


def digest(hashes: Array, num_runs: int) -> str:
    """Returns the sha256 of the hashes and the number of runs, in hexadecimal."""
    found = hashlib.sha256(f"{num_runs} {hashes.dtype} ".encode())
    found.update(np.ascontiguousarray(hashes).data)
    return found.hexdigest()
