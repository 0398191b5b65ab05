"""A whole model from a checkpoint, also from one that holds only what trained."""

import os.path
from pathlib import Path

import torch

from hf_finetune.config.loading import config_from_dict
from hf_finetune.export.card import choose_library_name, describe_remote_code, make_note
from hf_finetune.export.model_folder import write_model
from hf_finetune.model import backbone, lora
from hf_finetune.run import checkpoint, resume
from hf_finetune.system.errors import InputError
from hf_finetune.config.tasks import load_task


def materialize(path: Path, out: Path) -> Path:
    """Writes the model of a checkpoint to the folder `out` as from_pretrained loads it, and returns the folder.

    What the checkpoint left out comes from the backbone that the run's config names. InputError where the checkpoint is
    damaged, the backbone is another one now, or `out` exists.
    """
    if os.path.lexists(out):  # Path.exists raises where a name is too long; a link to nowhere is there too
        raise InputError(f"--out ({out}): exists; name a folder that does not")
    if not os.path.isdir(out.absolute().parent):
        raise InputError(f"--out ({out}): there is no folder {out.absolute().parent}")
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such checkpoint; `hf-finetune checkpoints RUN` lists those of a run")
    if fault := checkpoint.find_damage_in_file(path):
        raise InputError(f"{path}: {fault}")
    content = checkpoint.load_checkpoint(path)
    resume.check_format(path, content)
    state = content["run"]
    config = config_from_dict(state["config"])
    torch.manual_seed(config.seed)
    task = load_task(config.task.kind).from_state(config, state["task_state"])
    loaded = backbone.load_backbone(config.model, task.head, backbone.load_tokenizer(config.model))
    task.prepare_model(loaded.model, loaded.tokenizer)
    loaded = lora.add_adapters(loaded, config.adapter, config.freeze, config.seed)
    resume.add_pretrained_weights(loaded.model, content, path.name, config.model.backbone)
    make_note(loaded, config, task, metric=state["metric"], max_length=state["max_length"])
    values = "".join(f"| {name} | {value:.4f} |\n" for name, value in content["metrics"].items())
    readme = f"""---
library_name: {choose_library_name(config, task)}
pipeline_tag: {task.pipeline_tag}
tags: [hf-finetune]
---

# {config.name}, epoch {content["epoch"]}, update {content["update"]}

Made from the checkpoint `{path.name}` of hf-finetune, for {task.describe_for_card()}

| metric on validation | value |
|---|---|
{values}{describe_remote_code(config)}"""
    return write_model(loaded, task, out, readme)
