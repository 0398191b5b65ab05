"""Columns of numbers, however they are written."""

import math
from decimal import Decimal
from typing import Any

import pytest

from hf_finetune.data.numbers import Numbers, find_numbers, has_fractions, parse_number


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2.0, "3"], False),
        ([1, 0.25], True),
        (["0,00", "0,14"], True),
        (["1,0", "2,00"], False),
        ([Decimal("0.50"), Decimal(2)], True),
        ([Decimal("1.00")], False),
        ([0.5, None, "", "NA", math.nan], True),
        ([0, 1, math.nan], False),
        ([1.0, math.inf], True),
        (["1e-3", "2"], True),
        ([10**400, 1], False),
        (["1.5", "cat"], False),
        (["1.5", True], False),
        (["1.5", [1]], False),
        (["1.2.3", "1.5"], False),
        ([None, "nan"], False),
        ([], False),
    ],
)
def test_fractions_are_found_in_columns_of_numbers_only(values: list[Any], expected: bool) -> None:
    assert has_fractions(values) is expected
    assert has_fractions(reversed(values)) is expected


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["0,14", "2"], Numbers(has_fractions=True, with_comma="0,14")),
        (["0,14", "0.5"], Numbers(has_fractions=True, with_comma="0,14", with_point="0.5")),
        (["1,234", "5"], Numbers(has_fractions=True, with_comma="1,234", unclear="1,234")),
        (["1,234", "0,5"], Numbers(has_fractions=True, with_comma="1,234")),
        (["0,123"], Numbers(has_fractions=True, with_comma="0,123")),
        (["1.234,5", "2"], Numbers(has_fractions=True, with_comma="1.234,5", unclear="1.234,5")),
        (["1,234.5"], Numbers(has_fractions=True, with_comma="1,234.5", unclear="1,234.5")),
        ([1.5, "2,5"], Numbers(has_fractions=True, with_comma="2,5")),
        (["1,2,3"], None),
        (["a"], None),
    ],
)
def test_the_way_in_which_numbers_are_written_is_found(values: list[Any], numbers: Numbers | None) -> None:
    assert find_numbers(values) == numbers


def test_numbers_are_parsed_with_a_point_or_a_comma() -> None:
    assert [parse_number(value) for value in (" 0,5 ", "-3e2", 2, Decimal("0.25"))] == [0.5, -300.0, 2.0, 0.25]
    for value in (None, True, "high", [1]):
        with pytest.raises((TypeError, ValueError)):
            parse_number(value)
