"""Parameter groups and the learning rate."""

import copy
import math
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from torch import nn
from transformers import get_linear_schedule_with_warmup

from hf_finetune.config.sections import FreezeConfig, TrainConfig
from hf_finetune.model import freezing
from hf_finetune.training import optim
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


# --- the learning rate ----------------------------------------------------------------------------------------------

SCHEDULES = ("linear", "cosine", "constant")


@given(
    total=st.integers(1, 300), warmup=st.floats(0, 0.99), schedule=st.sampled_from(SCHEDULES), seed=st.integers(0, 9)
)
def test_the_rate_is_a_pure_function_above_zero_that_rises_to_its_peak_and_never_rises_again(
    total: int, warmup: float, schedule: Any, seed: int
) -> None:
    config = TrainConfig(warmup_fraction=warmup, schedule=schedule)
    rates = [compute_learning_rate(update, total, config) for update in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = min(math.ceil(warmup * total), total)
    assert all(earlier < later for earlier, later in pairwise(rates[: peak + 1]))
    assert all(earlier >= later for earlier, later in pairwise(rates[peak:]))
    if peak < total:
        assert rates[peak] == 1.0
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    assert {update: compute_learning_rate(update, total, config) for update in order} == dict(enumerate(rates))


def test_the_warm_up_is_a_line_from_above_zero() -> None:
    config = TrainConfig(warmup_fraction=0.4)
    assert [compute_learning_rate(update, 10, config) for update in range(5)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0]
    )


def test_linear_falls_on_a_line_that_meets_zero_one_update_after_the_last() -> None:
    config = TrainConfig(warmup_fraction=0.0, schedule="linear")
    assert [compute_learning_rate(update, 5, config) for update in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_half_way_down_in_the_middle_and_flat_at_both_ends() -> None:
    config = TrainConfig(warmup_fraction=0.0, schedule="cosine")
    rates = [compute_learning_rate(update, 100, config) for update in range(100)]
    assert rates[50] == pytest.approx(0.5)
    assert rates[25] == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert rates[0] - rates[1] < 0.001
    assert rates[98] - rates[99] < 0.001


def test_constant_stays_at_its_peak() -> None:
    config = TrainConfig(warmup_fraction=0.1, schedule="constant")
    assert {compute_learning_rate(update, 50, config) for update in range(5, 50)} == {1.0}


@pytest.mark.parametrize(("total", "fraction"), [(20, 0.0), (20, 0.1), (33, 0.25), (7, 0.5), (100, 0.06)])
def test_after_the_warm_up_linear_is_transformers_own(total: int, fraction: float) -> None:
    warmup = math.ceil(fraction * total)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup, total)
    config = TrainConfig(warmup_fraction=fraction, schedule="linear")
    for update in range(total):
        (theirs,) = scheduler.get_last_lr()
        ours = compute_learning_rate(update, total, config)
        if update >= warmup:
            assert ours == pytest.approx(theirs, abs=1e-12)
        else:  # theirs starts at 0, and wastes the first update
            assert theirs < ours < theirs + 1 / warmup
        optimizer.step()
        scheduler.step()


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
