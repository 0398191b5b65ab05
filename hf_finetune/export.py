"""The model folder: weights, tokenizer, labels and card, reloaded with plain from_pretrained and compared."""

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from hf_finetune.backbone import Backbone, quiet
from hf_finetune.checkpoint import sync_folder, write_atomically, writing_error
from hf_finetune.config import RunConfig
from hf_finetune.data import Features
from hf_finetune.errors import InputError
from hf_finetune.freezing import FreezePlan
from hf_finetune.loop import evaluate
from hf_finetune.runtime import Runtime
from hf_finetune.settings import to_yaml
from hf_finetune.tasks import Task

# Largest difference between a logit of the trained model and of the reloaded one, relative to the largest logit. On a
# CPU they are equal; GPU kernels may choose another order of sums.
RELOAD_TOLERANCE = 1e-4
NUM_COMPARED = 64  # validation examples


def export(
    run_dir: Path,
    backbone: Backbone,
    task: Task,
    plan: FreezePlan,
    config: RunConfig,
    results: Mapping[str, Any],
    max_length: int,
) -> Path:
    """Writes model/ whole (beside, then renamed) and returns it."""
    folder, temporary = run_dir / "model", run_dir / ".model.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    model, tokenizer = backbone.model, backbone.tokenizer
    model.config.hf_finetune = {
        "task": task.name, "text_columns": list(config.data.text_columns), "label_column": config.data.label_column,
        "label_separator": config.task.label_separator, "metric": results["metric"],
    }  # fmt: skip
    tokenizer.model_max_length = max_length  # so that pipelines cut where training did
    try:
        with quiet():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        write_atomically(temporary / "README.md", card(config, task, plan, results).encode())
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync_folder(run_dir)
    except OSError as error:
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        raise writing_error(run_dir, size, error) from None
    return folder


def check_reload(folder: Path, backbone: Backbone, task: Task, features: Features, runtime: Runtime) -> float:
    """Loads the folder with plain from_pretrained and compares its outputs with the trained model's on validation rows.

    Returns the largest difference of a logit. InputError where it is above the tolerance, or tokenizer or labels differ.
    """
    with quiet():
        model = getattr(transformers, task.auto_class).from_pretrained(folder, dtype=torch.float32).to(runtime.device)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    labels = tuple(model.config.id2label[number] for number in range(len(task.label_names)))
    if labels != task.label_names:
        raise InputError(f"{folder}: the reloaded labels {labels} are not the trained ones {task.label_names}")
    if tokenizer.get_vocab() != backbone.tokenizer.get_vocab():
        raise InputError(f"{folder}: the reloaded tokenizer has another vocabulary")
    rows = np.arange(len(features))[:NUM_COMPARED]
    outputs = []
    for candidate in (backbone.model, model):
        with runtime.accelerator.autocast():
            outputs.append(evaluate(candidate, features, task, runtime, batch_size=32, pad_token_id=backbone.pad_token_id,
                                    rows=rows, distributed=False).logits)  # fmt: skip
    difference = float(np.abs(outputs[0] - outputs[1]).max())
    if not difference <= RELOAD_TOLERANCE * max(1.0, float(np.abs(outputs[0]).max())):
        raise InputError(f"{folder}: the reloaded model's outputs differ from the trained one's by {difference:.2g}")
    return difference


def card(config: RunConfig, task: Task, plan: FreezePlan, results: Mapping[str, Any]) -> str:
    """The model card: Hub metadata, how to use it, data, freeze plan, hyperparameters and measured metrics."""
    from huggingface_hub import EvalResult, ModelCardData

    hub_id = config.model.backbone if looks_like_hub_id(config.model.backbone) else None
    split = "test" if results["test"] else "validation"
    dataset = config.data.dataset or Path(config.data.train[0].split("#")[0]).stem
    metadata = ModelCardData(
        library_name="transformers", pipeline_tag="text-classification", tags=["hf-finetune", task.problem],
        base_model=hub_id, datasets=[config.data.dataset] if config.data.dataset and looks_like_hub_id(config.data.dataset) else None,
        model_name=config.name,
        eval_results=[
            EvalResult(task_type="text-classification", dataset_type=dataset, dataset_name=dataset, dataset_split=split,
                       metric_type=name, metric_value=round(value, 4))
            for name, value in results[split].items() if value == value and name != "loss"
        ],
    )  # fmt: skip
    measured = "\n".join(
        f"| {split} | {name} | {value:.4f} |"
        for split in ("validation", "test")
        for name, value in results[split].items()
    )
    parts = "\n".join(f"| {part} | {size:,} | {state} |" for part, size, state in plan.table())
    examples = results["examples"]
    return f"""---
{metadata.to_yaml()}
---

# {config.name}

`{config.model.backbone}` fine-tuned for {task.problem.replace("_", "-")} text classification with hf-finetune.
{len(task.label_names)} label{"s" if len(task.label_names) > 1 else ""}: {", ".join(task.label_names)}.

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{config.hub.repo_id or "model"}")
tokenizer = AutoTokenizer.from_pretrained("{config.hub.repo_id or "model"}")
```

## Measured

| split | metric | value |
|---|---|---|
{measured}

The best checkpoint (epoch {results["best"]["epoch"]}, update {results["best"]["update"]}) was chosen by
{results["metric"]} on validation; the test split was used once, after that.

## Data

{", ".join(config.data.train) or config.data.dataset}: {examples["train"]:,} examples to train on, {examples["validation"]:,} for
validation, {examples["test"]:,} for the test.

## What was trained

| part | parameters | |
|---|---|---|
{parts}

{plan.num_trainable:,} of {plan.num_total:,} parameters trained; what is frozen is as it was pretrained.
{remote_code_note(config)}
## Settings

```yaml
{to_yaml(without_places(config)).rstrip()}
```

{results["device"]}, {results["precision"]}, {results["processes"]} process(es), {results["seconds"]["train"]:.0f} s of training.
"""


def without_places(config: RunConfig) -> RunConfig:
    """The config without the folder of this machine that runs are kept in."""
    return dataclasses.replace(config, output_dir="outputs")


def remote_code_note(config: RunConfig) -> str:
    """What a reader must know where the backbone runs code of its own."""
    if not config.model.trust_remote_code:
        return ""
    return "\nThis model was made with `trust_remote_code`: loading it runs Python code of the backbone's repository.\n"


def looks_like_hub_id(name: str) -> bool:
    """Whether a name is of the form user/name or name, and no folder here."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists()
