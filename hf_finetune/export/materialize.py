"""Makes a complete model from a checkpoint, also from one that holds only the trained parameters."""

import os.path
from pathlib import Path

import torch

from hf_finetune.config.loading import config_from_dict
from hf_finetune.config.tasks import check_is_named, load_task
from hf_finetune.export.card import make_checkpoint_card
from hf_finetune.export.model_folder import record_settings, write_model
from hf_finetune.model import backbone, lora
from hf_finetune.run import checkpoint, resume
from hf_finetune.system.errors import InputError


def materialize(path: Path, out: Path, *, task: str | None = None) -> Path:
    """Writes the model of a checkpoint to the folder `out`, so that from_pretrained loads it, and returns the folder.

    Parameters that the checkpoint leaves out come from the backbone that the run's config names. Raises InputError if the
    checkpoint is damaged, if the backbone is no longer the same, or if `out` exists.

    task: Import path of the run's task if it is a class of your own. No checkpoint can have a class imported that is not named
    here.
    """
    if os.path.lexists(out):  # Path.exists() raises for a name that is too long, and is False for a broken link
        raise InputError(f"--out ({out}): exists; name a new folder")
    if not os.path.isdir(out.absolute().parent):
        raise InputError(f"--out ({out}): there is no folder {out.absolute().parent}")
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such checkpoint; `hf-finetune checkpoints RUN` lists those of a run")
    if damage := checkpoint.find_damage_in_file(path):
        raise InputError(f"{path}: {damage}")
    content = checkpoint.load_checkpoint(path)
    resume.check_format(path, content)
    state = content["run"]
    check_is_named(state["config"]["task"]["kind"], task, str(path))
    config = config_from_dict(state["config"])
    torch.manual_seed(config.seed)
    run_task = load_task(config.task.kind).from_state(config, state["task_state"])
    loaded = backbone.load_backbone(config.model, run_task.head, backbone.load_tokenizer(config.model))
    run_task.prepare_model(loaded.model, loaded.tokenizer)
    loaded = lora.add_adapters(loaded, config.adapter, config.freeze, config.seed)
    resume.add_pretrained_weights(loaded.model, content, path.name, config.model.backbone)
    record_settings(loaded, config, run_task, metric=state["metric"], max_length=state["max_length"])
    return write_model(loaded, run_task, out, make_checkpoint_card(path.name, content, config, run_task))
