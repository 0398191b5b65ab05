"""The model folder: weights, tokenizer, labels and card, reloaded with plain from_pretrained and compared."""

import dataclasses
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub import EvalResult, ModelCardData

from hf_finetune import adapter
from hf_finetune.backbone import LOADING_ERRORS, Backbone, quiet
from hf_finetune.config import RunConfig, as_dict
from hf_finetune.data import SPLITS
from hf_finetune.errors import InputError
from hf_finetune.files import sync_folder, write_atomically, writing_error
from hf_finetune.job import Job
from hf_finetune.loop import evaluate
from hf_finetune.settings import to_yaml
from hf_finetune.sources import model_files
from hf_finetune.tasks import Task

# Largest difference between a logit of the trained model and of the reloaded one, relative to the largest logit. On a
# CPU they are equal; GPU kernels may choose another order of sums.
RELOAD_TOLERANCE = 1e-4
NUM_COMPARED = 64  # validation examples
# Adapters that were merged into the weights are computed in another order: in 16 bit outputs differ by some roundings, and what a
# task keeps may be another token's number. So only the loss is compared then, within so many roundings.
MERGED_ROUNDINGS = 16


def export(job: Job, results: Mapping[str, Any]) -> Path:
    """Writes model/ whole (beside, then renamed) and returns it."""
    describe_use(job.backbone, job.config, job.task, metric=job.metric, max_length=job.max_length)
    return write_model(job.backbone, job.task, job.config.run_dir / "model", card(job, results))


def describe_use(loaded: Backbone, config: RunConfig, task: Task, *, metric: str, max_length: int) -> None:
    """Notes in a model and its tokenizer what `hf-finetune predict` and `evaluate` need to know of the training."""
    loaded.model.config.hf_finetune = {
        "task": task.name,
        "facts": task.facts(),
        "settings": {name: as_dict(without_folders(config).task)[name] for name in sorted(task.settings)},
        "text_columns": list(config.data.text_columns),
        "label_column": config.data.label_column,
        "choice_columns": list(config.data.choice_columns),
        "label_smoothing": config.train.label_smoothing,
        "metric": metric,
        "encoding": list(config.data.encoding),
    }
    loaded.tokenizer.model_max_length = max_length  # so that pipelines cut where training did


def write_model(loaded: Backbone, task: Task, folder: Path, readme: str) -> Path:
    """Writes a model folder beside, then renames it; returns it. An older one is replaced."""
    model, tokenizer = loaded.model, loaded.tokenizer
    run_dir, temporary = folder.parent, folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        with quiet():
            adapter.save_model(loaded, task.auto_class, temporary)
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
    config = transformers.AutoConfig.from_pretrained(folder, subfolder=adapter.MODEL_CONFIG, **trusts)
    model = kind.from_pretrained(
        base, config=config, revision=loaded.revision, dtype=torch.float32,
        ignore_mismatched_sizes=loaded.replaces_head, **options, **file,
    )  # fmt: skip
    model.load_adapter(str(folder))
    return model


def check_reload(folder: Path, job: Job) -> float:
    """Loads the folder with plain from_pretrained and compares its outputs with the trained model's on validation rows.

    Returns the largest difference of what the task keeps of a row, and of the loss. InputError where it is too large, or
    tokenizer or labels differ.
    """
    task, run = job.task, job.runtime
    options: dict[str, Any] = {"trust_remote_code": True} if job.config.model.trust_remote_code else {}
    attention = {"attn_implementation": job.config.model.attention} if job.config.model.attention else {}
    try:
        with quiet():
            model = load_as_users_do(folder, job.backbone, task.auto_class, **options, **attention)
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
            outcome = evaluate(
                candidate,
                features,
                task,
                run,
                batch_size=32,
                pad_token_id=job.backbone.pad_token_id,
                rows=rows,
                distributed=False,
            )
            outputs.append(np.concatenate([np.asarray(array, dtype=np.float64).reshape(-1) for array in outcome.kept]))
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


def card(job: Job, results: Mapping[str, Any]) -> str:
    """The model card: Hub metadata, how to use it, data, freeze plan, hyperparameters and measured metrics."""
    config, task, plan = without_folders(job.config), job.task, job.plan
    name = config.hub.repo_id or "model"
    measured = "\n".join(
        f"| {split} | {metric} | {value:.4f} |"
        for split in ("validation", "test")
        for metric, value in results[split].items()
    )
    parts = "\n".join(f"| {part} | {size:,} | {state} |" for part, size, state in plan.table())
    examples, best = results["examples"], results["best"]
    return f"""---
{metadata(job, results).to_yaml()}
---

# {config.name}

`{config.model.backbone.split("#")[0]}` fine-tuned with hf-finetune for {task.card()}

```python
{usage(job.backbone, task, name)}
```

## Measured

| split | metric | value |
|---|---|---|
{measured}

The best checkpoint (epoch {best["epoch"]}, update {best["update"]}) was chosen by {results["metric"]} on validation.
{"The test split was used once, after that." if results["test"] else "There is no test split."}

## Data

`{data_name(config)}`: {examples["train"]:,} examples to train on, {examples["validation"]:,} for validation,
{examples["test"]:,} for the test. Inputs have at most {job.max_length} tokens.

## What was trained

| part | parameters | |
|---|---|---|
{parts}

{plan.num_trainable:,} of {plan.num_total:,} parameters trained; what is frozen is as it was pretrained.
{remote_code_note(config)}
## Settings

```yaml
{to_yaml(config).rstrip()}
```

{results["device"]}, {results["precision"]}, processes: {results["processes"]}, {results["seconds"]["train"]:.0f} s.
"""


def usage(loaded: Backbone, task: Task, name: str) -> str:
    """Python that loads what is exported."""
    kind = task.auto_class
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
    if not loaded.is_exported_as_adapter:
        return f"""from transformers import {kind}, AutoTokenizer

model = {kind}.from_pretrained("{name}")
{tokenizer}"""
    source, gguf_file = last_part(loaded.source.partition("#sha256=")[0]), ""
    if source.lower().endswith(".gguf"):
        source, _, gguf_file = source.rpartition("/")
    base, others = f'"{source or "."}"', ""
    if source.startswith("package://"):
        package, _, inside = source.removeprefix("package://").partition("/")
        base, others = f'files("{package}") / "{inside}"', "from importlib.resources import files\n\n"
    options = f', gguf_file="{gguf_file}"' * bool(gguf_file) + f', revision="{loaded.revision}"' * bool(loaded.revision)
    options += ", ignore_mismatched_sizes=True" * loaded.replaces_head
    generates = loaded.model.can_generate()
    generation = f'model.generation_config = GenerationConfig.from_pretrained("{name}")\n' * generates
    return f"""{others}from transformers import AutoConfig, {kind}, AutoTokenizer{", GenerationConfig" * generates}

base = {base}  # an adapter needs the model it was trained on, and the package peft
config = AutoConfig.from_pretrained("{name}", subfolder="{adapter.MODEL_CONFIG}")
model = {kind}.from_pretrained(base, config=config{options})
model.load_adapter("{name}")
{generation}{tokenizer}"""


def library_name(config: RunConfig, task: Task) -> str:
    """What the Hub says loads what is exported."""
    is_adapter = config.adapter.kind == "lora" and not config.adapter.merge
    return "peft" if is_adapter and task.library_name == "transformers" else task.library_name


def metadata(job: Job, results: Mapping[str, Any]) -> ModelCardData:
    """The card's metadata for the Hub, with the metrics of the test split where there is one."""
    config = job.config
    split = "test" if results["test"] else "validation"
    name = data_name(config)
    return ModelCardData(
        library_name=library_name(config, job.task),
        pipeline_tag=job.task.pipeline_tag,
        tags=["hf-finetune", job.task.problem, *(["lora"] if config.adapter.kind == "lora" else [])],
        base_model=config.model.backbone if looks_like_hub_id(config.model.backbone) else None,
        datasets=[name] if looks_like_hub_id(config.data.dataset or "") else None,
        model_name=config.name,
        eval_results=[
            EvalResult(
                task_type=job.task.pipeline_tag,
                dataset_type=name,
                dataset_name=name,
                dataset_split=split,
                metric_type=metric,
                metric_value=round(value, 4),
            )
            for metric, value in results[split].items()
            if math.isfinite(value) and metric != "loss" and "/" not in metric
        ],
    )


def data_name(config: RunConfig) -> str:
    """The data set's name: on the Hub, of the package, or of the first file without its folders."""
    first = config.data.dataset or config.data.train[0]
    if first.startswith("package://"):
        return first.removeprefix("package://").split("/")[0]
    return first if looks_like_hub_id(config.data.dataset or "") else Path(first).name


def last_part(location: str) -> str:
    """Of an absolute path the last part alone; any other location unchanged."""
    return (Path(location).name or location) if Path(location).is_absolute() else location


def without_folders(config: RunConfig) -> RunConfig:
    """The config as others may see it: of an absolute path the last part alone."""
    last = last_part
    splits: dict[str, Any] = {split: tuple(map(last, getattr(config.data, split))) for split in SPLITS}
    return dataclasses.replace(
        config,
        output_dir="outputs",
        prefix=dataclasses.replace(config.prefix, dir=config.prefix.dir and last(config.prefix.dir)),
        model=dataclasses.replace(config.model, backbone=last(config.model.backbone)),
        task=dataclasses.replace(
            config.task, chat_template=config.task.chat_template and last(config.task.chat_template)
        ),
        data=dataclasses.replace(config.data, dataset=config.data.dataset and last(config.data.dataset), **splits),
        checkpoint=dataclasses.replace(config.checkpoint, resume=last(config.checkpoint.resume)),
    )


def remote_code_note(config: RunConfig) -> str:
    """What a reader must know where the backbone runs code of its own."""
    if not config.model.trust_remote_code:
        return ""
    return "\nThis model was made with `trust_remote_code`: loading it runs Python code of the backbone's repository.\n"


def looks_like_hub_id(name: str) -> bool:
    """Whether a name is of the form user/name or name, and no folder here."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists()
