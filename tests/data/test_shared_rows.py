"""Rows that examples share: which go together, where their tokens lie, and what the labels of a row are."""

import itertools

import numpy as np
import pytest
import torch

from hf_finetune.data.batches import MicroBatchLimit, share_batch
from hf_finetune.data.features import IGNORED, Features, Padding, Ragged, attach_activations, collate
from hf_finetune.data.shared_rows import RowSharing, plan_micro_batches, plan_rows, share_rows

PAD = 99
LENGTHS = [9, 5, 3, 1, 4]


def make_features(lengths: list[int]) -> Features:
    """Features whose tokens are 100 times the number of the feature and the position; so are their labels."""
    ids = np.concatenate([100 * number + np.arange(length) for number, length in enumerate(lengths)]).astype(np.int32)
    offsets = np.cumsum([0, *lengths])
    return Features(
        inputs={"input_ids": ids}, offsets=offsets, labels=Ragged(values=ids, offsets=offsets), num_truncated=0
    )


def list_rows(lengths: list[int], row_length: int) -> list[list[int]]:
    """The lengths of the sequences of each row."""
    return [np.array(lengths)[row].tolist() for row in plan_rows(np.array(lengths), row_length)]


def test_each_sequence_goes_into_the_first_row_with_room() -> None:
    assert list_rows([3, 9, 1, 5, 4], 9) == [[9], [5, 4], [3, 1]]
    assert list_rows([3, 9, 1, 5, 4], 22) == [[9, 5, 4, 3, 1]]
    assert list_rows([12, 2, 3], 9) == [[12], [3, 2]]  # one that is too long for a row has one of its own


@pytest.mark.parametrize("seed", range(20))
def test_plans_hold_each_sequence_once_within_their_limits(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = -np.sort(-generator.integers(1, 40, generator.integers(1, 60)))
    row_length = int(generator.integers(int(lengths.max()), 120))
    rows = plan_rows(lengths, row_length)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= row_length for row in rows)
    assert (
        len(rows) <= 11 / 9 * -(-int(lengths.sum()) // row_length) + 1
        or len(rows) <= 2 * lengths.sum() / row_length + 1
    )

    num_rows, num_examples = int(generator.integers(1, 5)), int(generator.integers(1, 20))
    micro_batches = plan_micro_batches(lengths, row_length, num_rows, num_examples)
    assert sorted(np.concatenate(micro_batches).tolist()) == list(range(len(lengths)))
    for members in micro_batches:
        assert len(members) <= num_examples
        assert len(plan_rows(lengths[members], row_length)) <= num_rows


def test_rows_that_are_planned_again_stay_the_same() -> None:
    """A micro-batch plans its own rows: they are those for which the limit on its tokens was checked."""
    lengths = np.array(sorted(LENGTHS * 3, reverse=True))
    rows = plan_rows(lengths, 11)
    some = np.sort(np.concatenate([rows[1], rows[3]]))
    assert [some[row].tolist() for row in plan_rows(lengths[some], 11)] == [rows[1].tolist(), rows[3].tolist()]


def test_shared_rows_hold_the_tokens_of_each_example_and_predict_none_of_another() -> None:
    batch = share_rows(collate(make_features(LENGTHS), np.arange(5), Padding(PAD)), 9)
    assert batch.inputs.keys() == {"input_ids", "position_ids"}
    assert batch.inputs["input_ids"].tolist() == [
        list(range(9)),
        [100, 101, 102, 103, 104, 400, 401, 402, 403],
        [200, 201, 202, 300, *[0] * 5],  # the first token of the batch
    ]
    assert batch.inputs["position_ids"].tolist() == [
        list(range(9)),
        [0, 1, 2, 3, 4, 0, 1, 2, 3],
        [0, 1, 2, 0, 0, 1, 2, 3, 4],
    ]
    assert batch.labels is not None
    assert batch.labels.tolist() == [
        [IGNORED, *range(1, 9)],
        [IGNORED, 101, 102, 103, 104, IGNORED, 401, 402, 403],
        [IGNORED, 201, 202, IGNORED, *[IGNORED] * 5],
    ]
    assert batch.rows is not None
    assert batch.rows.sequences[2].tolist() == [2, 2, 2, 3, *[-1] * 5]


def test_targets_are_those_of_each_example_alone() -> None:
    from hf_finetune.tasks.tokens import get_targets

    features = make_features(LENGTHS)
    alone = [get_targets(collate(features, np.array([number]), Padding(PAD)), is_causal=True) for number in range(5)]
    shared = get_targets(share_rows(collate(features, np.arange(5), Padding(PAD)), 22), is_causal=True)
    expected = [token for number in (0, 1, 4, 2, 3) for token in alone[number][0].tolist()]
    assert shared.tolist() == [expected]


def test_rows_get_the_activations_of_their_tokens() -> None:
    class Stored:
        """The hidden state of a token is its sequence and its position."""

        def gather(self, indices: np.ndarray, mask: np.ndarray, positions: np.ndarray | None = None) -> torch.Tensor:
            assert positions is not None
            return torch.from_numpy(np.where(mask[..., None], np.stack([indices, positions], -1), -1))

    features = make_features(LENGTHS)
    stored = Features(**{**vars(features), "activations": Stored()})
    batch = attach_activations(share_rows(collate(stored, np.array([1, 4, 3]), Padding(PAD)), 9), stored)
    assert batch.activations is not None
    assert batch.activations[0].tolist() == [[1, place] for place in range(5)] + [[4, place] for place in range(4)]
    assert batch.activations[1].tolist() == [[3, 0], *[[-1, -1]] * 8]


def test_a_micro_batch_with_shared_rows_takes_more_examples() -> None:
    lengths = np.array([30, 30, 10, 10, 10, 9, 3, 3, 2, 1])
    plain = MicroBatchLimit(num_examples=10, num_tokens=60)
    assert [lengths[part].tolist() for part in plain.split(np.arange(10), lengths)] == [
        [30, 30], [10, 10, 10, 9, 3, 3], [2, 1],
    ]  # fmt: skip
    rows = MicroBatchLimit(num_examples=10, num_tokens=60, row_sharing=RowSharing(in_one_row=False))
    assert [lengths[part].tolist() for part in rows.split(np.arange(10), lengths)] == [
        [30, 30], [10, 10, 10, 9, 3, 3, 2, 1],
    ]  # fmt: skip
    one = MicroBatchLimit(num_examples=10, num_tokens=60, row_sharing=RowSharing(in_one_row=True))
    assert [lengths[part].tolist() for part in one.split(np.arange(10), lengths)] == [
        [30, 30], [10, 10, 10, 9, 3, 3, 2, 1],
    ]  # fmt: skip
    assert len(MicroBatchLimit(num_examples=10, row_sharing=rows.row_sharing).split(np.arange(10), lengths)) == 1
    small = MicroBatchLimit(num_examples=10, num_tokens=20, row_sharing=rows.row_sharing)
    assert [lengths[part].tolist() for part in small.split(np.arange(10), lengths)] == [
        [30], [30], [10, 10], [10, 9, 1], [3, 3, 2],
    ]  # fmt: skip
    assert rows.split(np.arange(0), lengths) == []


@pytest.mark.parametrize("in_one_row", [False, True])
@pytest.mark.parametrize("num_tokens", [None, 40, 200])
def test_every_process_has_its_examples(in_one_row: bool, num_tokens: int | None) -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 64)
    sharing = RowSharing(in_one_row=in_one_row)
    for num_processes in (1, 2, 3):
        limit = MicroBatchLimit(num_examples=-(-16 // num_processes), num_tokens=num_tokens, row_sharing=sharing)
        shares = [
            share_batch(np.arange(20, 36), lengths, limit, process, num_processes) for process in range(num_processes)
        ]
        assert len({len(share) for share in shares}) == 1
        assert all(len(share[0]) for share in shares)  # no process without work
        taken = np.concatenate(list(itertools.chain(*shares)))
        assert sorted(taken.tolist()) == list(range(20, 36))
