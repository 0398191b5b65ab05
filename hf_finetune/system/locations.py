"""Locations that a user gives: package://NAME/path, .gguf files; and the pip command for a missing package."""

import glob
import importlib.util
import os.path
import re
from pathlib import Path

from hf_finetune.system.errors import InputError
from hf_finetune.system.files import hash_file


def local_path(location: str, key: str) -> str:
    """The path that `package://NAME/path[#sha256=HEX]` means; any other location unchanged.

    NAME is the import name; the package is found but not imported. With #sha256 the file (of a folder: its
    model.safetensors) must have that digest. `key` is the setting named in errors.
    """
    if not location.startswith("package://"):
        return location
    rest, wants_digest, digest = location.removeprefix("package://").partition("#sha256=")
    name, _, inside = rest.partition("/")
    try:
        spec = importlib.util.find_spec(name) if re.fullmatch(r"\w+", name) else None
    except ValueError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{key} ({location}): no package {name!r} is installed; {install_hint(name)}")
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.exists() and not glob.glob(str(path)):
        raise InputError(f"{key} ({location}): the package {name} holds no {inside}")
    if wants_digest:
        weights = path / "model.safetensors" if path.is_dir() else path
        found = hash_file(weights) if weights.is_file() else "no such file"
        if found != digest:
            raise InputError(f"{key} ({location}): {weights.name} is not the file that was expected (sha256 {found})")
    return str(path)


def model_files(location: str, key: str) -> tuple[str, dict[str, str]]:
    """What from_pretrained takes for a model's location: a folder or Hub id, and of a .gguf file its name beside them.

    Tensors of such a file are converted to floating point as they are loaded. InputError where the package gguf is missing.
    """
    source = local_path(location, key)
    if not source.lower().endswith(".gguf") or os.path.isdir(source):
        return source, {}
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{key} ({location}): a GGUF file is read by the package gguf: {install_hint('gguf')}")
    folder, name = os.path.split(source)
    return folder or ".", {"gguf_file": name}


def install_hint(import_name: str) -> str:
    """The pip command for a package: the smallest extra of ours that carries it, else its own name."""
    distribution = import_name.replace("_", "-")
    extras: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("hf-finetune") or []:
        if extra := re.search(r"extra == ['\"](\w+)['\"]", requirement):
            extras.setdefault(extra[1], []).append(re.split(r"[=<>!;\[ ]", requirement)[0].lower())
    carrying = [extra for extra, names in extras.items() if distribution.lower() in names]
    if carrying:
        return f"pip install 'hf-finetune[{min(carrying, key=lambda extra: len(extras[extra]))}]'"
    return f"pip install {distribution}"
