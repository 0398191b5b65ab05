"""The model card."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_finetune.config.loading import to_yaml
from hf_finetune.config.sections import RunConfig, to_dict
from hf_finetune.data.splits import SPLITS
from hf_finetune.model import lora
from hf_finetune.model.backbone import Backbone
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.tasks.base import Task


def make_note(loaded: Backbone, config: RunConfig, task: Task, *, metric: str, max_length: int) -> None:
    """Notes in a model and its tokenizer what `hf-finetune predict` and `evaluate` need to know of the training."""
    loaded.model.config.hf_finetune = {
        "task": to_dict(hide_folders(config).task),
        "task_state": task.state_dict(),
        "text_columns": list(config.data.text_columns),
        "label_column": config.data.label_column,
        "label_smoothing": config.train.label_smoothing,
        "metric": metric,
        "encoding": list(config.data.encoding),
    }
    loaded.tokenizer.model_max_length = max_length  # so that pipelines cut where training did


def make_card(job: TrainingRun, results: Mapping[str, Any]) -> str:
    """The model card: Hub metadata, how to use it, data, freeze plan, hyperparameters and measured metrics."""
    config, task, plan = hide_folders(job.config), job.task, job.plan
    name = config.hub.repo_id or "model"
    measured = "\n".join(
        f"| {split} | {metric} | {value:.4f} |"
        for split in ("validation", "test")
        for metric, value in results[split].items()
    )
    parts = "\n".join(f"| {part} | {size:,} | {state} |" for part, size, state in plan.table())
    examples, best = results["examples"], results["best"]
    return f"""---
{make_metadata(job, results).to_yaml()}
---

# {config.name}

`{config.model.backbone.split("#")[0]}` fine-tuned with hf-finetune for {task.describe_for_card()}

```python
{describe_usage(job.backbone, task, name)}
```

## Measured

| split | metric | value |
|---|---|---|
{measured}

The best checkpoint (epoch {best["epoch"]}, update {best["update"]}) was chosen by {results["metric"]} on validation.
{"The test split was used once, after that." if results["test"] else "There is no test split."}

## Data

`{find_data_name(config)}`: {examples["train"]:,} examples to train on, {examples["validation"]:,} for validation,
{examples["test"]:,} for the test. Inputs have at most {job.max_length} tokens.

## What was trained

| part | parameters | |
|---|---|---|
{parts}

{plan.num_trainable:,} of {plan.num_total:,} parameters trained; what is frozen is as it was pretrained.
{describe_remote_code(config)}
## Settings

```yaml
{to_yaml(config).rstrip()}
```

{results["device"]}, {results["precision"]}, processes: {results["processes"]}, {results["seconds"]["train"]:.0f} s.
"""


def describe_usage(loaded: Backbone, task: Task, name: str) -> str:
    """Python that loads what is exported."""
    kind = task.head.auto_class
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
config = AutoConfig.from_pretrained("{name}", subfolder="{lora.MODEL_CONFIG}")
model = {kind}.from_pretrained(base, config=config{options})
model.load_adapter("{name}")
{generation}{tokenizer}"""


def choose_library_name(config: RunConfig, task: Task) -> str:
    """What the Hub says loads what is exported."""
    is_adapter = config.adapter.kind == "lora" and not config.adapter.merge
    return "peft" if is_adapter and task.library_name == "transformers" else task.library_name


def make_metadata(job: TrainingRun, results: Mapping[str, Any]) -> ModelCardData:
    """The card's metadata for the Hub, with the metrics of the test split where there is one."""
    config = job.config
    split = "test" if results["test"] else "validation"
    name = find_data_name(config)
    return ModelCardData(
        library_name=choose_library_name(config, job.task),
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


def find_data_name(config: RunConfig) -> str:
    """The data set's name: on the Hub, of the package, or of the first file without its folders."""
    first = config.data.dataset or config.data.train[0]
    if first.startswith("package://"):
        return first.removeprefix("package://").split("/")[0]
    return first if looks_like_hub_id(config.data.dataset or "") else Path(first).name


def last_part(location: str) -> str:
    """Of an absolute path the last part alone; any other location unchanged."""
    return (Path(location).name or location) if Path(location).is_absolute() else location


def hide_folders(config: RunConfig) -> RunConfig:
    """The config as others may see it: of an absolute path the last part alone."""
    last = last_part
    splits: dict[str, Any] = {split: tuple(map(last, getattr(config.data, split))) for split in SPLITS}
    return dataclasses.replace(
        config,
        output_dir="outputs",
        cache=dataclasses.replace(config.cache, dir=config.cache.dir and last(config.cache.dir)),
        model=dataclasses.replace(config.model, backbone=last(config.model.backbone)),
        task=dataclasses.replace(
            config.task,
            **{name: path and last(path) for name in config.task.paths if (path := getattr(config.task, name))},
        ),
        data=dataclasses.replace(config.data, dataset=config.data.dataset and last(config.data.dataset), **splits),
        checkpoint=dataclasses.replace(config.checkpoint, resume=last(config.checkpoint.resume)),
    )


def describe_remote_code(config: RunConfig) -> str:
    """What a reader must know where the backbone runs code of its own."""
    if not config.model.trust_remote_code:
        return ""
    return "\nThis model was made with `trust_remote_code`: loading it runs Python code of the backbone's repository.\n"


def looks_like_hub_id(name: str) -> bool:
    """Whether a name is of the form user/name or name, and no folder here."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists()
