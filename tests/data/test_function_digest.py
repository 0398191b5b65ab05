"""A digest of a function changes with its code and with what it uses, and with nothing else."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_finetune.data.function_digest import digest_function
from hf_finetune.system.errors import InputError

PROGRAM = """
import dataclasses
WEIGHT = 2.0
SIZES = (1, 2)

def double(value):
    return 2 * value

def loss(outputs, batch, scale=1):
    def inner(value):
        return double(value) * WEIGHT * SIZES[0]
    return inner(outputs) * scale, len(batch)

class Callable:
    def __init__(self, rate):
        self.rate = rate
    def __call__(self, update, model):
        return self.rate

look = Callable(0.5)
method = look.__call__

def make(limit):
    def closed(value):
        return value < limit
    return closed

class Base:
    size = 3
    def size_of(self, value):
        return value

@dataclasses.dataclass
class Task(Base):
    name: str = "a"
    @classmethod
    def make(cls):
        return double(cls.size)
    @property
    def named(self):
        return self.name

closed = make(3)
anonymous = lambda value: value + 1
"""


def run(program: str, name: str) -> Any:
    """The value of this name after the program has run in a module, whose source inspect finds, as in a notebook."""
    import linecache

    file = f"<cell {hash(program)}>"
    linecache.cache[file] = (len(program), None, program.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(program, file, "exec"), namespace)
    return namespace[name]


NAMES = ("loss", "look", "method", "closed", "anonymous", "Task")


@pytest.mark.parametrize("name", NAMES)
def test_the_digest_of_equal_code_is_equal(name: str) -> None:
    first = digest_function(run(PROGRAM, name))
    assert digest_function(run(PROGRAM, name)) == first
    assert digest_function(run(PROGRAM + "\nOTHER = 3\n", name)) == first
    assert len({digest_function(run(PROGRAM, other)) for other in NAMES}) == len(NAMES)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("loss", "* scale", "+ scale"),
        ("loss", "scale=1", "scale=2"),
        ("loss", "WEIGHT = 2.0", "WEIGHT = 3.0"),
        ("loss", "SIZES = (1, 2)", "SIZES = (3, 2)"),
        ("loss", "return 2 * value", "return 4 * value"),
        ("look", "return self.rate", "return -self.rate"),
        ("look", "Callable(0.5)", "Callable(0.6)"),
        ("method", "Callable(0.5)", "Callable(0.6)"),
        ("closed", "make(3)", "make(4)"),
        ("anonymous", "value + 1", "value + 2"),
        ("Task", "return double(cls.size)", "return cls.size"),
        ("Task", "return 2 * value", "return 4 * value"),
        ("Task", "return self.name", "return self.name * 2"),
        ("Task", "size = 3", "size = 4"),
        ("Task", "        return value\n", "        return -value\n"),
    ],
)
def test_the_digest_changes_with_what_a_function_is_made_of(name: str, old: str, new: str) -> None:
    assert PROGRAM.count(old) == 1
    assert digest_function(run(PROGRAM.replace(old, new), name)) != digest_function(run(PROGRAM, name))


def test_functions_of_libraries_partials_and_code_without_source_have_a_digest() -> None:
    functions: list[Callable[..., Any]] = [len, functools.partial(max, default=1), functools.partial(max, default=2)]
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec("def one(a):\n    return a.b\ndef two(a):\n    return a.c", namespace)
    functions += [namespace["one"], namespace["two"]]
    assert len({digest_function(function) for function in functions}) == 5


def test_a_variable_that_has_no_value_yet_is_left_out() -> None:
    def outer() -> Callable[..., Any]:
        def inner() -> Any:
            return later

        digests.append(digest_function(inner))
        later = 3
        digests.append(digest_function(inner))
        return inner

    digests: list[str] = []
    outer()
    assert digests[0] != digests[1]


WRAPPED = """
import functools

def inner(value):
    return value * 2

fixed = functools.partial(inner, 1)

@functools.lru_cache
def kept(value):
    return value * 3

class Watch:
    @functools.cached_property
    def rate(self):
        return 4
    def __call__(self, update, model):
        return self.rate

watch = Watch()
"""


@pytest.mark.parametrize(
    ("name", "old", "new"), [("fixed", "* 2", "* 5"), ("kept", "* 3", "* 5"), ("watch", "return 4", "return 5")]
)
@pytest.mark.parametrize("has_source", [True, False])
def test_the_digest_sees_into_wrapped_functions_with_and_without_source(
    name: str, old: str, new: str, has_source: bool
) -> None:
    def load(program: str) -> Any:
        if has_source:
            return run(program, name)
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(program, namespace)
        return namespace[name]

    assert digest_function(load(WRAPPED)) == digest_function(load(WRAPPED))
    assert digest_function(load(WRAPPED)) != digest_function(load(WRAPPED.replace(old, new)))


def test_comments_and_what_stands_next_to_a_lambda_do_not_count() -> None:
    first = "value = dict(epochs=2, function=lambda update: update + 1)['function']"
    second = "# a comment\nvalue = dict(epochs=3, function=lambda update: update + 1)['function']"
    assert digest_function(run(first, "value")) == digest_function(run(second, "value"))
    third = second.replace("+ 1", "+ 2")
    assert digest_function(run(third, "value")) != digest_function(run(second, "value"))


CONTAINERS = """
import numpy, torch
VALUE = {}
def loss(outputs, batch):
    return VALUE
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{'a': [1.0]}", "{'a': [2.0]}"),
        ("[1, {2, 3}]", "[1, {2, 4}]"),
        ("torch.tensor([1.0, 2.0])", "torch.tensor([1.0, 3.0])"),
        ("torch.tensor([1.0, 2.0])", "torch.tensor([1.0, 2.0], dtype=torch.float64)"),
        ("numpy.array([[1, 2]])", "numpy.array([[1], [2]])"),
        ("[torch.nn.Parameter(torch.ones(1))]", "[torch.nn.Parameter(torch.zeros(1))]"),
    ],
)
def test_the_digest_changes_with_lists_dicts_and_tensors_unless_the_function_may_change_them(
    old: str, new: str
) -> None:
    """Weights of classes often stand in a tensor next to the loss."""
    first, again, second = (run(CONTAINERS.format(value), "loss") for value in (old, old, new))
    assert digest_function(first) == digest_function(again) != digest_function(second)
    assert digest_function(first, is_pure=False) == digest_function(again, is_pure=False)
    if type(first.__globals__["VALUE"]) in (list, dict):
        assert digest_function(first, is_pure=False) == digest_function(second, is_pure=False)


def test_classes_of_torch_and_sparse_tensors_have_a_digest() -> None:
    values = ("torch.Tensor", "torch.ones(2).to_sparse()", "torch.zeros(2).to_sparse()", "numpy.ndarray")
    assert len({digest_function(run(CONTAINERS.format(value), "loss")) for value in values}) == 4


def test_a_list_that_holds_itself_has_a_digest() -> None:
    function = run(CONTAINERS.format("[1]"), "loss")
    function.__globals__["VALUE"].append(function.__globals__["VALUE"])
    assert digest_function(function) == digest_function(function)


OWN = """
import enum
import re
import numpy

PATTERN = re.compile("a+")
KINDS = frozenset({len, max, "b"})
OBJECTS = numpy.array(["x", 1], dtype=object)
TABLE = numpy.arange(3)
TEXTS = ["not used"]

class Mode(enum.Enum):
    FAST = 1
    SLOW = 2

class Own:
    words = ["the", "of"]
    rates = {"the": 1}
    names = {"p", "q"}
    pattern = re.compile("b+")
    class Inner:
        def cut(self, text):
            return text[1:3]
    def tokenize(self, table):
        return PATTERN, KINDS, OBJECTS, TABLE, Mode.FAST, self.words, table.TEXTS
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"a+"', '"a*"'),
        ('"b"})', '"c"})'),
        ('["x", 1]', '["y", 1]'),
        ("arange(3)", "arange(4)"),
        ("FAST = 1", "FAST = 3"),
        ('["the", "of"]', '["the"]'),
        ('{"the": 1}', '{"the": 2}'),
        ('{"p", "q"}', '{"p"}'),
        ('"b+"', '"b*"'),
        ("[1:3]", "[2:3]"),
    ],
)
def test_the_values_of_a_class_and_of_its_module_count(old: str, new: str) -> None:
    assert OWN.count(old) == 1
    assert digest_function(run(OWN.replace(old, new), "Own")) != digest_function(run(OWN, "Own"))


def test_the_digest_of_a_class_is_that_of_other_processes(tmp_path: Path) -> None:
    """It has no addresses and no order of hashes; a name after a dot is no value of the module."""
    program = tmp_path / "own.py"
    program.write_text(
        OWN + "\nif __name__ == '__main__':\n    from hf_finetune.data.function_digest import digest_function\n"
        "    print(digest_function(Own))\n",
        encoding="utf-8",
    )
    texts = program.read_text(encoding="utf-8")
    (other := tmp_path / "other.py").write_text(texts.replace("not used", "nor here"), encoding="utf-8")
    root = str(Path(__file__).parents[2])
    digests = {
        subprocess.run(
            [sys.executable, path],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
            check=True,
            capture_output=True,
        ).stdout
        for seed, path in (("0", program), ("77", program), ("1", other))
    }
    assert len(digests) == 1


ENDLESS = """
class Own:
    def __init__(self):
        self.me, self.call = self, self.give
    def give(self):
        return self
    def __getattr__(self, name):
        return Own()

OBJECT = Own()
DEEP = []
for _ in range(5000):
    DEEP = [DEEP]

def uses_object():
    return OBJECT

def uses_deep():
    return DEEP
"""


def test_values_that_refer_to_themselves_have_a_digest_and_deep_ones_are_named() -> None:
    assert digest_function(run(ENDLESS, "uses_object")) == digest_function(run(ENDLESS, "uses_object"))
    with pytest.raises(
        InputError, match="__main__:uses_deep: the values of its module that it uses are nested too deeply"
    ):
        digest_function(run(ENDLESS, "uses_deep"))
