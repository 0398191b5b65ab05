"""tags.py against seqeval, words.py against the tokenizers' own encoding of words, and its windows against brute force."""

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

from hf_finetune.data.features import IGNORED
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text import tags, words

PREFIXES = {"IOB1": "BI", "IOB2": "BI", "BIOES": "BIES"}


def random_rows(seed: int, prefixes: str, count: int = 60, bare: bool = False) -> list[list[str]]:
    """Returns rows of random tags, which mostly break every scheme."""
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
        assert [(kind, begin, end - 1) for kind, begin, end in tags.find_entities(row)] == get_entities(row)


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_seqevals_classification_report(seed: int, prefixes: str) -> None:
    """About half of the predictions are right. No row has an entity of the type "other"."""
    references, others = random_rows(seed, prefixes), random_rows(seed + 100, prefixes)
    generator = random.Random(seed)
    predictions = [
        reference if generator.random() < 0.5 else (other * 9)[: len(reference)]
        for reference, other in zip(references, others, strict=True)
    ]
    scores = tags.score_entities(references, predictions, ["a-b", "other", "person", "x"])
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
    assert tags.score_entities([["O"]], [["O"]], []) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    scores = tags.score_entities([["O"]], [["B-x"]], ["x"])
    assert set(scores.values()) == {0.0}


@pytest.mark.parametrize(
    ("scheme", "faulty", "right"),
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
def test_tags_are_repaired(scheme: str, faulty: str, right: str) -> None:
    assert tags.repair_tags(faulty.split(), scheme) == right.split()
    assert tags.count_faults(faulty.split(), scheme) == sum(
        a != b for a, b in zip(faulty.split(), right.split(), strict=True)
    )


@pytest.mark.parametrize("scheme", PREFIXES)
@pytest.mark.parametrize("seed", range(3))
def test_repaired_tags_have_the_same_entities_and_need_no_second_repair(seed: int, scheme: str) -> None:
    from seqeval.scheme import IOB1, IOB2, IOBES, Entities

    strict = {"IOB1": IOB1, "IOB2": IOB2, "BIOES": IOBES}[scheme]
    for row in random_rows(seed, PREFIXES[scheme], 100):
        right = tags.repair_tags(row, scheme)
        assert tags.find_entities(right) == tags.find_entities(row)
        assert tags.repair_tags(right, scheme) == right
        assert all(tags.belongs_to_scheme(tag, scheme) for tag in right)
        by_rule = Entities([right], strict).entities[0]  # the same in seqeval's strict mode
        assert [(entity.tag, entity.start, entity.end) for entity in by_rule] == tags.find_entities(row)


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
    assert tags.guess_scheme(tags.count_pairs(row.split() for row in rows))[0] == scheme


def test_a_word_without_a_label_belongs_to_no_entity_and_breaks_no_scheme() -> None:
    """Its neighbours stay as they are: their entity may go on in it. All others are repaired."""
    row = ["B-x", tags.IGNORED_TAG, "I-x", "O", "I-x", "I-x"]
    assert tags.find_entities(row) == [("x", 0, 1), ("x", 2, 3), ("x", 4, 6)]
    assert tags.repair_tags(row, "IOB2") == ["B-x", tags.IGNORED_TAG, "I-x", "O", "B-x", "I-x"]
    assert tags.count_faults(row, "IOB2") == 1
    assert tags.repair_tags(["B-x", tags.IGNORED_TAG, "E-x", "I-y"], "BIOES") == ["B-x", tags.IGNORED_TAG, "E-x", "S-y"]
    assert tags.guess_scheme(tags.count_pairs([row[:4]]))[0] == "IOB2"


def test_the_scheme_of_a_model_is_guessed_by_its_labels() -> None:
    assert tags.guess_scheme_of_names(["O", "B-x", "I-x"]) == "IOB2"
    assert tags.guess_scheme_of_names(["O", "I-x"]) == "IOB1"
    assert tags.guess_scheme_of_names(["O", "B-x", "I-x", "E-x", "S-x"]) == "BIOES"
    assert tags.guess_scheme_of_names(["LABEL_0", "LABEL_1"]) == "none"


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


def make_typed_tokenizer() -> Any:
    """Returns a tokenizer with token type ids, as BERT's has them."""
    tokenizer = tagged.word_piece()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


TOKENIZERS = {
    "typed": make_typed_tokenizer,
    "word-level": tiny.make_tokenizer,
    "word-piece": tagged.word_piece,
    "roberta": tagged.byte_level,
    "gpt2": lambda: tagged.byte_level("GPT2Tokenizer"),
    "modernbert": lambda: tagged.byte_level(""),
    "unigram": tagged.unigram,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_short_rows_are_encoded_as_by_the_tokenizer(kind: str) -> None:
    """Ids, type ids and word_ids() are those of tokenizer(words, is_split_into_words=True)."""
    tokenizer = TOKENIZERS[kind]()
    words.put_spaces_before_words(tokenizer)
    rows = [row["tokens"] for row in tagged.make_rows(12)] + [["cats", "sleeping", "don't", "U.S.", ",", "Zürich"]]
    arrays = words.encode_words(rows, tokenizer, 60, None)
    assert len(arrays["offsets"]) == len(rows) + 1
    for row, (begin, end) in enumerate(zip(arrays["offsets"], arrays["offsets"][1:], strict=False)):
        theirs = tokenizer(rows[row], is_split_into_words=True)
        assert arrays["input_ids"][begin:end].tolist() == theirs["input_ids"]
        assert ("token_type_ids" in arrays) == ("token_type_ids" in theirs)
        if "token_type_ids" in theirs:
            assert arrays["token_type_ids"][begin:end].tolist() == theirs["token_type_ids"]
        ids = theirs.word_ids()
        assert arrays["word_indices"][begin:end].tolist() == [-1 if word is None else word for word in ids]
        is_first = [word is not None and word not in ids[:position] for position, word in enumerate(ids)]
        assert arrays["is_first_piece"][begin:end].tolist() == is_first


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


def test_a_slow_tokenizer_encodes_word_by_word() -> None:
    tokenizer = transformers.ByT5Tokenizer()
    assert not tokenizer.is_fast
    words.put_spaces_before_words(tokenizer)
    arrays = words.encode_words([["ab", "c"], ["d"]], tokenizer, 8, None)
    assert arrays["input_ids"].tolist() == [100, 101, 102, 1, 103, 1]
    assert arrays["word_indices"].tolist() == [0, 0, 1, -1, 0, -1]
    assert arrays["is_first_piece"].tolist() == [True, False, True, False, True, False]


def test_words_that_the_tokenizer_drops_leave_no_token() -> None:
    arrays = words.encode_words([["\u200b", "cat", "\x01"], ["\u200b"]], tagged.word_piece(), 8, None)
    assert arrays["word_indices"].tolist() == [-1, 1, -1, -1, -1]
    bare = tagged.byte_level("GPT2Tokenizer")
    bare.pad_token = "<pad>"
    words.put_spaces_before_words(bare)
    assert words.encode_words([[""]], bare, 8, None)["offsets"][-1] >= 1  # never an empty sequence


@pytest.mark.parametrize("overlap", [None, 0, 2, 5])
@pytest.mark.parametrize("max_length", [8, 11])
def test_long_rows_lose_no_word(max_length: int, overlap: int | None) -> None:
    """Words have up to five pieces. Each has one first piece in all windows, and all its pieces in one window."""
    tokenizer, generator = tagged.word_piece(), random.Random(max_length)
    vocabulary = ["cat", "cats", "ropes", "qxy", "qqqqq", "the"]
    rows = [generator.choices(vocabulary, k=generator.randint(1, 40)) for _ in range(20)]
    arrays = words.encode_words(rows, tokenizer, max_length, overlap)
    offsets, examples = arrays["offsets"], arrays["examples"]
    assert np.diff(offsets).max() <= max_length
    assert arrays["truncated"] == 0
    assert (np.bincount(examples) > 1).sum() > 5
    for number, row in enumerate(rows):
        windows = np.flatnonzero(examples == number)
        spans = [slice(offsets[window], offsets[window + 1]) for window in windows]
        firsts = [
            word for span in spans for word in arrays["word_indices"][span][arrays["is_first_piece"][span]].tolist()
        ]
        assert sorted(firsts) == list(range(len(row)))
        pieces = [word for span in spans for word in arrays["word_indices"][span].tolist() if word >= 0]
        encoded = tokenizer(row, is_split_into_words=True, add_special_tokens=False)
        assert sorted(pieces) == encoded.word_ids()


def count_context(lengths: list[int], window: tuple[int, int], word: int) -> int:
    """Returns min(tokens before, tokens after) of a word in a window."""
    return min(sum(lengths[window[0] : word]), sum(lengths[word + 1 : window[1]]))


def test_windows_share_at_most_the_overlap_and_words_get_the_most_context() -> None:
    for seed in range(200):
        generator = random.Random(seed)
        capacity = generator.randint(3, 9)
        lengths = [generator.choice([0, 1, 1, 2, 3]) for _ in range(generator.randint(1, 30))]
        overlap = generator.randint(0, capacity - 1)
        ranges = words.split_into_windows(lengths, capacity, overlap)
        covered = {word for begin, end in ranges for word in range(begin, end)}
        assert covered == set(range(len(lengths)))
        assert all(sum(lengths[begin:end]) <= capacity for begin, end in ranges)
        for (_, end), (begin, _) in itertools.pairwise(ranges):
            assert begin <= end
            assert sum(lengths[begin:end]) <= overlap
        for word, window in enumerate(words.assign_words_to_windows(lengths, ranges)):
            holding = [number for number, (begin, end) in enumerate(ranges) if begin <= word < end]
            most = max(count_context(lengths, ranges[number], word) for number in holding)
            assert window in holding
            assert count_context(lengths, ranges[window], word) == most


def test_a_word_longer_than_a_window_loses_its_end_and_is_counted() -> None:
    arrays = words.encode_words([["the", "q" * 30, "cat"], ["cat"]], tagged.word_piece(), 7, None)
    assert arrays["truncated"] == 1
    assert np.diff(arrays["offsets"]).max() == 7
    assert sorted(arrays["word_indices"][arrays["is_first_piece"]].tolist()) == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("max_length", "overlap", "message"),
    [
        (8, 6, r"task.window_overlap \(6\): must be below the 6 tokens that a window holds"),
        (2, None, r"data.max_length \(2\): must be above 2, the number of special tokens"),
    ],
)
def test_windows_without_room_for_another_word_are_an_error(max_length: int, overlap: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        words.encode_words([["cat"]], tagged.word_piece(), max_length, overlap)


def test_a_tokenizer_that_changes_a_word_next_to_special_tokens_is_an_error() -> None:
    class Tokenizer:
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [1, 7, 2] if add_special_tokens else [5]}

    assert words.find_special_tokens(Tokenizer()) is None
    with pytest.raises(InputError, match=r"model.backbone: its tokenizer encodes a word differently"):
        words.encode_words([["cat"]], Tokenizer(), 8, None)


def test_special_tokens_are_found_with_their_types() -> None:
    special = words.find_special_tokens(make_typed_tokenizer())
    assert special == words.SpecialTokens(before=[2], after=[3], type_ids=([0], 0, [0]))
    assert special.make_type_ids(3) == [0] * 5
    slow = words.find_special_tokens(transformers.ByT5Tokenizer())
    assert slow == words.SpecialTokens(before=[], after=[1], type_ids=None)
    assert slow.make_type_ids(3) == []


def test_the_label_of_a_word_is_at_its_first_piece() -> None:
    arrays = words.encode_words([["the", "cats"], ["ropes"]], tagged.word_piece(), 8, None)
    nothing = IGNORED
    expected = [nothing, 4, 5, nothing, nothing, nothing, 6, nothing, nothing]
    assert words.label_pieces([[4, 5], [6]], arrays, None).tolist() == expected
    later_tags = [0, 1, 2, 3, 4, 1, 6]
    expected = [nothing, 4, 5, 1, nothing, nothing, 6, 6, nothing]
    assert words.label_pieces([[4, 5], [6]], arrays, later_tags).tolist() == expected


def test_entities_are_described_with_their_words() -> None:
    assert tags.describe_entities(["the", "cat", "dog"], ["O", "B-x", "I-x"]) == [
        {"type": "x", "text": "cat dog", "begin": 1, "end": 3}
    ]


def test_the_tags_of_a_scheme_are_completed() -> None:
    assert tags.complete_tags(["B-x", "I-y"], "IOB2") == {"O", "B-x", "I-x", "B-y", "I-y"}
    assert tags.complete_tags(["S-x"], "BIOES") == {"O", "B-x", "I-x", "E-x", "S-x"}
    assert tags.complete_tags(["NOUN"], "none") == {"NOUN"}
