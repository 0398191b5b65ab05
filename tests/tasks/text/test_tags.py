"""tags.py and words.py: schemes against seqeval, words against the tokenizers' own way, windows against brute force."""

import itertools
import random
import warnings
from typing import Any

import numpy as np
import pytest
import seqeval.metrics
import transformers
from seqeval.metrics.sequence_labeling import get_entities
from support import tagged, tiny

from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text import tags, words

OF_SCHEMES = {"IOB1": "BI", "IOB2": "BI", "BIOES": "BIES"}


def random_rows(seed: int, prefixes: str, count: int = 60, bare: bool = False) -> list[list[str]]:
    """Rows of tags that keep to no rule."""
    generator = random.Random(seed)
    kinds = [""] if bare else ["-person", "-a-b", "-x"]
    names = ["O", "O", *(prefix + kind for prefix in prefixes for kind in kinds)]
    return [generator.choices(names, k=generator.randint(1, 9)) for _ in range(count)]


# --- schemes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("prefixes", ["BI", "I", "BIES"])
@pytest.mark.parametrize("seed", range(4))
def test_entities_are_seqevals(seed: int, prefixes: str, bare: bool) -> None:
    for row in random_rows(seed, prefixes, 200, bare):
        assert [(kind, begin, end - 1) for kind, begin, end in tags.entities(row)] == get_entities(row)


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_seqevals_classification_report(seed: int, prefixes: str) -> None:
    """Half of the predictions are right; the type "other" is found nowhere."""
    references, others = random_rows(seed, prefixes), random_rows(seed + 100, prefixes)
    generator = random.Random(seed)
    predictions = [
        reference if generator.random() < 0.5 else (other * 9)[: len(reference)]
        for reference, other in zip(references, others, strict=True)
    ]
    scores = tags.entity_scores(references, predictions, ["a-b", "other", "person", "x"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report: Any = seqeval.metrics.classification_report(references, predictions, output_dict=True)
    for name, key in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
        assert scores[name] == pytest.approx(report["micro avg"][key], abs=1e-12)
        for kind in ("a-b", "person", "x"):
            assert scores[f"{name}/{kind}"] == pytest.approx(report[kind][key], abs=1e-12)
        assert np.isnan(scores[f"{name}/other"])
    assert 0.2 < scores["f1"] < 0.9


def test_scores_of_nothing_are_zero() -> None:
    assert tags.entity_scores([["O"]], [["O"]], []) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    found = tags.entity_scores([["O"]], [["B-x"]], ["x"])
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(
    ("scheme", "given", "right"),
    [
        ("IOB2", "O I-x I-x O", "O B-x I-x O"),
        ("IOB2", "B-x I-y I-y", "B-x B-y I-y"),
        ("IOB2", "B-x B-x I-x", "B-x B-x I-x"),
        ("IOB2", "I O B", "B O B"),
        ("IOB1", "B-x I-x O B-x", "I-x I-x O I-x"),
        ("IOB1", "I-x B-x I-x B-y", "I-x B-x I-x I-y"),
        ("BIOES", "B-x I-x O", "B-x E-x O"),
        ("BIOES", "B-x O E-x", "S-x O S-x"),
        ("BIOES", "S-x I-x I-x S-x", "S-x B-x E-x S-x"),
        ("BIOES", "B-x E-x B-x I-x E-x", "B-x E-x B-x I-x E-x"),
    ],
)
def test_repair(scheme: str, given: str, right: str) -> None:
    assert tags.repaired(given.split(), scheme) == right.split()
    assert tags.num_faults(given.split(), scheme) == sum(
        a != b for a, b in zip(given.split(), right.split(), strict=True)
    )


@pytest.mark.parametrize("scheme", OF_SCHEMES)
@pytest.mark.parametrize("seed", range(3))
def test_repair_keeps_every_entity_and_is_done_once(seed: int, scheme: str) -> None:
    from seqeval.scheme import IOB1, IOB2, IOBES, Entities

    strict = {"IOB1": IOB1, "IOB2": IOB2, "BIOES": IOBES}[scheme]
    for row in random_rows(seed, OF_SCHEMES[scheme], 100):
        right = tags.repaired(row, scheme)
        assert tags.entities(right) == tags.entities(row)
        assert tags.repaired(right, scheme) == right
        assert all(tags.is_of(tag, scheme) for tag in right)
        by_rule = Entities([right], strict).entities[0]  # seqeval's strict mode finds the same in it
        assert [(entity.tag, entity.start, entity.end) for entity in by_rule] == tags.entities(row)


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        (["B-x I-x O B-x", "O O"], "IOB2"),
        (["B-x I-x O B-x", "B-y I-y", "O I-x"], "IOB2"),  # one fault of five
        (["I-x I-x O I-x B-x", "O O"], "IOB1"),
        (["I-x O", "I-y O"], "IOB1"),
        (["B-x E-x O S-y"], "BIOES"),
        (["O O B I"], "IOB2"),
        (["NOUN VERB O"], "none"),
        (["B-x_y", "O", "0"], "none"),
    ],
)
def test_the_scheme_is_guessed(rows: list[str], scheme: str) -> None:
    assert tags.guess_scheme([row.split() for row in rows])[0] == scheme


def test_bilou_is_refused() -> None:
    with pytest.raises(InputError, match=r"look like BILOU; write L- as E-"):
        tags.guess_scheme([["B-x", "L-x", "O", "U-y"]])


def test_the_scheme_of_a_models_labels() -> None:
    assert tags.scheme_of_names(["O", "B-x", "I-x"]) == "IOB2"
    assert tags.scheme_of_names(["O", "I-x"]) == "IOB1"
    assert tags.scheme_of_names(["O", "B-x", "I-x", "E-x", "S-x"]) == "BIOES"
    assert tags.scheme_of_names(["LABEL_0", "LABEL_1"]) == "none"


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Jane lives in Paris.", "Jane|lives|in|Paris|."),
        ("Dr. Smith's (old) U.S. flat, $5!", "Dr|.|Smith's|(|old|)|U.S|.|flat|,|$|5|!"),
        (" @user,\t#tag\n@ # ... a-b ", "@user|,|#tag|@|#|.|.|.|a-b"),
        ("«नमस्ते» 東京。 c++ :-)", "«|नमस्ते|»|東京|。|c++|:|-|)"),
        ("x", "x"),
    ],
)
def test_a_text_is_split_into_words(text: str, expected: str) -> None:
    assert words.split_words(text) == expected.split("|")
    assert "".join(words.split_words(text)) == "".join(text.split())


TOKENIZERS = {
    "word-level": tiny.make_tokenizer,
    "word-piece": tagged.word_piece,
    "roberta": tagged.byte_level,
    "gpt2": lambda: tagged.byte_level("GPT2Tokenizer"),
    "modernbert": lambda: tagged.byte_level(""),
    "unigram": tagged.unigram,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_short_rows_are_as_the_tokenizer_makes_them(kind: str) -> None:
    """ids, type ids and word_ids() of tokenizer(words, is_split_into_words=True)."""
    tokenizer = TOKENIZERS[kind]()
    words.put_spaces_before_words(tokenizer)
    rows = [row["tokens"] for row in tagged.make_rows(12)] + [["cats", "sleeping", "don't", "U.S.", ",", "Zürich"]]
    arrays = words.encode(rows, tokenizer, 60, None)
    assert len(arrays["offsets"]) == len(rows) + 1
    for row, (begin, end) in enumerate(zip(arrays["offsets"], arrays["offsets"][1:], strict=False)):
        theirs = tokenizer(rows[row], is_split_into_words=True)
        assert arrays["input_ids"][begin:end].tolist() == theirs["input_ids"]
        assert ("token_type_ids" in arrays) == ("token_type_ids" in theirs)
        if "token_type_ids" in theirs:
            assert arrays["token_type_ids"][begin:end].tolist() == theirs["token_type_ids"]
        ids = theirs.word_ids()
        assert arrays["words"][begin:end].tolist() == [-1 if word is None else word for word in ids]
        firsts = [word is not None and word not in ids[:at] for at, word in enumerate(ids)]
        assert arrays["firsts"][begin:end].tolist() == firsts


@pytest.mark.parametrize("kind", ["RobertaTokenizer", "GPT2Tokenizer", ""])
def test_spaces_before_words_are_saved_with_the_tokenizer(kind: str, tmp_path: Any) -> None:
    tokenizer = tagged.byte_level(kind)
    words.put_spaces_before_words(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(["one", "cat"], is_split_into_words=True)["input_ids"] == tokenizer(" one cat")["input_ids"]
    assert (
        "Ġ"
        in again.convert_ids_to_tokens(again(["cat"], is_split_into_words=True, add_special_tokens=False).input_ids)[0]
    )


def test_a_slow_tokenizer_is_asked_word_by_word() -> None:
    tokenizer = transformers.ByT5Tokenizer()
    assert not tokenizer.is_fast
    words.put_spaces_before_words(tokenizer)
    arrays = words.encode([["ab", "c"], ["d"]], tokenizer, 8, None)
    assert arrays["input_ids"].tolist() == [100, 101, 102, 1, 103, 1]
    assert arrays["words"].tolist() == [0, 0, 1, -1, 0, -1]
    assert arrays["firsts"].tolist() == [True, False, True, False, True, False]


def test_words_that_the_tokenizer_drops_leave_no_token() -> None:
    arrays = words.encode([["\u200b", "cat", "\x01"], ["\u200b"]], tagged.word_piece(), 8, None)
    assert arrays["words"].tolist() == [-1, 1, -1, -1, -1]
    bare = tagged.byte_level("GPT2Tokenizer")
    bare.pad_token = "<pad>"
    words.put_spaces_before_words(bare)
    assert words.encode([[""]], bare, 8, None)["offsets"][-1] >= 1  # never an empty sequence


@pytest.mark.parametrize("overlap", [None, 0, 2, 5])
@pytest.mark.parametrize("max_length", [8, 11])
def test_long_rows_lose_no_word(max_length: int, overlap: int | None) -> None:
    """Words of up to five pieces; each has one first piece, in the window with the most context; windows are full."""
    tokenizer, generator = tagged.word_piece(), random.Random(max_length)
    vocabulary = ["cat", "cats", "ropes", "qxy", "qqqqq", "the"]
    rows = [generator.choices(vocabulary, k=generator.randint(1, 40)) for _ in range(20)]
    arrays = words.encode(rows, tokenizer, max_length, overlap)
    offsets, examples = arrays["offsets"], arrays["examples"]
    assert np.diff(offsets).max() <= max_length
    assert arrays["truncated"] == 0
    assert (np.bincount(examples) > 1).sum() > 5
    for number, row in enumerate(rows):
        windows = np.flatnonzero(examples == number)
        spans = [slice(offsets[window], offsets[window + 1]) for window in windows]
        found = [word for span in spans for word in arrays["words"][span][arrays["firsts"][span]].tolist()]
        assert sorted(found) == list(range(len(row)))
        pieces = [word for span in spans for word in arrays["words"][span].tolist() if word >= 0]
        whole = tokenizer(row, is_split_into_words=True, add_special_tokens=False)
        assert sorted(pieces) == whole.word_ids()


def context(lengths: list[int], window: tuple[int, int], word: int) -> int:
    """Tokens on the poorer side of a word in a window."""
    return min(sum(lengths[window[0] : word]), sum(lengths[word + 1 : window[1]]))


def test_windows_share_what_they_may_and_owners_have_the_most_context() -> None:
    for seed in range(200):
        generator = random.Random(seed)
        capacity = generator.randint(3, 9)
        lengths = [generator.choice([0, 1, 1, 2, 3]) for _ in range(generator.randint(1, 30))]
        overlap = generator.randint(0, capacity - 1)
        ranges = words.windows(lengths, capacity, overlap)
        covered = {word for begin, end in ranges for word in range(begin, end)}
        assert covered == set(range(len(lengths)))
        assert all(sum(lengths[begin:end]) <= capacity for begin, end in ranges)
        for (_, end), (begin, _) in itertools.pairwise(ranges):
            assert begin <= end
            assert sum(lengths[begin:end]) <= overlap
        for word, owner in enumerate(words.owners(lengths, ranges)):
            holding = [window for window, (begin, end) in enumerate(ranges) if begin <= word < end]
            assert owner in holding
            assert context(lengths, ranges[owner], word) == max(
                context(lengths, ranges[each], word) for each in holding
            )


def test_a_word_longer_than_a_window_loses_its_end_and_is_counted() -> None:
    arrays = words.encode([["the", "q" * 30, "cat"], ["cat"]], tagged.word_piece(), 7, None)
    assert arrays["truncated"] == 1
    assert np.diff(arrays["offsets"]).max() == 7
    assert sorted(arrays["words"][arrays["firsts"]].tolist()) == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("max_length", "overlap", "message"),
    [
        (8, 6, r"task.window_overlap \(6\): must be below the 6 tokens that a window holds"),
        (2, None, r"data.max_length \(2\): holds 2 special tokens and no word"),
    ],
)
def test_windows_that_would_hold_nothing_new(max_length: int, overlap: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        words.encode([["cat"]], tagged.word_piece(), max_length, overlap)
