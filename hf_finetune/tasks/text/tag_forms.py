"""How data write the tags of entities: b-PER, B_PER, PER-B and U-PER are B-PER, B-PER, B-PER and S-PER."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from hf_finetune.tasks.text.tags import OUTSIDE, belongs_to_scheme, join_tag, split_tag

SEPARATORS = "-_:/.|"  # between the letter and the type of an entity

# The letters of each alphabet, and what they are in BIOES. A tag set is read by the first that has all its letters
ALPHABETS: Mapping[str, Mapping[str, str]] = {
    "BIOES": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "BILOU": {"B": "B", "I": "I", "L": "E", "U": "S"},
    "BMES": {"B": "B", "M": "I", "E": "E", "S": "S"},
    "BMEW": {"B": "B", "M": "I", "E": "E", "W": "S"},
}


@dataclass(frozen=True, kw_only=True)
class TagForm:
    """A way to write tags. Upper and lower case of the letter are the same.

    Args:
        alphabet: A key of ALPHABETS.
        separator: The character between letter and type.
        letter_is_last: The letter stands after the type, as in PER-B.
    """

    alphabet: str = "BIOES"
    separator: str = "-"
    letter_is_last: bool = False
    letters: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "letters", ALPHABETS[self.alphabet])

    def read(self, tag: str) -> str | None:
        """Returns the tag in the canonical form of tags.py (B-PER, O); None if it is not written in this form."""
        if tag.upper() == OUTSIDE:
            return OUTSIDE
        if self.letter_is_last:
            kind, found, letter = tag.rpartition(self.separator)
        else:
            letter, found, kind = tag.partition(self.separator)
        letter = self.letters.get(letter.upper(), "")
        if not letter or (found and not kind):
            return None
        canonical = f"{letter}-{kind}" if kind else letter
        return canonical if belongs_to_scheme(canonical, "BIOES") else None

    def describe(self, tags: Iterable[str]) -> str:
        """Returns how these tags are written, such as "written as BILOU, like u_PER"."""
        parts = [] if self.alphabet == "BIOES" else [f"as {self.alphabet}"]
        reverse = {letter: own for own, letter in self.letters.items()}
        for tag in sorted(tags):
            prefix, kind = split_tag(self.read(tag) or OUTSIDE)
            if prefix != OUTSIDE and join_tag(reverse[prefix], kind) != tag:
                return f"written {', '.join([*parts, f'like {tag}'])}"
        return f"written {', '.join(parts) or 'with o for O'}"


FORMS = tuple(
    TagForm(alphabet=alphabet, separator=separator, letter_is_last=letter_is_last)
    for alphabet, letter_is_last, separator in product(ALPHABETS, (False, True), SEPARATORS)
)


def find_form(tags: Iterable[str]) -> TagForm | None:
    """Returns the first form that has all these tags; None if they are canonical already, or if none has.

    Tags of parts of speech may begin with a B, too: a form needs an O, or a B and an inside of one type.
    """
    distinct = list(tags)
    if all(belongs_to_scheme(tag, "BIOES") for tag in distinct):
        return None
    for form in FORMS:
        read = []
        for tag in distinct:
            if (canonical := form.read(tag)) is None:
                break
            read.append(canonical)
        else:
            if marks_entities(read):
                return form
    return None


def marks_entities(tags: Sequence[str]) -> bool:
    """True if canonical tags are certain to mark entities: there is a tag with a type, and O with B or I, or both ends of a
    type."""
    pairs = {split_tag(tag) for tag in tags if tag != OUTSIDE}
    typed = {(prefix, kind) for prefix, kind in pairs if join_tag(prefix, kind) != prefix}
    prefixes = {prefix for prefix, _ in pairs}
    if OUTSIDE in tags:
        return bool(prefixes & set("BIS")) if typed else prefixes >= {"B", "I"}
    begun = {kind for prefix, kind in typed if prefix == "B"}
    return any(prefix in "IE" and kind in begun for prefix, kind in typed)


def find_spelling(tag: str, names: Mapping[str, str]) -> str | None:
    """Returns the label that a tag is in one of the forms; None if it is none of them. names: the labels by themselves."""
    if tag in names:
        return names[tag]
    readings = (form.read(tag) for form in FORMS)
    return next((names[reading] for reading in readings if reading is not None and reading in names), None)


def find_strangers(counts: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Returns the tags that look like those of entities, and those that are of another form, both without O.

    Both are empty if most words that are not O have a tag of the second kind. counts: The number of words by tag.
    """
    form = max(FORMS, key=lambda form: sum(count for tag, count in counts.items() if form.read(tag) is not None))
    marked = sorted(tag for tag in counts if form.read(tag) not in (None, OUTSIDE))
    strangers = sorted(tag for tag in counts if form.read(tag) is None)
    if sum(counts[tag] for tag in marked) <= sum(counts[tag] for tag in strangers):
        return [], []
    return marked, strangers
