"""The model folder: weights, tokenizer, labels and card, reloaded with plain from_pretrained and compared."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from hf_finetune.export.card import make_card, make_note
from hf_finetune.model import lora
from hf_finetune.model.backbone import LOADING_ERRORS, Backbone, silence_transformers
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import sync_folder, write_atomically, writing_error
from hf_finetune.system.locations import model_files
from hf_finetune.tasks.base import Task
from hf_finetune.system.processes import SingleProcess
from hf_finetune.training.evaluation import ModelRunner

# Largest difference between a logit of the trained model and of the reloaded one, relative to the largest logit. On a
# CPU they are equal; GPU kernels may choose another order of sums.
RELOAD_TOLERANCE = 1e-4

NUM_COMPARED = 64  # validation examples

# Adapters that were merged into the weights are computed in another order: in 16 bit outputs differ by some roundings, and what a
# task keeps may be another token's number. So only the loss is compared then, within so many roundings.
MERGED_ROUNDINGS = 16


def export_model(job: TrainingRun, results: Mapping[str, Any]) -> Path:
    """Writes model/ whole (beside, then renamed) and returns it."""
    make_note(job.backbone, job.config, job.task, metric=job.metric, max_length=job.max_length)
    return write_model(job.backbone, job.task, job.config.run_dir / "model", make_card(job, results))


def write_model(loaded: Backbone, task: Task, folder: Path, readme: str) -> Path:
    """Writes a model folder beside, then renames it; returns it. An older one is replaced."""
    model, tokenizer = loaded.model, loaded.tokenizer
    run_dir, temporary = folder.parent, folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        with silence_transformers():
            lora.save_model(loaded, task.head.auto_class, temporary)
            tokenizer.save_pretrained(temporary)
        task.write_extras(temporary, model, int(tokenizer.model_max_length))
        write_atomically(temporary / "README.md", readme.encode())
        for path in (path for path in temporary.rglob("*") if path.is_file()):
            path.chmod(0o666 & ~current_umask())  # safetensors makes its file readable by its owner only
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync_folder(run_dir)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  of a full disk, tokenizers and safetensors each raise something else
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        raise writing_error(run_dir, size, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def current_umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def load_as_users_do(folder: Path, loaded: Backbone, auto_class: str, **options: Any) -> Any:
    """The model of an exported folder, loaded as the card says."""
    kind = getattr(transformers, auto_class)
    if not loaded.is_exported_as_adapter:
        return kind.from_pretrained(folder, dtype=torch.float32, **options)
    base, file = model_files(loaded.source, "model.backbone")
    trusts = {"trust_remote_code": True} if "trust_remote_code" in options else {}
    config = transformers.AutoConfig.from_pretrained(folder, subfolder=lora.MODEL_CONFIG, **trusts)
    model = kind.from_pretrained(
        base, config=config, revision=loaded.revision, dtype=torch.float32,
        ignore_mismatched_sizes=loaded.replaces_head, **options, **file,
    )  # fmt: skip
    model.load_adapter(str(folder))
    return model


def check_reload(folder: Path, job: TrainingRun) -> float:
    """Loads the folder with plain from_pretrained and compares its outputs with the trained model's on validation rows.

    Returns the largest difference of what the task keeps of a row, and of the loss. InputError where it is too large, or
    tokenizer or labels differ.
    """
    task, run = job.task, job.runtime
    options: dict[str, Any] = {"trust_remote_code": True} if job.config.model.trust_remote_code else {}
    attention = {"attn_implementation": job.config.model.attention} if job.config.model.attention else {}
    try:
        with silence_transformers():
            model = load_as_users_do(folder, job.backbone, task.head.auto_class, **options, **attention)
            model.to(run.device)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    except LOADING_ERRORS as error:
        raise InputError(f"{folder}: the exported model cannot be loaded: {error}") from None
    labels = tuple(model.config.id2label[number] for number, _ in enumerate(task.label_names))
    if labels != task.label_names:
        raise InputError(f"{folder}: the reloaded labels {labels} are not the trained ones {task.label_names}")
    if tokenizer.get_vocab() != job.backbone.tokenizer.get_vocab():
        raise InputError(f"{folder}: the reloaded tokenizer has another vocabulary")
    features = job.features["validation"]
    rows = np.arange(len(features))[:NUM_COMPARED]
    outputs, losses = [], []
    for candidate in (job.backbone.model, model):
        with run.accelerator.autocast():
            runner = ModelRunner(
                model=candidate,
                tokenizer=tokenizer,
                task=task,
                features=features,
                processes=SingleProcess(device=run.device),  # the main process compares alone
                pad_token_id=job.backbone.pad_token_id,
                batch_size=32,
            )
            outcome = runner.compute_outputs(rows)
            outputs.append(
                np.concatenate([np.asarray(array, dtype=np.float64).reshape(-1) for array in outcome.outputs])
            )
            losses.append(outcome.loss)
    tolerance = RELOAD_TOLERANCE
    if job.backbone.adapter is not None and job.backbone.adapter.merge:
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.precision, torch.float32)
        tolerance = max(tolerance, MERGED_ROUNDINGS * torch.finfo(kind).eps)
        outputs = [np.empty(0), np.empty(0)]
    trained = np.append(outputs[0], np.nan_to_num(losses[0]))
    difference = float(np.abs(trained - np.append(outputs[1], np.nan_to_num(losses[1]))).max())
    if not difference <= tolerance * max(1.0, float(np.abs(trained).max())):
        raise InputError(f"{folder}: the reloaded model's outputs differ from the trained one's by {difference:.2g}")
    return difference
