"""Batches are padded as the tokenizer pads, with their labels and in order."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.encoded import PAIRS, TEXTS, flat_features, make_tokenizer

from hf_finetune.data.features import (
    Array,
    Features,
    Padding,
    PerFeature,
    Ragged,
    collate,
    make_features,
    pad_sequences,
)

SEEDS = (0, 1, 2, 31)


@pytest.mark.parametrize("texts", [TEXTS, PAIRS])
@pytest.mark.parametrize("ends_only", [False, True])
@pytest.mark.parametrize("token_types", [False, True])
@pytest.mark.parametrize("pad_token", ["[PAD]", "[SEP]"])
def test_a_batch_equals_the_tokenizers_own_padding(
    texts: list[list[str]], ends_only: bool, token_types: bool, pad_token: str
) -> None:
    tokenizer = make_tokenizer(ends_only=ends_only, token_types=token_types)
    tokenizer.pad_token = pad_token
    features = flat_features(texts, tokenizer, 16)
    for seed in SEEDS:
        rows = np.random.default_rng(seed).permutation(25)[: seed % 7 + 1]
        columns = [[column[row] for row in rows] for column in texts]
        theirs = tokenizer(*columns, truncation=True, max_length=16, padding=True, return_tensors="pt")
        batch = collate(features, rows, Padding(tokenizer.pad_token_id))
        ours = batch.inputs
        assert set(ours) == set(theirs) == {*tokenizer.model_input_names}
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert {tensor.dtype for tensor in ours.values()} == {torch.int64}
        assert batch.labels is not None
        assert len(batch.labels) == len(rows)
        assert batch.sequence_counts.tolist() == [1] * len(rows)


@pytest.mark.parametrize(("longest", "padded"), [(1, 8), (8, 8), (9, 16), (17, 20), (20, 20), (21, 21)])
def test_few_lengths_are_rounded_up_as_far_as_the_model_allows(longest: int, padded: int) -> None:
    assert Padding(0, step=8, max_length=20).round_up(longest) == padded


def test_a_rounded_batch_equals_the_tokenizers_own_padding_to_a_multiple() -> None:
    tokenizer = make_tokenizer(ends_only=True)
    features = flat_features(TEXTS, tokenizer, 16)
    tags = Ragged(values=np.arange(len(features.inputs["input_ids"])), offsets=features.offsets)
    rows = np.flatnonzero(features.lengths < 8)[:3]
    texts = [TEXTS[0][row] for row in rows]
    theirs = tokenizer(texts, padding=True, pad_to_multiple_of=8, return_tensors="pt")
    batch = collate(replace(features, labels=tags), rows, Padding(tokenizer.pad_token_id, step=8, max_length=16))
    assert batch.labels is not None
    assert batch.inputs["input_ids"].shape == batch.labels.shape == (len(rows), 8)
    assert all(torch.equal(batch.inputs[name], theirs[name]) for name in theirs)
    for row, labels in zip(rows, batch.labels.tolist(), strict=True):
        assert labels == [*tags.get(int(row)).tolist(), *[-100] * (8 - features.lengths[row])]


@pytest.mark.parametrize("has_several", [False, True], ids=["decoder", "documents of queries"])
def test_targets_that_are_not_those_of_tokens_keep_their_own_width(has_several: bool) -> None:
    features = flat_features(TEXTS, make_tokenizer(), 16)
    longest = int(features.lengths[features.lengths % 8 > 0].max())
    rows = np.flatnonzero(features.lengths == longest)[:1]
    if has_several:  # the one query of the batch has as many documents as its longest text has tokens
        lengths = np.full(longest, longest)
        features = Features(
            inputs={"input_ids": np.ones(longest * longest, dtype=np.int32)},
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            labels=Ragged(values=np.arange(longest), offsets=np.array([0, longest])),
            sequence_offsets=np.array([0, longest]),
            num_truncated=0,
        )
        rows = np.array([0])
    else:  # as wide as the inputs, but not as long in each row
        rows = np.concatenate([rows, np.flatnonzero(features.lengths < longest)[:1]])
        targets = Ragged(values=np.arange(25 * longest), offsets=np.arange(0, 25 * longest + 1, longest))
        features = replace(features, labels=targets)
    batch = collate(features, rows, Padding(0, step=8, max_length=16))
    assert batch.inputs["input_ids"].shape[1] % 8 == 0
    assert batch.labels is not None
    assert batch.labels.shape[1] == longest


@pytest.mark.parametrize("labels", [np.arange(25), np.arange(25, dtype=np.float32), np.eye(25, 3, dtype=np.float32)])
def test_a_batch_has_the_labels_of_its_rows(labels: Array) -> None:
    features = Features(**vars(flat_features(TEXTS, make_tokenizer(), 16)) | {"labels": labels})
    batch = collate(features, np.array([7, 0, 24]), Padding(0))
    assert batch.labels is not None
    assert np.array_equal(batch.labels.numpy(), labels[[7, 0, 24]])
    assert batch.labels.dtype == torch.from_numpy(labels).dtype


def test_ragged_labels_are_padded_with_a_label_that_does_not_count() -> None:
    values = Ragged(values=np.arange(60), offsets=np.concatenate([[0], np.cumsum(np.arange(25) % 5)]))
    features = Features(**vars(flat_features(TEXTS, make_tokenizer(), 16)) | {"labels": values})
    batch = collate(features, np.array([3, 0, 7]), Padding(0))
    assert batch.labels is not None
    assert batch.labels.tolist() == [[3, 4, 5], [-100, -100, -100], [11, 12, -100]]
    assert len(features.fingerprint()) == 16


def test_a_batch_of_features_with_several_sequences_has_them_all_in_order() -> None:
    all_sequences = flat_features(TEXTS, make_tokenizer(), 16)
    several = Features(**vars(all_sequences) | {"sequence_offsets": np.array([0, 2, 3, 7, 25]), "labels": np.arange(4)})
    assert len(several) == 4
    assert several.num_sequences == 25
    assert several.lengths.tolist() == [
        int(all_sequences.lengths[a:b].max()) for a, b in ((0, 2), (2, 3), (3, 7), (7, 25))
    ]
    assert several.num_tokens.tolist() == [
        int(all_sequences.lengths[a:b].sum()) for a, b in ((0, 2), (2, 3), (3, 7), (7, 25))
    ]
    batch, alone = (
        collate(several, np.array([2, 0]), Padding(0)),
        collate(all_sequences, np.array([3, 4, 5, 6, 0, 1]), Padding(0)),
    )
    assert batch.sequence_indices.tolist() == [3, 4, 5, 6, 0, 1]
    assert batch.sequence_counts.tolist() == [4, 2]
    assert all(torch.equal(batch.inputs[name], alone.inputs[name]) for name in alone.inputs)
    assert several.fingerprint() != Features(**vars(all_sequences) | {"labels": np.arange(4)}).fingerprint()


@pytest.mark.parametrize("seed", SEEDS)
def test_sequences_of_several_splits_are_padded_like_those_of_one(seed: int) -> None:
    tokenizer = make_tokenizer()
    together = flat_features(TEXTS, tokenizer, 16)
    train, test = (flat_features([texts], tokenizer, 16) for texts in (TEXTS[0][:10], TEXTS[0][10:]))
    indices = np.random.default_rng(seed).permutation(25)[:9]
    parts = [(train, np.array([index])) if index < 10 else (test, np.array([index - 10])) for index in indices]
    ours, theirs = pad_sequences(parts, Padding(7)), pad_sequences([(together, indices)], Padding(7))
    assert list(ours) == list(theirs) == ["input_ids", "token_type_ids", "attention_mask"]
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert {array.dtype for array in ours.values()} == {np.dtype(np.int64)}


def test_numbers_of_features_are_the_same_whether_computed_for_all_or_for_some() -> None:
    for rows in (None, np.array([0, 2, 3, 7, 8])):
        offsets = np.array([0, 4, 5, 11, 12, 20, 22, 23, 29])
        features = Features(inputs={}, offsets=offsets, labels=None, num_truncated=0, sequence_offsets=rows)
        everything = np.arange(len(features))
        for indices in (everything, everything[::-1], everything[1:3], everything[:0]):
            assert features.get_lengths(indices).tolist() == features.lengths[indices].tolist()
            assert features.get_num_tokens(indices).tolist() == features.num_tokens[indices].tolist()
        lengths = PerFeature(len(features), features.get_lengths)
        assert lengths.collect().tolist() == features.lengths.tolist()
        assert lengths.collect().dtype == np.uint8
        assert [int(lengths[row]) for row in range(len(lengths))] == features.lengths.tolist()


def test_class_numbers_take_few_bytes_and_leave_in_the_type_of_the_task() -> None:
    arrays = {"input_ids": np.arange(300), "offsets": np.arange(301), "truncated": np.array(0)}
    for labels in (np.arange(300) % 3, np.arange(300) - 100, np.arange(600).reshape(300, 2), np.arange(300.0)):
        features, rows = make_features(arrays, labels), np.array([299, 0, 7])
        assert isinstance(features.labels, np.ndarray)
        assert features.labels.itemsize <= (2 if labels.dtype == np.int64 else 8)
        targets = features.get_labels(rows)
        assert targets is not None
        assert targets.dtype == labels.dtype
        assert np.array_equal(targets, labels[rows])
        assert features.fingerprint() == replace(features, labels=labels, label_type=None).fingerprint()
    small = make_features(arrays, np.arange(300, dtype=np.int32))
    targets = small.get_labels(np.array([1]))
    assert targets is not None
    assert targets.dtype == np.int32
