"""All that is settled before update 0: data, task, model, features, freeze plan, optimizer."""

import json
from typing import Any

from hf_finetune import tasks
from hf_finetune.config.sections import FreezeConfig, RunConfig
from hf_finetune.data import encoding
from hf_finetune.data.features import Features
from hf_finetune.data.splits import Splits, load_splits
from hf_finetune.forward import cached, dropout, first_token
from hf_finetune.model import backbone, freezing, lora, structure
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system.processes import Runtime
from hf_finetune.tasks.base import Task
from hf_finetune.training import optim
from hf_finetune.training.progress import FRESH, Progress
from hf_finetune.training.schedule import Schedule, make_schedule
from hf_finetune.training.train_state import TrainState


def read_finished_results(config: RunConfig) -> dict[str, Any] | None:
    """results.json of a run that is finished and has its model, else None."""
    path = config.run_dir / "results.json"
    if config.checkpoint.resume == "never" or not path.exists() or not backbone.holds_model(config.run_dir / "model"):
        return None
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    asks_for_more = config.checkpoint.resume != "auto"
    return results if results.get("status") == "finished" and not asks_for_more else None


def set_up(config: RunConfig, task_name: str, run: Runtime, clock: Clock, progress: Progress = FRESH) -> TrainingRun:
    """Data, task, model, features, freeze plan, optimizer: all that is settled before the first update, which follows
    `progress`."""
    with clock("load"):
        splits = load_splits(config.data, config.seed, tasks.form_of(task_name, config))
        task = tasks.build(task_name, config, splits.train)
        metric = choose_metric(config, task)
        loaded = backbone.load_backbone(config.model, task.head, backbone.load_tokenizer(config.model))
        task.prepare_model(loaded.model, loaded.tokenizer)
        max_length = backbone.resolve_max_length(loaded, config.data.max_length)
        loaded = lora.add_adapters(loaded, config.adapter, config.freeze, config.seed)
    with clock("encode"):
        features = encode_splits(splits, task, loaded.tokenizer, max_length, run)
    backbone.check_ids(loaded, max(int(rows.inputs["input_ids"].max()) for rows in features.values()))
    loaded.model.to(run.device)
    schedule = make_schedule(len(features["train"]), config)
    anatomy = structure.analyze_structure(loaded.model)
    freezing.check_stages(config.freeze, anatomy)
    free_at_last = make_freeze_plan(loaded, config.freeze.at(config.train.epochs), anatomy).trainable
    stage = prepare_stage(loaded, anatomy, config.freeze.at(find_next_epoch(schedule, progress)), config, run)
    return TrainingRun(
        config=config,
        runtime=run,
        splits=splits,
        task=task,
        metric=metric,
        backbone=loaded,
        max_length=max_length,
        features=features,
        schedule=schedule,
        trainable_in_last_stage=free_at_last,
        **stage,
    )


def find_next_epoch(schedule: Schedule, progress: Progress) -> int:
    """The epoch, counted from 1, of the update that follows; of the last one where none does."""
    return schedule.epoch(
        progress.update if progress.stopped else min(progress.num_settled + 1, schedule.total_updates)
    )


def make_freeze_plan(
    loaded: backbone.Backbone, freeze: FreezeConfig, anatomy: structure.ModelStructure
) -> freezing.FreezePlan:
    """What a freeze config makes of the backbone, its adapters and its new head."""
    return freezing.apply_freezing(
        loaded.model, freeze, anatomy, adapters=loaded.adapter_parameters, new=loaded.new_parameters
    )


def prepare_stage(
    loaded: backbone.Backbone, anatomy: structure.ModelStructure, freeze: FreezeConfig, config: RunConfig, run: Runtime
) -> dict[str, Any]:
    """What follows from a freeze config: plan, trainee, and why its prefix cannot be replayed, if so."""
    with run.accelerator.autocast():  # some kinds of attention run in 16 bit on a GPU only
        plan = make_freeze_plan(loaded, freeze, anatomy)
        constant = freezing.find_eval_modules(loaded.model, has_adapters=loaded.adapter is not None)
        masks = dropout.choose_masks(config.train.dropout_masks, config.seed, loaded.model, constant)
    with lora.with_random_adapters(loaded):
        shortcuts, no_replay = find_forward_plan(loaded.model, plan)
    trainee = prepare_training(loaded, plan, config, run, constant=constant, masks=masks, shortcuts=shortcuts)
    return {"plan": plan, "trainee": trainee, "no_replay": no_replay}


def choose_metric(config: RunConfig, task: Task) -> str:
    """The name of the metric that decides what is best, checked to exist and to fit, before anything is trained."""
    name = config.evaluation.metric
    return task.check_metric(task.default_metric if name == "auto" else name)


def encode_splits(splits: Splits, task: Task, tokenizer: Any, max_length: int, run: Runtime) -> dict[str, Features]:
    """The features of every split; the main process encodes what the cache does not hold, the others read it."""

    def encode_all() -> dict[str, Features]:
        return {split: encoding.encode(task, table, tokenizer, max_length) for split, table in splits.tables().items()}

    run.on_main(lambda: encode_all() and None)
    return encode_all()


def find_forward_plan(model: Any, plan: freezing.FreezePlan) -> tuple[first_token.ForwardPlan, str]:
    """What a forward of this model need not compute, each proven on a probe; and why its prefix cannot be replayed."""
    cuts = first_token.find_first_token_cuts(model, plan)
    try:
        return first_token.ForwardPlan(cached=cached.find_cached_forward(model, plan), first_token=cuts), ""
    except cached.CannotCacheError as error:
        return first_token.ForwardPlan(first_token=cuts), str(error)


def prepare_training(
    loaded: backbone.Backbone, plan: freezing.FreezePlan, config: RunConfig, run: Runtime, **behaviour: Any
) -> TrainState:
    """Builds the optimizer over what trains, and has Accelerate prepare it and the model."""
    groups = optim.make_parameter_groups(loaded.model, plan, config.train, loaded.new_parameters)
    prepared, optimizer = run.accelerator.prepare(loaded.model, optim.build_optimizer(groups, run.device))
    return TrainState(
        model=loaded.model, prepared=prepared, optimizer=optimizer, pad_token_id=loaded.pad_token_id, **behaviour
    )
