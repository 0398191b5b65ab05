"""Many numbers are written at once, with the characters that json and repr() write."""

import json
from typing import Any

import numpy as np
import pytest

from hf_finetune.export import number_text
from hf_finetune.export.number_text import MANY, format_numbers, write_numbers
from hf_finetune.export.prediction_formats import format_json


def read_texts(texts: np.ndarray) -> list[str]:
    """Returns the texts of write_numbers()."""
    return [row.tobytes().replace(b"\0", b"").decode() for row in texts]


def make_numbers(kind: str, count: int = 20_000) -> np.ndarray:
    """Returns float32 numbers of a kind."""
    generator = np.random.default_rng(0)
    numbers = {
        "probabilities of many classes": lambda: np.exp(generator.normal(-9, 3, count)),
        "probabilities of two classes": lambda: generator.uniform(0, 1, count),
        "a vector": lambda: generator.normal(0, 1, count),
        "very small": lambda: np.exp(generator.uniform(-95, -60, count)),
        "few digits": lambda: generator.integers(0, 2000, count) / 1000,
        "few bits": lambda: generator.integers(0, 1 << 16, count) / (1 << generator.integers(1, 40, count)),
        "powers of two": lambda: 2.0 ** np.arange(-149, 128),
        "powers of ten and their neighbours": lambda: np.nextafter(
            np.float32(10.0) ** np.arange(-44, 30), np.float32([[0.0], [1.0], [np.inf]])
        ).ravel(),
        "all bits": lambda: generator.integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32),
        "by hand": lambda: np.array(
            [0.0, -0.0, 1.0, -1.0, 9.999999, 10.0, 0.0001, 0.00001, 0.5, np.nan, np.inf, -np.inf]
        ),
    }[kind]()
    with np.errstate(all="ignore"):
        return numbers.astype(np.float32)


KINDS = (
    "probabilities of many classes",
    "probabilities of two classes",
    "a vector",
    "very small",
    "few digits",
    "few bits",
    "powers of two",
    "powers of ten and their neighbours",
    "all bits",
    "by hand",
)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_written_as_repr_writes_them(kind: str) -> None:
    numbers = make_numbers(kind)
    assert read_texts(write_numbers(numbers)) == [repr(float(number)) for number in numbers]


@pytest.mark.parametrize("kind", KINDS[:4])
def test_nearly_all_scores_are_written_without_repr(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[float] = []
    monkeypatch.setattr(number_text, "repr", lambda number: slow.append(number) or "0", raising=False)
    write_numbers(make_numbers(kind))
    assert len(slow) < 0.02 * 20_000


@pytest.mark.parametrize("value", [{"a": 0.5}, [0.5] * (MANY - 1), "text", None, 0.5, {}])
def test_few_numbers_and_other_values_are_left_to_json(value: Any) -> None:
    assert format_numbers(value) is None


@pytest.mark.parametrize(
    "odd", [1, True, None, "x", [0.5], 0.1, float("nan"), float("inf"), 1e300, np.float64(0.5)], ids=repr
)
@pytest.mark.parametrize("is_dict", [True, False])
def test_what_is_no_32_bit_number_is_written_by_json(odd: Any, is_dict: bool) -> None:
    values = [0.5] * MANY + [odd]
    value = {f"k{number}": one for number, one in enumerate(values)} if is_dict else values
    assert format_numbers(value) is None
    assert format_json({"value": value}) == json.dumps({"value": value})


def test_an_entry_with_many_numbers_is_what_json_writes() -> None:
    numbers = [float(number) for number in make_numbers("a vector", 200)]
    names = ['"quoted"', "new\nline", "Zürich", "\0", "", "日本", *map(str, range(194))]
    entry = {
        "label": "Zürich",
        "é": dict(zip(names, numbers, strict=True)),
        "vector": numbers,
        "none": None,
        "few": [0.5, 1],
    }
    for _ in range(2):
        assert format_json(entry) == json.dumps(entry, ensure_ascii=False)
    entry["é"] = dict(zip(range(200), numbers, strict=True))
    assert format_json(entry) == json.dumps(entry, ensure_ascii=False)
    entry[3] = "a key that is no text"
    assert format_json(entry) == json.dumps(entry, ensure_ascii=False)
