"""The seconds of a run at each depth of freezing, from the speed of this machine at a few depths (cache/speeds.py)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_finetune.cache.capture import inference_only
from hf_finetune.cache.decision import find_speed
from hf_finetune.cache.speeds import Speed
from hf_finetune.config.sections import FreezeConfig
from hf_finetune.run.setup import prepare_stage
from hf_finetune.run.training_run import TrainingRun

NUM_MEASURED = 3  # depths, between which the seconds a token are on a line

# What a run does besides: a backward takes two forwards, so a forward a third of an update
FORWARD_SHARE = 1 / 3


@dataclass(frozen=True, kw_only=True)
class ExpectedSeconds:
    """The seconds of a run if the lowest `depth` blocks are frozen, from the command to the exported model.

    Args:
        cold: Of the first run, which computes the activations of the frozen blocks.
        warm: Of a later one, which finds them. As cold if they are not cached.
    """

    depth: int
    cold: float
    warm: float


def choose_depths(num_blocks: int) -> list[int]:
    """Returns the depths whose speed is measured: that of all blocks apart, since then only the head trains."""
    line = np.linspace(0, num_blocks - 1, NUM_MEASURED)
    return sorted({*line.round().astype(int).tolist(), num_blocks})


def freeze_to(run: TrainingRun, depth: int) -> TrainingRun:
    """Returns the run with frozen embeddings and this number of frozen blocks."""
    freeze = dataclasses.replace(FreezeConfig(), embeddings=True, layers=depth)
    run.runtime.accelerator.free_memory()  # it keeps the optimizers that it prepared
    stage = prepare_stage(
        run.backbone, run.plan.structure, freeze, run.config, run.runtime, run.task, run.train_state.padding
    )
    return dataclasses.replace(run, stage=stage)


def measure_speeds(run: TrainingRun) -> dict[int, Speed]:
    """Returns the seconds a token at a few depths. InputError if a depth cannot be frozen or cached."""
    speeds = {}
    for depth in choose_depths(len(run.plan.structure.blocks)):
        frozen = freeze_to(run, depth)
        cached_forward = frozen.train_state.forward_plan.cached
        if cached_forward is None:
            continue
        with inference_only(frozen):
            speeds[depth] = find_speed(frozen, cached_forward)
    return speeds


def interpolate(speeds: Mapping[int, Speed], depth: int) -> Speed:
    """Returns the speed at a depth between those that were measured."""
    depths = sorted(speeds)
    names = [field.name for field in dataclasses.fields(Speed)]
    values = {name: np.interp(depth, depths, [getattr(speeds[each], name) for each in depths]) for name in names}
    return Speed(**{name: float(value) for name, value in values.items()})


def expect_seconds(run: TrainingRun, speeds: Mapping[int, Speed], fixed: float) -> list[ExpectedSeconds]:
    """Returns the expected seconds at each depth. fixed: Seconds that do not depend on it, such as those of loading."""
    tokens = {split: int(part.num_tokens.sum()) for split, part in run.features.items()}
    schedule = run.schedule
    trained = tokens["train"] * schedule.total_updates / schedule.updates_per_epoch
    period = schedule.find_period(run.config.evaluation.every)
    evaluated = tokens["validation"] * -(-schedule.total_updates // period)
    has_own_test = "test" in run.splits.num_rows
    stored = sum(count for split, count in tokens.items() if split != "test" or not has_own_test)
    num_processes = run.runtime.num_processes
    entire_forward = interpolate(speeds, max(speeds)).prefix  # all blocks
    found = []
    for depth in range(len(run.plan.structure.blocks) + 1):
        speed = interpolate(speeds, depth)
        above = trained * speed.cached + evaluated * speed.cached * FORWARD_SHARE
        below = stored * speed.prefix
        without = trained * speed.entire + evaluated * entire_forward
        last = tokens.get("test", 0) * entire_forward
        # auto caches what the first run itself gains from
        setting = run.config.cache.activations
        caches = depth > 0 and setting != "off" and (setting == "on" or above + below < without)
        cold, warm = (above + below, above) if caches else (without, without)
        cold, warm = (fixed + (part + last) / num_processes for part in (cold, warm))
        found.append(ExpectedSeconds(depth=depth, cold=cold, warm=warm))
    return found
