"""Parts are tokenized in threads, in order, with a copy of the tokenizer for each."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from support.encoded import make_tokenizer

from hf_finetune.data.encoding_workers import PartsComputer, copy_tokenizer
from hf_finetune.data.features import Array
from hf_finetune.system.errors import InputError

SPANS = [(number * 10, number * 10 + 10) for number in range(12)]


def make_computer(tokenize: Any, workers: int | None, **options: Any) -> PartsComputer:
    return PartsComputer(
        **{
            "spans": SPANS,
            "tokenize": tokenize,
            "tokenizer": make_tokenizer(),
            "workers": workers,
            "is_shown": False,
            **options,
        }
    )


@pytest.mark.parametrize("workers", [1, 2, 4, 50])
def test_parts_come_in_order_and_no_tokenizer_is_used_twice_at_once(workers: int) -> None:
    used, most, active = [], [0], set()

    def tokenize(number: int, tokenizer: Any) -> dict[str, Array]:
        assert id(tokenizer) not in active
        active.add(id(tokenizer))
        most[0] = max(most[0], len(active))
        time.sleep(0.001 * (number * 7 % 5))
        active.discard(id(tokenizer))
        used.append(id(tokenizer))
        return {"number": np.array(number)}

    chosen = [0, 3, 4, 5, 8, 9, 11]
    results = list(make_computer(tokenize, workers)(chosen))
    assert [int(arrays["number"]) for arrays in results] == chosen
    assert 1 <= most[0] <= min(workers, 7)
    assert (most[0] > 1) == (workers > 1)
    assert threading.active_count() < 20


def test_a_slow_reader_keeps_the_workers_from_running_ahead() -> None:
    began: list[int] = []

    def tokenize(number: int, tokenizer: Any) -> dict[str, Array]:
        began.append(number)
        return {}

    results = make_computer(tokenize, 2)(range(12))
    next(results)
    time.sleep(0.05)
    assert len(began) <= 5
    assert len([*results]) == 11


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_error_in_the_order_of_the_rows_is_raised(workers: int) -> None:
    def tokenize(number: int, tokenizer: Any) -> dict[str, Array]:
        if number in (4, 5, 6):
            time.sleep(0.02 * (7 - number))
            raise InputError(f"part {number}")
        return {}

    with pytest.raises(InputError, match="part 4"):
        list(make_computer(tokenize, workers)(range(12)))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


def test_a_tokenizer_that_cannot_be_copied_is_used_alone() -> None:
    tokenizer = make_tokenizer()
    assert len({id(one) for one in copy_tokenizer(tokenizer, 3)}) == 3
    tokenizer.lock = threading.Lock()
    assert copy_tokenizer(tokenizer, 3) == [tokenizer]
    assert len(list(make_computer(lambda *_: {}, 3, tokenizer=tokenizer)(range(12)))) == 12


def test_a_copy_tokenizes_as_the_tokenizer_does() -> None:
    tokenizer = make_tokenizer()
    tokenizer.truncation_side = "left"
    other = copy_tokenizer(tokenizer, 2)[1]
    for options in ({"max_length": 4}, {"max_length": 8}):
        texts = ["the cat sat on the old mat today", "a dog"]
        assert dict(other(texts, truncation=True, **options)) == dict(tokenizer(texts, truncation=True, **options))
