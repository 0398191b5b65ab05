"""What a sample shows about each depth: hidden states and sketches of gradients, for every family."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support import tiny

from hf_finetune.choosing.advise_features import (
    SKETCH,
    GradientSketch,
    choose_directions,
    compute_features,
    compute_head_inputs,
    find_read_token,
)
from hf_finetune.forward.linear_head import find_linear_head, returning_inputs
from hf_finetune.model import heads
from hf_finetune.run.training_run import TrainingRun

MakeRun = Callable[..., TrainingRun]
INDICES = np.array([5, 0, 7, 3])


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("bert", "first"),
        ("electra", "first"),
        ("llama", "last"),
        ("gpt2", "last"),
        ("modernbert", "mean"),
        ("t5", "mean"),
    ],
)
def test_hidden_states_are_taken_where_the_head_reads_them(family: str, kind: str) -> None:
    options = {"classifier_pooling": "mean"} if family == "modernbert" else {}
    assert find_read_token(tiny.make_model(family, **options)) == kind


def test_hidden_states_are_those_of_each_depth(make_run: MakeRun) -> None:
    run = make_run()
    model, features = run.train_state.model, run.features["train"]
    found = find_linear_head(model)
    assert found is not None
    states = compute_features(run, found[1], features, INDICES, np.ones((1, 32)))
    np.testing.assert_allclose(
        compute_head_inputs(run, found[1], features, INDICES), states.head_inputs, rtol=1e-4, atol=1e-5
    )
    for place, index in enumerate(INDICES):
        ids = torch.tensor(features.inputs["input_ids"][features.offsets[index] : features.offsets[index + 1]])[
            None
        ].long()
        model.eval()
        with torch.no_grad():
            outputs = model(input_ids=ids, output_hidden_states=True)
        expected = torch.cat([hidden[:, 0] for hidden in outputs.hidden_states])
        torch.testing.assert_close(torch.from_numpy(states.hidden_states[place]), expected, rtol=1e-4, atol=1e-5)
        logits = found[1](torch.from_numpy(states.head_inputs[place]))
        torch.testing.assert_close(logits, outputs.logits[0], rtol=1e-4, atol=1e-5)


def test_products_of_sketches_are_on_average_those_of_gradients(make_run: MakeRun) -> None:
    run = make_run()
    model, features = run.train_state.model, run.features["train"]
    found = find_linear_head(model)
    assert found is not None
    directions = np.random.default_rng(0).normal(size=(2, 32))
    sketches = compute_features(run, found[1], features, INDICES, directions).gradients
    exact = [compute_exact(run, found[1], int(index), directions) for index in INDICES]
    for number in range(2):
        gradients = np.stack([blocks[number] for blocks in exact])
        products = gradients @ gradients.T
        rows = sketches[number].reshape(len(INDICES), -1)
        estimates = rows @ rows.T
        assert np.corrcoef(products.ravel(), estimates.ravel())[0, 1] > 0.8
        assert np.trace(estimates) == pytest.approx(np.trace(products), rel=0.5)


def compute_exact(run: TrainingRun, layer: torch.nn.Linear, index: int, directions: np.ndarray) -> list[np.ndarray]:
    """The gradients of one example by the weights of the linear layers of each block, along all directions."""
    model, features = run.train_state.model, run.features["train"]
    ids = torch.tensor(features.inputs["input_ids"][features.offsets[index] : features.offsets[index + 1]])[None].long()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    blocks: list[list[np.ndarray]] = [[], []]
    for direction in directions:
        model.eval()
        model.zero_grad()
        with returning_inputs(layer):
            value = heads.run_model(model, inputs)[0] @ torch.from_numpy(direction).float()
        for number, block in enumerate(model.bert.encoder.layer):
            weights = [weight for weight in block.parameters() if weight.ndim == 2]
            gradients = torch.autograd.grad(value, weights, retain_graph=True)
            blocks[number] += [gradient.flatten().numpy() for gradient in gradients]
    return [np.concatenate(parts) for parts in blocks]


def test_nothing_stays_in_the_model(make_run: MakeRun) -> None:
    run = make_run()
    found = find_linear_head(run.train_state.model)
    assert found is not None
    before = {name: value.clone() for name, value in run.train_state.model.state_dict().items()}
    compute_features(run, found[1], run.features["train"], INDICES, np.ones((1, 32)))
    assert all(torch.equal(run.train_state.model.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in run.train_state.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in run.train_state.model.modules())


def test_directions_are_those_along_which_the_targets_differ() -> None:
    generator = np.random.default_rng(0)
    columns = np.eye(2)[generator.integers(0, 2, 200)]
    inputs = generator.normal(size=(200, 8)) * 0.1 + columns[:, :1] * np.array([3.0, 4.0, *[0.0] * 6])
    (direction,) = choose_directions(inputs, columns, 0)
    np.testing.assert_allclose(np.abs(direction), [0.6, 0.8, *[0.0] * 6], atol=0.1)
    many = choose_directions(inputs, np.eye(5)[generator.integers(0, 5, 200)], 0)
    assert many.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1)


def test_a_sketch_of_nothing_is_zero() -> None:
    """A layer whose output does not change the value."""
    stack = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
    sketch = GradientSketch(stack, 0)
    value = torch.ones(2, 3, 4, requires_grad=True)
    with sketch.recording():
        outputs = [layer(value) for layer in stack]
    first, second = sketch.sketch([outputs[0].sum(), 2 * outputs[0].sum()])
    assert first.shape == second.shape == (2, 1, 2 * SKETCH**2)
    assert np.abs(first).max() > 0
    np.testing.assert_allclose(first[..., SKETCH**2 :], 2 * first[..., : SKETCH**2], rtol=1e-5)
    assert not second.any()
