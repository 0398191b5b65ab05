"""The report on the data before training: what was read, and what may be wrong with it."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from hf_finetune.data.columns import iterate
from hf_finetune.data.duplicates import Repeats, UnifyLabels, find_duplicates, find_shared, sort_hashes
from hf_finetune.data.findings import NUM_EXAMPLES, Finding, describe_share, join_examples, locate, shorten
from hf_finetune.data.label_counts import WAY_OUT, find_rare_labels, find_shift, format_counts
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.console import label_lines
from hf_finetune.system.errors import InputError

DATA_REPORT = "data.json"  # in the run's folder
SHARE_OF_ROWS = 0.01  # a warning of rows that count several times or have hardly any text if they are more
LONGEST_NEAR_EMPTY = 40  # a longer text has enough letters, or is looked at by nobody

# A text has something to learn from if it has three letters or digits, or one of the signs that stand for a word: of Chinese,
# Japanese and Korean, arrows, symbols and emoji
ENOUGH_TEXT = re.compile(r"[\u2190-\U0010ffff]|(?:[^\W_][\W_]*){3}")


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The report on the data of a run.

    Attributes:
        rows: The number of rows by split.
        labels: The number of examples by label, by split; {} if the task has no names of labels.
        texts: The mean and the largest number of characters of the texts by column, by split.
        recognised: What was recognised in the data, and why: pairs of a short name and a text.
        findings: What may be wrong, warnings first in the order in which they are printed.
    """

    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    texts: Mapping[str, Mapping[str, Mapping[str, float]]]
    recognised: tuple[tuple[str, str], ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """The sentences of the findings that are worth a warning."""
        return [finding.sentence for finding in self.findings if finding.is_warning]

    def add(self, findings: Sequence[Finding], recognised: Sequence[tuple[str, str]] = ()) -> Self:
        """Returns the report with more findings."""
        return replace(self, findings=(*self.findings, *findings), recognised=(*self.recognised, *recognised))

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of data.json."""
        return {
            "rows": dict(self.rows),
            "labels": {split: dict(counts) for split, counts in self.labels.items()},
            "texts": self.texts,
            "recognised": [{"name": name, "text": text} for name, text in self.recognised],
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def to_json(self) -> str:
        """Returns the content of data.json as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def count_warnings(self) -> str:
        """Returns `no warnings`, `1 warning` or `2 warnings`."""
        return f"{len(self.warnings) or 'no'} warning{'' if len(self.warnings) == 1 else 's'}"

    def describe(self) -> list[str]:
        """Returns the report as lines for a terminal, findings that are not worth a warning too."""
        lines = label_lines("rows", [", ".join(f"{count:,} {split}" for split, count in self.rows.items())])
        for name, text in self.recognised:
            lines += label_lines(name, [text])
        lines += label_lines("labels", [f"{split}: {format_counts(counts)}" for split, counts in self.labels.items()])
        sizes = [
            f"{split}: {name} has {size['mean']:,} characters on average, at most {size['longest']:,}"
            for split, columns in self.texts.items()
            for name, size in columns.items()
        ]
        lines += label_lines("texts", sizes)
        words = {True: "warning", False: "note"}
        found = [f"{words[finding.is_warning]}: {finding.sentence}" for finding in self.findings]
        return [*lines, *label_lines("data", [self.count_warnings(), *found])]

    def check_strict(self, is_strict: bool) -> Self:
        """Returns the report. InputError with a line for each warning if data.strict makes them errors."""
        if is_strict and self.warnings:
            listed = (f"({number}) {sentence}" for number, sentence in enumerate(self.warnings, 1))
            raise InputError(f"data.strict: the data have {self.count_warnings()}:", *listed)
        return self


def report_on_tables(
    tables: Mapping[str, Table],
    spec: ColumnSpec,
    inputs: Sequence[str],
    *,
    drawn: Collection[str] = (),
    labels: Mapping[str, Mapping[str, int]] | None = None,
    task_warnings: Sequence[str] = (),
    unify_labels: UnifyLabels | None = None,
    advise: Callable[[Mapping[str, int]], str] = lambda counts: WAY_OUT,
) -> DataReport:
    """Returns the report on what can be found without a tokenizer.

    Args:
        tables: The rows by split, train among them.
        spec: The columns of the task.
        inputs: The columns that the model sees.
        drawn: The splits that were drawn from training: their texts and labels agree with it by construction.
        labels: The number of examples by label, by split.
        task_warnings: Sentences of the task's own (Encoding.find_warnings and find_row_warnings).
        unify_labels: Returns a value for each row, equal for rows whose labels mean the same (Encoding.unify_labels).
        advise: Returns what can be done about rare labels (Encoding.advise_on_rare_labels).
    """
    labels = {split: counts for split, counts in (labels or {}).items() if counts}
    train, given = tables["train"], {split: table for split, table in tables.items() if split not in ("train", *drawn)}
    findings = [Finding(kind="task", count=1, sentence=sentence) for sentence in task_warnings]
    warnings = dict.fromkeys(warning for table in tables.values() for warning in table.warnings)
    findings += [Finding(kind="files", count=1, sentence=sentence) for sentence in warnings]
    if not lists_lines(train, spec):
        findings += find_repeats(tables, given, spec, inputs, has_names=bool(labels), unify_labels=unify_labels)
    texts: dict[str, dict[str, Mapping[str, float]]] = {}
    for split, table in tables.items():
        for name in spec.texts:
            measured, sparse = measure_texts(split, table, name)
            texts.setdefault(split, {})[name] = measured
            findings += sparse
    if "train" in labels:
        findings += find_rare_labels(labels["train"], advise(labels["train"]))
        for split in given.keys() & labels.keys():
            findings += find_shift(split, labels[split], labels["train"])
    notes = dict.fromkeys(note for table in tables.values() for note in table.notes)
    return DataReport(
        rows={split: len(table) for split, table in tables.items()},
        labels=labels,
        texts=texts,
        recognised=tuple(("files", note) for note in notes),
        findings=tuple(findings),
    )


def lists_lines(table: Table, spec: ColumnSpec) -> bool:
    """True if rows are lines of a text, which may be empty or repeat."""
    return spec.in_order and not table.is_tabular(0)


def find_repeats(
    tables: Mapping[str, Table],
    given: Mapping[str, Table],
    spec: ColumnSpec,
    inputs: Sequence[str],
    *,
    has_names: bool,
    unify_labels: UnifyLabels | None,
) -> list[Finding]:
    """Returns the findings about rows that occur several times: across splits, in one split, and with different labels.

    given: The splits that were not drawn from training. has_names: The labels have names, so that one text has one of them.
    unify_labels: As in report_on_tables().
    """
    findings: list[Finding] = []
    together = spec.together or tuple(inputs)
    others = list(given.items())
    for number, (split, table) in enumerate({"train": tables["train"], **given}.items()):
        hashes = sort_hashes(table, inputs)
        copies, conflicts = find_duplicates(table, inputs, spec.labels, hashes, unify_labels)
        findings += describe_copies(split, table, copies)
        if has_names:
            findings += describe_conflicts(split, table, conflicts, spec.labels)
        later = others[number:]
        if later and together != tuple(inputs):
            del hashes
            hashes = sort_hashes(table, together)
        for name, other in later:
            shared = find_shared(other, table, together, hashes)
            findings += describe_shared(name, split, (other, table), shared, together)
    return sorted(findings, key=lambda finding: finding.kind != "shared_rows")


def describe_copies(split: str, table: Table, repeats: Repeats) -> list[Finding]:
    """Returns the finding about rows that are equal to an earlier row, with their labels."""
    if not repeats.count:
        return []
    shown = join_examples([f"{locate(table, row)} (as {locate(table, earlier)})" for row, earlier in repeats.pairs])
    sentence = (
        f"{split}: {describe_share(repeats.count, len(table), 'rows')} repeat an earlier row, such as {shown}; they count "
        "several times: remove them if that is not meant"
    )
    return [make_finding("duplicates", split, table, repeats, sentence, is_warning=is_frequent(repeats.count, table))]


def describe_conflicts(split: str, table: Table, repeats: Repeats, labels: Sequence[str]) -> list[Finding]:
    """Returns the finding about texts that have different labels in different rows."""
    if not repeats.count:
        return []

    def show(row: int) -> str:
        values = ", ".join(shorten(str(table.columns[name][row])) for name in labels)
        return f"{locate(table, row)} ({values})"

    shown = join_examples([f"{show(row)} but {show(earlier)}" for row, earlier in repeats.pairs])
    texts = "1 text has" if repeats.count == 1 else f"{repeats.count:,} texts have"
    sentence = (
        f"{split}: {texts} different labels in different rows, such as {shown}; a model cannot be right on both: correct the "
        "labels"
    )
    return [make_finding("conflicts", split, table, repeats, sentence, is_warning=is_frequent(repeats.count, table))]


def describe_shared(
    split: str, other: str, tables: tuple[Table, Table], repeats: Repeats, names: Sequence[str]
) -> list[Finding]:
    """Returns the finding about rows whose text another split has too. tables: Those of the two splits."""
    if not repeats.count:
        return []
    shown = join_examples([f"{locate(tables[0], row)} ({locate(tables[1], place)})" for row, place in repeats.pairs])
    effect = "its numbers are too good" if other == "train" else "it confirms what was chosen on the same rows"
    sentence = (
        f"{split}: {describe_share(repeats.count, len(tables[0]), 'rows')} have the {' and '.join(names)} of a row of {other}, "
        f"such as {shown}; {effect}: remove them from {other} or from {split}"
    )
    finding = make_finding("shared_rows", split, tables[0], repeats, sentence, is_warning=True)
    return [replace(finding, details={**finding.details, "other": other})]


def make_finding(kind: str, split: str, table: Table, repeats: Repeats, sentence: str, *, is_warning: bool) -> Finding:
    """Returns the finding about repeated rows."""
    details = {"share": repeats.count / len(table)}
    return Finding(
        kind=kind, split=split, count=repeats.count, sentence=sentence, is_warning=is_warning, details=details
    )


def is_frequent(count: int, table: Table) -> bool:
    """True if so large a share of the rows is worth a warning."""
    return count >= SHARE_OF_ROWS * len(table)


def measure_texts(split: str, table: Table, name: str) -> tuple[dict[str, float], list[Finding]]:
    """Returns the mean and the largest number of characters in a column of texts, and a finding if texts are almost empty."""
    total = longest = count = start = 0
    examples: list[str] = []
    for part in iterate(table.columns[name]):
        lengths = [len(text) for text in part]
        total, longest = total + sum(lengths), max(longest, *lengths)
        for row, text in enumerate(part):
            if lengths[row] <= LONGEST_NEAR_EMPTY and ENOUGH_TEXT.search(text) is None:
                count += 1
                if len(examples) < NUM_EXAMPLES:
                    examples.append(f"{locate(table, start + row)} ({shorten(text)})")
        start += len(part)
    measured = {"mean": round(total / len(table), 1), "longest": longest}
    if not count:
        return measured, []
    sentence = (
        f"{split}: {describe_share(count, len(table), 'rows')} have fewer than 3 letters or digits in {name}, such as "
        f"{join_examples(examples)}; remove them if they stand for a missing text"
    )
    return measured, [
        Finding(
            kind="near_empty",
            split=split,
            count=count,
            sentence=sentence,
            is_warning=is_frequent(count, table),
            details={"column": name, "share": count / len(table)},
        )
    ]
