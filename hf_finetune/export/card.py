"""The model card: Hub metadata, how to load the model, results, data, trained parameters and settings.

Its text is in card_template.md, and in checkpoint_card_template.md for a model that is made from a checkpoint.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_finetune.config.loading import to_yaml
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.splits import SPLITS
from hf_finetune.model import lora
from hf_finetune.model.backbone import Backbone
from hf_finetune.model.lineage import Lineage
from hf_finetune.run.parts import own_metrics
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.markdown import code_block, code_span, escape_markdown
from hf_finetune.tasks.base import Task
from hf_finetune.tasks.calibration import PREFIX, Calibrator

TEMPLATE = Path(__file__).with_name("card_template.md")
CHECKPOINT_TEMPLATE = Path(__file__).with_name("checkpoint_card_template.md")


# --- cards ----------------------------------------------------------------------------------------------------------


def make_card(run: TrainingRun, results: Mapping[str, Any]) -> str:
    """Returns the model card of a run. results: the content of results.json."""
    config, plan, examples = hide_folders(run.config), run.plan, results["examples"]
    processes = results["processes"]
    rows = [
        f"| {split} | {escape_markdown(metric)} | {value:.4f} |"
        for split in ("validation", "test")
        for metric, value in results[split].items()
    ]
    uses = ["The test split was used once, after that." if results["test"] else "There is no test split."]
    activations = run.features["validation"].activations
    if results["validation_check"] is not None and activations is not None and activations.dtype != "float32":
        uses.append(
            "The numbers of validation were computed from activations of the frozen layers in 16 bit, as in training: they can "
            "differ from this model's in the fourth digit."
        )
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        metadata=make_metadata(run, results).to_yaml(),
        name=escape_markdown(config.name),
        backbone=code_span(keep_last_part(run.backbone.lineage.base).split("#")[0]),
        earlier=describe_earlier(run.backbone.lineage),
        purpose=run.task.describe_for_card(),
        usage=code_block("python", describe_usage(run.backbone, run.task, config.hub.repo_id or "model")),
        metrics="\n".join(rows),
        weights=describe_weights(config, results),
        test_use="\n".join(uses),
        calibration=describe_calibration(run.task.scoring.calibrator),
        data_name=code_span(find_data_name(config)),
        num_train=f"{examples['train']:,}",
        num_validation=f"{examples['validation']:,}",
        num_test=f"{examples['test']:,}",
        max_length=run.max_length,
        parts="\n".join(f"| {part} | {size:,} | {state} |" for part, size, state in plan.table()),
        num_trainable=f"{plan.num_trainable:,}",
        num_total=f"{plan.num_total:,}",
        foreign_code=describe_foreign_code(config, run.task),
        settings=code_block("yaml", to_yaml(config).rstrip()),
        seconds=f"{results['seconds']['train']:.0f}",
        device=results["device"],
        precision=results["precision"],
        processes="one process" if processes == 1 else f"{processes} processes",
    )


def make_checkpoint_card(checkpoint: str, content: Mapping[str, Any], config: RunConfig, task: Task) -> str:
    """Returns the card of a model that is made from a checkpoint. checkpoint: its file name. content: its dict."""
    return Template(CHECKPOINT_TEMPLATE.read_text(encoding="utf-8")).substitute(
        library_name=choose_library_name(config, task),
        pipeline_tag=task.pipeline_tag,
        name=escape_markdown(config.name),
        epoch=content["epoch"],
        update=content["update"],
        checkpoint=code_span(checkpoint),
        purpose=task.describe_for_card(),
        metrics="\n".join(f"| {escape_markdown(name)} | {value:.4f} |" for name, value in content["metrics"].items()),
        foreign_code=describe_foreign_code(config, task),
    )


def describe_weights(config: RunConfig, results: Mapping[str, Any]) -> str:
    """Returns which checkpoint the weights are from, or of which they are the mean."""
    best, metric, average = results["best"], results["metric"], results["average"]
    if average is None:
        line = f"The best checkpoint (epoch {best['epoch']}, update {best['update']}) was chosen by {metric} on validation."
        if config.train.ema_decay is not None:
            line += f" It has the moving average of the trained weights (decay {config.train.ema_decay})."
        return line
    updates = ", ".join(map(str, average["updates"]))
    return (
        f"The weights are the mean of {len(average['updates'])} checkpoints (updates {updates}): `export.average` was "
        f"{average['export']}. The best single checkpoint (update {best['update']}) has {metric} {best['value']:.4f} on "
        "validation."
    )


def describe_calibration(calibrator: Calibrator | None) -> str:
    """Returns how predictions are calibrated, "" without task.calibrate."""
    if calibrator is None or calibrator.fitted is None:
        return ""
    lines = "\n".join(f"- {line}" for line in calibrator.describe())
    size = f"{calibrator.fitted.num_examples:,}"
    return (
        f"\nPredictions of hf-finetune are calibrated on the {size} validation examples:\n\n{lines}\n\n"
        f"Metrics whose names begin with `{PREFIX}` are with this, all others without; those of validation are of the examples "
        "that it was fitted on. `from_pretrained` gives logits without it. The numbers are in config.json, under "
        "`hf_finetune.calibration`.\n"
    )


def describe_earlier(lineage: Lineage) -> str:
    """Returns a sentence about the runs that trained the model before this one, "" if there are none."""
    return f"\nIt had been fine-tuned before this: {escape_markdown(lineage.describe())}.\n" if lineage.runs else ""


def describe_foreign_code(config: RunConfig, task: Task) -> str:
    """Returns sentences about the Python code that the run was told to trust: that of the backbone and of metrics; else ""."""
    sentences = []
    if config.model.trust_remote_code:
        sentences.append(
            "This model was made with `trust_remote_code`: loading it runs Python code of the backbone's repository."
        )
    named = dict.fromkeys((config.evaluation.metric, *config.evaluation.metrics))
    own = {"auto", *own_metrics(config.evaluation.metrics)}
    foreign = [name for name in named if name not in own and ":" not in name and task.scoring.is_foreign_code(name)]
    if config.evaluation.trust_metric_code and foreign:
        sentences.append(
            f"The code of {', '.join(map(code_span, foreign))} is not of hf-finetune: it was run because of "
            "`evaluation.trust_metric_code`. Loading this model does not run it."
        )
    return "".join(f"\n{sentence}\n" for sentence in sentences)


# --- how to load the model ------------------------------------------------------------------------------------------


def describe_usage(loaded: Backbone, task: Task, name: str) -> str:
    """Returns Python code that loads the exported model. name: its folder or Hub id."""
    if loaded.is_exported_as_adapter:
        return describe_adapter_usage(loaded, task.head.auto_class, name)
    return "\n".join(
        [
            f"from transformers import {task.head.auto_class}, AutoTokenizer",
            "",
            f"model = {task.head.auto_class}.from_pretrained({quote(name)})",
            f"tokenizer = AutoTokenizer.from_pretrained({quote(name)})",
        ]
    )


def describe_adapter_usage(loaded: Backbone, auto_class: str, name: str) -> str:
    """Returns Python code that loads an exported adapter and the pretrained model that it belongs to."""
    source, gguf_file = keep_last_part(loaded.source.partition("#sha256=")[0]), ""
    if source.lower().endswith(".gguf"):
        source, _, gguf_file = source.rpartition("/")
    lines = []
    base = quote(source or ".")
    if source.startswith("package://"):
        package, _, inside = source.removeprefix("package://").partition("/")
        base = f"files({quote(package)}) / {quote(inside)}"
        lines += ["from importlib.resources import files", ""]
    options = "config=config"
    if gguf_file:
        options += f", gguf_file={quote(gguf_file)}"
    if loaded.revision:
        options += f", revision={quote(loaded.revision)}"
    if loaded.replaces_head:
        options += ", ignore_mismatched_sizes=True"
    generates = loaded.model.can_generate()
    classes = ["AutoConfig", auto_class, "AutoTokenizer"]
    if generates:
        classes.append("GenerationConfig")
    lines += [
        f"from transformers import {', '.join(classes)}",
        "",
        f"base = {base}  # an adapter needs the model it was trained on, and the package peft",
        f'config = AutoConfig.from_pretrained({quote(name)}, subfolder="{lora.MODEL_CONFIG}")',
        f"model = {auto_class}.from_pretrained(base, {options})",
        f"model.load_adapter({quote(name)})",
    ]
    if generates:
        lines.append(f"model.generation_config = GenerationConfig.from_pretrained({quote(name)})")
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained({quote(name)})")
    return "\n".join(lines)


def quote(text: str) -> str:
    """Returns a text as a string of Python."""
    return json.dumps(text, ensure_ascii=False)


# --- metadata for the Hub -------------------------------------------------------------------------------------------


def make_metadata(run: TrainingRun, results: Mapping[str, Any]) -> ModelCardData:
    """Returns the card's metadata for the Hub, with the metrics of the test split; of validation if there is no test split."""
    config, task, base = run.config, run.task, run.backbone.lineage.base
    split = "test" if results["test"] else "validation"
    name = find_data_name(config)
    tags = ["hf-finetune", task.problem]
    if config.adapter.kind == "lora":
        tags.append("lora")
    return ModelCardData(
        library_name=choose_library_name(config, task),
        pipeline_tag=task.pipeline_tag,
        tags=tags,
        base_model=base if looks_like_hub_id(base) else None,
        datasets=[name] if looks_like_hub_id(config.data.dataset or "") else None,
        model_name=config.name,
        eval_results=[
            EvalResult(
                task_type=task.pipeline_tag,
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


def choose_library_name(config: RunConfig, task: Task) -> str:
    """Returns the name of the library that loads the exported model."""
    is_adapter = config.adapter.kind == "lora" and not config.adapter.merge
    return "peft" if is_adapter and task.library_name == "transformers" else task.library_name


def find_data_name(config: RunConfig) -> str:
    """Returns the name of the data set: its Hub id, its package, or its first file without folders."""
    first = config.data.dataset or config.data.train[0]
    if first.startswith("package://"):
        return first.removeprefix("package://").split("/")[0]
    return first if looks_like_hub_id(config.data.dataset or "") else Path(first).name


def looks_like_hub_id(name: str) -> bool:
    """True if a name has the form user/name or name, and there is no such folder."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists()


# --- paths of this machine ------------------------------------------------------------------------------------------


def hide_folders(config: RunConfig) -> RunConfig:
    """Returns the config as others may see it: of each absolute path, only the last part."""
    data, task = config.data, config.task
    locations: dict[str, Any] = {
        split: tuple(keep_last_part(path) for path in getattr(data, split)) for split in SPLITS
    }
    if data.dataset:
        locations["dataset"] = keep_last_part(data.dataset)
    cache_dir = keep_last_part(config.cache.dir) if config.cache.dir else config.cache.dir
    task_paths = {name: keep_last_part(getattr(task, name)) for name in task.paths if getattr(task, name)}
    return dataclasses.replace(
        config,
        output_dir="outputs",
        start_from=None if config.start_from is None else keep_last_part(config.start_from),
        cache=dataclasses.replace(config.cache, dir=cache_dir),
        model=dataclasses.replace(config.model, backbone=keep_last_part(config.model.backbone)),
        task=dataclasses.replace(task, **task_paths),
        data=dataclasses.replace(data, **locations),
        checkpoint=dataclasses.replace(config.checkpoint, resume=keep_last_part(config.checkpoint.resume)),
    )


def keep_last_part(location: str) -> str:
    """Returns the last part of an absolute path; any other location unchanged."""
    return (Path(location).name or location) if Path(location).is_absolute() else location
