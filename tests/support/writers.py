"""Finds the functions of the package that change a disk, in its code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import hf_finetune

# Functions and methods that change a disk
WRITING = {
    "ParquetWriter", "TemporaryDirectory", "TemporaryFile", "chmod", "copyfile", "copytree", "fsync", "makedirs",
    "mkdir", "mkdtemp", "mkstemp", "new_stream", "posix_fallocate", "remove_quietly", "rename",
    "replace_atomically", "rmdir", "rmtree", "save", "save_file", "save_pretrained", "savez", "symlink_to", "touch",
    "truncate", "unlink", "utime", "write_atomically", "write_bytes", "write_text",
}  # fmt: skip
OPENING = {"open", "open_regular"}  # they write if an argument says so
MODES = ("O_RDWR", "O_WRONLY", "O_CREAT")


def writes(call: ast.Call) -> bool:
    """True for a call that changes a disk."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else ""
    if name in OPENING:
        words = [
            node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        flags = [node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)]
        is_mode = any(set(word) <= set("rwaxbt+") and set(word) & set("wax+") for word in words if word)
        return is_mode or any(flag in MODES for flag in flags)
    if name in ("write", "remove"):
        return owner == "os"
    if name == "move":
        return owner == "shutil"
    if (
        name == "replace"
    ):  # of a path, with one argument, or of os; str.replace() has two, dataclasses.replace() has names
        return owner == "os" or (isinstance(call.func, ast.Attribute) and len(call.args) == 1 and not call.keywords)
    return name in WRITING


def find_writers(node: ast.AST, module: str, name: str = "") -> Iterator[str]:
    """Yields the functions below a node that write, as `module:function`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            yield from find_writers(child, module, f"{name}.{child.name}" if name else child.name)
        else:
            if isinstance(child, ast.Call) and writes(child):
                yield f"{module}:{name}"
            yield from find_writers(child, module, name)


def list_writers() -> set[str]:
    """The functions of the package that write."""
    root, found = Path(hf_finetune.__file__).parent, set()
    for path in root.rglob("*.py"):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        found |= set(find_writers(ast.parse(path.read_text(encoding="utf-8")), module))
    return found
