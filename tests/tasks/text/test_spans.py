"""Spans of characters: each tool's form gives the same spans, and what cannot be placed on words is an error or a repair."""

import random
from collections import Counter
from typing import Any

import pytest

from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.spans import DROPPED, WIDENED, Span, place_spans, read_results, read_spans
from hf_finetune.tasks.text.tags import find_entities, write_tags
from hf_finetune.tasks.text.words import find_words, split_words

TEXT = "Tom Miller lives in New-York, U.S."
FORMS = {
    "doccano": [[0, 10, "PER"], [20, 28, "LOC"]],
    "tuples": [(20, 28, "LOC"), (0, 10, "PER")],
    "doccano-relations": [{"id": 7, "label": "PER", "start_offset": 0, "end_offset": 10},
                          {"id": 8, "label": "LOC", "start_offset": 20, "end_offset": 28}],
    "hub": [{"start": 0, "end": 10, "label": "PER"}, {"start": 20, "end": 28.0, "label": "LOC"}],
    "prodigy": [{"start": 0, "end": 10, "label": "PER", "token_start": 0}, {"start": 20, "end": 28, "label": "LOC"}],
    "pipeline": [{"begin": 0, "end": 10, "type": "PER"}, {"start": 20, "end": 28, "entity_group": "LOC"}],
    "spacy": {"entities": [[0, 10, "PER"], [20, 28, "LOC"]]},
    "label-studio-min": [{"start": 0, "end": 10, "text": "Tom Miller", "labels": ["PER"]},
                         {"start": 20, "end": 28, "text": "New-York", "labels": ["LOC"]}],
    "blanks": [[0, 11, " PER"], [19, 28, "LOC"]],
    "twice": [[0, 10, "PER"], [20, 28, "LOC"], [0, 10, "PER"]],
}  # fmt: skip
SPANS = [Span(begin=0, end=10, kind="PER"), Span(begin=20, end=28, kind="LOC")]


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same_spans(form: str) -> None:
    assert read_spans(FORMS[form], TEXT, "a.jsonl:1") == SPANS


def test_results_of_label_studio_are_spans_but_for_relations() -> None:
    results = [
        {"value": {"start": 20, "end": 28, "text": "New-York", "labels": ["LOC"]}, "type": "labels"},
        {"type": "relation", "from_id": "a", "to_id": "b"},
        {"value": {"start": 0, "end": 10, "text": "Tom Miller", "labels": ["PER"]}, "type": "labels"},
    ]
    assert read_results(results, TEXT, "a.json:1") == SPANS


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("PER", "the entities are a str, not a list of spans"),
        ([[0, 3]], r"the entity \[0, 3\] is none of \[start, end, label\]"),
        ([3], "the entity 3 is none of"),
        ([["0", "3", "PER"]], "is none of"),
        ([[True, 3, "PER"]], "is none of"),
        ([[0, 3.5, "PER"]], "is none of"),
        ([[0, float("nan"), "PER"]], "is none of"),
        ([[0, 3, None]], r"the entity \[0, 3, None\] has no label"),
        ([[0, 3, " "]], "has no label"),
        ([{"start": 0, "end": 3, "labels": []}], "has no label"),
        ([{"start": 0, "end": 3, "labels": ["A", "B"]}], "has several labels"),
        ([[0, 99, "PER"]], r"the entity 0-99 \(PER\) does not lie in the text, which has 34 characters"),
        ([[-1, 3, "PER"]], "does not lie in the text"),
        ([[5, 3, "PER"]], "does not lie in the text"),
        ([{"start": 1, "end": 4, "text": "Tom", "labels": ["PER"]}], r"1-4 \(PER\) is 'Tom', but 'om ' stands there"),
    ],
)
def test_spans_that_cannot_be_read_are_an_error(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"a.jsonl:1: .*{message}"):
        read_spans(value, TEXT, "a.jsonl:1")


@pytest.mark.parametrize(
    ("spans", "message", "repaired", "kind"),
    [
        ([(0, 6, "PER")], r"0-6 \(PER, 'Tom Mi'\) cuts the word 'Miller'", "B-PER I-PER O O O O O O", WIDENED),
        ([(24, 28, "LOC")], r"24-28 \(LOC, 'York'\) cuts the word 'New-York'", "O O O O B-LOC O O O", WIDENED),
        ([(0, 10, "PER"), (4, 10, "S")], r"4-10 \(S, 'Miller'\) overlaps another one \(PER\)", "B-PER I-PER" + 6 * " O", DROPPED),
        ([(0, 3, "A"), (0, 10, "PER")], r"0-3 \(A, 'Tom'\) overlaps another one \(PER\)", "B-PER I-PER O O O O O O", DROPPED),
        ([(3, 4, "X")], r"4-4 \(X, ''\) covers no word", "O O O O O O O O", DROPPED),
        ([(0, 0, "X")], r"0-0 \(X, ''\) covers no word", "O O O O O O O O", DROPPED),
    ],
)  # fmt: skip
def test_spans_that_do_not_fit_words(spans: list[Any], message: str, repaired: str, kind: str) -> None:
    """They are errors with the row, or are repaired and counted."""
    words, read = find_words(TEXT), read_spans(spans, TEXT, "a.jsonl:1")
    with pytest.raises(InputError, match=f"a.jsonl:1: the entity {message}; correct it, or set task.tag_faults repair"):
        place_spans(read, words, TEXT, "a.jsonl:1", None)
    counts: Counter[str] = Counter()
    entities = place_spans(read, words, TEXT, "a.jsonl:1", counts)
    assert write_tags(entities, len(words), "IOB2") == repaired.split()
    assert counts == {kind: 1}


@pytest.mark.parametrize("seed", range(5))
def test_entities_of_random_texts_come_back(seed: int) -> None:
    """Words of a text, spans of some of them, and the tags of the same words again."""
    generator = random.Random(seed)
    for _ in range(50):
        text = "".join(generator.choices("ab .,'#@$é東\t", k=generator.randint(1, 40)))
        words = find_words(text)
        assert [text[begin:end] for begin, end in words] == split_words(text)
        entities, begin = [], 0
        while begin < len(words):
            end = min(len(words), begin + generator.randint(1, 3))
            entities += [(generator.choice("XY"), begin, end)] if generator.random() < 0.5 else []
            begin = end
        spans = [[words[begin][0], words[end - 1][1], kind] for kind, begin, end in entities]
        generator.shuffle(spans)
        assert place_spans(read_spans(spans, text, ""), words, text, "", None) == entities
        assert find_entities(write_tags(entities, len(words), "IOB2")) == entities
