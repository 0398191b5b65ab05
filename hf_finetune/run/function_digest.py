"""Digests of the user's own functions, so that a run knows if one of them has changed."""

import functools
import hashlib
import inspect
import json
import types
from collections.abc import Callable, Iterator
from typing import Any

from hf_finetune.config.references import make_reference

GENERATED = (
    "__module__",
    "__firstlineno__",
    "__static_attributes__",
)  # attributes of classes that say nothing of their code
PLAIN = (str, bytes, int, float, bool, type(None))


def digest_function(function: Callable[..., Any]) -> str:
    """Returns the sha256 of what a function is made of, in hexadecimal.

    That is its source, its defaults, and what it uses of its surroundings: plain values (numbers, strings, tuples of them), and
    functions and classes of the same module. It does not see changes in lists, dicts and other modules.
    """
    named = function if hasattr(function, "__module__") else type(function)
    described = describe_value(function, str(named.__module__), set())
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def describe_value(value: Any, module: str, seen: set[int]) -> Any:
    """Returns a function, class or plain value as nested lists and strings; of anything else its type.

    Args:
        value: What to describe.
        module: The module whose functions and classes are described by their code, those of others by their names.
        seen: The functions and classes that are described already, by their id.
    """
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, tuple):
        return [describe_value(item, module, seen) for item in value]
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, tuple(sorted(value.keywords.items())))
        return ["partial", *(describe_value(part, module, seen) for part in parts)]
    if isinstance(value, types.MethodType):
        return [describe_value(part, module, seen) for part in (value.__self__, value.__func__)]
    if isinstance(value, (types.FunctionType, type)):
        if value.__module__ != module or id(value) in seen:
            return make_reference(value)
        seen.add(id(value))
        if isinstance(value, type):
            return [make_reference(value), *describe_class(value, module, seen)]
        return [read_source(value), *describe_surroundings(value, module, seen)]
    if hasattr(value, "__qualname__"):
        return make_reference(value)
    if getattr(type(value), "__module__", "") == module:  # an object of one's own class, which can be called
        attributes = vars(value) if hasattr(value, "__dict__") else {}
        plain = [[name, describe_value(item, module, seen)] for name, item in sorted(attributes.items())]
        return [describe_value(type(value), module, seen), *plain]
    return make_reference(value)


def describe_class(value: type, module: str, seen: set[int]) -> Iterator[Any]:
    """Yields the bases of a class, and its plain values and methods. A notebook does not keep the source of a class."""
    yield [describe_value(base, module, seen) for base in value.__bases__]
    for name, member in sorted(vars(value).items()):
        function = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
        is_generated = name in GENERATED or (
            getattr(function, "__code__", None) and function.__code__.co_filename == "<string>"
        )
        if isinstance(function, (types.FunctionType, tuple, *PLAIN)) and not is_generated:
            yield [name, describe_value(function, module, seen)]


def describe_surroundings(function: types.FunctionType, module: str, seen: set[int]) -> Iterator[Any]:
    """Yields the defaults of a function, and the values outside it that it uses, with their names."""
    defaults = (function.__defaults__, tuple(sorted((function.__kwdefaults__ or {}).items())))
    yield describe_value(defaults, module, seen)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            yield [name, describe_value(cell.cell_contents, module, seen)]
        except ValueError:  # the variable has no value yet
            yield [name]
    for name in sorted(set(list_names(function.__code__))):
        if name in function.__globals__:
            yield [name, describe_value(function.__globals__[name], module, seen)]


def list_names(code: types.CodeType) -> Iterator[str]:
    """Yields the names that code uses, that of the functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from list_names(constant)


def read_source(value: Any) -> str:
    """Returns the source of a function or class; its import path if there is none."""
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        code = getattr(value, "__code__", None)
        return make_reference(value) + (code.co_code.hex() + repr(code.co_names) if code is not None else "")
