"""Rows that occur several times, with the same labels and with others, in one split and in two."""

import pytest

from hf_finetune.data import columns
from hf_finetune.data.duplicates import Repeats, find_duplicates, find_shared, sort_hashes
from hf_finetune.data.table import Table


def make_table(*rows: tuple[object, object]) -> Table:
    texts, labels = zip(*rows, strict=True)
    return Table(
        columns={"text": list(texts), "label": list(labels)},
        files=["data.csv"] * len(rows),
        lines=list(range(2, len(rows) + 2)),
    )


def test_copies_and_conflicts_are_counted_apart() -> None:
    table = make_table(("a", 0), ("b", 1), ("a", 0), ("a", 1), ("c", 0), ("b", 0), ("a", 0), ("b", 1))
    copies, conflicts = find_duplicates(table, ["text"], ["label"])
    assert copies == Repeats(count=3, pairs=((2, 0), (6, 2)))
    assert conflicts.count == 2  # the texts a and b
    assert sorted(conflicts.pairs) == [(5, 1), (6, 3)]


def test_without_labels_equal_inputs_are_copies() -> None:
    copies, conflicts = find_duplicates(make_table(("a", 0), ("a", 1)), ["text"], [])
    assert copies == Repeats(count=1, pairs=((1, 0),))
    assert conflicts == Repeats()


def test_rows_that_differ_are_not_reported() -> None:
    table = make_table(("1", 0), (1, 0), (True, 0), (1.0, 0), (["a"], 0), ('["a"]', 0), ("A", 0), ("a", 0))
    assert find_duplicates(table, ["text"], ["label"]) == (Repeats(), Repeats())


def test_lists_are_compared_by_their_content() -> None:
    table = make_table((["a", "b"], 0), (["a", "c"], 0), (["a", "b"], 0))
    assert find_duplicates(table, ["text"], ["label"])[0] == Repeats(count=1, pairs=((2, 0),))


def test_shared_rows_are_found_in_the_other_table() -> None:
    train = make_table(("a", 0), ("b", 1), ("c", 0))
    test = make_table(("x", 0), ("c", 1), ("b", 1), ("c", 0), ("a", 0))
    shared = find_shared(test, train, ["text"], sort_hashes(train, ["text"]))
    assert shared == Repeats(count=4, pairs=((1, 2), (2, 1)))
    assert find_shared(make_table(("x", 0)), train, ["text"], sort_hashes(train, ["text"])) == Repeats()


def test_rows_of_several_chunks_are_numbered_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns.iterate, "__defaults__", (3,))
    rows = [(str(number), 0) for number in range(10)]
    table = make_table(*rows, rows[1], *rows[8:])
    assert find_duplicates(table, ["text"], ["label"])[0] == Repeats(count=3, pairs=((10, 1), (11, 8)))
    test = make_table(*[("new", 0)] * 4, rows[7])
    assert find_shared(test, table, ["text"], sort_hashes(table, ["text"])).pairs == ((4, 7),)


def test_examples_are_confirmed_by_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts with one hash, which never happens, are not shown as equal."""
    monkeypatch.setattr(columns, "to_bytes", lambda value, change=None: b"same")
    copies, _ = find_duplicates(make_table(("a", 0), ("b", 0), ("b", 0)), ["text"], [])
    assert copies.pairs == ((2, 1),)
