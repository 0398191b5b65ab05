"""GGUF files as model folders. A file is converted once, and every later load opens the folder.

A GGUF file holds quantized weights under names of its own, and transformers needs three readings of it and a conversion of each
weight to load it. The folder lies in cache_root/converted/KEY: config.json, the tokenizer and model.safetensors with the
dequantized weights in fp32, 4 bytes each, so that they are mapped and not copied. The key holds the digest of the file and the
versions that convert it; digests.json holds those of the folder's files, which are checked when a process opens it.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils.hub import cached_file

from hf_finetune.config.model_sections import CacheConfig
from hf_finetune.model.converted_files import DIGESTS, FOLDER, find_damage
from hf_finetune.model.loading import LOADING_ERRORS, load_config, make_loading_error, silence_transformers
from hf_finetune.system.console import print_message
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import cache_root, hash_unchanged, rename, writing_error
from hf_finetune.system.locations import install_hint, is_gguf, local_path
from hf_finetune.system.locks import hold_lock
from hf_finetune.system.writers import check_writers

VERSION = 1  # raise it if the same file would give another folder
SECONDS_TO_WAIT = 3600.0  # for another process that converts the same file

OPTIONS = CacheConfig()


def open_source(location: str, key: str, *, revision: str | None = None, cache: CacheConfig = OPTIONS) -> str:
    """Returns the folder or Hub id that from_pretrained loads for the location of a model; for a GGUF file the folder that it was
    converted to, now or by an earlier run.

    Args:
        location: A folder, a Hub id, package://NAME/path, or a .gguf file in one of these.
        key: The setting that errors name.
        revision: Branch, tag or commit of a model on the Hub.
        cache: Where the folder lies.

    Raises InputError if the package gguf is missing, if there is no such file or it cannot be read, or if the folder of the
    caches cannot be written.
    """
    source = local_path(location, key)
    if not is_gguf(source):
        return source
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{key} ({location}): a GGUF file needs the package gguf: {install_hint('gguf')}")
    folder, name = os.path.split(source)
    try:
        with silence_transformers():
            path = Path(str(cached_file(folder or ".", name, revision=revision)))
        digest = hash_unchanged(path)
    except LOADING_ERRORS as error:
        raise make_loading_error(location, folder or ".", "model", error, key) from None
    versions = [VERSION, transformers.__version__, version("gguf")]
    converted = (
        cache_root(cache.dir) / FOLDER / hashlib.sha256(json.dumps([digest, versions]).encode()).hexdigest()[:32]
    )
    check_writers(converted.parent, (converted,), trust_others=cache.trust_other_users)
    if find_damage(converted) is not None:
        make_folder(path, converted, location, key)
    with contextlib.suppress(OSError):
        os.utime(converted / DIGESTS)  # the time of its last use
    return str(converted)


def make_folder(path: Path, folder: Path, location: str, key: str) -> None:
    """Converts a GGUF file into a folder, which replaces a damaged one. location, key: As in open_source()."""
    temporary = folder.with_name(f".writing-{uuid.uuid4().hex}")
    waiting = f"waiting for another process that converts {location}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock")
        with hold_lock(lock, print_message, seconds=SECONDS_TO_WAIT, waiting=waiting):
            if find_damage(folder) is None:  # another process was faster
                return
            print_message(f"{location} is converted once, into {folder}")
            temporary.mkdir()
            convert(path, temporary, location, key)
            shutil.rmtree(folder, ignore_errors=True)
            rename(temporary, folder)
    except OSError as error:
        hint = "set cache.dir or HF_FINETUNE_CACHE to a folder with room for its weights in fp32"
        raise InputError(f"{key} ({location}): {writing_error(folder.parent, 0, error)}; {hint}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def convert(path: Path, folder: Path, location: str, key: str) -> None:
    """Writes config, tokenizer and weights of a GGUF file into a folder, and the digests of all files."""
    source, file = str(path.parent), path.name
    try:
        with silence_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=file, trust_remote_code=False)
            config = load_config(source, gguf_file=file)
            model = find_class(config).from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                gguf_file=file,
                trust_remote_code=False,
                **make_dtype_options(),
            )
    except LOADING_ERRORS as error:
        raise make_loading_error(location, source, "model", error, key) from None
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)  # else save_pretrained refuses the model
    with silence_transformers():
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    digests = {part.name: hash_unchanged(part) for part in sorted(folder.iterdir())}
    (folder / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")


def find_class(config: Any) -> Any:
    """Returns the class that holds all weights of a GGUF file. Such files are of language models, and of T5's encoder."""
    names = getattr(config, "architectures", None)
    if names:
        return getattr(transformers, names[0])
    return transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM


def make_dtype_options() -> dict[str, Any]:
    """Returns the options that make from_pretrained convert the tensors of a GGUF file to floating point. Versions of
    transformers without GgufConfig always convert them."""
    if not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}
