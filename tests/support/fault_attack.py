"""The attack on a writer: each fault of a disk (support.faulty_disk) at each of its calls, and what must hold after it."""

import contextlib
import io
import os
import random
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_finetune.system.errors import InputError
from support.faulty_disk import CHANGES, FAULTS, Call, DeathError, Disk, limit_files

LIMIT = "limit"  # the fault of limit_files()


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One writer.

    Args:
        name: For the test.
        prepare: Makes in a folder what is there before.
        write: Writes into the folder, and returns a comparable result.
        read: Returns what is in the folder by name, as those read it who use it. What it leaves out may differ from run to run.
        goes_on: It needs no disk: an error ends nothing, and the result is the same. `write` returns the result and the lines
            that were said, and if files are missing afterwards, there must be one.
        leaves: Files that may be left after all went well, as glob patterns.
        dies: It is also attacked with the death of the process; not if threads of other packages write.
        sample: The number of faults, unless the environment has HF_FINETUNE_ALL_FAULTS.
    """

    name: str
    prepare: Callable[[Path], object] = lambda folder: None
    write: Callable[[Path], Any]
    read: Callable[[Path], Mapping[str, Any]]
    goes_on: bool = False
    leaves: tuple[str, ...] = ()
    sample: int = 6
    dies: bool = True


@dataclass(frozen=True)
class Case:
    """A fault, at the call with this number; or a limit on the size of files."""

    fault: str
    number: int
    description: str


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a run of the writer without a fault found and left."""

    calls: list[Call]
    old: Mapping[str, Any]
    new: Mapping[str, Any]
    result: Any
    names: set[str]

    @property
    def writers(self) -> set[str]:
        """The functions of the package that made a call which changes the disk, as `module:function`."""
        return {name for call in self.calls if call.name in CHANGES for name in call.functions}


class Place:
    """A folder that is made as it was before each fault, always at the same path."""

    def __init__(self, folder: Path, attack: Attack) -> None:
        self.template, self.work, self.attack = folder / "template", folder / "work", attack
        self.work.mkdir(parents=True)
        attack.prepare(self.work)
        shutil.copytree(self.work, self.template, symlinks=True)

    def reset(self) -> None:
        """Makes the folder as it was."""
        shutil.rmtree(self.work)
        shutil.copytree(self.template, self.work, symlinks=True)

    def list_names(self) -> set[str]:
        """Returns all files below the folder, but those that the attack may leave."""
        paths = [path for path in self.work.rglob("*") if not any(path.match(each) for each in self.attack.leaves)]
        return {str(path.relative_to(self.work)) for path in paths}

    def observe(self) -> Expected:
        """Runs the writer without a fault, and counts its calls."""
        old = self.attack.read(self.work)
        with Disk(self.work).at_work() as disk:
            result = self.attack.write(self.work)
        result = result[0] if self.attack.goes_on else result
        new = self.attack.read(self.work)
        return Expected(calls=disk.calls, old=old, new=new, result=result, names=self.list_names())


def list_cases(expected: Expected, place: Place) -> list[Case]:
    """Returns all faults at all calls, and limits below, at and in the middle of the sizes of the files that were written."""
    cases = [
        Case(fault, number, f"{fault} at {call.name} of {os.path.basename(call.target)} ({number})")
        for number, call in enumerate(expected.calls)
        for fault, names in FAULTS.items()
        if call.name in names and (fault != "death" or place.attack.dies)
    ]
    sizes = {path.stat().st_size for path in place.work.rglob("*") if path.is_file()}
    limits = sorted({0, 1, *(size // 2 for size in sizes), *(size - 1 for size in sizes if size)})
    return [*cases, *(Case(LIMIT, limit, f"no file above {limit} bytes") for limit in limits)]


def choose_cases(cases: list[Case], attack: Attack) -> list[Case]:
    """Returns all cases if the environment asks for them, else some: drawn by the name, of each fault about as many."""
    if os.environ.get("HF_FINETUNE_ALL_FAULTS"):
        return cases
    generator = random.Random(attack.name)
    drawn = [(generator.random(), number, case) for number, case in enumerate(cases)]
    by_fault: dict[str, int] = {}
    ranked = []
    for key, number, case in sorted(drawn, key=lambda item: item[:2]):
        by_fault[case.fault] = by_fault.get(case.fault, 0) + 1
        ranked.append((by_fault[case.fault], key, number, case))
    return [case for *_, case in sorted(ranked, key=lambda item: item[:3])[: attack.sample]]


def attack_writer(attack: Attack, folder: Path) -> tuple[int, list[str], set[str]]:
    """Attacks a writer. Returns the number of faults, a line about each after which something did not hold, and the functions of
    the package that were attacked."""
    place = Place(folder, attack)
    expected = place.observe()
    assert expected.calls, "writes nothing"
    assert any(call.name in CHANGES for call in expected.calls), "changes nothing"
    cases = choose_cases(list_cases(expected, place), attack)
    failures = []
    for case in cases:
        place.reset()
        failures += [f"{case.description}: {line}" for line in find_failures(attack, place, expected, case)]
    return len(cases), failures, expected.writers


@contextlib.contextmanager
def break_disk(place: Place, case: Case) -> Iterator[None]:
    """A disk with the fault."""
    if case.fault == LIMIT:
        with limit_files(case.number):
            yield
    else:
        quiet = contextlib.redirect_stderr(io.StringIO())
        with contextlib.redirect_stdout(io.StringIO()), quiet, Disk(place.work, case.number, case.fault).at_work():
            yield


def find_failures(attack: Attack, place: Place, expected: Expected, case: Case) -> Iterator[str]:
    """Yields what does not hold after a fault."""
    raised: BaseException | None = None
    result = None
    try:
        with break_disk(place, case):
            result = attack.write(place.work)
    except (Exception, DeathError) as error:  # noqa: BLE001  which they must not be
        raised = error
    if isinstance(raised, InputError):
        if str(place.work) not in str(raised):
            yield f"the message does not name the file: {raised}"
    elif raised is not None and not isinstance(raised, DeathError):
        yield f"ends in {type(raised).__name__}: {raised} at {describe_place(raised)}"
    if attack.goes_on and raised is not None and not isinstance(raised, DeathError):
        yield f"does not go on: {raised}"
    if attack.goes_on and raised is None:
        result, said = result
        if (missing := expected.names - place.list_names()) and not said:
            yield f"says nothing about {sorted(missing)}"
    if raised is None and result != expected.result:
        yield f"gives another result: {result!r:.200}"
    yield from compare(attack, place, expected, is_done=raised is None and not attack.goes_on)
    try:
        result = attack.write(place.work)
    except (Exception, DeathError) as error:  # noqa: BLE001  which they must not be
        yield f"then ends in {type(error).__name__}: {error} at {describe_place(error)}"
        return
    if (result[0] if attack.goes_on else result) != expected.result:
        yield f"then gives another result: {result!r:.200}"
    if (now := attack.read(place.work)) != expected.new:
        yield f"then leaves other content: {show_difference(now, expected.new)}"
    if (names := place.list_names()) != expected.names:
        yield f"then leaves {sorted(names - expected.names)}, and not {sorted(expected.names - names)}"


def compare(attack: Attack, place: Place, expected: Expected, *, is_done: bool) -> Iterator[str]:
    """Yields what is neither old nor new. is_done: All must be new."""
    try:
        now = attack.read(place.work)
    except Exception as error:  # noqa: BLE001
        yield f"leaves what cannot be read: {type(error).__name__}: {error} at {describe_place(error)}"
        return
    for name in {*now, *expected.old, *expected.new}:
        allowed = [expected.new.get(name)] if is_done else [expected.new.get(name), expected.old.get(name)]
        if now.get(name) not in allowed:
            yield f"leaves {name} as {now.get(name)!r:.200}, {'not the new one' if is_done else 'neither old nor new'}"


def show_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Returns the names whose values differ."""
    return ", ".join(
        f"{name} ({ours.get(name)!r:.80}, not {theirs.get(name)!r:.80})"
        for name in {*ours, *theirs}
        if ours.get(name) != theirs.get(name)
    )


def describe_place(error: BaseException) -> str:
    """Returns the last line of the package in a traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/hf_finetune/" in frame.filename]
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "?"
