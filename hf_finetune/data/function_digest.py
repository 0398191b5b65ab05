"""Digests of the user's own functions, so that a run knows if one of them has changed."""

import dis
import enum
import functools
import hashlib
import inspect
import json
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hf_finetune.config.references import make_reference
from hf_finetune.data.plain import name_library
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import digest_tensors

CONTAINERS = (list, dict, set)
PLAIN = (str, bytes, int, float, complex, bool, type(None), type(...))

# Attributes of a class that Python writes, which depend on its place in a file, or on addresses in memory
WRITTEN_BY_PYTHON = frozenset({
    "__module__", "__doc__", "__firstlineno__", "__static_attributes__", "__annotations__", "__conditional_annotations__",
    "__dataclass_fields__", "__dataclass_params__", "__protocol_attrs__", "__abstractmethods__",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a description goes into.

    Args:
        module: The module whose functions and classes are described by their code, those of others by their names.
        has_containers: Lists, dicts, arrays and tensors are described by their content, not by their type.
        seen: The functions, classes, containers and objects that are described already, by their id.
    """

    module: str
    has_containers: bool
    seen: set[int] = field(default_factory=set)


def digest_function(function: Callable[..., Any], *, is_pure: bool = True) -> str:
    """Returns the sha256 of what a function or class is made of, in hexadecimal.

    That is its code as Python has compiled it, its defaults, and what it uses of its surroundings: values (numbers, strings,
    lists, dicts, arrays, tensors), and functions and classes of the same module. It does not see changes in other modules.
    Comments, and what stands next to a lambda in a line, do not count.

    is_pure: False for a function that may collect what it sees: the content of lists, dicts, arrays and tensors does not count
        then.
    """
    named: Any = function
    while isinstance(named, functools.partial):
        named = named.func
    named = named if hasattr(named, "__module__") else type(named)
    try:
        described = describe_value(function, Scope(module=str(named.__module__), has_containers=is_pure))
    except RecursionError:
        raise InputError(
            f"{make_reference(named)}: the values of its module that it uses are nested too deeply to see whether they change; "
            "make them flatter, or give them as settings"
        ) from None
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def describe_value(value: Any, scope: Scope) -> Any:
    """Returns a function, class, plain value or container as nested lists and strings; of anything else its type."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, tuple):
        return [describe_value(item, scope) for item in value]
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, tuple(sorted(value.keywords.items())))
        return ["partial", *(describe_value(part, scope) for part in parts)]
    if isinstance(value, frozenset):
        return sorted((describe_value(item, scope) for item in value), key=json.dumps)
    if isinstance(value, re.Pattern):
        return ["pattern", repr(value.pattern), value.flags]
    if isinstance(value, slice):
        return ["slice", *(describe_value(part, scope) for part in (value.start, value.stop, value.step))]
    if scope.has_containers and isinstance(value, CONTAINERS):
        return describe_container(value, scope)
    if scope.has_containers and is_array(value):
        is_plain = getattr(value.dtype, "kind", "") != "O"  # an array of Python's objects
        return [make_reference(value), hash_array(value) if is_plain else describe_value(value.tolist(), scope)]
    if isinstance(value, types.CodeType):
        return describe_code(value, scope)
    if isinstance(value, types.MethodType):
        return [describe_value(part, scope) for part in (value.__self__, value.__func__)]
    if isinstance(value, (types.FunctionType, type)):
        if value.__module__ != scope.module or id(value) in scope.seen:
            return make_reference(value)
        scope.seen.add(id(value))
        if isinstance(value, type):
            return [make_reference(value), *describe_class(value, scope)]
        return [describe_code(value.__code__, scope), *describe_surroundings(value, scope)]
    if has_attribute(value, "__wrapped__"):  # functools.cache
        return [make_reference(type(value)), describe_value(value.__wrapped__, scope)]
    if has_attribute(value, "__qualname__"):
        return make_reference(value)
    is_own = getattr(type(value), "__module__", "") == scope.module  # an object of one's own class
    if is_own and id(value) not in scope.seen:
        scope.seen.add(id(value))
        attributes = vars(value) if has_attribute(value, "__dict__") else {}
        plain = [[name, describe_value(item, scope)] for name, item in sorted(attributes.items())]
        return [describe_value(type(value), scope), *plain]
    return make_reference(value)


def has_attribute(value: Any, name: str) -> bool:
    """True if a value has an attribute, without the code of a __getattr__, which may make any."""
    return inspect.getattr_static(value, name, None) is not None


def describe_container(value: Any, scope: Scope) -> Any:
    """Returns the content of a list, set or dict."""
    if id(value) in scope.seen:  # it may hold itself
        return make_reference(value)
    scope.seen.add(id(value))
    if isinstance(value, dict):
        return ["dict", *([describe_value(part, scope) for part in item] for item in value.items())]
    items = [describe_value(item, scope) for item in value]
    return [type(value).__name__, *(items if isinstance(value, list) else sorted(items, key=json.dumps))]


def is_array(value: Any) -> bool:
    """True for an array of numpy or a tensor of torch."""
    is_class = isinstance(value, type)  # torch.Tensor itself has all methods of its instances
    return name_library(value) in ("numpy", "torch") and hasattr(value, "tolist") and not is_class


def hash_array(value: Any) -> str:
    """Returns the sha256, in hexadecimal, of the type, shape and numbers of an array or tensor."""
    digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode())
    if name_library(value) == "torch":
        return digest.hexdigest() if value.is_meta else digest_tensors({"": value.to_dense()}, [""])
    digest.update(value.tobytes())
    return digest.hexdigest()


def describe_class(value: type, scope: Scope) -> Iterator[Any]:
    """Yields the bases of a class, and its values, methods and classes."""
    yield [describe_value(base, scope) for base in value.__bases__]
    if issubclass(value, enum.Enum):
        yield [[name, describe_value(member.value, scope)] for name, member in value.__members__.items()]
    values: tuple[type, ...] = (types.FunctionType, type, tuple, frozenset, re.Pattern, slice, *PLAIN)
    values = (*values, *CONTAINERS) if scope.has_containers else values
    for name, member in sorted(vars(value).items()):
        # of a class or static method, a property, a cached property
        inside = [getattr(member, attribute, None) for attribute in ("__func__", "fget", "func")]
        function = next((part for part in inside if part is not None), member)
        is_described = isinstance(function, values) or has_attribute(function, "__wrapped__")
        is_described = is_described or (scope.has_containers and is_array(function))
        if is_described and name not in WRITTEN_BY_PYTHON and not is_of_enum(value, name):
            yield [name, describe_value(function, scope)]


def is_of_enum(kind: type, name: str) -> bool:
    """True for what Python makes in an enumeration: its members by name and by value, whose order is that of their addresses."""
    return issubclass(kind, enum.Enum) and (name.startswith("_") or name in kind.__members__)


def describe_code(code: types.CodeType, scope: Scope) -> list[Any]:
    """Returns compiled code as nested lists and strings, without its place in a file."""
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    arguments = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    constants = [describe_value(constant, scope) for constant in code.co_consts]
    return [code.co_code.hex(), code.co_exceptiontable.hex(), names, arguments, constants]


def describe_surroundings(function: types.FunctionType, scope: Scope) -> Iterator[Any]:
    """Yields the defaults of a function, and the values outside it that it uses, with their names."""
    defaults = (function.__defaults__, tuple(sorted((function.__kwdefaults__ or {}).items())))
    yield describe_value(defaults, scope)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            yield [name, describe_value(cell.cell_contents, scope)]
        except ValueError:  # the variable has no value yet
            yield [name]
    for name in sorted(set(list_names(function.__code__))):
        if name in function.__globals__:
            yield [name, describe_value(function.__globals__[name], scope)]


def list_names(code: types.CodeType) -> Iterator[str]:
    """Yields the names of values outside of code that it uses, those of the functions inside it included."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from list_names(constant)
