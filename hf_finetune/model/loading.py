"""Loads what transformers reads of a model without running code that came with it, and says why something cannot be loaded."""

import contextlib
import io
import json
import logging
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils.hub import cached_file

from hf_finetune.system.errors import InputError

# What transformers, tokenizers, safetensors and json raise if files are damaged or missing
LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError, AttributeError, EOFError, ArithmeticError),
    *(SafetensorError, StrictDataclassError, pickle.UnpicklingError, struct.error, MemoryError),
)

# Implementations of attention and of experts that are part of transformers and torch. A config can name others: transformers
# loads those from the Hub, as compiled code, if the package kernels is installed
KNOWN_IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")

MOST_LAYERS = 10_000  # models have some hundreds at most

CODE_FILES = ("config.json", "tokenizer_config.json")  # whose entry auto_map names code


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """Turns off transformers' progress bars and load reports until the block ends. What matters in them is checked and printed
    by this package."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def load_config(source: str, *, trust_code: bool = False, **options: Any) -> Any:
    """Returns the transformers config of a folder or Hub repository. options: of from_pretrained.

    Code that it names runs only with `trust_code`. Without, raises InputError if it asks for attention that is loaded from the
    Hub as code, and one of LOADING_ERRORS if its class is such code (see make_loading_error).
    """
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust_code, **options)
    if not trust_code:
        check_implementations(config, source)
    check_layers(config, source)
    return config


def check_implementations(config: Any, source: str) -> None:
    """Raises InputError if a config, or one inside it, asks for attention or experts that are not part of transformers."""
    for kind in ("attn_implementation", "experts_implementation"):
        value = getattr(config, f"_{kind}", None)
        if value is not None and value not in KNOWN_IMPLEMENTATIONS:
            raise InputError(
                f"{source}: its config.json asks for the {kind} {value}, which may be code of the Hub; remove that entry, or set "
                "model.trust_remote_code to true"
            )
    for part in vars(config).values():
        if isinstance(part, transformers.PretrainedConfig):
            check_implementations(part, source)


def check_layers(config: Any, source: str) -> None:
    """Raises InputError if a config, or one inside it, asks for more layers than any model has: they would be made one by one,
    for hours."""
    for name, value in vars(config).items():
        if isinstance(value, transformers.PretrainedConfig):
            check_layers(value, source)
        if "layer" in name and isinstance(value, int) and value > MOST_LAYERS:
            raise InputError(
                f"{source}: its config.json asks for {name} {value:,}, more than any model has; is it damaged?"
            )


def needs_code(error: BaseException) -> bool:
    """True if transformers refused to run code that a model's files name."""
    return "trust_remote_code" in str(error)


def make_code_error(where: str, source: str) -> InputError:
    """Returns the error for a model whose files name code that the user does not trust. where: How the message begins."""
    names = ", ".join(find_code_names(source))
    return InputError(
        f"{where}: needs Python code that came with it{f' ({names})' if names else ''}, which runs only with "
        "model.trust_remote_code true; read it before"
    )


def find_code_names(source: str) -> list[str]:
    """Returns the names of the classes of its own that a folder or Hub repository names, such as modeling_x.MyModel. Runs
    nothing."""
    names: list[str] = []
    for file in CODE_FILES:
        with contextlib.suppress(*LOADING_ERRORS, RecursionError):
            path = cached_file(source, file)
            auto_map = json.loads(Path(str(path)).read_text(encoding="utf-8")).get("auto_map", {})
            for value in auto_map.values():
                names += [str(name) for name in (value if isinstance(value, list) else [value]) if name]
    return list(dict.fromkeys(names))


def make_loading_error(
    backbone: str, source: str, what: str, error: BaseException, key: str = "model.backbone"
) -> InputError:
    """Returns an error of one line that distinguishes a missing backbone from a damaged one, and from one that needs code of its
    own.

    Args:
        backbone: The location as the user gave it.
        source: The folder or Hub id that it stands for.
        what: What was being loaded: model, tokenizer or adapter.
        error: What the library raised.
        key: The setting that the user gave.
    """
    if needs_code(error):
        return make_code_error(f"{key} ({backbone})", source)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if os.path.isdir(source):  # false also for a name that is too long for a path
        return InputError(f"{key} ({backbone}): the {what} in this folder cannot be loaded: {lines[0]}")
    return InputError(
        f"{key} ({backbone}): there is no such folder, and the Hub gives no such model "
        f"(is the name right, is there a network, is access granted?): {lines[0]}"
    )
