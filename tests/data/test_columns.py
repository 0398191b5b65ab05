"""The values of columns: distinct ones, and hashes of rows."""

import numpy as np

from hf_finetune.data.column_writer import make_column
from hf_finetune.data.columns import ROWS_AT_ONCE, find_distinct, has_values, hash_rows
from hf_finetune.data.table import Table


def make_table(**columns: list) -> Table:
    size = len(next(iter(columns.values())))
    return Table(columns=columns, files=["data.jsonl"] * size, lines=list(range(1, size + 1)))


def test_distinct_values_are_numbered_in_their_order() -> None:
    codes, values = find_distinct(["b", "a", "b", 1, True, 1.0, "1", [1, "x"], [1, "x"], None])
    assert codes.tolist() == [0, 1, 0, 2, 3, 4, 5, 6, 6, 7]
    assert values == ["b", "a", 1, True, 1.0, "1", [1, "x"], None]
    assert [type(value) for value in values[2:5]] == [int, bool, float]


def test_equal_rows_have_equal_hashes_and_others_differ() -> None:
    values = ["a", "b", "a", 1, True, 1.0, "1", ["a", 1], ["a", 1], '["a", 1]', None, "null", "", "\ud800", "größe"]
    hashes = hash_rows(make_table(text=values), ["text"])
    assert hashes.dtype == np.uint64
    codes, _ = find_distinct(values)
    assert np.array_equal(hashes[:, None] == hashes[None, :], codes[:, None] == codes[None, :])


def test_hashes_do_not_depend_on_machine_or_process() -> None:
    hashes = hash_rows(make_table(text=["a text", 7], label=["pos", None]), ["text", "label"])
    assert [f"{value:016x}" for value in hashes.tolist()] == ["fc0bb92f5d80bf11", "b655e359b8ccb75d"]
    assert hash_rows(make_table(text=["a text"]), ["text"]).tolist() != hashes[:1].tolist()


def test_texts_of_several_columns_are_told_apart() -> None:
    table = make_table(a=["x y", "x", "x", ""], b=["z", "y z", "", "x"])
    assert len(set(hash_rows(table, ["a", "b"]).tolist())) == 4
    assert hash_rows(table, ["a", "b"]).tolist() != hash_rows(table, ["b", "a"]).tolist()


def test_hashing_goes_on_after_a_chunk() -> None:
    table = make_table(text=[str(number % 7) for number in range(ROWS_AT_ONCE + 9)])
    hashes = hash_rows(table, ["text"])
    assert len(hashes) == len(table)
    assert len(set(hashes.tolist())) == 7
    assert hashes[-1] == hashes[(len(table) - 1) % 7]


def test_texts_can_be_changed_before() -> None:
    table = make_table(text=["A  b", "a b", "ab", 3])
    hashes = hash_rows(table, ["text"], lambda text: " ".join(text.casefold().split()))
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[3] == hash_rows(table, ["text"])[3]


def test_a_column_without_values_is_found_without_reading_it() -> None:
    for values in ([None] * 3, [None, "", None], [None, 0], [[], None]):
        expected = any(value is not None for value in values)
        assert has_values(values) == has_values(make_column(values)) == expected
    assert has_values(make_column([None, "", "a"]), (None, ""))
    assert not has_values(make_column([None, ""]), (None, ""))
    assert not has_values(make_column(["a", None]).take([1]))
