"""The optimizer, its parameter groups and its state."""

import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from hf_finetune.config.optimizers import OPTIMIZERS, check_options
from hf_finetune.config.references import is_reference, load_reference
from hf_finetune.config.sections import TrainConfig
from hf_finetune.model.freezing import FreezePlan
from hf_finetune.system.errors import InputError
from hf_finetune.training.averaging import averages_itself
from hf_finetune.training.schedule import compute_learning_rate


def make_parameter_groups(
    model: torch.nn.Module, plan: FreezePlan, config: TrainConfig, new_parameters: Iterable[str]
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters: backbone and head (each part of the model if train.layer_decay is below 1), each with
    and without weight decay; for an optimizer that is for the matrices of hidden layers, those apart. A group has `name`,
    `params` as pairs (name, parameter), `weight_decay` and `peak_learning_rate`.

    Biases and norms (fewer than two dimensions) get no weight decay, as in BERT's own training
    (google-research/bert, optimization.py).
    """
    new = set(new_parameters)
    depth = len(plan.structure.blocks)
    level_of = {name: 0 for names in plan.structure.rest.values() for name in names}  # powers of layer_decay
    for number, names in enumerate(plan.structure.blocks):
        level_of |= dict.fromkeys(names, depth - number)
    level_of |= dict.fromkeys(plan.structure.embeddings, depth + 1)
    parts = {name: part.replace(" ", "_") for part, names in plan.structure.parts().items() for name in names}
    kind = OPTIMIZERS.get(config.optimizer)
    splits = kind is not None and kind.only_hidden_matrices
    head = new | {name for name, part in parts.items() if part == "head"}
    hidden = find_hidden_matrices(model, plan, head) if splits else set()
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if name in plan.frozen:
            continue
        is_head = name in head
        decays = parameter.ndim >= 2
        peak = (config.head_learning_rate or config.learning_rate) if is_head else config.learning_rate
        level = 0 if is_head else level_of[name]
        part = "head" if is_head else parts[name] if config.layer_decay < 1 else "backbone"
        key = part if decays else f"{part}_no_decay"
        key = f"{part}_hidden" if name in hidden else key
        group = groups.setdefault(
            key,
            {
                "name": key,
                "params": [],
                "weight_decay": config.weight_decay if decays else 0.0,
                "peak_learning_rate": peak * config.layer_decay**level,
                **({"only_hidden_matrices": name in hidden} if splits else {}),
            },
        )
        group["params"].append((name, parameter))
    return list(groups.values())


def find_hidden_matrices(model: torch.nn.Module, plan: FreezePlan, head: Iterable[str]) -> set[str]:
    """The names of the matrices of hidden layers: parameters of two dimensions that are neither embeddings nor in the head."""
    outside = {*head, *plan.structure.embeddings}
    for module_name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding):
            outside.add(f"{module_name}.weight")
    return {name for name, parameter in model.named_parameters() if parameter.ndim == 2} - outside


# --- building -------------------------------------------------------------------------------------------------------

BuildOptimizer = Callable[..., torch.optim.Optimizer]  # build(groups, **options)
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def build_optimizer(
    groups: list[dict[str, Any]], config: TrainConfig, device: torch.device, build: BuildOptimizer | None = None
) -> torch.optim.Optimizer:
    """The optimizer of train.optimizer, or the one that `build` returns. It is built from named parameters, so that its state
    records the names.

    Raises InputError if it is not installed, does not take the options, or if one's own does not train the groups it is given.
    """
    name = config.optimizer
    options = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.optimizer_options.items()
    }
    if build is None and not is_reference(name):
        build, kind = load_optimizer_class(name), OPTIMIZERS[name]
        options = {**kind.fixed, **kind.options, **options, "lr": 0.0}  # the rate is set before each update
        if kind.can_fuse:
            options["fused"] = device.type in ("cuda", "cpu", "mps", "xpu")
    else:
        build = build or load_reference("train.optimizer", name)
        check_options("train.optimizer_options", name, options, list_options(build, options))
        rate = inspect.signature(build).parameters.get("lr")
        if rate is not None and rate.default is rate.empty:  # some classes need one
            options["lr"] = config.learning_rate
    names = [name for group in groups for name, _ in group["params"]]
    try:
        optimizer: Any = build(groups, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"train.optimizer ({name}): cannot be built with {show_options(config)}: {error}") from error
    check_optimizer_parameters(optimizer, names, config)
    if averages_itself(optimizer):
        optimizer.train()
    built: torch.optim.Optimizer = optimizer
    return built


def load_optimizer_class(name: str) -> BuildOptimizer:
    """Imports the class of an optimizer of OPTIMIZERS. Raises InputError if its package is not installed."""
    kind = OPTIMIZERS[name]
    package = kind.path.split(":")[0].split(".")[0]
    if kind.extra and importlib.util.find_spec(package) is None:
        raise InputError(
            f"train.optimizer ({name}): needs {package}, which is not installed; pip install 'hf-finetune[{kind.extra}]'"
        )
    return load_reference("train.optimizer", kind.path)


def list_options(build: BuildOptimizer, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options that one's own function or class takes after the groups; those that are `given` if it takes any.

    Learning rate and weight decay are never among them: the groups have them.
    """
    parameters = list(inspect.signature(build).parameters.values())
    names = [parameter.name for parameter in parameters[1:] if parameter.kind in BY_NAME]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        names += given
    return {name: None for name in names if name not in ("lr", "weight_decay")}


def show_options(config: TrainConfig) -> str:
    """The options of the optimizer as an error shows them."""
    return f"train.optimizer_options ({dict(config.optimizer_options)})" if config.optimizer_options else "no options"


def check_optimizer_parameters(optimizer: Any, names: Iterable[str], config: TrainConfig) -> None:
    """Raises InputError if one's own function returned anything but an optimizer of the parameters with these names."""
    key = f"train.optimizer ({config.optimizer})"
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"{key}: must return a torch.optim.Optimizer, not a {type(optimizer).__name__}")
    needed = {"name", "peak_learning_rate", "param_names"}
    if not all(needed <= group.keys() for group in optimizer.param_groups):
        raise InputError(
            f"{key}: must build the optimizer from the groups that it is given, or from groups with the same keys: name, params "
            "as pairs (name, parameter), weight_decay and peak_learning_rate"
        )
    built = {name for group in optimizer.param_groups for name in group["param_names"]}
    if missing := sorted(set(names) - built):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{key}: its optimizer does not train {missing[0]}{more}; freeze them with freeze.patterns, or give them to the "
            "optimizer"
        )
    step = inspect.signature(optimizer.step).parameters.values()
    if any(parameter.default is parameter.empty and parameter.kind in BY_NAME for parameter in step):
        raise InputError(f"{key}: its step() needs an argument, and training calls it without one")
    if averages_itself(optimizer) and config.ema_decay is not None:
        raise InputError(
            f"train.ema_decay ({config.ema_decay}): must not be given with {config.optimizer}, which averages the weights itself"
        )


def check_optimizer_tensors(optimizer: Any, model: torch.nn.Module, config: TrainConfig) -> None:
    """Raises InputError unless the optimizer holds the tensors of the model that train, and no others."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    held = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    for name in sorted(trained.keys() | held.keys()):
        if held.get(name) is not trained.get(name):
            raise InputError(
                f"train.optimizer ({config.optimizer}): under the name {name} it holds another tensor than the one of the model "
                "that trains, so it would train something else; build it from the parameters that it is given"
            )


# --- saving and restoring -------------------------------------------------------------------------------------------

# Keys of a group that the config and the device decide. All others that change in training are state, such as the number of
# updates of a schedule-free optimizer.
SETTINGS = {
    *("params", "param_names", "name", "lr", "initial_lr", "weight_decay", "peak_learning_rate"),
    *("only_hidden_matrices", "fused", "foreach", "capturable", "differentiable"),
}
PLAIN_TYPES = (bool, int, float, str, torch.Tensor, torch.nn.Parameter, torch.dtype, torch.device, torch.Size)


def check_state(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Raises InputError if a checkpoint cannot hold the optimizer's state. name: train.optimizer.

    A checkpoint holds tensors and plain values, so that reading it cannot run code (torch.load with weights_only).
    """
    if (found := find_unsavable(optimizer.state_dict())) is not None:
        place, value = found
        raise InputError(
            f"train.optimizer ({name}): its state has a {type(value).__name__} at {place}, and a checkpoint holds only tensors "
            "and plain values; keep that outside the optimizer's state, or as a tensor"
        )


def find_unsavable(content: Any, place: str = "") -> tuple[str, Any] | None:
    """The first value in nested dicts and lists that is neither a tensor nor a plain value, with its place, or None."""
    if content is None or type(content) in PLAIN_TYPES:
        return None
    if type(content) in (dict, list, tuple):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        found = (find_unsavable(value, f"{place}/{key}") for key, value in items)
        return next((each for each in found if each is not None), None)
    return place, content


def restore_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Restores the state of each parameter by its name, so the groups may differ from the saved ones. Learning rates and weight
    decay stay those of the optimizer. Returns the names that were not trained before, which start fresh, and the saved names
    that the optimizer does not have."""
    named, origin = {}, {}
    for number_of_group, group in enumerate(saved["param_groups"]):
        for name, number in zip(group["param_names"], group["params"], strict=True):
            origin[name] = number_of_group
            if number in saved["state"]:
                named[name] = saved["state"][number]
    restore_group_state(optimizer, saved["param_groups"], origin)
    own = optimizer.state_dict()
    numbers = {
        name: number
        for group in own["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    # Some optimizers have a state before their first update
    own["state"] |= {number: named[name] for name, number in numbers.items() if name in named}
    optimizer.load_state_dict(own)
    return sorted(numbers.keys() - origin.keys()), sorted(origin.keys() - numbers.keys())


def restore_group_state(
    optimizer: torch.optim.Optimizer, saved: Sequence[Mapping[str, Any]], origin: Mapping[str, int]
) -> None:
    """Restores what an optimizer counts for all parameters of a group together.

    If it counts anything, parameters that were in different groups, and those that start to train, get groups of their own: a
    parameter must not have the count of others. saved: the groups. origin: the saved group of each parameter, by its name.
    """
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        members: dict[int, list[int]] = {}
        for position, name in enumerate(group["param_names"]):
            members.setdefault(origin.get(name, len(saved)), []).append(position)
        counts = {number: find_counts(group, saved[number]) for number in members if number < len(saved)}
        if not any(counts.values()):
            groups.append(group)
            continue
        for number, positions in sorted(members.items()):
            part = {key: [group[key][position] for position in positions] for key in ("params", "param_names")}
            groups.append({**group, **part, **counts.get(number, {})})
    optimizer.param_groups[:] = groups


def find_counts(group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a saved group: what differs from a group of an optimizer that is fresh, and is not a setting."""
    return {key: value for key, value in saved.items() if key not in SETTINGS and not is_equal(value, group.get(key))}


def is_equal(value: Any, other: Any) -> bool:
    """True if two values of a group are the same."""
    if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(value.cpu(), other.cpu())
    return type(value) is type(other) and bool(value == other)


# --- the learning rate ----------------------------------------------------------------------------------------------


def set_learning_rates(optimizer: Any, update: int, total_updates: int, config: TrainConfig) -> dict[str, float]:
    """Sets the learning rate of every group for `update`, counted from 0. Returns `{group: rate}`."""
    factor = compute_learning_rate(update, total_updates, config)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_learning_rate"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
