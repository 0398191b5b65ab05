"""A run, in the order of time. READ THIS FIRST."""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_finetune import backbone as backbones
from hf_finetune import checkpoint, data, export, freezing, hub, metrics, optim, runtime, tasks, tracking
from hf_finetune.backbone import Backbone
from hf_finetune.checkpoint import Progress
from hf_finetune.config import RunConfig, as_dict, changed_keys
from hf_finetune.data import Features, Splits
from hf_finetune.errors import InputError
from hf_finetune.freezing import FreezePlan
from hf_finetune.loop import NotFinite, Schedule, Trainee, evaluate, micro_batch_size, schedule_of, train_steps
from hf_finetune.runtime import Runtime
from hf_finetune.tasks import Task


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run leaves behind. `results` is what results.json holds."""

    run_dir: Path
    model_dir: Path
    results: dict[str, Any]


def finetune(config: RunConfig, *, task_name: str = "classification") -> RunResult:
    """Fine-tunes as the config says, resumes where an earlier run of the same config stopped, and exports the best model.

    Raises InputError for anything the user can mend.
    """
    clock = Clock()
    with runtime.start(config) as run:
        if finished := finished_results(config):
            run.say(f"{config.run_dir} is finished: {summary(finished)}; nothing to train")
            return RunResult(run_dir=config.run_dir, model_dir=config.run_dir / "model", results=finished)
        tracking.check_trackers(config.tracking.trackers)
        if config.hub.push:
            run.on_main(lambda: hub.check_access(str(config.hub.repo_id)))

        with clock("load"):
            splits = data.load_splits(config.data, config.seed)
            task = tasks.build(task_name, config, splits.train)
            metric = choose_metric(config, task)
            tokenizer = backbones.load_tokenizer(config.model)
            backbone = backbones.load(config.model, task, tokenizer)
        with clock("encode"):
            max_length = backbones.longest_input(backbone, config.data.max_length)
            features = encode(splits, task, backbone, config, max_length, run)

        plan = freezing.apply(backbone.model, config.freeze)
        trainee = prepare(backbone, plan, config, run)
        schedule = schedule_of(len(features["train"]), config)
        progress, notes = restore(trainee, features, config, run)
        announce(config, run, splits, features, task, metric, plan, schedule, progress, max_length, notes)
        rehearse(trainee, features, task, metric, config, run)
        run.on_main(lambda: runtime.record(config, run))
        tracker = tracking.Tracking(config, run, start_update=progress.update)

        progress = train(trainee, features, task, metric, config, run, schedule, progress, tracker, splits, clock)

        best = load_best(trainee, config, run, progress)
        with clock("evaluate"):
            final = {split: measure(trainee, features[split], task, metric, config, run) for split in ("validation", "test")
                     if split in features}  # fmt: skip
        if "test" in final:
            tracker.log({f"test/{name}": value for name, value in final["test"].items()}, update=progress.update,
                        epoch=schedule.epoch(progress.update))  # fmt: skip
        results = make_results(config, run, task, metric, features, plan, progress, final, clock)
        with clock("export"):
            run.on_main(lambda: finish(config, run, backbone, task, plan, features, results, max_length, clock))
        tracker.finish({f"{split}/{name}": value for split, values in final.items() for name, value in values.items()})
        run.say(closing(config, results, best))
        if config.hub.push:
            run.on_main(lambda: push_or_say(config))
        return RunResult(run_dir=config.run_dir, model_dir=config.run_dir / "model", results=results)


def train(
    trainee: Trainee, features: dict[str, Features], task: Task, metric: str, config: RunConfig, run: Runtime,
    schedule: Schedule, progress: Progress, tracker: tracking.Tracking, splits: Splits, clock: "Clock",
) -> Progress:  # fmt: skip
    """Trains to the end or to early stopping; returns where it ended. What others do in callbacks stands here as ifs."""
    if progress.stopped or progress.update >= schedule.total_updates:
        return progress
    bar = tracking.ProgressBar(schedule.total_updates, progress.update, run)
    steps = train_steps(trainee, features["train"], task, config, run, start_update=progress.update)
    try:
        for update in clock.each("train", steps):
            is_last = update.number == schedule.total_updates
            logs = update.number % config.tracking.log_every == 0 or update.number == 1 or is_last
            bar.advance(update, log=logs)
            if logs:
                tracker.log(tracking.training_row(update), update=update.number, epoch=update.epoch)
            progress = dataclasses.replace(progress, update=update.number)
            values: dict[str, float] = {}
            saves = schedule.is_due(config.checkpoint.every, update.number)
            if schedule.is_due(config.evaluation.every, update.number):
                with clock("evaluate"):
                    values = measure(trainee, features["validation"], task, metric, config, run)
                tracker.log({f"validation/{name}": value for name, value in values.items()}, update=update.number,
                            epoch=update.epoch)  # fmt: skip
                progress = judge(progress, values[metric], metric, update.epoch, config)
                is_best = progress.best_update == update.number
                bar.say(
                    f"epoch {update.epoch}  update {update.number}  validation: {show(values)}{'  best' if is_best else ''}"
                )
                saves = saves or is_best or progress.stopped
            if saves:
                with clock("save"):
                    file = save(trainee, features, metric, values, update.loss, config, run, schedule, progress)
                bar.say(f"saved {file}")
            if progress.stopped and not is_last:
                bar.say(f"no better {metric} for {progress.evaluations_without_gain} evaluations: stopping early")
                break
    except NotFinite as error:
        origins = ", ".join(splits.train.where(row) for row in error.rows[:8])
        raise InputError(f"{error} (examples: {origins}{', ...' if len(error.rows) > 8 else ''}); lower train.learning_rate, or "
                         "look at these examples; the last good checkpoint is kept") from None  # fmt: skip
    finally:
        bar.close()
    return progress


# --- before training ------------------------------------------------------------------------------------------------


def finished_results(config: RunConfig) -> dict[str, Any] | None:
    """results.json of a finished run with a model, else None."""
    path = config.run_dir / "results.json"
    if config.checkpoint.resume not in ("auto", "never") or not path.exists():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    whole = results.get("status") == "finished" and (config.run_dir / "model" / "config.json").exists()
    return results if whole else None


def choose_metric(config: RunConfig, task: Task) -> str:
    """The name of the metric that decides what is best, checked to exist and to fit, before anything is trained."""
    name = config.evaluation.metric
    name = task.default_metric if name == "auto" else metrics.SHORT_NAMES.get(name, name)
    if name != "loss":
        metrics.check_fits(name, task.problem)
        metrics.load(name)
    return name


def encode(
    splits: Splits, task: Task, backbone: Backbone, config: RunConfig, max_length: int, run: Runtime
) -> dict[str, Features]:
    """The features of every split; the main process encodes what the cache does not hold, the others read it."""
    tables = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    labels = {split: task.encode_labels(table) for split, table in tables.items() if table is not None}

    def encode_all() -> dict[str, Features]:
        return {split: data.encode(table, backbone.tokenizer, config.data, max_length, labels[split])
                for split, table in tables.items() if table is not None}  # fmt: skip

    run.on_main(lambda: encode_all() and None)
    return encode_all()


def prepare(backbone: Backbone, plan: FreezePlan, config: RunConfig, run: Runtime) -> Trainee:
    """Puts the model on the device, builds the optimizer over what trains, and has Accelerate prepare both."""
    constant = freezing.constant_modules(backbone.model)
    model = backbone.model.to(run.device)
    groups = optim.parameter_groups(model, plan, config.train, backbone.new_parameters)
    optimizer = optim.build(groups, run.device)
    prepared, prepared_optimizer = run.accelerator.prepare(model, optimizer)
    return Trainee(model=model, prepared=prepared, optimizer=prepared_optimizer, constant=constant,
                   pad_token_id=backbone.pad_token_id)  # fmt: skip


def restore(
    trainee: Trainee, features: dict[str, Features], config: RunConfig, run: Runtime
) -> tuple[Progress, list[str]]:
    """Loads the checkpoint that the run goes on from, if there is one; all processes take the same."""
    folder, asked = config.run_dir / "checkpoints", config.checkpoint.resume
    if asked not in ("auto", "never"):
        path: Path | None = Path(asked)
        if not Path(asked).is_file():
            raise InputError(
                f"checkpoint.resume ({asked}): no such file; takes auto, never, or the path of a checkpoint"
            )
        skipped: list[str] = []
    else:
        path, skipped = run.on_main(lambda: checkpoint.newest_whole(folder))
    notes = [f"passed over: {line}" for line in skipped]
    if path is None:
        return Progress(), notes
    content = checkpoint.load(path)
    state = content.get("run")
    if not isinstance(state, dict) or not {"progress", "config", "data"} <= state.keys():
        raise InputError(f"{path}: is a checkpoint, but not one of hf-finetune's (no key 'run')")
    if changed := changed_keys(state["config"], as_dict(config)):
        raise InputError(f"checkpoint.resume ({path}): was made with another config: "
                         + ", ".join(f"{key} (was {old}, now {new})" for key, old, new in changed))  # fmt: skip
    found = {split: rows.fingerprint() for split, rows in features.items()}
    if changed_data := sorted(split for split in found if state["data"].get(split) != found[split]):
        raise InputError(f"checkpoint.resume ({path}): the data are not those it was made with ({', '.join(changed_data)} differ); "
                         "put them back, or choose another name")  # fmt: skip
    trainee.model.load_state_dict(content["model_state_dict"])
    trainee.optimizer.optimizer.load_state_dict(content["optimizer_state_dict"])
    if run.accelerator.scaler is not None and state.get("scaler"):
        run.accelerator.scaler.load_state_dict(state["scaler"])
    progress = Progress(**state["progress"])
    return progress, [*notes, f"resuming after update {progress.update} from {path.name}"]


def announce(
    config: RunConfig, run: Runtime, splits: Splits, features: dict[str, Features], task: Task, metric: str, plan: FreezePlan,
    schedule: Schedule, progress: Progress, max_length: int, notes: list[str],
) -> None:  # fmt: skip
    """Says what was resolved, and why, before update 0."""
    counts = ", ".join(f"{len(rows):,} {split}" for split, rows in features.items())
    cut = features["train"].num_truncated
    size = micro_batch_size(config, run.num_processes)
    rounds = -(-config.train.batch_size // (size * run.num_processes))
    problem = f"{task.problem} ({getattr(task, 'reason', '')})"
    run.say(f"run         {config.run_dir}")
    run.say(f"backbone    {config.model.backbone}")
    run.say(f"examples    {counts}; at most {max_length} tokens, {cut:,} training texts are longer and were cut")
    for note in splits.notes:
        run.say(f"            {note}")
    run.say(f"labels      {problem}: {describe_labels(task, features['train'])}")
    run.say(
        f"metric      {metric}, on validation, {'higher' if metrics.greater_is_better(metric) else 'lower'} is better"
    )
    run.say(f"updates     {schedule.total_updates:,} of {config.train.batch_size} examples = {size} x {rounds} micro-batches x "
            f"{run.num_processes} process{'es' if run.num_processes > 1 else ''}; {schedule.updates_per_epoch:,} an epoch")  # fmt: skip
    run.say(
        f"device      {run.device}, {torch.get_num_threads()} threads a process, {run.precision}: {run.precision_reason}"
    )
    run.say("freeze plan\n" + plan.describe())
    if plan.anatomy.shared:
        run.say(f"  {freezing.SHARED_BLOCK}")
    for note in notes:
        run.say(f"resume      {note}")
    run.say()


def describe_labels(task: Task, features: Features) -> str:
    """The labels and how many training examples have each, the most frequent first."""
    if task.problem == "regression":
        return f"from {features.labels.min():g} to {features.labels.max():g}"
    totals = (
        features.labels.sum(0)
        if features.labels.ndim == 2
        else np.bincount(features.labels, minlength=len(task.label_names))
    )
    ordered = Counter({name: int(total) for name, total in zip(task.label_names, totals, strict=True)}).most_common()
    shown = ", ".join(f"{name} {count:,}" for name, count in ordered[:8])
    return shown + (f", and {len(ordered) - 8} more" if len(ordered) > 8 else "")


def rehearse(
    trainee: Trainee, features: dict[str, Features], task: Task, metric: str, config: RunConfig, run: Runtime
) -> None:
    """Fails in seconds rather than after an epoch: evaluates two batches with the metrics, and writes a checkpoint's
    bytes once and removes them."""
    rows = np.arange(min(len(features["validation"]), 2 * config.evaluation.batch_size))
    outcome = evaluate(trainee.model, features["validation"], task, run, batch_size=config.evaluation.batch_size,
                       pad_token_id=trainee.pad_token_id, rows=rows)  # fmt: skip
    compute(task, metric, outcome.logits, features["validation"].labels[rows])
    path = config.run_dir / ".rehearsal"

    def write() -> None:
        # AdamW's two moments will come on top of what is there now; the next checkpoint is written beside the last one
        moments = 2 * sum(p.numel() * 4 for p in trainee.model.parameters() if p.requires_grad)
        content = {"model": trainee.model.state_dict(), "moments": torch.empty(moments // 4)}
        checkpoint.replace_with(path, lambda file: torch.save(content, file), checkpoint.tensor_bytes(content))
        path.unlink()

    run.on_main(write)


# --- during training ------------------------------------------------------------------------------------------------


def measure(
    trainee: Trainee, features: Features, task: Task, metric: str, config: RunConfig, run: Runtime
) -> dict[str, float]:
    """Loss and metrics of a split."""
    outcome = evaluate(trainee.model, features, task, run, batch_size=config.evaluation.batch_size,
                       pad_token_id=trainee.pad_token_id)  # fmt: skip
    return {"loss": outcome.loss, **compute(task, metric, outcome.logits, features.labels)}


def compute(
    task: Task, metric: str, logits: "np.ndarray[Any, Any]", labels: "np.ndarray[Any, Any]"
) -> dict[str, float]:
    """The chosen metric and the task's own ones."""
    values: dict[str, float] = {}
    for name in dict.fromkeys((metric, *task.metric_names)):
        if name == "loss":
            continue
        predictions = task.scores(logits) if name in metrics.NEEDS_SCORES else task.decode(logits)
        values |= metrics.load(name).compute(predictions=predictions, references=labels)
    return values


def judge(progress: Progress, value: float, metric: str, epoch: int, config: RunConfig) -> Progress:
    """The progress after an evaluation: the best so far, and whether patience has run out. nan is never better."""
    sign = 1.0 if metrics.greater_is_better(metric) else -1.0
    if (
        progress.best_value is None
        or sign * value > sign * progress.best_value
        or progress.best_value != progress.best_value
    ):
        progress = dataclasses.replace(progress, best_value=value, best_update=progress.update, best_epoch=epoch)
    before = progress.patience_value
    if before is None or before != before or sign * (value - before) > config.train.min_delta:
        return dataclasses.replace(progress, patience_value=value, evaluations_without_gain=0)
    without = progress.evaluations_without_gain + 1
    stopped = config.train.patience is not None and without >= config.train.patience
    return dataclasses.replace(progress, evaluations_without_gain=without, stopped=stopped)


def save(
    trainee: Trainee, features: dict[str, Features], metric: str, values: dict[str, float], train_loss: float,
    config: RunConfig, run: Runtime, schedule: Schedule, progress: Progress,
) -> str:  # fmt: skip
    """Writes a checkpoint, then removes those that need not be kept; returns its file name."""
    folder = config.run_dir / "checkpoints"

    def write() -> str:
        rates = [group["lr"] for group in trainee.optimizer.param_groups]
        scaler = run.accelerator.scaler
        content = {
            "epoch": schedule.epoch(progress.update), "update": progress.update,
            "model_state_dict": trainee.model.state_dict(),
            "optimizer_state_dict": trainee.optimizer.optimizer.state_dict(),
            "scheduler_state_dict": {"update": progress.update, "total_updates": schedule.total_updates, "learning_rates": rates},
            "loss": values.get("loss", train_loss), "metrics": values,
            "run": {
                "progress": dataclasses.asdict(progress), "config": as_dict(config),
                "data": {split: rows.fingerprint() for split, rows in features.items()},
                "scaler": scaler.state_dict() if scaler is not None else None,
            },
        }  # fmt: skip
        manifest = checkpoint.save(folder, content, metric=metric, value=values.get(metric))
        checkpoint.retire(
            folder, keep_best=config.checkpoint.keep_best, keep_last=config.checkpoint.keep_last,
            greater_is_better=metrics.greater_is_better(metric), best_update=progress.best_update,
        )  # fmt: skip
        return manifest.file

    return run.on_main(write)


# --- after training -------------------------------------------------------------------------------------------------


def load_best(trainee: Trainee, config: RunConfig, run: Runtime, progress: Progress) -> str:
    """Loads the weights of the best checkpoint into the model, on every process; returns its file name."""
    folder = config.run_dir / "checkpoints"

    def find() -> str:
        for manifest in checkpoint.manifests(folder):
            if manifest.update == progress.best_update:
                if reason := checkpoint.fault(folder, manifest):
                    raise InputError(f"{folder / manifest.file}: {reason}; it was the best checkpoint of the run")
                return manifest.file
        raise InputError(f"{folder}: the best checkpoint (update {progress.best_update}) is missing")

    name = run.on_main(find)
    trainee.model.load_state_dict(checkpoint.load(folder / name)["model_state_dict"])
    return name


def make_results(
    config: RunConfig, run: Runtime, task: Task, metric: str, features: dict[str, Features], plan: FreezePlan,
    progress: Progress, final: Mapping[str, dict[str, float]], clock: "Clock",
) -> dict[str, Any]:  # fmt: skip
    """What results.json holds."""
    seconds = clock.seconds["train"]
    return {
        "task": task.name, "problem": task.problem, "metric": metric, "labels": list(task.label_names),
        "best": {"epoch": progress.best_epoch, "update": progress.best_update, "value": progress.best_value},
        "validation": final["validation"], "test": final.get("test", {}),
        "examples": {split: len(features[split]) if split in features else 0 for split in data.SPLITS},
        "parameters": {"total": plan.num_total, "trainable": plan.num_trainable},
        "updates": progress.update, "stopped_early": progress.stopped,
        "seconds": clock.report(), "tokens_per_second": round(clock.num_tokens / seconds, 1) if seconds else None,
        "peak_memory_mb": round(runtime.peak_memory_mb(run.device), 1),
        "device": str(run.device), "precision": run.precision, "processes": run.num_processes, "status": "finished",
    }  # fmt: skip


def finish(
    config: RunConfig, run: Runtime, backbone: Backbone, task: Task, plan: FreezePlan, features: dict[str, Features],
    results: dict[str, Any], max_length: int, clock: "Clock",
) -> None:  # fmt: skip
    """Exports the model, reloads and compares it, and only then writes results.json: a run with one is finished."""
    folder = export.export(config.run_dir, backbone, task, plan, config, results, max_length)
    results["reload_difference"] = export.check_reload(folder, backbone, task, features["validation"], run)
    results["seconds"] = clock.report()
    checkpoint.write_atomically(config.run_dir / "results.json", json.dumps(results, indent=2).encode())


def push_or_say(config: RunConfig) -> None:
    """Pushes; a failure costs no training and is said with the command that does it later."""
    try:
        address = hub.push(
            config.run_dir, str(config.hub.repo_id), private=config.hub.private, revision=config.hub.revision
        )
        print(f"pushed to {address}")
    except InputError as error:
        private = " --private" if config.hub.private else ""
        print(f"warning: {error}\nThe run is whole. Push it later with\n"
              f"  hf-finetune push {config.run_dir} --repo-id {config.hub.repo_id}{private}")  # fmt: skip


def show(values: Mapping[str, float]) -> str:
    """Metrics on one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())


def summary(results: Mapping[str, Any]) -> str:
    """The best and the test metrics in a few words."""
    return f"best {results['metric']} {results['best']['value']:.4f} on validation" + (
        f", test {show(results['test'])}" if results["test"] else ""
    )


def closing(config: RunConfig, results: Mapping[str, Any], best: str) -> str:
    """The last lines: a table of metrics, where everything lies, what to type next."""
    names = list(results["validation"])
    rows = [("", *names)]
    rows += [
        (split, *(f"{results[split][name]:.4f}" for name in names))
        for split in ("validation", "test")
        if results[split]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = "\n".join(
        "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows
    )
    folder = config.run_dir
    seconds = results["seconds"]
    text = '--text "..."' if len(config.data.text_columns) == 1 else "--data FILE.jsonl"
    return f"""
{table}

  model        {folder}/model  (from_pretrained)
  checkpoint   {folder}/checkpoints/{best}
  numbers      {folder}/results.json, metrics.jsonl
  curves       tensorboard --logdir {config.output_dir}
  time         {seconds["total"]:.0f} s, of which training {seconds["train"]:.0f} s; peak memory {results["peak_memory_mb"]:,.0f} MB

next:
  hf-finetune predict {folder} {text}
  hf-finetune evaluate {folder} --data FILE
  hf-finetune push {folder} --repo-id USER/NAME"""


class Clock:
    """Seconds by phase. `with clock("load"):` adds to a phase; a phase inside another counts for itself only."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = dict.fromkeys(
            ("load", "encode", "cache", "train", "evaluate", "save", "export"), 0.0
        )
        self.num_tokens = 0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - began

    def each(self, phase: str, steps: Iterator[Any]) -> Iterator[Any]:
        """The updates of a generator; the time spent in it counts as `phase`."""
        for update in steps:
            self.seconds[phase] += update.seconds
            self.num_tokens += update.num_tokens
            yield update

    def report(self) -> dict[str, float]:
        """Rounded seconds, with the total."""
        return {phase: round(value, 2) for phase, value in self.seconds.items()} | {
            "total": round(time.perf_counter() - self.started, 2)
        }
