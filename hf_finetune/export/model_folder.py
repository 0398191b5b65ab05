"""Exports the model folder (weights, tokenizer, labels and card), reloads it with plain from_pretrained and compares outputs."""

import contextlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from hf_finetune.config.sections import RunConfig, to_dict
from hf_finetune.data.features import Array, Padding
from hf_finetune.export.card import hide_folders, keep_last_part, make_card
from hf_finetune.export.recorded import READING
from hf_finetune.model import lora
from hf_finetune.model.backbone import Backbone
from hf_finetune.model.loading import LOADING_ERRORS, load_config, silence_transformers
from hf_finetune.run.parts import own_metrics
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import is_missing, read_umask, rename, sync_folder, write_atomically, writing_error
from hf_finetune.system.processes import SingleProcess
from hf_finetune.tasks.base import Task
from hf_finetune.training.evaluation import ModelRunner

# Largest difference between a logit of the trained model and of the reloaded one, relative to the largest logit. On a CPU they
# are equal; GPU kernels may choose another order of sums.
RELOAD_TOLERANCE = 1e-4

NUM_COMPARED = 64  # validation features

# Adapters that are merged into the weights are computed in another order. In 16 bit, outputs then differ by some roundings, and
# what a task keeps of them may be the number of another token. So only the loss is compared, within this many roundings.
MERGED_ROUNDINGS = 16


# --- writing --------------------------------------------------------------------------------------------------------


def export_model(run: TrainingRun, results: Mapping[str, Any]) -> Path:
    """Writes the model folder of a run with its card, and returns it. Raises InputError if it cannot be written."""
    record_settings(run.backbone, run.config, run.task, metric=run.metric, max_length=run.max_length)
    return write_model(run.backbone, run.task, run.config.run_dir / "model", make_card(run, results))


def record_settings(loaded: Backbone, config: RunConfig, task: Task, *, metric: str, max_length: int) -> None:
    """Records the settings that `hf-finetune predict` and `evaluate` need in the configs of the model and its tokenizer."""
    name, base = config.name, keep_last_part(loaded.lineage.base)
    calibration = None if task.scoring.calibrator is None else task.scoring.calibrator.to_record()
    lineage = replace(loaded.lineage, base=base).add_run(name, config.task.kind, int(loaded.tokenizer.model_max_length))
    loaded.model.config.hf_finetune = {
        **lineage,
        "task": to_dict(hide_folders(config).task),
        "task_state": task.state_dict(),
        **({} if calibration is None else {"calibration": calibration}),
        "text_columns": list(config.data.text_columns),
        "label_column": config.data.label_column,
        "label_smoothing": config.train.label_smoothing,
        "metric": metric,
        **{key: to_dict(config)["data"][key] for key in READING},
        "own": {"loss": config.train.loss, "metrics": own_metrics(config.evaluation.metrics)},
    }
    loaded.tokenizer.model_max_length = max_length  # so that pipelines truncate as training did


def write_model(loaded: Backbone, task: Task, folder: Path, readme: str) -> Path:
    """Writes a model folder next to its final name, then renames it, and returns it. Replaces an older one.

    Raises InputError if it cannot be written.
    """
    model, tokenizer = loaded.model, loaded.tokenizer

    def write(temporary: Path) -> None:
        with silence_transformers():
            lora.save_model(loaded, task.head.auto_class, temporary)
            tokenizer.save_pretrained(temporary)
        task.write_extras(temporary, model, int(tokenizer.model_max_length))
        write_atomically(temporary / "README.md", readme.encode())

    return write_folder(folder, model, write)


def write_folder(folder: Path, model: Any, write: Callable[[Path], None]) -> Path:
    """Has `write` write a folder next to its final name, then renames it, and returns it. Replaces an older one.

    Raises InputError if it cannot be written. model: What is written, for the error.
    """
    parent, temporary = folder.parent, folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        write(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(0o666 & ~read_umask())  # safetensors lets only the owner read its file
        replace_folder(temporary, folder)
        sync_folder(parent)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  on a full disk, tokenizers and safetensors raise errors of their own
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        raise writing_error(parent, size, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def replace_folder(source: Path, folder: Path) -> None:
    """Renames a folder to the place of an older one, which stays complete until then, and is removed after it."""
    replaced = folder.with_name(f".{folder.name}.replaced")
    is_new = is_missing(folder)
    if not is_new:  # else a killed process may have left the only complete one there
        shutil.rmtree(replaced, ignore_errors=True)
        rename(folder, replaced)
    try:
        rename(source, folder)
    except OSError:
        if not is_new:
            with contextlib.suppress(OSError):
                rename(replaced, folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


# --- reloading ------------------------------------------------------------------------------------------------------


def check_reload(folder: Path, run: TrainingRun) -> float:
    """Loads the folder with plain from_pretrained, and compares its outputs with the trained model's on validation features.

    Returns the largest difference of the loss, and of what the task keeps of an output. Raises InputError if it is too large, or
    if the tokenizer or the labels differ.
    """
    task, trained = run.task, run.backbone
    trust = run.config.model.trust_remote_code
    attention = {"attn_implementation": run.config.model.attention} if run.config.model.attention else {}
    try:
        with silence_transformers():
            model = load_as_card_shows(folder, trained, task.head.auto_class, trust_code=trust, **attention)
            model.to(run.runtime.device)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except LOADING_ERRORS as error:
        raise InputError(f"{folder}: the exported model cannot be loaded: {error}") from None
    labels = tuple(model.config.id2label[number] for number, _ in enumerate(task.label_names))
    if labels != task.label_names:
        raise InputError(f"{folder}: the reloaded labels {labels} are not the trained ones {task.label_names}")
    if tokenizer.get_vocab() != trained.tokenizer.get_vocab():
        raise InputError(f"{folder}: the reloaded tokenizer has another vocabulary")
    expected, actual = compute_outputs(trained.model, run), compute_outputs(model, run)
    tolerance = RELOAD_TOLERANCE
    if trained.adapter is not None and trained.adapter.merge:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.runtime.precision, torch.float32)
        tolerance = max(tolerance, MERGED_ROUNDINGS * torch.finfo(dtype).eps)
        expected, actual = expected[-1:], actual[-1:]  # the losses alone
    difference = float(np.abs(expected - actual).max())
    if not difference <= tolerance * max(1.0, float(np.abs(expected).max())):  # also if it is nan
        raise InputError(f"{folder}: the reloaded model's outputs differ from the trained one's by {difference:.2g}")
    return difference


def load_as_card_shows(folder: Path, trained: Backbone, auto_class: str, *, trust_code: bool, **options: Any) -> Any:
    """Returns the model of an exported folder, loaded as its card shows. trust_code: Run Python code of the backbone. options: of
    from_pretrained."""
    model_class = getattr(transformers, auto_class)
    if not trained.is_exported_as_adapter:
        return model_class.from_pretrained(folder, trust_remote_code=trust_code, dtype=torch.float32, **options)
    config = load_config(str(folder), trust_code=trust_code, subfolder=lora.MODEL_CONFIG)
    model = model_class.from_pretrained(
        trained.place,
        trust_remote_code=trust_code,
        config=config,
        revision=trained.revision,
        dtype=torch.float32,
        ignore_mismatched_sizes=trained.replaces_head,
        **options,
    )
    model.load_adapter(str(folder))
    return model


def compute_outputs(model: Any, run: TrainingRun) -> Array:
    """Returns what the task keeps of a model's outputs for the first validation features, and after it the loss (0 if it is nan).

    One flat array [numbers + 1]. Runs on the main process alone.
    """
    features = run.features["validation"]
    runner = ModelRunner(
        model=model,
        tokenizer=run.backbone.tokenizer,
        task=run.task,
        features=features,
        processes=SingleProcess(device=run.runtime.device),
        padding=Padding(run.backbone.pad_token_id),
        batch_size=32,
    )
    with run.runtime.accelerator.autocast():
        evaluation = runner.compute_outputs(np.arange(len(features))[:NUM_COMPARED])
    outputs = [np.asarray(array, dtype=np.float64).reshape(-1) for array in evaluation.outputs]
    return np.append(np.concatenate(outputs), np.nan_to_num(evaluation.loss))
