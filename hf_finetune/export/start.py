"""Where a run begins: the model folder, or the Hub id, that start_from or model.backbone stands for.

A checkpoint, or an adapter, is made into a complete model in the new run's folder once. So the run needs nothing else later, and
starts from the same weights if it is called again.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import TASKS
from hf_finetune.export.materialize import START_FOLDER, read_content, write_checkpoint_model
from hf_finetune.export.model_folder import write_folder
from hf_finetune.model import backbone, heads, loading, lora
from hf_finetune.run import checkpoint
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import disk_error, hash_file, write_atomically
from hf_finetune.system.locations import is_gguf, local_path
from hf_finetune.system.processes import Runtime

SOURCE = "source.json"  # in START_FOLDER: what start_from was, and the name of the folder that was made from it


def resolve_start(config: RunConfig, runtime: Runtime) -> RunConfig:
    """Returns the config with model.backbone as the model folder or Hub id that the run begins from: start_from replaces it, and
    a run folder stands for the model in it.

    The main process writes a complete model into the run's folder if start_from is a checkpoint or an adapter. Raises InputError
    if there is no such model, or if start_from is the folder of this run. On all processes.
    """
    source = runtime.on_main(lambda: find_recorded(config) or find_start(config))
    return replace(config, model=replace(config.model, backbone=source))


def find_recorded(config: RunConfig) -> str | None:
    """Returns the folder that a run with checkpoints has made from its start_from, None if there is none."""
    folder = config.run_dir / START_FOLDER
    if config.checkpoint.resume == "never" or not checkpoint.read_manifests(config.run_dir / "checkpoints"):
        return None
    try:
        recorded = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        made = folder / recorded["folder"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return str(made) if recorded.get("start_from") == config.start_from and made.is_dir() else None


def find_start(config: RunConfig) -> str:
    """Returns the model folder or Hub id that a run begins from; writes a complete model if that is a checkpoint or an
    adapter."""
    location, key = config.model.backbone, "model.backbone"
    if config.start_from is not None:
        location, key = config.start_from, "start_from"
    check_is_elsewhere(config, location, key)
    if is_file(location) and not is_gguf(location):
        if key != "start_from":
            raise InputError(f"{key} ({location}): is a file; to begin from a checkpoint, set start_from to it")
        path = Path(location)
        return make_once(config, hash_file(path), lambda folder: write_start(config, path, folder))
    source = backbone.find_model_source(location, key)
    if location.startswith("package://"):  # its name goes into cards and adapters, and loading checks its digest
        source = location
    if os.path.isdir(source) and not backbone.holds_model(Path(source)):
        raise make_no_model_error(location, key)
    if key != "start_from" and not os.path.isdir(source):  # a Hub id is not asked twice
        return source
    return merge_adapter(config, source, location, key)


def is_file(location: str) -> bool:
    """True for a file. InputError if the disk does not tell: a checkpoint would be taken for the name of a model."""
    try:
        return stat.S_ISREG(os.stat(location).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise disk_error(Path(location), error) from None


def check_is_elsewhere(config: RunConfig, location: str, key: str) -> None:
    """Raises InputError if a location lies in the folder of this run, which replaces what is in it."""
    place, own = os.path.abspath(location), os.path.abspath(config.run_dir)
    if place == own or place.startswith(own + os.sep):
        raise InputError(
            f"{key} ({location}): is in the folder of this run, which continues if it is called again as before; to begin a new "
            "run from it, choose another name"
        )


def make_no_model_error(location: str, key: str) -> InputError:
    """Returns the error for a folder without a model. If it is that of a run, it names the run's last checkpoint."""
    folder = Path(location) / "checkpoints"
    last = checkpoint.find_last(folder)
    if last is None:
        return InputError(f"{key} ({location}): holds no model: there is no config.json")
    return InputError(
        f"{key} ({location}): is a run without a finished model; to begin from its last checkpoint, set start_from to "
        f"{folder / last}"
    )


def merge_adapter(config: RunConfig, source: str, location: str, key: str) -> str:
    """Returns `source` if it is a complete model; if it holds an adapter alone, the folder of the complete model."""
    place = local_path(source, key)
    if is_gguf(place) or not is_adapter(place, location, key):
        return source
    if key != "start_from":
        raise InputError(
            f"{key} ({location}): holds an adapter alone; to begin from it and its model, set start_from to it"
        )
    trust = config.model.trust_remote_code
    return make_once(
        config, hash_file(lora.find_weights(place)), lambda folder: write_merged(place, folder, trust_code=trust)
    )


def is_adapter(source: str, location: str, key: str) -> bool:
    """True if a folder or Hub repository holds an adapter and no complete model. Raises InputError if it cannot be read."""
    try:
        with loading.silence_transformers():
            return lora.read_adapter_settings(source) is not None
    except loading.LOADING_ERRORS as error:
        raise loading.make_loading_error(location, source, "model", error, key=key) from None


def make_once(config: RunConfig, digest: str, write: Callable[[Path], object]) -> str:
    """Returns the folder of a model that `write` makes, if it is not there from an earlier call. digest: of what it is made
    from."""
    parent = config.run_dir / START_FOLDER
    folder = parent / hashlib.sha256(digest.encode()).hexdigest()[:16]
    parent.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        # A new head must not depend on whether the folder was there
        with torch.random.fork_rng(devices=[]):
            write(folder)
    recorded = {"start_from": config.start_from, "folder": folder.name}
    write_atomically(parent / SOURCE, json.dumps(recorded, indent=2).encode())
    return str(folder)


def write_start(config: RunConfig, path: Path, folder: Path) -> None:
    """Writes the complete model of the checkpoint at `path`. A task that is a class of the user's own is imported only if the run
    has the same task."""
    try:
        content = read_content(path)
        kind = content["run"]["config"]["task"]["kind"]
        if kind not in TASKS and kind != config.task.kind:
            raise InputError(
                f"its task is the class {kind}, which is imported only if you name it: make a model of the checkpoint by "
                f"`hf-finetune materialize {path} --out FOLDER --task {kind}`, and set start_from to FOLDER"
            )
        write_checkpoint_model(path, content, folder, trust_code=config.model.trust_remote_code, merge=True)
    except InputError as error:
        raise InputError(f"start_from ({path}): {error}") from None


def write_merged(source: str, folder: Path, *, trust_code: bool) -> None:
    """Writes the complete model of an adapter, which is added to the weights of its pretrained model, and its tokenizer.

    trust_code: Run Python code that the files name."""
    try:
        with loading.silence_transformers():
            settings = lora.read_adapter_settings(source)
            hf_config = lora.load_config(source, trust_code=trust_code)
            assert settings is not None
            head = heads.find_head(hf_config) or heads.NO_HEAD
            loaded = lora.load_adapter(
                source, getattr(transformers, head.auto_class), hf_config, settings, trust_code=trust_code
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trust_code)
    except loading.LOADING_ERRORS as error:
        raise loading.make_loading_error(source, source, "adapter", error, key="start_from") from None

    def write(temporary: Path) -> None:
        loaded.model.save_pretrained(temporary, state_dict=lora.merge_adapters(loaded.model))
        tokenizer.save_pretrained(temporary)

    write_folder(folder, loaded.model, write)
