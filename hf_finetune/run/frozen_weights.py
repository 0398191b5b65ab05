"""What becomes of frozen weights when a stage starts to train: their memory is given back, or they are held in 16 bit or
fewer."""

from dataclasses import replace

from hf_finetune.forward.frozen_layers import Forwards, find_frozen_layers, make_forwards
from hf_finetune.forward.quantized_layers import make_quantized_forwards
from hf_finetune.model import lora
from hf_finetune.model.mapped_weights import find_idle_parameters, find_unchanged_ranges, move_to_cpu
from hf_finetune.run.training_run import TrainingRun


def settle_frozen_weights(run: TrainingRun) -> TrainingRun:
    """Returns the run with its frozen linear layers in the precision of the run, and without the memory of weights that training
    does not read: those of these layers, and of the prefix if activations are cached.

    The weights must be those that the run trains with: a checkpoint may have others than the backbone's files.
    """
    state = run.train_state
    forward_plan = state.forward_plan
    quantized = quantize_blocks(run)
    projection = state.model.get_output_embeddings()  # a loss over the vocabulary may read its weight by itself
    exempt = [*forward_plan.first_token, *quantized, *([projection] if projection is not None else [])]
    forwards = {**make_forwards(state.model, run.plan, run.runtime.precision, exempt=exempt), **quantized}
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


def quantize_blocks(run: TrainingRun) -> Forwards:
    """Returns the forwards of the frozen linear layers of blocks above the boundary with weights in the form of
    adapter.quantization; none without it. Layers of which a part is computed in another way keep their weights."""
    state, kind = run.train_state, run.config.adapter.quantization
    if kind == "none":
        return {}
    blocks = tuple(f"{name}." for name in lora.find_trainable_blocks(state.model, 0))
    inside = {module for name, module in state.model.named_modules() if name.startswith(blocks)}
    layers = find_frozen_layers(state.model, run.plan, exempt=state.forward_plan.first_token)
    with lora.with_random_adapters(run.backbone):
        return make_quantized_forwards(state.model, [each for each in layers if each in inside], kind)
