"""Entities as spans of characters, as annotation tools write them, and the words that they cover.

Read are [start, end, label], {start, end, label} with the names of OFFSETS and KINDS (doccano, spaCy, Prodigy, data sets of the
Hub), and the results of an annotation of Label Studio: {value: {start, end, text, labels: [label]}}.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_finetune.data.formats import name_type
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.labels import canonical_label
from hf_finetune.tasks.text.tags import Entity

OFFSETS = (("start", "end"), ("start_offset", "end_offset"), ("begin", "end"), ("start_char", "end_char"))
KINDS = ("label", "labels", "type", "entity_group", "entity", "tag")
WIDENED, DROPPED = "cut a word and were widened", "overlapped another one, or covered no word, and were dropped"


@dataclass(frozen=True, kw_only=True, order=True)
class Span:
    """An entity: the characters from `begin` up to, not including, `end`, and its type. `given`: Both, with the blanks at the
    ends that the data count in."""

    begin: int
    end: int
    kind: str
    given: tuple[int, int] = field(default=(0, 0), compare=False)

    def __str__(self) -> str:
        return f"{self.begin}-{self.end} ({self.kind})"


def read_spans(value: Any, text: str, where: str) -> list[Span]:
    """Returns the spans of a text in order, each once and without blanks at its ends.

    Args:
        value: The list of spans, in one of the forms.
        text: The text that they are in.
        where: The row, for errors.
    """
    if isinstance(value, Mapping) and isinstance(value.get("entities"), list):  # as spaCy's training data
        value = value["entities"]
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where}: the entities are {name_type(value)}, not a list of spans")
    return sorted({read_span(item, text, where) for item in value})


def read_results(results: Iterable[Mapping[str, Any]], text: str, where: str) -> list[Span]:
    """Returns the spans of the results of an annotation of Label Studio, as read_spans(). Others, such as relations, are not
    read."""
    return read_spans([result for result in results if result.get("type", "labels") == "labels"], text, where)


def read_span(item: Any, text: str, where: str) -> Span:
    """Returns one span. InputError if it has another form, no label, or does not lie in the text."""
    begin, end, label, said = take_span_apart(item)
    if isinstance(label, (list, tuple)):
        if len(label) > 1:
            raise InputError(f"{where}: the entity {item} has several labels; a word can have one")
        label = label[0] if label else None
    if not is_offset(begin) or not is_offset(end):
        raise InputError(f"{where}: the entity {item} is none of [start, end, label] and {{start, end, label}}")
    kind = canonical_label(label)
    if kind is None:
        raise InputError(f"{where}: the entity {item} has no label")
    begin, end = int(begin), int(end)
    if not 0 <= begin <= end <= len(text):
        raise InputError(
            f"{where}: the entity {begin}-{end} ({kind}) does not lie in the text, which has {len(text)} characters"
        )
    inside = text[begin:end]
    if isinstance(said, str) and said.strip() != inside.strip():
        raise InputError(
            f"{where}: the entity {begin}-{end} ({kind}) is {said!r}, but {inside!r} stands there in the text"
        )
    given = begin, end
    begin += len(inside) - len(inside.lstrip())
    return Span(begin=begin, end=max(begin, begin + len(inside.strip())), kind=kind, given=given)


def take_span_apart(item: Any) -> tuple[Any, Any, Any, Any]:
    """Returns start, end and label of a span, and the text that it says to have; None for what it lacks."""
    if isinstance(item, (list, tuple)):
        return (*item, None) if len(item) == 3 else (None, None, None, None)
    if not isinstance(item, Mapping):
        return None, None, None, None
    item = item["value"] if isinstance(item.get("value"), Mapping) else item
    begin, end = next((names for names in OFFSETS if names[0] in item and names[1] in item), OFFSETS[0])
    kind = next((name for name in KINDS if item.get(name) is not None), KINDS[0])
    return item.get(begin), item.get(end), item.get(kind), item.get("text")


def is_offset(value: Any) -> bool:
    """True for a whole number, of whatever type."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1


def place_spans(
    spans: Sequence[Span], words: Sequence[tuple[int, int]], text: str, where: str, repairs: Counter[str] | None
) -> list[Entity]:
    """Returns the entities of a row of words.

    Args:
        spans: Those of the text, in order.
        words: Where each word begins and ends in the text.
        text: The text.
        where: The row, for errors.
        repairs: Counts the spans that cut a word and are widened to whole words, and those that overlap an earlier one or cover
            no word and are dropped. If None, such spans are errors.
    """
    begins, ends = [begin for begin, _ in words], [end for _, end in words]
    entities: list[Entity] = []
    for span in sorted(spans, key=lambda span: (span.begin, -span.end)):
        first, last = bisect_right(ends, span.begin), bisect_left(begins, span.end)
        shown = f"{where}: the entity {span.begin}-{span.end} ({span.kind}, {text[span.begin : span.end]!r})"
        if first >= last or (entities and first < entities[-1][2]):
            problem = "covers no word" if first >= last else f"overlaps another one ({entities[-1][0]})"
            count_repair(
                repairs, DROPPED, f"{shown} {problem}; correct it, or set task.tag_faults repair to drop such entities"
            )
            continue
        if begins[first] != span.begin or ends[last - 1] != span.end:
            word = first if begins[first] != span.begin else last - 1
            cut = f"{shown} cuts the word {text[begins[word] : ends[word]]!r}"
            count_repair(repairs, WIDENED, f"{cut}; correct it, or set task.tag_faults repair to widen such entities")
        entities.append((span.kind, first, last))
    return entities


def count_repair(repairs: Counter[str] | None, kind: str, message: str) -> None:
    """Counts a span that is repaired. Raises InputError with the message if there are no repairs."""
    if repairs is None:
        raise InputError(message)
    repairs[kind] += 1
