"""The weights that are evaluated, if they are not those that train.

With train.ema_decay they are an exponential moving average; a schedule-free optimizer has averages of its own. Both are one thing
to a run: evaluation, the `model_state_dict` of a checkpoint and the export see the evaluated weights
(TrainState.evaluated_weights), and training continues from exact copies of its own.
"""

from collections.abc import Mapping
from typing import Any

import torch

Weights = dict[str, torch.Tensor]  # by the name of the parameter


class MovingAverage:
    """The exponential moving average of the weights that train.

    After t updates it is the sum of (1 - decay) decay^(t - i) w_i over the updates i, divided by 1 - decay^t. So it starts
    without a bias to the first weights: Kingma and Ba 2014, "Adam", section 7.2, arXiv:1412.6980.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        """Starts at the weights that train. A weight that starts to train later has been constant until then, so its average
        is that weight."""
        self.decay = decay
        self.weights = copy_trained_weights(model)

    @torch.no_grad()
    def add(self, model: torch.nn.Module, update: int) -> None:
        """Takes in the weights after an update, counted from 1."""
        parameters = dict(model.named_parameters())
        averages = list(self.weights.values())
        share = (1 - self.decay) / (1 - self.decay**update)
        torch._foreach_lerp_(averages, [parameters[name].detach() for name in self.weights], share)


def copy_trained_weights(model: torch.nn.Module) -> Weights:
    """Returns copies of the parameters that train."""
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@torch.no_grad()
def copy_into(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copies weights into the model's parameters of the same names."""
    parameters = dict(model.named_parameters())
    for name, weight in weights.items():
        parameters[name].copy_(weight)


def averages_itself(optimizer: Any) -> bool:
    """True for a schedule-free optimizer: its eval() puts averages into the weights, and its train() takes them out again."""
    return all(callable(getattr(optimizer, name, None)) for name in ("eval", "train"))


def compute_own_averages(optimizer: Any, model: torch.nn.Module) -> Weights:
    """Returns the averages of a schedule-free optimizer. The weights of the model change in their last digits."""
    optimizer.eval()
    averages = copy_trained_weights(model)
    optimizer.train()
    return averages
