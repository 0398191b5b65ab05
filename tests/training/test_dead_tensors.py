"""Law 5: a tensor that trains by the settings and not in truth ends the run with its name, and nothing else does."""

import contextlib
import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_finetune.config.sections import RunConfig
from hf_finetune.run.parts import Parts
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune
from hf_finetune.training.dead_tensors import NUM_UPDATES, GradientWatch
from hf_finetune.training.loop import train_steps

MakeConfig = Callable[..., RunConfig]
MakeRun = Callable[..., TrainingRun]
DENSE = "bert.encoder.layer.0.output.dense"  # in the last block, a forward may compute the first token alone, in another way


def train(run: TrainingRun, total_updates: int) -> None:
    """Trains that many updates."""
    for _ in train_steps(
        run.train_state, run.make_source(), run.task, run.config, run.runtime, total_updates=total_updates
    ):
        pass


def cut_off(layer: Any) -> None:
    """The layer computes as before, but autograd does not see its weights: a .detach() too many."""
    layer.forward = lambda inputs: torch.nn.functional.linear(inputs, layer.weight.detach(), layer.bias.detach())


@pytest.mark.parametrize("total_updates", [3, 16])
def test_a_tensor_without_a_gradient_ends_the_run_with_its_name(make_run: MakeRun, total_updates: int) -> None:
    run = make_run()
    cut_off(run.train_state.model.get_submodule(DENSE))
    count = min(total_updates, NUM_UPDATES)
    with pytest.raises(InputError) as refused:
        train(run, total_updates)
    assert str(refused.value).startswith(
        f"update {count}: {DENSE}.weight and 1 more tensors that train had no gradient, or only zeros, in the first {count} "
        f"updates, so they do not train ({DENSE}.bias); freeze them with freeze.patterns"
    )


def test_a_tensor_with_zeros_alone_ends_the_run_with_its_name(make_run: MakeRun) -> None:
    run = make_run()
    run.train_state.model.get_parameter(f"{DENSE}.bias").register_hook(torch.zeros_like)
    with pytest.raises(InputError, match=rf"update 8: {re.escape(DENSE)}\.bias had no gradient, or only zeros"):
        train(run, 16)


def test_a_loss_that_teaches_nothing_ends_the_run(make_run: MakeRun) -> None:
    run = make_run()
    for parameter in run.train_state.model.parameters():
        parameter.register_hook(torch.zeros_like)
    with pytest.raises(InputError, match=r"update 8: all \d+ tensors that train, such as \S+, had no gradient"):
        train(run, 16)


def test_a_run_of_two_updates_is_not_judged(make_run: MakeRun) -> None:
    run = make_run()
    cut_off(run.train_state.model.get_submodule(DENSE))
    train(run, 2)


def test_adapters_begin_with_zero_gradients_and_are_no_error(make_run: MakeRun) -> None:
    run = make_run(**{"adapter.kind": "lora", "adapter.rank": 2, "freeze.layers": 1})
    (half,) = {name for name, _ in run.train_state.model.named_parameters() if "query.lora_A" in name}
    train(run, 3)
    assert run.train_state.model.get_parameter(half).requires_grad


def test_the_weights_are_those_of_a_run_without_the_watch(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    watched, plain = make_run(), make_run()
    train(watched, 9)
    monkeypatch.setattr(GradientWatch, "look", lambda _: None)
    train(plain, 9)
    ours, theirs = watched.train_state.model.state_dict(), plain.train_state.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def make_watched(num_updates: int = 100) -> tuple[dict[str, torch.nn.Parameter], GradientWatch]:
    """Two tensors, and their watch."""
    tensors = {name: torch.nn.Parameter(torch.ones(2)) for name in ("one", "two")}
    return tensors, GradientWatch(torch.optim.SGD(list(tensors.items()), lr=0.1), num_updates)


def test_updates_that_show_nothing_do_not_count() -> None:
    """A batch without a target (loss 0), and an update that fp16's loss scaler skips."""
    tensors, watch = make_watched()
    for number in range(3 * NUM_UPDATES):
        for tensor in tensors.values():
            tensor.grad = torch.zeros(2)
        watch.look()
        watch.count(number + 1, loss=0.0, norm=0.0, is_skipped=False)
        tensors["one"].grad = torch.ones(2)
        watch.look()
        watch.count(number + 1, loss=1.0, norm=1.0, is_skipped=True)
    for number in range(NUM_UPDATES - 1):
        watch.look()
        watch.count(number + 1, loss=1.0, norm=1.0, is_skipped=False)
    watch.look()
    with pytest.raises(InputError, match=r"update 9: two had no gradient"):
        watch.count(9, loss=1.0, norm=1.0, is_skipped=False)


def test_one_gradient_is_enough_and_later_ones_are_not_looked_at() -> None:
    tensors, watch = make_watched()
    for number in range(NUM_UPDATES + 3):
        tensors["one"].grad = torch.ones(2)
        tensors["two"].grad = torch.tensor([0.0, float(number == 5)])
        watch.look()
        watch.count(number + 1, loss=1.0, norm=1.0, is_skipped=False)
    assert watch.num_counted == NUM_UPDATES


@pytest.mark.parametrize("compares_scores", [True, False])
def test_a_bias_of_scores_that_are_compared_needs_no_gradient(compares_scores: bool) -> None:
    """In bf16, the gradients of two choices add up to zero exactly; another tensor still needs one."""
    tensors = {"head.weight": torch.nn.Parameter(torch.ones(1, 2)), "head.bias": torch.nn.Parameter(torch.ones(1))}
    optimizer = torch.optim.SGD(list(tensors.items()), lr=0.1)
    watch = GradientWatch(optimizer, 100, compares_scores=compares_scores)
    tensors["head.weight"].grad, tensors["head.bias"].grad = torch.ones(1, 2), torch.zeros(1)
    outcome = contextlib.nullcontext() if compares_scores else pytest.raises(InputError, match=r"head.bias had no")
    with outcome:
        count_updates(watch, norm=1.0)
    watch = GradientWatch(optimizer, 100, compares_scores=compares_scores)
    tensors["head.weight"].grad = torch.zeros(1, 2)
    with pytest.raises(InputError, match=r"head.weight"):
        count_updates(watch, norm=0.0)


def count_updates(watch: GradientWatch, *, norm: float) -> None:
    """Looks at the same gradients in as many updates as are watched."""
    for number in range(NUM_UPDATES):
        watch.look()
        watch.count(number + 1, loss=1.0, norm=norm, is_skipped=False)


def test_an_optimizer_of_other_tensors_is_found_before_the_first_update(make_config: MakeConfig) -> None:
    def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(copy.deepcopy(groups), lr=0.1)

    with pytest.raises(
        InputError, match=r"train.optimizer \(\S+\): under the name bert\.\S+ it holds another tensor than"
    ):
        finetune(make_config(), Parts(optimizer=build))


def test_adapters_that_are_all_frozen_are_found_before_the_first_update(make_config: MakeConfig) -> None:
    settings = {"adapter.kind": "lora", "freeze.layers": 1, "freeze.patterns": ["layer"]}
    with pytest.raises(InputError, match=r"freeze.patterns \(layer\): freezes all adapters, and only the head would"):
        finetune(make_config(**settings))
