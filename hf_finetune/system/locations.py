"""Locations that a user gives: package://NAME/path and .gguf files. The pip command for a missing package."""

import glob
import importlib.util
import os.path
import re
from pathlib import Path

from hf_finetune.system.errors import InputError
from hf_finetune.system.files import hash_unchanged


def local_path(location: str, key: str) -> str:
    """Returns the path of `package://NAME/path[#sha256=HEX]`, and any other location unchanged.

    NAME is the import name of an installed package, which is found but not imported. With #sha256, the file, or the
    model.safetensors of a folder, must have that digest. `key` is the setting that errors name. Raises InputError if the
    package is not installed or lacks the path, or if the digest differs.
    """
    if not location.startswith("package://"):
        return location
    rest, has_digest, expected_digest = location.removeprefix("package://").partition("#sha256=")
    name, _, inner_path = rest.partition("/")
    try:
        spec = importlib.util.find_spec(name) if re.fullmatch(r"\w+", name) else None
    except ValueError:  # a module without a spec, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{key} ({location}): no package {name!r} is installed; {install_hint(name)}")
    path = Path(next(iter(spec.submodule_search_locations))) / inner_path
    if not path.exists() and not glob.glob(str(path)):
        raise InputError(f"{key} ({location}): the package {name} has no {inner_path}")
    if has_digest:
        weights = path / "model.safetensors" if path.is_dir() else path
        digest = hash_unchanged(weights) if weights.is_file() else "no such file"
        if digest != expected_digest:
            raise InputError(f"{key} ({location}): {weights.name} is not the expected file (its sha256: {digest})")
    return str(path)


def check_location(location: str, key: str) -> None:
    """Raises InputError if the location of a model is a path at which there is nothing: at once, not after asking the Hub for it.

    It is one if it cannot be a Hub id (NAME or OWNER/NAME), or if the folder before its last slash exists. `key` is the setting
    that the error names.
    """
    if location.startswith("package://") or os.path.lexists(location):
        return
    place = os.path.dirname(location) if location.lower().endswith(".gguf") else location
    is_hub_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", place) is not None
    if not is_hub_id or any(os.path.isdir(os.path.dirname(path)) for path in (place, location)):
        raise InputError(
            f"{key} ({location}): there is no such folder, and it is not asked for on the Hub, because it is a path"
        )


def is_gguf(source: str) -> bool:
    """True for the path of a GGUF file, in a folder or a Hub repository."""
    return source.lower().endswith(".gguf") and not os.path.isdir(source)


def install_hint(import_name: str) -> str:
    """Returns the pip command for a package: our smallest extra that contains it, else the package itself."""
    from importlib.metadata import requires  # takes 20 ms to import

    distribution = import_name.replace("_", "-")
    extras: dict[str, list[str]] = {}
    for requirement in requires("hf-finetune") or []:
        if extra := re.search(r"extra == ['\"](\w+)['\"]", requirement):
            extras.setdefault(extra[1], []).append(re.split(r"[=<>!;\[ ]", requirement)[0].lower())
    sizes = {extra: len(names) for extra, names in extras.items() if distribution.lower() in names}
    if sizes:
        return f"pip install 'hf-finetune[{min(sizes, key=lambda extra: sizes[extra])}]'"
    return f"pip install {distribution}"
