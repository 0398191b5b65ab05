"""Tags as entities: schemes, what breaks them, and scores by entity.

An entity is (type, first word, word behind the last). What entities a row of tags means is read as conlleval and seqeval's
default mode do it: leniently, whatever the scheme, so that an I-x behind an O begins one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from hf_finetune.system.errors import InputError

OUTSIDE = "O"

PREFIXES = {"IOB1": "BI", "IOB2": "BI", "BIOES": "BIES"}  # of each scheme

NAMELESS = "_"  # type of a bare B or I, as seqeval calls it

Entity = tuple[str, int, int]


def parts(tag: str) -> tuple[str, str]:
    """Prefix and type: ("B", "person") of B-person, ("B", "_") of B, ("O", "") of O."""
    prefix, _, kind = tag.partition("-")
    return (prefix, "") if tag == OUTSIDE else (prefix, kind or NAMELESS)


def join(prefix: str, kind: str) -> str:
    """The tag of a prefix and a type."""
    return prefix if kind == NAMELESS else f"{prefix}-{kind}"


def is_of(tag: str, scheme: str) -> bool:
    """Whether a tag can stand in a scheme: O, or one of its prefixes with a type (or none at all)."""
    return tag == OUTSIDE or re.fullmatch(rf"[{PREFIXES[scheme]}](-(?!_$).+)?", tag, re.DOTALL) is not None


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a row of tags, in order; the same as seqeval's get_entities finds."""
    found: list[Entity] = []
    begin, before, kind_before = 0, OUTSIDE, ""
    for position, tag in enumerate((*tags, OUTSIDE)):
        prefix, kind = parts(tag)
        begins = prefix != OUTSIDE and (prefix in "BS" or before in "OES" or kind != kind_before)
        if before != OUTSIDE and (begins or prefix == OUTSIDE):
            found.append((kind_before, begin, position))
        if begins:
            begin = position
        before, kind_before = prefix, kind
    return found


def written(found: Iterable[Entity], num_words: int, scheme: str) -> list[str]:
    """The tags of so many words that say these entities, in order, by the rules of a scheme."""
    tags = [OUTSIDE] * num_words
    last_kind, last_end = "", -1
    for kind, begin, end in found:
        first, last = "B", "I"
        if scheme == "IOB1" and not (last_end == begin and last_kind == kind):
            first = "I"
        elif scheme == "BIOES":
            first, last = ("S" if end - begin == 1 else "B"), "E"
        tags[begin] = join(first, kind)
        for position in range(begin + 1, end):
            tags[position] = join(last if position == end - 1 else "I", kind)
        last_kind, last_end = kind, end
    return tags


def repaired(tags: Sequence[str], scheme: str) -> list[str]:
    """The tags that a scheme has for the same entities: the tags themselves where they do not break it."""
    return written(entities(tags), len(tags), scheme)


def guess_scheme(rows: Sequence[Sequence[str]]) -> tuple[str, str]:
    """The scheme that rows of tags are in, and why; none where tags do not look like entities.

    Of several the one that the fewest tags break: so of faulty data too. InputError where they are of BILOU, which seqeval's
    scores do not know.
    """
    found = {tag for row in rows for tag in row}
    if all(is_of(tag, "BIOES") for tag in found):
        if any(parts(tag)[0] in "ES" for tag in found):
            return "BIOES", "there are tags with E and S"
        faults = {scheme: sum(map(num_faults, rows, [scheme] * len(rows))) for scheme in ("IOB2", "IOB1")}
        scheme = min(faults, key=lambda name: faults[name])
        return scheme, "entities begin with B" if scheme == "IOB2" else "entities begin with I where they can"
    if all(tag == OUTSIDE or re.match(r"[BILU]-", tag) for tag in found):
        raise InputError(
            "task.tag_scheme (auto): the tags look like BILOU; write L- as E- and U- as S-, which is BIOES, "
            "or set task.tag_scheme none"
        )
    strange = min(tag for tag in found if not is_of(tag, "BIOES"))
    return "none", f"tags such as {strange} say no entities"


def num_faults(tags: Sequence[str], scheme: str) -> int:
    """How many tags break a scheme."""
    return sum(one != other for one, other in zip(tags, repaired(tags, scheme), strict=True))


def scheme_of_names(names: Iterable[str]) -> str:
    """The scheme that a model's labels are of, as far as they tell: IOB1 where none begins with B."""
    prefixes = {parts(name)[0] for name in names}
    if not all(is_of(name, "BIOES") for name in names):
        return "none"
    return "BIOES" if prefixes & {"E", "S"} else "IOB2" if "B" in prefixes else "IOB1"


def entity_scores(
    references: Iterable[Sequence[str]], predictions: Iterable[Sequence[str]], kinds: Iterable[str]
) -> dict[str, float]:
    """f1, precision and recall over all entities, then of each type ("f1/person"), as seqeval's default mode has them: an entity
    is right where type and both ends are. 0 where nothing can be divided by; nan for a type that is neither in the references
    nor predicted."""
    right: Counter[str] = Counter()
    given: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for reference, prediction in zip(references, predictions, strict=True):
        expected, found = set(entities(reference)), set(entities(prediction))
        right.update(kind for kind, _, _ in expected & found)
        given.update(kind for kind, _, _ in found)
        asked.update(kind for kind, _, _ in expected)
    scores = ratios(right.total(), given.total(), asked.total())
    for kind in kinds:
        of_kind = ratios(right[kind], given[kind], asked[kind])
        absent = not given[kind] and not asked[kind]
        scores |= {f"{name}/{kind}": float("nan") if absent else value for name, value in of_kind.items()}
    return scores


def ratios(right: int, given: int, asked: int) -> dict[str, float]:
    """f1, precision, recall; 0 for what is divided by 0."""
    precision, recall = right / given if given else 0.0, right / asked if asked else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"f1": f1, "precision": precision, "recall": recall}
