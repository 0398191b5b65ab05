"""Forms of tags: each form of a set of tags is found and read as the canonical one, and no other set is."""

import random

import pytest

from hf_finetune.tasks.text.tag_forms import ALPHABETS, FORMS, SEPARATORS, find_form, find_spelling, find_strangers

BIOES = ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-geo_loc", "S-geo_loc", "B-a-b"]


def write(tag: str, separator: str, last: bool, alphabet: str = "BIOES", lower: bool = False) -> str:
    """Returns a canonical tag in another form."""
    letter, _, kind = tag.partition("-")
    if letter != "O":
        letter = {own: other for other, own in ALPHABETS[alphabet].items()}[letter]
    letter = letter.lower() if lower else letter
    return (f"{kind}{separator}{letter}" if last else f"{letter}{separator}{kind}") if kind else letter


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_all_forms_are_read(separator: str, last: bool, alphabet: str, lower: bool) -> None:
    written = [write(tag, separator, last, alphabet, lower) for tag in BIOES]
    form = find_form(random.Random(0).sample(written, len(written)))
    if written == BIOES:
        assert form is None
        return
    assert form is not None
    assert [form.read(tag) for tag in written] == BIOES
    assert [find_spelling(tag, {name: name for name in BIOES}) for tag in written] == BIOES


@pytest.mark.parametrize(
    ("written", "read", "described"),
    [
        ("o b-PER i-PER", "O B-PER I-PER", "written like b-PER"),
        ("O PER-B PER-I", "O B-PER I-PER", "written like PER-B"),
        ("O PER_B", "O B-PER", "written like PER_B"),
        ("O B_PER", "O B-PER", "written like B_PER"),
        ("O B:geo:loc", "O B-geo:loc", "written like B:geo:loc"),
        ("O U-PER B-PER L-PER", "O S-PER B-PER E-PER", "written as BILOU"),
        ("O U_PER L_PER", "O S-PER E-PER", "written as BILOU, like L_PER"),
        ("O M-x B-x", "O I-x B-x", "written as BMES"),
        ("o B-PER", "O B-PER", "written with o for O"),
        ("o b i", "O B I", "written like b"),
        ("B-x L-x", "B-x E-x", "written as BILOU"),
        ("B_x I_x", "B-x I-x", "written like B_x"),
    ],
)
def test_forms_are_described(written: str, read: str, described: str) -> None:
    form = find_form(written.split())
    assert form is not None
    assert [form.read(tag) for tag in written.split()] == read.split()
    assert form.describe(written.split()) == described


@pytest.mark.parametrize(
    "tags",
    ["O B-PER I-PER", "B I O", "NOUN VERB O", "B-x_y O 0", "B_x I_y", "b e o", "B M E S", "O PER LOC", "U-x U-y",
     "B-PER I-PER O other", "1 2 3", "O B- I-x", "O B-PER B_LOC", "NN:B", ""],
)  # fmt: skip
def test_other_sets_of_tags_are_left_alone(tags: str) -> None:
    """They are canonical, of parts of speech, or could be two things."""
    assert find_form(tags.split()) is None


def test_strangers_are_found() -> None:
    assert find_strangers({"O": 9, "b_x": 2, "i_x": 2, "0": 1, "PER": 1}) == (["b_x", "i_x"], ["0", "PER"])
    assert find_strangers({"O": 9, "B-x": 40, "d1": 1, "d2": 1, "d3": 1}) == (["B-x"], ["d1", "d2", "d3"])
    assert find_strangers({"O": 9, "B-x": 1, "NOUN": 4}) == find_strangers({"NOUN": 1, "VERB": 1}) == ([], [])


def test_a_label_wins_over_what_a_form_makes_of_it() -> None:
    names = {name: name for name in ("S_B", "B-S", "O")}
    assert [find_spelling(tag, names) for tag in ("S_B", "b-S", "B_S", "o", "x")] == ["S_B", "B-S", "B-S", "O", None]
    assert len(set(FORMS)) == len(FORMS)
