"""Lists and objects as text: JSON, Python's literals, numpy's arrays; nothing is evaluated."""

from io import StringIO
from typing import Any

import numpy as np
import pandas
import pytest

from hf_finetune.data.literals import read_literal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["a", "b"]', ["a", "b"]),
        (" ['a', 'it''s'] ", ["a", "its"]),
        ("[1, 0, None, True]", [1, 0, None, True]),
        ('{"text": ["a"], "answer_start": [3]}', {"text": ["a"], "answer_start": [3]}),
        ("{'text': array(['array([1])'], dtype=object)}", {"text": ["array([1])"]}),
        ("{'a': array([array([1], dtype=int32)], dtype=object)}", {"a": [[1]]}),
        ("[np.int64(3), np.str_('a')]", [3, "a"]),
        ("['a' 'b c']", ["a", "b c"]),
        ("['a'\n 'b']", ["a", "b"]),
        ("['it' ' ' \"it's\"]", ["it", " ", "it's"]),
        ("['a', ' ', 'b']", ["a", " ", "b"]),
        ("[1 0 1]", [1, 0, 1]),
        ("[0. 1. 0.5]", [0.0, 1.0, 0.5]),
        ("[True False]", [True, False]),
        ("['unfinished ' 'b]", None),
        ("[]", []),
        ("('a', 'b')", None),
        ("[see below]", None),
        ("[1](https://a.b)", None),
        ("[__import__('os').getcwd()]", None),
        ("array([1])", None),
        ("{'b', 'a'}", ["b", "a"]),
        ("set()", []),
        ("[" * 2000 + "]" * 2000, None),
        ("", None),
        ("plain", None),
    ],
)
def test_lists_and_objects_are_read_and_nothing_else(text: str, value: Any) -> None:
    assert read_literal(text) == value


def test_what_pandas_writes_of_arrays_is_read() -> None:
    cells = [{"text": np.array(["it's", 'a "b"\nc'], dtype=object), "answer_start": np.array([1, 20], dtype=np.int32)}]
    text = pandas.DataFrame({"answers": cells}).to_csv(index=False)
    (cell,) = pandas.read_csv(StringIO(text))["answers"]
    assert read_literal(cell) == {"text": ["it's", 'a "b"\nc'], "answer_start": [1, 20]}
