"""The mean of several checkpoints, which export.average exports instead of the best one.

With export.average every evaluation saves a checkpoint. Which of them are averaged follows from the evaluations alone, so it does
not depend on interruptions.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from hf_finetune.run import checkpoint
from hf_finetune.run.resume import load_weights
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.training.progress import Progress


@dataclass(frozen=True, kw_only=True)
class AverageOfCheckpoints:
    """What was averaged. missing: updates whose checkpoint is missing or damaged, which are left out."""

    updates: tuple[int, ...]
    missing: tuple[int, ...]


def load_average(run: TrainingRun, progress: Progress) -> AverageOfCheckpoints | None:
    """Loads the mean of the weights of the checkpoints of export.average into the model; None without that setting. On all
    processes.

    The weights are summed in float64. What is not a floating-point number is that of the last checkpoint. Raises InputError if
    none of the checkpoints is intact.
    """
    updates = run.list_averaged_updates(progress)
    if not updates:
        return None

    def find_all() -> list[Path | None]:
        return [checkpoint.find_intact(run.checkpoint_dir, update) for update in updates]

    found = dict(zip(updates, run.runtime.on_main(find_all), strict=True))
    paths = [path for path in found.values() if path is not None]
    if not paths:
        raise InputError(
            f"export.average ({run.config.export.average}): {run.checkpoint_dir} has none of the checkpoints of updates "
            f"{', '.join(map(str, updates))} any more; set export.average to none"
        )
    model, sums = run.train_state.model, dict[str, torch.Tensor]()
    for path in paths:
        load_weights(run, checkpoint.load_checkpoint(path), path.name)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                part = tensor.detach().to(device="cpu", dtype=torch.float64)  # Apple's GPUs have no float64
                sums[name] = sums[name] + part if name in sums else part
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in sums:
                tensor.copy_(sums[name] / len(paths))
    return AverageOfCheckpoints(
        updates=tuple(update for update, path in found.items() if path is not None),
        missing=tuple(update for update, path in found.items() if path is None),
    )
