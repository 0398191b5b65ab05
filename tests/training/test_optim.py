"""Parameter groups and the learning rate."""

import copy
import dataclasses
import inspect
import io
import math
from itertools import chain
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
from support import tiny
from torch import nn

from hf_finetune.config.optimizers import OPTIMIZERS
from hf_finetune.config.sections import FreezeConfig, TrainConfig
from hf_finetune.model import freezing
from hf_finetune.run.checkpoint import count_tensor_bytes
from hf_finetune.system.errors import InputError
from hf_finetune.training import optim
from hf_finetune.training.lion import Lion
from hf_finetune.training.schedule import compute_learning_rate

IDS = torch.tensor([[5, 6, 7, 8, 9, 3], [25, 10, 11, 12, 30, 3]])
HEAD = frozenset({"classifier.weight", "classifier.bias"})


def make_groups(
    family: str = "bert", freeze: FreezeConfig | None = None, *, new: frozenset[str] = HEAD, **train: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """A model of three blocks and its groups."""
    model = tiny.make_model(family, layers=3)
    plan = freezing.apply_freezing(model, freeze or FreezeConfig())
    return model, optim.make_parameter_groups(model, plan, TrainConfig(**train), new)


def names_of(group: dict[str, Any]) -> list[str]:
    return [name for name, _ in group["params"]]


def train_once(model: Any, optimizer: torch.optim.Optimizer, *, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    optimizer.step()


# --- groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_every_trainable_parameter_stands_in_exactly_one_group_and_no_frozen_one(
    family: str, layer_decay: float
) -> None:
    freeze = FreezeConfig(embeddings=True, layers=0 if family == "albert" else 1)
    model, groups = make_groups(family, freeze, layer_decay=layer_decay)
    listed = [name for group in groups for name in names_of(group)]
    assert sorted(listed) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    parameters = dict(model.named_parameters())
    assert all(parameter is parameters[name] for group in groups for name, parameter in group["params"])
    assert len({group["name"] for group in groups}) == len(groups)
    assert all(group["params"] for group in groups)


def test_groups_are_backbone_and_head_each_with_and_without_weight_decay() -> None:
    model, groups = make_groups(learning_rate=1e-4, head_learning_rate=1e-2, weight_decay=0.05)
    by_name = {group["name"]: group for group in groups}
    assert set(by_name) == {"backbone", "backbone_no_decay", "head", "head_no_decay"}
    assert names_of(by_name["head"]) == ["classifier.weight"]
    assert names_of(by_name["head_no_decay"]) == ["classifier.bias"]
    for name, parameter in model.named_parameters():
        (group,) = [group for group in groups if name in names_of(group)]
        is_matrix = not name.endswith("bias") and "LayerNorm" not in name
        assert is_matrix == (parameter.ndim == 2)
        assert group["weight_decay"] == (0.05 if is_matrix else 0.0)
        assert group["peak_learning_rate"] == (1e-2 if name in HEAD else 1e-4)


def test_the_head_has_the_backbones_rate_unless_given() -> None:
    _, groups = make_groups(learning_rate=3e-4)
    assert {group["peak_learning_rate"] for group in groups} == {3e-4}


def test_new_parameters_inside_the_backbone_count_as_head() -> None:
    pooler = frozenset({"bert.pooler.dense.weight", "bert.pooler.dense.bias"})
    _, groups = make_groups(new=HEAD | pooler, head_learning_rate=0.5, layer_decay=0.5)
    head = [group for group in groups if group["name"].startswith("head")]
    assert {name for group in head for name in names_of(group)} == HEAD | pooler
    assert {group["peak_learning_rate"] for group in head} == {0.5}


def test_a_fine_tuned_head_that_is_kept_still_has_the_heads_rate() -> None:
    _, groups = make_groups(new=frozenset(), head_learning_rate=0.5)
    assert {group["name"]: group["peak_learning_rate"] for group in groups}["head"] == 0.5


def test_layer_decay_lowers_the_rate_by_one_power_a_block() -> None:
    _, groups = make_groups(learning_rate=1.0, head_learning_rate=2.0, layer_decay=0.5)
    rates = {group["name"]: group["peak_learning_rate"] for group in groups}
    expected = {"embeddings": 2**-4, "block_0": 2**-3, "block_1": 2**-2, "block_2": 2**-1, "pooler": 1.0, "head": 2.0}
    assert rates == expected | {f"{part}_no_decay": rate for part, rate in expected.items()}
    for group in groups:
        if group["name"].startswith("block_"):
            number = group["name"].split("_")[1]
            assert all(f".layer.{number}." in name for name in names_of(group))


def test_layer_decay_counts_from_the_top_whatever_is_frozen_below() -> None:
    _, groups = make_groups(freeze=FreezeConfig(embeddings=True, layers=2), learning_rate=1.0, layer_decay=0.5)
    rates = {group["name"]: group["peak_learning_rate"] for group in groups if "no_decay" not in group["name"]}
    assert rates == {"block_2": 0.5, "pooler": 1.0, "head": 1.0}


def test_a_decoder_above_the_encoder_and_a_final_norm_have_the_full_rate() -> None:
    for family, part in (("bart", "decoder"), ("modernbert", "final_norm_no_decay"), ("gpt2", "ln_f_no_decay")):
        _, groups = make_groups(family, learning_rate=1.0, layer_decay=0.5, new=frozenset())
        assert {group["name"]: group["peak_learning_rate"] for group in groups}[part] == 1.0


# --- the optimizer --------------------------------------------------------------------------------------------------


def test_weight_decay_acts_on_matrices_alone() -> None:
    model, groups = make_groups(learning_rate=0.1, weight_decay=0.5)
    optimizer = optim.build_optimizer(groups, TrainConfig(), torch.device("cpu"))
    optim.set_learning_rates(optimizer, 0, 1, TrainConfig(learning_rate=0.1, warmup_fraction=0.0))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if parameter.ndim == 2 else before[name]
        assert torch.allclose(parameter, expected, rtol=1e-6, atol=0)
        assert parameter.ndim == 2 or torch.equal(parameter, before[name])


def test_the_saved_state_goes_on_in_a_plain_adamw_with_as_many_groups() -> None:
    """As a reader without this package does it: the trainable parameters, group by group, in a plain AdamW."""
    freeze = FreezeConfig(embeddings=True, layers=1)
    config = TrainConfig(learning_rate=1e-3, head_learning_rate=1e-2, weight_decay=0.1, warmup_fraction=0.0)
    model, groups = make_groups(freeze=freeze, learning_rate=1e-3, head_learning_rate=1e-2, weight_decay=0.1)
    own = [[parameter for _, parameter in group["params"]] for group in groups]
    optimizer = optim.build_optimizer(groups, TrainConfig(), torch.device("cpu"))
    for update in range(3):
        optim.set_learning_rates(optimizer, update, 10, config)
        train_once(model, optimizer, seed=update)
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())  # as in a file
    assert [group["name"] for group in state["param_groups"]] == [group["name"] for group in groups]

    other = tiny.make_model("bert", layers=3, seed=9)
    other.load_state_dict(weights)
    parameters = dict(other.named_parameters())
    members = [[parameters[name] for name in group["param_names"]] for group in state["param_groups"]]
    plain = torch.optim.AdamW([{"params": part} for part in members])
    plain.load_state_dict(state)
    assert [group["lr"] for group in plain.param_groups] == [group["lr"] for group in optimizer.param_groups]
    for parameter, twin in zip(chain(*members), chain(*own), strict=True):
        state_of_twin = optimizer.state[twin]
        assert set(state_of_twin) == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(plain.state[parameter][key], value) for key, value in state_of_twin.items())

    for each, its_optimizer in ((model, optimizer), (other, plain)):
        train_once(each, its_optimizer, seed=3)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


# --- every optimizer ------------------------------------------------------------------------------------------------

# Learning rates with which each fits a line in 100 updates
RATES = {"sgd": 0.1, "adagrad": 0.1, "schedule_free_sgd": 0.5, "muon": 0.1, "radam": 0.1, "schedule_free_radam": 0.3}
CPU = torch.device("cpu")


def make_config(optimizer: str, **train: Any) -> TrainConfig:
    is_free = optimizer in OPTIMIZERS and OPTIMIZERS[optimizer].is_schedule_free
    return TrainConfig(optimizer=optimizer, schedule="constant" if is_free else "linear", **train)


def make_plain_groups(**parameters: torch.Tensor) -> list[dict[str, Any]]:
    """A group for each parameter, as make_parameter_groups makes them for Muon."""
    return [
        {
            "name": name,
            "params": [(name, value)],
            "weight_decay": 0.01 * (value.ndim > 1),
            "peak_learning_rate": 1.0,
            "only_hidden_matrices": value.ndim > 1,
        }
        for name, value in parameters.items()
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    inputs = torch.randn(64, 8)
    targets = inputs @ torch.randn(8, 4) + torch.randn(4)
    optimizer = optim.build_optimizer(make_plain_groups(w=model.weight, b=model.bias), make_config(name), CPU)
    losses = []
    for _ in range(100):
        for group in optimizer.param_groups:
            group["lr"] = RATES.get(name, 0.03)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimizer_has_the_bytes_that_are_documented(name: str) -> None:
    matrix = nn.Parameter(torch.randn(512, 1024))
    optimizer = optim.build_optimizer(make_plain_groups(w=matrix), make_config(name), CPU)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    for _ in range(8):  # RAdam and others begin with the state they keep
        matrix.grad = torch.randn_like(matrix)
        optimizer.step()
    measured = count_tensor_bytes(optimizer.state_dict()["state"]) / matrix.numel()
    assert measured == pytest.approx(OPTIMIZERS[name].state_bytes, abs=0.1)


@pytest.mark.parametrize(
    "name", [name for name, kind in OPTIMIZERS.items() if not kind.is_schedule_free and name != "sgd"]
)
def test_weight_decay_acts_as_documented(name: str) -> None:
    """In SGD and in schedule-free optimizers, both forms are one in the first update."""
    moved = []
    for weight_decay in (0.0, 0.5):
        matrix = nn.Parameter(torch.arange(1.0, 65.0).reshape(8, 8))
        groups = [group | {"weight_decay": weight_decay} for group in make_plain_groups(w=matrix)]
        optimizer = optim.build_optimizer(groups, make_config(name), CPU)
        optimizer.param_groups[0]["lr"] = 0.1
        matrix.grad = torch.linspace(-1, 1, 64).reshape(8, 8)
        optimizer.step()
        moved.append(matrix.detach())
    is_decoupled = torch.allclose(moved[0] - moved[1], 0.1 * 0.5 * torch.arange(1.0, 65.0).reshape(8, 8), rtol=1e-2)
    assert is_decoupled == (OPTIMIZERS[name].decay == "decoupled")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_options_are_those_of_the_class(name: str) -> None:
    kind = OPTIMIZERS[name]
    parameters = inspect.signature(optim.load_optimizer_class(name)).parameters
    if name == "muon":
        parameters = {
            **inspect.signature(torch.optim.AdamW).parameters,
            **inspect.signature(torch.optim.Muon).parameters,
        }
    # What the groups have, what a device decides, what belongs to other optimizers of the class
    elsewhere = {
        *("params", "lr", "weight_decay", "foreach", "fused", "capturable", "differentiable", "maximize", "amsgrad"),
        *("warmup_steps", "optim_bits", "args", "is_paged", "min_8bit_size", "relative_step", "warmup_init"),
    }
    assert parameters.keys() - elsewhere == (kind.options.keys() | kind.fixed.keys()) - elsewhere
    for option, default in kind.options.items():
        # scale_parameter is false as in transformers' Trainer; adjust_lr_fn as in "Muon is Scalable"; Muon's eps is AdamW's
        if option not in ("scale_parameter", "adjust_lr_fn") and (name, option) != ("muon", "eps"):
            assert parameters[option].default == default, option


def test_the_state_of_lion_and_the_update_are_those_of_bitsandbytes() -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(64, 64))
    theirs = nn.Parameter(ours.detach().clone())
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    pairs = [(ours, Lion([ours], **options)), (theirs, bitsandbytes.optim.Lion([theirs], **options))]
    for _ in range(5):
        gradient = torch.randn(64, 64)
        for parameter, optimizer in pairs:
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_lion_refuses_betas_that_are_not_two_shares() -> None:
    with pytest.raises(ValueError, match=r"betas must be two numbers in \[0, 1\), not \(0.9, 1.0\)"):
        Lion([nn.Parameter(torch.zeros(1))], betas=(0.9, 1.0))


def test_muon_trains_the_matrices_of_hidden_layers_and_adamw_the_rest() -> None:
    config = TrainConfig(optimizer="muon", optimizer_options={"momentum": 0.9}, weight_decay=0.1, learning_rate=1e-3)
    model, groups = make_groups(optimizer="muon", weight_decay=0.1, learning_rate=1e-3)
    hidden = {name for group in groups if group["only_hidden_matrices"] for name in names_of(group)}
    assert hidden == {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "embeddings" not in name and "classifier" not in name
    }
    assert {group["name"] for group in groups} == {
        "backbone",
        "backbone_hidden",
        "backbone_no_decay",
        "head",
        "head_no_decay",
    }
    twin = copy.deepcopy(model)
    optimizer = optim.build_optimizer(groups, config, CPU)
    parameters = dict(twin.named_parameters())
    options = {"lr": 1e-3, "weight_decay": 0.1}
    muon = torch.optim.Muon(
        [parameters[name] for name in hidden], momentum=0.9, adjust_lr_fn="match_rms_adamw", **options
    )
    others = [(name, parameter) for name, parameter in parameters.items() if name not in hidden]
    adamw = torch.optim.AdamW(
        [
            {"params": [parameter for _, parameter in others if parameter.ndim > 1]},
            {"params": [parameter for _, parameter in others if parameter.ndim < 2], "weight_decay": 0.0},
        ],
        fused=True,
        **options,
    )
    constant = dataclasses.replace(config, schedule="constant", warmup_fraction=0.0)
    for seed in range(3):
        optim.set_learning_rates(optimizer, seed, 3, constant)
        train_once(model, optimizer, seed=seed)
        train_once(twin, Both(muon, adamw), seed=seed)
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in model.state_dict().items())


class Both:
    """Two optimizers that step together."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


@pytest.mark.parametrize("family", ["gpt2", "bart", "distilbert"])
def test_embeddings_of_every_family_and_the_head_stay_with_adamw(family: str) -> None:
    model, groups = make_groups(family, optimizer="muon", new=frozenset())
    hidden = {name for group in groups if group["only_hidden_matrices"] for name in names_of(group)}
    assert hidden
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            assert f"{name}.weight" not in hidden
    assert not [name for name in hidden if name.startswith(("classifier", "score", "classification_head", "pre_class"))]


# --- an optimizer of one's own, and wrong ones -----------------------------------------------------------------------


def test_a_class_of_torch_is_named_by_its_import_path() -> None:
    _, groups = make_groups()
    config = TrainConfig(optimizer="torch.optim:ASGD", optimizer_options={"alpha": 0.5})
    optimizer = optim.build_optimizer(groups, config, CPU)
    assert isinstance(optimizer, torch.optim.ASGD)
    assert {group["alpha"] for group in optimizer.param_groups} == {0.5}


class NeedsRate(torch.optim.SGD):
    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)


def test_a_class_that_needs_a_learning_rate_gets_one() -> None:
    _, groups = make_groups()
    config = TrainConfig(optimizer="my_module:NeedsRate", learning_rate=0.25)
    optimizer = optim.build_optimizer(groups, config, CPU, NeedsRate)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


def build_from_other_groups(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter for group in groups for _, parameter in group["params"]])


def build_from_first_group(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups[:1])


class WithClosure(torch.optim.SGD):
    def step(self, closure: Any) -> None:  # type: ignore[override]
        super().step(closure)


class WithAverages(torch.optim.SGD):
    def train(self) -> None: ...

    def eval(self) -> None: ...


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (lambda groups: "adam", {}, r"must return a torch\.optim\.Optimizer, not a str$"),
        (build_from_other_groups, {}, r"must build the optimizer from the groups that it is given"),
        (build_from_first_group, {}, r"its optimizer does not train bert\.\S+ and \d+ more; freeze them with freeze\.patterns"),
        (WithClosure, {}, r"its step\(\) needs an argument"),
        (torch.optim.SGD, {"momentum": -1}, r"cannot be built with train\.optimizer_options \(\{'momentum': -1\}\): Invalid mom"),
        (torch.optim.LBFGS, {}, r"cannot be built with no options: LBFGS doesn't support"),
    ],
)  # fmt: skip
def test_a_wrong_optimizer_is_refused(build: Any, options: dict[str, Any], message: str) -> None:
    _, groups = make_groups()
    config = TrainConfig(optimizer="my_module:build", optimizer_options=options)
    with pytest.raises(InputError, match=r"^train\.optimizer \(my_module:build\): " + message):
        optim.build_optimizer(groups, config, CPU, build)


@pytest.mark.parametrize(
    ("option", "build", "taken"),
    [
        ("betas", torch.optim.SGD, "momentum, dampening, nesterov, maximize, foreach, differentiable, fused"),
        ("x", lambda groups: None, "none"),
    ],
)
def test_an_option_that_ones_own_optimizer_does_not_take_is_refused(option: str, build: Any, taken: str) -> None:
    _, groups = make_groups()
    config = TrainConfig(optimizer="my_module:build", optimizer_options={option: 1})
    with pytest.raises(InputError) as caught:
        optim.build_optimizer(groups, config, CPU, build)
    expected = f"train.optimizer_options.{option} (1): my_module:build has no such option; it takes {taken}"
    assert str(caught.value) == expected


def test_a_wrong_value_of_an_option_is_refused() -> None:
    _, groups = make_groups()
    with pytest.raises(InputError, match=r"train\.optimizer \(adamw\): cannot be built with .*Invalid beta parameter"):
        optim.build_optimizer(groups, TrainConfig(optimizer_options={"betas": [0.9, 1.5]}), CPU)


def test_an_optimizer_that_averages_itself_takes_no_moving_average() -> None:
    _, groups = make_groups()
    config = TrainConfig(optimizer="my_module:build", ema_decay=0.9)
    with pytest.raises(InputError, match=r"train\.ema_decay \(0\.9\): must not be given with my_module:build"):
        optim.build_optimizer(groups, config, CPU, WithAverages)


def test_an_optimizer_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _, groups = make_groups()
    with pytest.raises(
        InputError, match=r"needs schedulefree, which is not installed; pip install 'hf-finetune\[schedulef"
    ):
        optim.build_optimizer(groups, make_config("schedule_free_adamw"), CPU)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (torch.zeros(1), None),
        ({"a": [1, (2.0, "x", None, torch.float32, torch.Size([2]))]}, None),
        ({"a": [1, {2}]}, "/a/1"),
        ({"a": {"b": math.sqrt}}, "/a/b"),
        (np.float64(1.0), ""),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_found(value: Any, place: str | None) -> None:
    found = optim.find_unsavable(value)
    assert (found[0] if found else None) == place
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    if place is None:
        torch.load(file, weights_only=True)


# --- the learning rate ----------------------------------------------------------------------------------------------


def test_set_learning_rates_gives_every_group_its_peak_times_the_factor() -> None:
    config = TrainConfig(learning_rate=1e-3, head_learning_rate=1e-1, layer_decay=0.5, warmup_fraction=0.2)
    _, groups = make_groups(learning_rate=1e-3, head_learning_rate=1e-1, layer_decay=0.5)
    optimizer = optim.build_optimizer(groups, TrainConfig(), torch.device("cpu"))
    for update in (0, 1, 2, 5, 9, 3):
        factor = compute_learning_rate(update, 10, config)
        rates = optim.set_learning_rates(optimizer, update, 10, config)
        assert rates == {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert rates == {group["name"]: group["peak_learning_rate"] * factor for group in optimizer.param_groups}
        assert rates["head"] == 1e-1 * factor
