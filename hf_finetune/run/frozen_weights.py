"""What becomes of frozen weights when a stage starts to train: their memory is given back, or they are held in 16 bit."""

from dataclasses import replace

from hf_finetune.forward.frozen_layers import make_forwards
from hf_finetune.model.mapped_weights import find_idle_parameters, find_unchanged_ranges, move_to_cpu
from hf_finetune.run.training_run import TrainingRun


def settle_frozen_weights(run: TrainingRun) -> TrainingRun:
    """Returns the run with its frozen linear layers in the precision of the run, and without the memory of weights that training
    does not read: those of these layers, and of the prefix if activations are cached.

    The weights must be those that the run trains with: a checkpoint may have others than the backbone's files.
    """
    state = run.train_state
    forward_plan = state.forward_plan
    forwards = make_forwards(state.model, run.plan, run.runtime.precision, exempt=forward_plan.first_token)
    idle = list(forwards)
    if run.is_cached and forward_plan.cached is not None:
        idle += forward_plan.cached.placeholders
    parameters = [each for each in find_idle_parameters(state.model, idle) if not each.requires_grad]
    if run.runtime.device.type != "cpu":
        move_to_cpu(parameters, idle)
    state = replace(
        state,
        forward_plan=replace(forward_plan, frozen_layers=forwards),
        idle_pages=find_unchanged_ranges(parameters),
    )
    return replace(run, stage=replace(run.stage, train_state=state))
