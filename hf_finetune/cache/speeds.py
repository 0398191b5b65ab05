"""How fast this machine runs a model: seconds a token, measured once for each kind of job and kept in the folder of the caches.

What is kept only decides whether activations are cached, never a number of the run. It is measured again once a run shows that
it is wrong.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hf_finetune import __version__
from hf_finetune.cache.check import name_processor
from hf_finetune.cache.key import describe_forward
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import cache_root, write_atomically
from hf_finetune.training.loop import make_micro_batch_limit

SPEEDS = "speeds.json"  # in the folder of the caches

WRONG_FACTOR = (
    2.0  # of a speed that is measured again: other work on the machine changes speeds by less, most of the time
)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds a token: of a forward of the prefix, and of an update with the entire model and with cached activations."""

    prefix: float
    entire: float
    cached: float


def find_path(run: TrainingRun) -> Path:
    """Returns the path of the table."""
    return cache_root(run.config.cache.dir) / SPEEDS


def make_key(run: TrainingRun) -> str:
    """Returns the digest of what the speed depends on: the model's shape, what trains, the precision, the machine, and the size
    of a batch. Lengths of texts count by their power of two."""
    runtime, train = run.runtime, run.features["train"]
    limit = make_micro_batch_limit(run.config, runtime.num_processes)
    tokens = int(train.num_tokens.sum()) / max(1, len(train))
    content = {
        **describe_forward(run),
        "parameters": [run.plan.num_total, run.plan.num_trainable],
        "device": name_processor(runtime.device),
        "version": __version__,
        "task": [run.config.task.kind, run.train_state.dropout_masks.is_stateless],
        "threads": torch.get_num_threads(),
        "processes": runtime.num_processes,
        "batch": [limit.num_examples, limit.num_tokens, round(math.log2(max(1.0, tokens)))],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def read_speeds(path: Path) -> dict[str, Speed]:
    """Returns the speeds in the table by their keys; none if it cannot be read."""
    try:
        rows = json.loads(path.read_bytes())
        return {str(key): Speed(**{name: float(value) for name, value in row.items()}) for key, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_speeds(path: Path, speeds: dict[str, Speed]) -> None:
    """Writes the table. If the folder cannot be written, the speed is measured again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({key: asdict(speed) for key, speed in speeds.items()}, indent=1).encode())
    except (OSError, InputError):
        return


def forget_wrong_speed(run: TrainingRun, clock: Clock) -> None:
    """Removes the speed of a run's kind of job from the table if training was twice as fast or as slow. On the main process."""
    seconds, path = clock.measure("train"), find_path(run)
    speeds = read_speeds(path)
    if not speeds or run.config.freeze.unfreeze or not clock.num_tokens or (key := make_key(run)) not in speeds:
        return
    expected = speeds[key].cached if run.is_cached else speeds[key].entire
    measured = seconds * run.runtime.num_processes / clock.num_tokens
    if not 1 / WRONG_FACTOR < measured / max(expected, 1e-12) < WRONG_FACTOR:
        write_speeds(path, {other: speed for other, speed in speeds.items() if other != key})
