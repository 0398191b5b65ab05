"""task.calibrate: what is fitted on validation after training, with the weights that are exported."""

from dataclasses import replace

import numpy as np

from hf_finetune.run.training_run import TrainingRun, make_runner


def check_calibration(run: TrainingRun) -> None:
    """Raises InputError before training if validation has too few examples for what is to be fitted on it; prints warnings."""
    calibrator, validation = run.task.scoring.calibrator, run.splits.validation
    if calibrator is not None:
        for warning in calibrator.check(run.task.encoding.count_labels(validation), len(validation)):
            run.runtime.say(f"warning: {warning}")


def calibrate(run: TrainingRun) -> tuple[TrainingRun, dict[str, float]]:
    """Returns the run whose task decides as task.calibrate says, and the metrics of that on validation, where it was fitted.

    The entire model runs, so that the numbers are exactly those of the exported model. The run stays as it is, without metrics,
    if task.calibrate names nothing.
    """
    scoring, features = run.task.scoring, run.features["validation"]
    if scoring.calibrator is None:
        return run, {}
    indices = np.arange(len(features))
    runner = make_runner(run, "validation", batch_size=run.config.evaluation.batch_size, uses_cache=False)
    outputs = runner.compute_outputs(indices).outputs
    scoring, values = scoring.calibrate(outputs, features, run.splits.validation, indices)
    return replace(run, task=replace(run.task, scoring=scoring)), values
