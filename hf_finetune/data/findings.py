"""What a report on data finds: a warning with its number, and examples by file and line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_finetune.data.table import Table

NUM_EXAMPLES = 2  # shown in a warning
LONGEST_ORIGIN = 40  # characters of a path that is shown in full


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the report found in a split.

    Attributes:
        kind: Its name in data.json, such as duplicates.
        split: The split; "" if it concerns all of them.
        count: The number of rows, texts, tokens or labels.
        sentence: The warning: what is wrong, with its number and examples, and what to do.
        is_warning: False if it is too rare to be worth a warning; it is in data.json then.
        details: Further numbers by their names, as plain values.
    """

    kind: str
    split: str = ""
    count: int
    sentence: str
    is_warning: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the finding as plain values."""
        return {
            "kind": self.kind,
            "split": self.split,
            "count": self.count,
            "warning": self.is_warning,
            "sentence": self.sentence,
            **self.details,
        }


def describe_share(count: int, total: int, unit: str) -> str:
    """Returns `12 of 1,200 rows (1.0 %)`."""
    return f"{count:,} of {total:,} {unit} ({describe_percent(count / total)})"


def describe_percent(share: float) -> str:
    """Returns a share as a percentage with one decimal place; the smallest ones as `below 0.1 %`."""
    return "below 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def join_examples(examples: Sequence[str]) -> str:
    """Returns the first examples as text: `a`, or `a and b`."""
    return " and ".join(examples[:NUM_EXAMPLES])


def locate(table: Table, row: int) -> str:
    """Returns the origin of a row as Table.where() does, with the last two parts of a long path only."""
    where = table.where(row)
    parts = re.split(r"[/\\\\]", where)
    return where if len(where) <= LONGEST_ORIGIN or len(parts) < 3 else f".../{'/'.join(parts[-2:])}"


def shorten(text: str, most: int = 40) -> str:
    """Returns a text in quotes on one line, cut to `most` characters."""
    return repr(cut(text, most))


def cut(text: str, most: int = 40) -> str:
    """Returns a text on one line, cut to `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
