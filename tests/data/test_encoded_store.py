"""Encoded text on disk: every damage is found and mended, and nothing in an entry is trusted."""

import errno
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_finetune.data import encoded_parts
from hf_finetune.data.encoded_parts import InconsistentEntryError, find_whole_entry, read_parts
from hf_finetune.data.encoded_store import fill_entry, lock_entry
from hf_finetune.data.features import Array
from hf_finetune.system.errors import InputError
from hf_finetune.system.locks import hold_lock

SPANS = [(0, 4), (4, 8), (8, 9)]
LENGTHS = [2, 3, 1, 4, 2, 2, 0, 5, 3]


def make_arrays(first: int, last: int) -> dict[str, Array]:
    """Arrays of all kinds, of some rows."""
    lengths = LENGTHS[first:last]
    generator = np.random.default_rng([first, last])
    return {
        "input_ids": generator.integers(0, 99, sum(lengths)).astype(np.int32),
        "offsets": np.cumsum([0, *lengths], dtype=np.int64),
        "rows": np.arange(last - first + 1),
        "examples": np.arange(last - first),
        "vectors": generator.standard_normal((sum(lengths), 2)).astype(np.float32),
        "is_first": generator.integers(0, 2, sum(lengths)).astype(bool),
        "truncated": np.array(last - first),
    }


def make_whole() -> dict[str, Array]:
    """The arrays of all rows."""
    parts = [make_arrays(*span) for span in SPANS]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("input_ids", "vectors", "is_first")}
    return {
        **joined,
        "offsets": np.cumsum([0, *LENGTHS]),
        "rows": np.arange(10),
        "examples": np.arange(9),
        "truncated": np.array(9),
    }


def compute(numbers: Sequence[int]) -> Generator[Mapping[str, Array]]:
    return (make_arrays(*SPANS[number]) for number in numbers)


def fill(folder: Path, said: list[str] | None = None) -> dict[str, Array]:
    return fill_entry(folder, SPANS, compute, (said if said is not None else []).append)


def assert_whole(arrays: Mapping[str, Array]) -> None:
    """The arrays are those of all rows, with the same types."""
    whole = make_whole()
    assert arrays.keys() == whole.keys()
    for name, array in whole.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape), name
        assert np.array_equal(arrays[name], array), name


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """The folder of an entry."""
    folder = tmp_path / "encoded" / "key"
    fill(folder)
    return folder


def rewrite(entry: Path, change: Callable[[int, dict[str, Any]], Any]) -> None:
    """Changes what the list says of the parts, with new digests of its lines. change: gets number and values of a part."""
    lines = []
    for line in (entry / encoded_parts.PARTS).read_text().splitlines():
        values = json.loads(line.partition(" ")[2])
        change(values["number"], values)
        content = json.dumps(values)
        lines.append(f"{hashlib.sha256(content.encode()).hexdigest()} {content}\n")
    (entry / encoded_parts.PARTS).write_text("".join(lines))


# --- reading and writing --------------------------------------------------------------------------------------------


def test_parts_are_joined_by_the_kinds_of_their_arrays(tmp_path: Path) -> None:
    assert_whole(fill(tmp_path / "key"))
    assert_whole(fill_entry(tmp_path / "key", SPANS, None, print))  # type: ignore[arg-type]  # nothing is computed again
    parts = find_whole_entry(tmp_path / "key", SPANS)
    assert parts is not None
    assert_whole(encoded_parts.open_arrays(tmp_path / "key", parts))
    assert find_whole_entry(tmp_path / "key", [(0, 9)]) is None


def test_arrays_can_not_be_changed_in_place(entry: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        fill(entry)["input_ids"][0] = 1


def test_parts_with_other_arrays_than_those_before_are_refused(tmp_path: Path) -> None:
    changes: list[Callable[[dict[str, Array]], Any]] = [
        lambda arrays: arrays.pop("vectors"),
        lambda arrays: arrays.update(extra=np.zeros(2)),
        lambda arrays: arrays.update(vectors=arrays["vectors"].astype(np.float64)),
        lambda arrays: arrays.update(vectors=arrays["vectors"][:, :1]),
        lambda arrays: arrays.update(truncated=np.array([1])),
    ]
    for number, change in enumerate(changes):

        def compute_other(numbers: Sequence[int], change: Any = change) -> Generator[Mapping[str, Array]]:
            for part, arrays in zip(numbers, compute(numbers), strict=True):
                _ = part == 1 and change(arrays)
                yield arrays

        with pytest.raises(InputError, match=r"other arrays for the rows 4 to 8 than for those before"):
            fill_entry(tmp_path / str(number), SPANS, compute_other, print)
    with pytest.raises(InputError, match="the array words of type object; give numbers"):
        fill_entry(
            tmp_path / "key",
            [(0, 1)],
            lambda _: (arrays for arrays in [{"words": np.array(["a"], dtype=object)}]),
            print,
        )


def test_a_second_run_waits_for_the_first(tmp_path: Path) -> None:
    folder, said = tmp_path / "encoded" / "key", []
    folder.parent.mkdir()
    is_held = threading.Event()

    def hold() -> None:
        with hold_lock(folder.with_name("key.lock"), print):
            is_held.set()
            time.sleep(0.7)

    other = threading.Thread(target=hold)
    other.start()
    is_held.wait()
    with lock_entry(folder, said.append):
        other.join(0.1)
        assert not other.is_alive()
    assert said == [f"waiting for another run that encodes the same text ({folder})"]


def test_the_last_use_is_recorded(entry: Path) -> None:
    os.utime(entry / encoded_parts.PARTS, (1, 1))
    fill(entry)
    assert (entry / encoded_parts.PARTS).stat().st_mtime > 10**9


# --- damage ---------------------------------------------------------------------------------------------------------


def damage(entry: Path, generator: random.Random) -> str:
    """Flips a bit of a file, cuts it, or removes it. Returns what was done."""
    path = generator.choice([path for path in sorted(entry.iterdir()) if path.stat().st_size])
    content, kind = bytearray(path.read_bytes()), generator.choice(["flip", "flip", "cut", "remove"])
    position = generator.randrange(max(1, len(content) - 1))  # not only the line end of the last line
    path.unlink()
    if kind == "flip":
        content[position] ^= 1 << generator.randrange(8)
    if kind != "remove":
        path.write_bytes(content if kind == "flip" else content[:position])
    return f"{kind} {path.name} {position}"


def test_every_damage_is_found_and_mended(entry: Path) -> None:
    files = {path.name: path.read_bytes() for path in entry.iterdir()}
    for seed in range(200):
        for name, content in files.items():
            (entry / name).unlink(missing_ok=True)
            (entry / name).write_bytes(content)
        said: list[str] = []
        done = damage(entry, random.Random(seed))
        assert find_whole_entry(entry, SPANS) is None, done
        assert_whole(fill(entry, said))
        assert len(said) == 1, done
        assert said[0].startswith("encoded text: "), done
        assert all((entry / name).read_bytes() == content for name, content in files.items() if name[-3:] == "bin"), (
            done
        )
        assert find_whole_entry(entry, SPANS) is not None, done


def test_only_damaged_parts_are_computed_again(entry: Path) -> None:
    begin = read_parts(entry)[1].arrays["input_ids"].begin
    content = bytearray((entry / "input_ids.bin").read_bytes())
    content[4 * begin + 1] ^= 4
    (entry / "input_ids.bin").write_bytes(content)
    numbers: list[int] = []

    def count(missing: Sequence[int]) -> Generator[Mapping[str, Array]]:
        numbers.extend(missing)
        return compute(missing)

    said: list[str] = []
    assert_whole(fill_entry(entry, SPANS, count, said.append))
    assert numbers == [1]
    assert said == [f"encoded text: 1 of 3 parts are damaged or missing and are computed again ({entry})"]


# --- malice ---------------------------------------------------------------------------------------------------------


def rename_array(values: dict[str, Any], name: str) -> None:
    values["arrays"][name] = values["arrays"].pop("input_ids")


HOSTILE: dict[str, Callable[[int, dict[str, Any]], Any]] = {
    "a path": lambda _, values: rename_array(values, "../../outside"),
    "an absolute path": lambda _, values: rename_array(values, "/etc/passwd"),
    "objects": lambda _, values: values["arrays"]["input_ids"].update(dtype="object"),
    "a type with fields": lambda _, values: values["arrays"]["input_ids"].update(dtype="i4,O"),
    "a huge array": lambda _, values: values["arrays"]["input_ids"].update(end=10**15),
    "a huge item": lambda _, values: values["arrays"]["input_ids"].update(begin=0, end=0, width=[10**6, 10**6]),
    "an item of nothing": lambda _, values: values["arrays"]["input_ids"].update(end=10**30, width=[0]),
    "a negative place": lambda _, values: values["arrays"]["input_ids"].update(begin=-1),
    "a fraction": lambda _, values: values["arrays"]["input_ids"].update(begin=0.0),
    "a part too many": lambda _, values: values.update(number=values["of"]),
    "no arrays": lambda _, values: values.update(arrays={}),
    "a list of arrays": lambda _, values: values.update(arrays=[]),
    "rows of another part": lambda _, values: values.update(rows=[0, 9]),
    "an unknown key": lambda _, values: values["arrays"]["input_ids"].update(__class__="os.system"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_list_with_right_digests_is_not_trusted(entry: Path, change: Callable[[int, dict[str, Any]], Any]) -> None:
    outside = entry.parent.parent / "outside.bin"
    outside.write_bytes(b"x" * 1000)
    rewrite(entry, change)
    assert find_whole_entry(entry, SPANS) is None
    assert_whole(fill(entry))
    assert outside.read_bytes() == b"x" * 1000


def test_lines_that_are_no_lists_of_parts_are_passed_over(entry: Path) -> None:
    nested = "[" * 100_000
    lines = [
        nested,
        "null",
        "[]",
        '{"rows": null}',
        '{"rows": [0, 1], "number": true, "of": 1, "arrays": {}}',
        "9" * 5000,
    ]
    with (entry / encoded_parts.PARTS).open("a") as file:
        file.writelines(f"{hashlib.sha256(line.encode()).hexdigest()} {line}\n" for line in lines)
        file.write("\0\xe9" * 100)
    assert_whole(fill(entry))


def test_parts_that_do_not_fit_together_are_an_error(entry: Path) -> None:
    content = (entry / "input_ids.bin").read_bytes()

    def shift(number: int, values: dict[str, Any]) -> None:
        if number == 1:
            array = values["arrays"]["input_ids"]
            array["begin"] -= 1
            part = content[4 * array["begin"] : 4 * array["end"]]
            array["sha256"] = hashlib.sha256(part).hexdigest()

    rewrite(entry, shift)
    assert find_whole_entry(entry, SPANS) is None
    with pytest.raises(InconsistentEntryError):
        fill(entry)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system has no such flag")
def test_no_link_is_followed(entry: Path) -> None:
    outside = entry.parent.parent / "outside"
    for name in (encoded_parts.PARTS, "input_ids.bin"):
        content = (entry / name).read_bytes()
        (entry / encoded_parts.PARTS).unlink(missing_ok=True)
        outside.write_bytes(content)
        (entry / name).unlink(missing_ok=True)
        (entry / name).symlink_to(outside)
        with pytest.raises(OSError, match="symbolic link"):
            fill(entry)
        assert outside.read_bytes() == content
    linked = entry.with_name("linked")
    linked.symlink_to(entry)
    with pytest.raises(OSError, match="symbolic link") as raised:
        fill(linked)
    assert raised.value.errno == errno.ELOOP


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_is_not_waited_for(entry: Path) -> None:
    for name in ("input_ids.bin", encoded_parts.PARTS):
        (entry / name).unlink()
        os.mkfifo(entry / name)
        assert find_whole_entry(entry, SPANS) is None
