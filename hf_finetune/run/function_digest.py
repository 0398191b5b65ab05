"""Digests of the user's own functions, so that a run knows if one of them has changed."""

import functools
import hashlib
import json
import types
from collections.abc import Callable, Iterator
from typing import Any

from hf_finetune.config.references import make_reference

PLAIN = (str, bytes, int, float, complex, bool, type(None), type(...))

# Attributes of a class that Python writes, which depend on its place in a file, or on addresses in memory
WRITTEN_BY_PYTHON = ("__module__", "__doc__", "__firstlineno__", "__static_attributes__")


def digest_function(function: Callable[..., Any]) -> str:
    """Returns the sha256 of what a function or class is made of, in hexadecimal.

    That is its code as Python has compiled it, its defaults, and what it uses of its surroundings: plain values (numbers,
    strings, tuples of them), and functions and classes of the same module. It does not see changes in lists, dicts and other
    modules. Comments, and what stands next to a lambda in a line, do not count.
    """
    named: Any = function
    while isinstance(named, functools.partial):
        named = named.func
    named = named if hasattr(named, "__module__") else type(named)
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
    if isinstance(value, frozenset):
        return sorted(repr(item) for item in value)
    if isinstance(value, types.CodeType):
        return describe_code(value, module, seen)
    if isinstance(value, types.MethodType):
        return [describe_value(part, module, seen) for part in (value.__self__, value.__func__)]
    if isinstance(value, (types.FunctionType, type)):
        if value.__module__ != module or id(value) in seen:
            return make_reference(value)
        seen.add(id(value))
        if isinstance(value, type):
            return [make_reference(value), *describe_class(value, module, seen)]
        return [describe_code(value.__code__, module, seen), *describe_surroundings(value, module, seen)]
    if hasattr(value, "__wrapped__"):  # functools.cache
        return [make_reference(type(value)), describe_value(value.__wrapped__, module, seen)]
    if hasattr(value, "__qualname__"):
        return make_reference(value)
    if getattr(type(value), "__module__", "") == module:  # an object of one's own class, which can be called
        attributes = vars(value) if hasattr(value, "__dict__") else {}
        plain = [[name, describe_value(item, module, seen)] for name, item in sorted(attributes.items())]
        return [describe_value(type(value), module, seen), *plain]
    return make_reference(value)


def describe_class(value: type, module: str, seen: set[int]) -> Iterator[Any]:
    """Yields the bases of a class, and its plain values and methods."""
    yield [describe_value(base, module, seen) for base in value.__bases__]
    for name, member in sorted(vars(value).items()):
        # of a class or static method, a property, a cached property
        inside = [getattr(member, attribute, None) for attribute in ("__func__", "fget", "func")]
        function = next((part for part in inside if part is not None), member)
        is_described = isinstance(function, (types.FunctionType, tuple, *PLAIN)) or hasattr(function, "__wrapped__")
        if is_described and name not in WRITTEN_BY_PYTHON:
            yield [name, describe_value(function, module, seen)]


def describe_code(code: types.CodeType, module: str, seen: set[int]) -> list[Any]:
    """Returns compiled code as nested lists and strings, without its place in a file."""
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    arguments = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    constants = [describe_value(constant, module, seen) for constant in code.co_consts]
    return [code.co_code.hex(), code.co_exceptiontable.hex(), names, arguments, constants]


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
