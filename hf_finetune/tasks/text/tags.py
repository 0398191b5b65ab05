"""Tags of entities: their schemes, tags that break a scheme, and scores by entity.

An entity is (type, first word, word after the last). Which entities a row of tags stands for is decided as in conlleval and in
the default mode of seqeval: leniently, in every scheme, so that an I-x after an O begins an entity. A word that is not labelled
belongs to no entity, and an entity ends before it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import repeat
from operator import ne
from typing import Any

OUTSIDE = "O"

IGNORED_TAG = ""  # of a word that is not labelled

PREFIXES = {"IOB1": "BI", "IOB2": "BI", "BIOES": "BIES"}  # of the tags of each scheme, O left out

NAMELESS = "_"  # the type of a bare B or I, named as in seqeval

Entity = tuple[str, int, int]


@cache
def split_tag(tag: str) -> tuple[str, str]:
    """Returns prefix and type: ("B", "person") for B-person, ("B", "_") for B, ("O", "") for O and for IGNORED_TAG."""
    prefix, _, kind = tag.partition("-")
    return (OUTSIDE, "") if tag in (OUTSIDE, IGNORED_TAG) else (prefix, kind or NAMELESS)


def join_tag(prefix: str, kind: str) -> str:
    """Returns the tag of a prefix and a type. It undoes split_tag()."""
    return prefix if kind == NAMELESS else f"{prefix}-{kind}"


def belongs_to_scheme(tag: str, scheme: str) -> bool:
    """True if the scheme has such a tag: O, or one of its prefixes, alone or with a type."""
    return tag == OUTSIDE or re.fullmatch(rf"[{PREFIXES[scheme]}](-(?!_$).+)?", tag, re.DOTALL) is not None


def number_names(names: Sequence[str]) -> dict[str, int]:
    """Returns the number of each name, from 0."""
    return {name: number for number, name in enumerate(names)}


def list_kinds(tags: Iterable[str]) -> tuple[str, ...]:
    """Returns the types of entities that tags have, in the order of the tags."""
    return tuple(dict.fromkeys(kind for _, kind in map(split_tag, tags) if kind))


def complete_tags(tags: Iterable[str], scheme: str) -> set[str]:
    """Returns these tags. If they mark entities, also O and all other tags that the scheme has for their types."""
    if scheme == "none":
        return set(tags)
    return {OUTSIDE} | {join_tag(prefix, kind) for kind in list_kinds(tags) for prefix in PREFIXES[scheme]}


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """Returns the entities of a row of tags, in order. They are those of seqeval's get_entities()."""
    entities: list[Entity] = []
    begin, prefix_before, kind_before = 0, OUTSIDE, ""
    for position, tag in enumerate((*tags, OUTSIDE)):
        prefix, kind = split_tag(tag)
        begins = prefix != OUTSIDE and (prefix in "BS" or prefix_before in "OES" or kind != kind_before)
        if prefix_before != OUTSIDE and (begins or prefix == OUTSIDE):
            entities.append((kind_before, begin, position))
        if begins:
            begin = position
        prefix_before, kind_before = prefix, kind
    return entities


def describe_entities(words: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the entities of a sentence: type, text, and the words from `begin` up to, not including, `end`."""
    return [
        {"type": kind, "text": " ".join(words[begin:end]), "begin": begin, "end": end}
        for kind, begin, end in find_entities(tags)
    ]


def write_tags(entities: Iterable[Entity], num_words: int, scheme: str) -> list[str]:
    """Returns the tags of a row of `num_words` words that has these entities, in order, by the rules of a scheme."""
    tags = [OUTSIDE] * num_words
    last_kind, last_end = "", -1
    for kind, begin, end in entities:
        first, last = "B", "I"
        if scheme == "IOB1" and not (last_end == begin and last_kind == kind):
            first = "I"
        elif scheme == "BIOES":
            first, last = ("S" if end - begin == 1 else "B"), "E"
        tags[begin] = join_tag(first, kind)
        for position in range(begin + 1, end):
            tags[position] = join_tag(last if position == end - 1 else "I", kind)
        last_kind, last_end = kind, end
    return tags


def repair_tags(tags: Sequence[str], scheme: str) -> list[str]:
    """Returns the tags that a scheme has for the same entities. They are the tags themselves if none breaks the scheme."""
    return list(map(repair_tag, (OUTSIDE, *tags[:-1]), tags, (*tags[1:], OUTSIDE), repeat(scheme)))


@lru_cache(maxsize=100_000)
def repair_tag(before: str, tag: str, after: str, scheme: str) -> str:
    """Returns the tag that a scheme has in place of `tag`, which stands between two others.

    A tag next to a word that is not labelled stays as it is: its entity may continue there.
    """
    if IGNORED_TAG in (before, tag, after):
        return tag
    return write_tags(find_entities((before, tag, after)), 3, scheme)[1]


def count_faults(tags: Sequence[str], scheme: str) -> int:
    """Returns the number of tags that break a scheme."""
    return sum(map(ne, tags, repair_tags(tags, scheme)))


def count_pairs(rows: Iterable[Sequence[str]]) -> Counter[tuple[str, str]]:
    """Returns how often each tag follows each other one in a row; the first of a row follows an O."""
    pairs: Counter[tuple[str, str]] = Counter()
    for tags in rows:
        pairs.update(zip((OUTSIDE, *tags[:-1]), tags, strict=True))
    return pairs


def guess_scheme(pairs: Mapping[tuple[str, str], int]) -> tuple[str, str]:
    """Returns the scheme that tags are written in, and why. The scheme is none if the tags do not mark entities.

    Of IOB1 and IOB2 it is the one that fewer tags break, so that a few faulty tags do not change it.

    pairs: What count_pairs() counted.
    """
    distinct = {tag for _, tag in pairs} - {IGNORED_TAG}
    others = [tag for tag in distinct if not belongs_to_scheme(tag, "BIOES")]
    if others:
        return "none", f"tags such as {min(others)} do not mark entities"
    if any(split_tag(tag)[0] in "ES" for tag in distinct):
        return "BIOES", "there are tags with E and S"
    faults = {
        scheme: sum(count for (before, tag), count in pairs.items() if repair_tag(before, tag, OUTSIDE, scheme) != tag)
        for scheme in ("IOB1", "IOB2")
    }
    if faults["IOB1"] < faults["IOB2"]:
        return "IOB1", "entities begin with I if they can"
    return "IOB2", "entities begin with B"


def guess_scheme_of_names(names: Iterable[str]) -> str:
    """Returns the scheme that a model's label names suggest: IOB1 if none begins with B, none if they do not mark entities."""
    names = tuple(names)
    if not all(belongs_to_scheme(name, "BIOES") for name in names):
        return "none"
    prefixes = {split_tag(name)[0] for name in names}
    if prefixes & {"E", "S"}:
        return "BIOES"
    return "IOB2" if "B" in prefixes else "IOB1"


def score_entities(
    references: Iterable[Sequence[str]], predictions: Iterable[Sequence[str]], kinds: Iterable[str]
) -> dict[str, float]:
    """Returns f1, precision and recall over all entities, then for each type ("f1/person"), as in seqeval's default mode.

    An entity is right if its type and both its ends are. A score is 0 if it would be divided by 0, and nan for a type that
    neither the references nor the predictions have.
    """
    right: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    for reference, prediction in zip(references, predictions, strict=True):
        reference_entities, predicted_entities = set(find_entities(reference)), set(find_entities(prediction))
        right.update(kind for kind, _, _ in reference_entities & predicted_entities)
        predicted.update(kind for kind, _, _ in predicted_entities)
        expected.update(kind for kind, _, _ in reference_entities)
    scores = compute_f1(right.total(), predicted.total(), expected.total())
    for kind in kinds:
        scores_of_kind = compute_f1(right[kind], predicted[kind], expected[kind])
        is_absent = not predicted[kind] and not expected[kind]
        scores |= {f"{name}/{kind}": float("nan") if is_absent else value for name, value in scores_of_kind.items()}
    return scores


def compute_f1(right: int, predicted: int, expected: int) -> dict[str, float]:
    """Returns f1, precision and recall from counts of entities; 0 for a value that would be divided by 0."""
    precision = right / predicted if predicted else 0.0
    recall = right / expected if expected else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"f1": f1, "precision": precision, "recall": recall}
