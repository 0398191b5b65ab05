"""`hf-finetune advise`: how many blocks to freeze, without training.

The metric at each depth is that of choosing/advise_metric.py, the seconds those of choosing/advise_seconds.py. The advice is the
largest depth that loses at most TOLERANCE of the metric against any smaller one, two standard errors included: what has not been
shown to be harmless is not frozen.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_finetune.choosing.advise_metric import NUM_ERRORS, ExpectedMetric, choose_metric, expect_metrics
from hf_finetune.choosing.advise_seconds import ExpectedSeconds, expect_seconds, freeze_to, measure_speeds
from hf_finetune.choosing.advise_text import draw_characters, draw_svg, make_table
from hf_finetune.config.sections import FreezeConfig, RunConfig, require
from hf_finetune.export.start import resolve_start
from hf_finetune.forward.linear_head import find_linear_head
from hf_finetune.run.folder import open_run
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import write_atomically

TOLERANCE = 0.005  # of the metric; less than it differs between seeds of a run

TASKS = "classify"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What is expected at each depth, and the depth that is recommended.

    Args:
        metric: Name of the metric.
        metrics, seconds: What is expected at each depth, from 0.
        depth: The recommended value of freeze.layers.
        own_seconds: What the advice took, loading included.
    """

    metric: str
    metrics: tuple[ExpectedMetric, ...]
    seconds: tuple[ExpectedSeconds, ...]
    depth: int
    own_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the advice as plain values."""
        return dataclasses.asdict(self)


def choose_depth(metrics: Sequence[ExpectedMetric]) -> int:
    """Returns the largest depth that loses at most TOLERANCE against any smaller one, as far as that is known."""
    return max(each.depth for each in metrics if each.most_lost <= TOLERANCE)


def check_config(config: RunConfig) -> None:
    """Raises InputError for what no advice is made for."""
    kind = config.task.kind
    require(kind == TASKS, "task.kind", kind, f"advise knows how good a depth is for these tasks: {TASKS}")
    require(config.train.loss is None, "train.loss", config.train.loss, "advise knows the losses of the task only")
    require(config.adapter.kind == "none", "adapter.kind", config.adapter.kind, "advise is for runs without adapters")
    freeze = config.freeze
    require(
        not freeze.patterns,
        "freeze.patterns",
        list(freeze.patterns),
        "advise compares freeze.layers alone; leave it out",
    )
    require(
        not freeze.unfreeze,
        "freeze.unfreeze",
        list(freeze.unfreeze),
        "advise compares freeze.layers alone; leave it out",
    )
    require(not config.data.streaming, "data.streaming", True, "advise needs the number of examples; set false")


def advise(config: RunConfig, out: str | None = None, *, began: float | None = None) -> Advice:
    """Prints how deep to freeze, and returns it. Writes nothing but the picture, and what it measures of the machine's speed.

    config: The settings of the run; freeze.layers and freeze.embeddings have no effect. out: Path of the picture, an SVG file.
    began: When the command was given, by time.perf_counter().

    Raises InputError for anything that the user can fix.
    """
    began = time.perf_counter() if began is None else began
    check_config(config)
    if out is not None:
        check_picture(out)
    with tempfile.TemporaryDirectory() as folder:
        freeze = FreezeConfig(embeddings=True, layers=0)
        train = dataclasses.replace(config.train, head_start="none")
        config = dataclasses.replace(config, output_dir=folder, freeze=freeze, train=train)
        with open_run(config) as runtime:
            clock = Clock(began)
            run = set_up(resolve_start(config, runtime), runtime, clock)
            advice = make_advice(run, clock, began)
            if out is not None:
                content = draw_svg(advice.metrics, advice.seconds, advice.depth, advice.metric).encode()
                runtime.on_main(lambda: write_atomically(Path(out), content))
            print_advice(run, advice, out)
    return advice


def check_picture(out: str) -> None:
    """Raises InputError if no SVG file can be written there."""
    require(out.endswith(".svg"), "--out", out, "must be the path of an .svg file")
    require(Path(out).absolute().parent.is_dir(), "--out", out, "its folder does not exist")


def make_advice(run: TrainingRun, clock: Clock, began: float) -> Advice:
    """Returns the advice for a run that is ready for update 0."""
    fixed, name = clock.report()["total"], choose_metric(run)
    metrics = expect_each_depth(run)
    speeds = measure_speeds(run)
    if len(speeds) < 2:
        raise InputError(f"advise: {freeze_to(run, len(run.plan.structure.blocks)).stage.cannot_cache}")
    seconds = expect_seconds(run, speeds, fixed)
    return Advice(
        metric=name,
        metrics=tuple(metrics),
        seconds=tuple(seconds),
        depth=choose_depth(metrics),
        own_seconds=time.perf_counter() - began,
    )


def expect_each_depth(run: TrainingRun) -> list[ExpectedMetric]:
    """Returns the expected metric at each depth, for a run that is ready for update 0. Raises InputError if there is none."""
    structure, targets = run.plan.structure, run.task.objective.linear_targets
    if structure.shared:
        raise InputError("advise: this backbone runs one shared block many times, of which no part can be frozen alone")
    found = find_linear_head(run.train_state.model)
    if found is None or targets is None:
        raise InputError(
            f"model.backbone ({run.config.model.backbone}): its head has no linear layer that gives logits"
        )
    metrics, name = expect_metrics(run, found[1], targets), choose_metric(run)
    if any(math.isnan(each.trained) for each in metrics):
        raise InputError(f"advise: the sample does not determine {name}; are the labels of its examples all the same?")
    return metrics


def print_advice(run: TrainingRun, advice: Advice, out: str | None) -> None:
    """Prints the table, the picture and the lines to paste."""
    say = run.runtime.say
    say(make_table(advice.metrics, advice.seconds, advice.depth, advice.metric))
    say(
        "\n  frozen: of a linear layer on the frozen features. trained: of the blocks above, trained by small steps. Both are\n"
        "  of a sample, and compare depths: a run on all data reaches more. at most: what `trained` loses against freezing\n"
        f"  less, {NUM_ERRORS} standard errors included. The deepest freezing that loses at most {TOLERANCE:g} is recommended\n"
    )
    say(draw_characters(advice.metrics, advice.seconds, advice.metric))
    say(f"\nfreeze:\n  embeddings: true\n  layers: {advice.depth}\n")
    picture = f"; the picture is in {out}" if out else ""
    say(f"On the command line: --freeze.embeddings true --freeze.layers {advice.depth}")
    say(f"The advice took {advice.own_seconds:.0f} s{picture}")
