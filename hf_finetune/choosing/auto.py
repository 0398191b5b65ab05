"""`hf-finetune train --auto`: settings that give a good model soon. What follows is a normal run.

What is chosen stands in the run's config.yaml as if the user had given it, so that the run repeats without --auto with the same
numbers. Settings that the user gives are never chosen. A run that is resumed takes what its folder says.
"""

import gc
import math
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from hf_finetune.choosing import advise
from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import FreezeConfig, RunConfig, flatten, require, to_dict
from hf_finetune.export.start import resolve_start
from hf_finetune.run.checkpoint import read_manifests
from hf_finetune.run.finished import read_finished_results
from hf_finetune.run.folder import open_run, read_config_file
from hf_finetune.run.head_start import check_head_start
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system.console import label_lines
from hf_finetune.system.errors import InputError, first_line
from hf_finetune.system.processes import Runtime

# The learning rate stays constant, and a moving average of the weights is evaluated, which is at each moment about as good as a
# decay to zero would have made them. So training may end as soon as validation does not improve, for any size of data
PACE: Mapping[str, Any] = {
    "train.schedule": "constant",
    "train.ema_decay": 0.98,
    "evaluation.every": "1/12",
    "train.patience": 3,
}
LEAST_EPOCHS, MOST_EPOCHS, LEAST_UPDATES = 4, 20, 600  # until the run ends, if it does not stop before

DEPTH = ("freeze.embeddings", "freeze.layers")
HEAD = ("train.head_start", "train.head_learning_rate")
CHOSEN = (*DEPTH, *HEAD, "train.epochs", *PACE)

# Settings that are chosen together, and only if the user gives none of them
DEPTHS = {*DEPTH, "freeze.patterns", "freeze.unfreeze", "adapter.kind"}
TOGETHER = (
    DEPTHS,
    {*HEAD},
    {"train.schedule", "train.ema_decay", "train.optimizer"},
    {"train.epochs", "train.max_updates"},
)

# Advice takes about as long as updates on 4,000 examples: of fewer examples than these, more than a tenth of a run of two epochs,
# which is about what the right depth saves. They get the depth that loses least in the table of docs/advise.md: 0.2 points on
# average of five data sets, where no frozen layer loses 0.7 and a third of them 0.8
EXAMPLES_FOR_ADVICE = 20_000
DEPTH_OF_FEW = "1/6"


def choose_settings(config: RunConfig, given: Collection[str]) -> RunConfig:
    """Returns the config with the settings that --auto chooses, and prints them.

    given: Dotted keys of the settings that the user gives.

    Raises InputError for anything that the user can fix.
    """
    require(not config.data.streaming, "data.streaming", "true", "--auto needs the number of examples; set false")
    taken = {key for group in TOGETHER if group & {*given} for key in group} | {*given}
    free = [key for key in CHOSEN if key not in taken]
    with tempfile.TemporaryDirectory() as folder, open_run(replace(config, output_dir=folder)) as runtime:
        values = runtime.on_main(lambda: read_earlier(config))
        reason = f"as the run in {config.run_dir}"
        if not free:
            values, reason = {}, "nothing is left to choose: all is given"
        elif values is None:
            values, reason = choose(replace(config, output_dir=folder), free, runtime)
            if given_depth := sorted(DEPTHS & {*given}):
                reason = f"freeze.layers as it is set, because {', '.join(given_depth)} is given"
        chosen = {key: values[key] for key in free if key in values}
        lines = [", ".join(f"{key} {value}" for key, value in chosen.items()), reason]
        text = "\n".join(label_lines("auto", filter(None, lines)))
        runtime.say(f"{text}\n", event="auto", settings=chosen, reason=reason)
    gc.collect()  # the model, before it is loaded again
    return load_config({**dict(flatten(to_dict(config))), **chosen})


def read_earlier(config: RunConfig) -> dict[str, Any] | None:
    """Returns the settings of the run that will be resumed, by their dotted keys; None if a run begins."""
    if config.checkpoint.resume == "never" or not (config.run_dir / "config.yaml").exists():
        return None
    if not read_manifests(config.run_dir / "checkpoints") and read_finished_results(config) is None:
        return None  # nothing was trained yet
    return dict(flatten(read_config_file(config.run_dir)))


def choose(config: RunConfig, free: Collection[str], runtime: Runtime) -> tuple[dict[str, Any], str]:
    """Returns values of the settings that are free, by their dotted keys, and why the depth is as it is. On all processes."""
    if "freeze.layers" in free:
        config = replace(config, freeze=FreezeConfig(embeddings=True, layers=0))
    run = set_up(resolve_start(config, runtime), runtime, Clock())
    values, reason = {**PACE, "train.epochs": choose_epochs(run)}, "freeze.layers as it is set"
    if can_start_head(run):  # a head that is fitted needs no larger rate than the layers below it
        values |= {"train.head_start": "ridge", "train.head_learning_rate": config.train.learning_rate}
    if "freeze.layers" in free:
        depth, reason = choose_depth(run)
        values |= {} if depth is None else {"freeze.embeddings": True, "freeze.layers": depth}
    runtime.accelerator.free_memory()  # it keeps the optimizers that it prepared
    return runtime.on_main(lambda: values), reason


def choose_epochs(run: TrainingRun) -> int:
    """Returns the largest number of epochs: enough updates for few examples, too."""
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(LEAST_UPDATES / run.schedule.updates_per_epoch)))


def can_start_head(run: TrainingRun) -> bool:
    """True if train.head_start is possible for this task and model."""
    config = replace(run.config, train=replace(run.config.train, head_start="ridge"))
    try:
        check_head_start(config, run.task.objective, run.train_state.model)
    except InputError:
        return False
    return True


def choose_depth(run: TrainingRun) -> tuple[int | str | None, str]:
    """Returns the number or share of blocks to freeze, and why; None if there is no advice for such a run."""
    num_examples = len(run.features["train"])
    try:
        advise.check_config(run.config)
        if num_examples < EXAMPLES_FOR_ADVICE and not run.plan.structure.shared:
            return (
                DEPTH_OF_FEW,
                f"{num_examples:,} training examples are trained on sooner than there is advice on freeze.layers",
            )
        started = time.perf_counter()
        depth = advise.choose_depth(advise.expect_each_depth(run))
    except (InputError, torch.OutOfMemoryError) as error:
        return None, f"freeze.layers as it is set, because there is no advice: {first_line(error)}"
    return depth, f"freeze.layers by advice, which took {time.perf_counter() - started:.0f} s"
