"""The optimizers that train.optimizer names, with the options that each takes. training/optim.py builds them."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_finetune.config.references import is_reference
from hf_finetune.system.errors import InputError

MOMENTS = {"betas": (0.9, 0.999), "eps": 1e-8}
AVERAGING = {"r": 0.0, "weight_lr_power": 2.0}  # of the schedule-free optimizers
MIN_8BIT_SIZE = {"min_8bit_size": 4096}  # smaller tensors keep a state of 32 bits


@dataclass(frozen=True, kw_only=True)
class OptimizerKind:
    """An optimizer that train.optimizer names.

    Args:
        path: Import path of its class.
        options: The options that it takes, with their defaults.
        fixed: Arguments of the class that a run always has.
        source: Where it comes from: a paper or a page.
        state_bytes: Bytes of state for each trained parameter in large fp32 matrices.
        decay: How train.weight_decay acts: "decoupled" from the gradient, or "added to the gradient".
        extra: The pip extra of this package that it needs, or "".
        is_schedule_free: It averages the weights by itself and needs a constant learning rate.
        only_hidden_matrices: It is for the matrices of hidden layers. AdamW trains embeddings, head, biases and norms.
        can_fuse: Its class takes `fused`, which is set if torch has a fused form for the device.
    """

    path: str
    options: Mapping[str, Any]
    source: str
    state_bytes: float
    decay: str = "decoupled"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    extra: str = ""
    is_schedule_free: bool = False
    only_hidden_matrices: bool = False
    can_fuse: bool = False


OPTIMIZERS: Mapping[str, OptimizerKind] = {
    "adamw": OptimizerKind(
        path="torch.optim:AdamW",
        options=MOMENTS | {"amsgrad": False},
        source="Loshchilov and Hutter 2017, arXiv:1711.05101",
        state_bytes=8,
        can_fuse=True,
    ),
    # As Trainer has it: without the learning rate of its own, which would put train.schedule out of action
    "adafactor": OptimizerKind(
        path="transformers.optimization:Adafactor",
        options={
            "eps": (1e-30, 1e-3),
            "clip_threshold": 1.0,
            "decay_rate": -0.8,
            "beta1": None,
            "scale_parameter": False,
        },
        fixed={"relative_step": False},
        source="Shazeer and Stern 2018, arXiv:1804.04235",
        state_bytes=0,
    ),
    "sgd": OptimizerKind(
        path="torch.optim:SGD",
        options={"momentum": 0.0, "dampening": 0.0, "nesterov": False},
        source="Sutskever et al. 2013, ICML",
        state_bytes=0,
        decay="added to the gradient",
    ),
    "lion": OptimizerKind(
        path="hf_finetune.training.lion:Lion",
        options={"betas": (0.9, 0.99)},
        source="Chen et al. 2023, arXiv:2302.06675",
        state_bytes=4,
    ),
    # With this adjustment the updates have the size that those of AdamW have in long training (Liu et al. 2025, "Muon is Scalable
    # for LLM Training", arXiv:2502.16982, section 2.2)
    "muon": OptimizerKind(
        path="hf_finetune.training.muon:MuonWithAdamW",
        options={
            "momentum": 0.95,
            "nesterov": True,
            "ns_steps": 5,
            "ns_coefficients": (3.4445, -4.7750, 2.0315),
            "adjust_lr_fn": "match_rms_adamw",
            **MOMENTS,
        },
        source="Jordan 2024, kellerjordan.github.io/posts/muon",
        state_bytes=4,
        only_hidden_matrices=True,
        can_fuse=True,
    ),
    "radam": OptimizerKind(
        path="torch.optim:RAdam",
        options=MOMENTS,
        fixed={"decoupled_weight_decay": True},
        source="Liu et al. 2019, arXiv:1908.03265",
        state_bytes=8,
    ),
    "nadam": OptimizerKind(
        path="torch.optim:NAdam",
        options=MOMENTS | {"momentum_decay": 4e-3},
        fixed={"decoupled_weight_decay": True},
        source="Dozat 2016, ICLR workshop",
        state_bytes=8,
    ),
    "adamax": OptimizerKind(
        path="torch.optim:Adamax",
        options=MOMENTS,
        source="Kingma and Ba 2014, section 7.1, arXiv:1412.6980",
        state_bytes=8,
        decay="added to the gradient",
    ),
    "adagrad": OptimizerKind(
        path="torch.optim:Adagrad",
        options={"lr_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10},
        source="Duchi et al. 2011, JMLR 12",
        state_bytes=4,
        decay="added to the gradient",
    ),
    "rmsprop": OptimizerKind(
        path="torch.optim:RMSprop",
        options={"alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False},
        source="Tieleman and Hinton 2012",
        state_bytes=4,
        decay="added to the gradient",
    ),
    "schedule_free_adamw": OptimizerKind(
        path="schedulefree:AdamWScheduleFree",
        options=MOMENTS | AVERAGING,
        source="Defazio et al. 2024, arXiv:2405.15682",
        state_bytes=8,
        extra="schedulefree",
        is_schedule_free=True,
    ),
    "schedule_free_radam": OptimizerKind(
        path="schedulefree:RAdamScheduleFree",
        options=MOMENTS | AVERAGING | {"silent_sgd_phase": True},
        source="Defazio et al. 2024, arXiv:2405.15682",
        state_bytes=8,
        extra="schedulefree",
        is_schedule_free=True,
    ),
    "schedule_free_sgd": OptimizerKind(
        path="schedulefree:SGDScheduleFree",
        options={"momentum": 0.9} | AVERAGING,
        source="Defazio et al. 2024, arXiv:2405.15682",
        state_bytes=4,
        decay="added to the gradient",
        extra="schedulefree",
        is_schedule_free=True,
    ),
    "adamw_8bit": OptimizerKind(
        path="bitsandbytes.optim:AdamW8bit",
        options=MOMENTS | MIN_8BIT_SIZE,
        source="Dettmers et al. 2021, arXiv:2110.02861",
        state_bytes=2,
        extra="bitsandbytes",
    ),
    "lion_8bit": OptimizerKind(
        path="bitsandbytes.optim:Lion8bit",
        options={"betas": (0.9, 0.99)} | MIN_8BIT_SIZE,
        source="Dettmers et al. 2021, arXiv:2110.02861",
        state_bytes=1,
        extra="bitsandbytes",
    ),
    "ademamix": OptimizerKind(
        path="bitsandbytes.optim:AdEMAMix",
        options={"betas": (0.9, 0.999, 0.9999), "alpha": 5.0, "t_alpha": None, "t_beta3": None, "eps": 1e-8},
        source="Pagliardini et al. 2024, arXiv:2409.03137",
        state_bytes=12,
        extra="bitsandbytes",
    ),
    "ademamix_8bit": OptimizerKind(
        path="bitsandbytes.optim:AdEMAMix8bit",
        options={"betas": (0.9, 0.999, 0.9999), "alpha": 5.0, "t_alpha": None, "t_beta3": None, "eps": 1e-8}
        | MIN_8BIT_SIZE,
        source="Pagliardini et al. 2024, arXiv:2409.03137",
        state_bytes=3,
        extra="bitsandbytes",
    ),
}


def check_optimizer(name: str, options: Mapping[str, Any], schedule: str, ema_decay: float | None) -> None:
    """Raises InputError if there is no such optimizer, if it does not take one of the options, or if it averages the weights
    and the schedule or train.ema_decay do not fit that.

    The options of an optimizer that is named by its import path are checked when it is imported.
    """
    for option, setting in (("lr", "train.learning_rate"), ("weight_decay", "train.weight_decay")):
        if option in options:
            raise InputError(f"train.optimizer_options.{option} ({options[option]}): must not be given; set {setting}")
    if is_reference(name):
        return
    kind = OPTIMIZERS.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, OPTIMIZERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"train.optimizer ({name}): must be one of {', '.join(OPTIMIZERS)}, or your own as my_module:build{hint}"
        )
    check_options("train.optimizer_options", name, options, kind.options)
    if kind.is_schedule_free and ema_decay is not None:
        raise InputError(
            f"train.ema_decay ({ema_decay}): must not be given with {name}, which averages the weights itself"
        )
    if kind.is_schedule_free and schedule != "constant":
        raise InputError(
            f"train.schedule ({schedule}): must be constant with train.optimizer {name}, which averages the weights instead of "
            "lowering the learning rate; set train.schedule to constant"
        )


def check_options(key: str, name: str, options: Mapping[str, Any], taken: Mapping[str, Any]) -> None:
    """Raises InputError for an option that is not `taken`; it names those that are. key: the setting of the options."""
    for option, value in options.items():
        if option not in taken:
            raise InputError(
                f"{key}.{option} ({value}): {name} has no such option; it takes {', '.join(taken) or 'none'}"
            )
