"""Makes a complete model from a checkpoint, also from one that holds only the trained parameters."""

import os.path
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hf_finetune.config.loading import config_from_dict
from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import check_is_named, load_task
from hf_finetune.export.card import make_checkpoint_card
from hf_finetune.export.model_folder import record_settings, write_model
from hf_finetune.model import backbone, lora
from hf_finetune.run import checkpoint, resume
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import explain_failures

# In a run's folder: complete models that were made from its start_from (export/start.py). Hidden, because it is there before the
# run is
START_FOLDER = ".start_from"


def materialize(path: Path, out: Path, *, task: str | None = None, trust_remote_code: bool = False) -> Path:
    """Writes the model of a checkpoint to the folder `out`, so that from_pretrained loads it, and returns the folder.

    Parameters that the checkpoint leaves out come from the backbone that the run's config names. Raises InputError if the
    checkpoint is damaged, if the backbone is no longer the same, or if `out` exists.

    task: Import path of the run's task if it is a class of your own. No checkpoint can have a class imported that is not named
    here. trust_remote_code: Run Python code that the backbone's files name, whatever the checkpoint says.
    """
    if os.path.lexists(out):  # Path.exists() raises for a name that is too long, and is False for a broken link
        raise InputError(f"--out ({out}): exists; name a new folder")
    if not os.path.isdir(out.absolute().parent):
        raise InputError(f"--out ({out}): there is no folder {out.absolute().parent}")
    with explain_failures(path.parent):
        content = read_content(path)
    check_is_named(content["run"]["config"]["task"]["kind"], task, str(path))
    return write_checkpoint_model(path, content, out, trust_code=trust_remote_code)


def read_content(path: Path) -> dict[str, Any]:
    """Returns the dict of a checkpoint. Raises InputError if it is missing or damaged, or was not made by this package."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such checkpoint; `hf-finetune checkpoints RUN` lists those of a run")
    if damage := checkpoint.find_damage_in_file(path):
        raise InputError(f"{path}: {damage}")
    content = checkpoint.load_checkpoint(path)
    resume.check_format(path, content)
    return content


def write_checkpoint_model(
    path: Path, content: Mapping[str, Any], out: Path, *, trust_code: bool, merge: bool = False
) -> Path:
    """Writes the model of a checkpoint to the folder `out`, and returns it. Imports the class of its task.

    Args:
        path: The checkpoint's file, in the folder of its run.
        content: Its dict.
        out: The folder to write.
        trust_code: Run Python code that the backbone's files name.
        merge: Write a complete model if the run trained adapters, whatever its adapter.merge is.
    """
    state = content["run"]
    config = find_backbone(config_from_dict(state["config"]), path)
    config = replace(config, model=replace(config.model, trust_remote_code=trust_code))  # not as the checkpoint says
    if merge and config.adapter.kind != "none":
        config = replace(config, adapter=replace(config.adapter, merge=True))
    torch.manual_seed(config.seed)
    run_task = load_task(config.task.kind).from_state(config, state["task_state"])
    tokenizer = backbone.load_tokenizer(config.model, config.cache)
    loaded = backbone.load_backbone(config.model, run_task.head, tokenizer, config.cache)
    run_task.prepare_model(loaded.model, loaded.tokenizer)
    loaded = lora.add_adapters(loaded, config.adapter, config.freeze, config.seed)
    resume.add_pretrained_weights(loaded.model, content, path.name, config.model.backbone)
    record_settings(loaded, config, run_task, metric=state["metric"], max_length=state["max_length"])
    return write_model(loaded, run_task, out, make_checkpoint_card(path.name, content, config, run_task))


def find_backbone(config: RunConfig, path: Path) -> RunConfig:
    """Returns the config with the place where its backbone is now: if the run had made it from its start_from, and the run's
    folder was moved since, in the folder of the checkpoint at `path`."""
    source = config.model.backbone
    moved = path.absolute().parent.parent / START_FOLDER / Path(source).name
    if config.start_from is None or os.path.exists(source) or not moved.is_dir():
        return config
    return replace(config, model=replace(config.model, backbone=str(moved)))
