"""All that is settled before update 0: data, task, model, features, freeze plan, optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

from hf_finetune.config.sections import FreezeConfig, RunConfig, require
from hf_finetune.config.tasks import load_task
from hf_finetune.data.encoding import encode
from hf_finetune.data.features import Features, Padding, iterate_array
from hf_finetune.data.report import DataReport
from hf_finetune.data.splits import Splits, load_splits
from hf_finetune.data.streamed_data import StreamedData
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.forward.cached import get_own_forward, replace_forwards
from hf_finetune.forward.dropout import choose_masks
from hf_finetune.forward.padding import ignores_padding
from hf_finetune.forward.plan import find_forward_plan
from hf_finetune.forward.shared_rows import find_row_sharing
from hf_finetune.model import backbone, freezing, lora
from hf_finetune.model.backbone import Backbone
from hf_finetune.model.structure import ModelStructure, analyze_structure
from hf_finetune.run.augmentation import AugmentedFeatures, RowFunction
from hf_finetune.run.data_report import report_on_features, report_on_rows
from hf_finetune.run.head_start import check_head_start
from hf_finetune.run.parts import NO_PARTS, Parts, load_parts
from hf_finetune.run.seen_rows import report_on_seen_rows
from hf_finetune.run.streaming import StreamedBatches, load_streamed_splits, open_stream
from hf_finetune.run.training_run import Clock, Stage, TrainingRun
from hf_finetune.system.files import cache_root
from hf_finetune.system.processes import Runtime
from hf_finetune.tasks.base import Encoding, Scoring, Task
from hf_finetune.tasks.objectives import LOSSES, reads_some_tokens
from hf_finetune.training import optim
from hf_finetune.training.averaging import MovingAverage
from hf_finetune.training.progress import FRESH, Progress
from hf_finetune.training.schedule import Schedule, StreamedSchedule, make_schedule
from hf_finetune.training.train_state import TrainState

Loaded = TypeVar("Loaded")

# oneDNN generates code for matrix products of each new size in 16 bit. With batches whose length is a multiple of 8 tokens, an
# update takes less time, and a process less memory (benchmarks/batch_lengths.py). fp32 has no such code
STEP_16_BIT = 8


def set_up(
    config: RunConfig, runtime: Runtime, clock: Clock, progress: Progress = FRESH, parts: Parts = NO_PARTS
) -> TrainingRun:
    """Loads data and model and prepares training. The first update follows `progress`. parts: those that Python gave."""
    parts = load_parts(config, parts)
    task_class = load_task(config.task.kind)
    spec = task_class.make_columns(config).spec
    streamed = open_stream(config, spec, parts.rows)
    splits, learned_from = load_all_splits(config, spec, parts.rows, runtime, streamed)
    if streamed is None:
        learned_from = task_class.extend_training(config, splits.train)
        splits = replace(splits, train=learned_from)
    task = task_class.from_table(config, learned_from)
    if parts.loss is not None:
        task = task.with_loss(parts.loss, config)
    metric, more_metrics = choose_metrics(config, task.scoring, parts)  # checked before anything is trained
    report = runtime.on_main(lambda: check_rows(splits, task, config, is_sample=streamed is not None))
    tokenizer = backbone.load_tokenizer(config.model, config.cache)
    loaded = backbone.load_backbone(config.model, task.head, tokenizer, config.cache)
    task.prepare_model(loaded.model, loaded.tokenizer)
    max_length = backbone.resolve_max_length(loaded, config.data.max_length)
    loaded = lora.add_adapters(loaded, config.adapter, config.freeze, config.seed)
    with clock("encode"):
        features = encode_splits(splits, task.encoding, loaded.tokenizer, max_length, config, runtime)
        options: dict[str, Any] = {"tokenizer": loaded.tokenizer, "max_length": max_length}
        report = runtime.on_main(lambda: report_on_features(report, splits.tables(), features, task, **options))
        report = runtime.on_main(lambda: report_on_seen_rows(report, splits, task, config, loaded.lineage))
        report.check_strict(config.data.strict)
    stream, augmented = None, None
    if streamed is not None:
        stream = StreamedBatches(streamed, task, loaded.tokenizer, max_length, config, runtime)
    if parts.augment is not None:
        name = f"train.augment ({config.train.augment})"
        augment = RowFunction(function=parts.augment, name=name, seed=config.seed, table=splits.train)
        augment.check()
        augmented = AugmentedFeatures(augment, task, features["train"], loaded.tokenizer, max_length)
    ids = (part for split in features.values() for part in iterate_array(split.inputs["input_ids"]))
    backbone.check_ids(loaded, max(int(part.max()) for part in ids))
    loaded.model.to(runtime.device)
    padding = choose_padding(loaded, max_length, config, runtime)
    schedule = make_schedule(len(features["train"]), config) if stream is None else stream.make_schedule()
    structure = analyze_structure(loaded.model)
    freezing.check_stages(config.freeze, structure)
    last_plan = make_freeze_plan(loaded, config.freeze.at(config.train.epochs), structure)
    check_head_start(config, task.objective, loaded.model)
    freeze = config.freeze.at(find_next_epoch(schedule, progress))
    return TrainingRun(
        config=config,
        runtime=runtime,
        splits=splits,
        task=task,
        metric=metric,
        backbone=loaded,
        max_length=max_length,
        features=features,
        data_report=report,
        schedule=schedule,
        stage=prepare_stage(loaded, structure, freeze, config, runtime, task, padding, parts.optimizer),
        trainable_in_last_stage=last_plan.trainable,
        more_metrics=more_metrics,
        parts=parts,
        augmented=augmented,
        stream=stream,
    )


def load_all_splits(
    config: RunConfig, spec: ColumnSpec, given: Mapping[str, Any], runtime: Runtime, streamed: StreamedData | None
) -> tuple[Splits, Table]:
    """Returns the splits, and the rows that the task learns from. The main process reads large files and keeps their rows on
    disk, where the others find them. streamed: The training data with data.streaming."""
    root = cache_root(config.cache.dir)

    def load() -> tuple[Splits, Table]:
        if streamed is not None:
            return load_streamed_splits(config.data, spec, given, streamed, root)
        splits = load_splits(config.data, config.seed, spec, given, root)
        return splits, splits.train

    return main_first(load, runtime)


def main_first(load: Callable[[], Loaded], runtime: Runtime) -> Loaded:
    """Returns what `load` returns on each process. The main one calls it first, and fills the caches that the others read."""
    loaded: list[Loaded] = []

    def call() -> None:
        loaded.append(load())

    runtime.on_main(call)
    return loaded[0] if loaded else load()


def check_rows(splits: Splits, task: Task, config: RunConfig, *, is_sample: bool) -> DataReport:
    """Returns the report on the rows. InputError with all warnings if data.strict is set and there are any.

    is_sample: The training rows are a few of a stream.
    """
    tables = splits.tables()
    report = report_on_rows(tables, task, drawn=tables.keys() - splits.num_rows.keys(), is_sample=is_sample)
    return report.check_strict(config.data.strict)


def choose_metrics(config: RunConfig, scoring: Scoring, parts: Parts) -> tuple[str, tuple[str, ...]]:
    """Returns the metric that decides which checkpoint is best, and those of evaluation.metrics that are not one's own.

    InputError if the task cannot compute one of them, or if a metric of one's own has the name of another one.
    """
    name, entries, trust = config.evaluation.metric, config.evaluation.metrics, config.evaluation.trust_metric_code
    taken = {"loss", *scoring.metric_names} & parts.metrics.keys()
    require(not taken, "evaluation.metrics", ", ".join(sorted(taken)), "is a metric of the task; name yours otherwise")
    more = tuple(
        scoring.load_metric(entry, "evaluation.metrics", trust_code=trust) for entry in entries if ":" not in entry
    )
    if name in parts.metrics:
        return name, more
    require(
        ":" not in name,
        "evaluation.metric",
        name,
        "an import path goes into evaluation.metrics; evaluation.metric then takes the function's name",
    )
    return scoring.load_metric(scoring.default_metric if name == "auto" else name, trust_code=trust), more


def encode_splits(
    splits: Splits, encoding: Encoding, tokenizer: Any, max_length: int, config: RunConfig, runtime: Runtime
) -> dict[str, Features]:
    """The features of every split. The main process encodes what the cache does not hold; the others read it."""
    root, workers = cache_root(config.cache.dir), config.data.workers
    say = cache(runtime.say) if runtime.is_main else None  # a folder that cannot be written is one line for all splits

    def encode_all() -> dict[str, Features]:
        return {
            split: encode(encoding, table, tokenizer, max_length, root=root, workers=workers, say=say)
            for split, table in splits.tables().items()
        }

    return main_first(encode_all, runtime)


def choose_padding(loaded: Backbone, max_length: int, config: RunConfig, runtime: Runtime) -> Padding:
    """How the sequences of a batch are filled up. The number of tokens of a micro-batch may be limited, padding included; then
    no padding is added, and there are too many sizes to gain from it anyway."""
    has_few_lengths = (
        runtime.device.type == "cpu"
        and runtime.precision != "fp32"
        and config.train.micro_batch_tokens is None
        and ignores_padding(loaded.model, loaded.pad_token_id)
    )
    return Padding(loaded.pad_token_id, STEP_16_BIT if has_few_lengths else 1, max_length)


def find_next_epoch(schedule: Schedule | StreamedSchedule, progress: Progress) -> int:
    """The epoch, counted from 1, of the next update; of the last update after the end."""
    return schedule.epoch(
        progress.update if progress.stopped else min(progress.num_settled + 1, schedule.total_updates)
    )


def make_freeze_plan(loaded: Backbone, freeze: FreezeConfig, structure: ModelStructure) -> freezing.FreezePlan:
    """The freeze plan of the backbone, its adapters and its new head."""
    return freezing.apply_freezing(
        loaded.model, freeze, structure, adapters=loaded.adapter_parameters, new=loaded.new_parameters
    )


def prepare_stage(
    loaded: Backbone,
    structure: ModelStructure,
    freeze: FreezeConfig,
    config: RunConfig,
    runtime: Runtime,
    task: Task,
    padding: Padding,
    build: optim.BuildOptimizer | None = None,
) -> Stage:
    """Freezes, finds what a forward need not compute, builds the optimizer, and has Accelerate prepare it and the model.

    padding: How the sequences of a batch are filled up. build: The user's own function that builds the optimizer.
    """
    with runtime.accelerator.autocast():  # some kinds of attention run in 16 bit on a GPU only
        plan = make_freeze_plan(loaded, freeze, structure)
        eval_modules = freezing.find_eval_modules(loaded.model, has_adapters=loaded.adapter is not None)
        masks = choose_masks(config.train.dropout_masks, config.seed, loaded.model, eval_modules)
    # The probes run in fp32: after the first stage, the forward that Accelerate has put in place is under autocast
    in_fp32 = replace_forwards({loaded.model: get_own_forward(loaded.model)})
    with lora.with_random_adapters(loaded), in_fp32:
        forward_plan, cannot_cache = find_forward_plan(
            loaded.model, plan, reads_some_tokens=reads_some_tokens(task.objective, *LOSSES)
        )
        row_sharing, not_shared = find_row_sharing(
            config.train.shared_rows,
            loaded.model,
            masks,
            forward_plan,
            eval_modules,
            task.objective.why_rows_are_not_shared,
        )
    groups = optim.make_parameter_groups(loaded.model, plan, config.train, loaded.new_parameters)
    prepared, optimizer = runtime.accelerator.prepare(
        loaded.model, optim.build_optimizer(groups, config.train, runtime.device, build)
    )
    optim.check_optimizer_tensors(optimizer, loaded.model, config.train)
    state = TrainState(
        model=loaded.model,
        prepared=prepared,
        optimizer=optimizer,
        eval_modules=eval_modules,
        padding=padding,
        dropout_masks=masks,
        forward_plan=forward_plan,
        autocast=runtime.accelerator.autocast,
        average=MovingAverage(loaded.model, config.train.ema_decay) if config.train.ema_decay else None,
        row_sharing=row_sharing,
    )
    return Stage(plan=plan, train_state=state, cannot_cache=cannot_cache, not_shared=not_shared)
