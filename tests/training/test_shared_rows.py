"""Training with shared rows gives the losses, gradients and weights of rows of their own, with any limit, dropout and adapters.

The recipe case instruct-gpt2-shared_rows has killed runs, two processes and cached activations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny

from hf_finetune.data.features import Batch
from hf_finetune.data.shared_rows import share_rows
from hf_finetune.run.report import describe_micro_batches, describe_rows
from hf_finetune.run.saving import describe_summation_order
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.training import train_state
from hf_finetune.training.loop import train_steps

MakeRun = Callable[..., TrainingRun]
COUNTS = {"train": 40, "validation": 8, "test": 8}
NUM_UPDATES = 3
CLOSE = 1e-5


@pytest.fixture
def settings(tmp_path: Path, backbones: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """`settings("llama", **settings)`: of instruction tuning, or of language modelling with `task.kind`."""

    def make(family: str, **changes: Any) -> dict[str, Any]:
        made: dict[str, Any] = {
            "model.backbone": str(backbones(family)),
            "data.max_length": 32,
            "train.batch_size": 40,  # few batches, so that lengths differ within one
            "data.label_column": None,
        }
        if changes.get("task.kind") == "model_language":
            made |= {"task.packing": "none"}
        else:
            made |= {"task.kind": "instruct", "data.text_columns": ["messages"]}
            made |= tiny.write_conversations(tmp_path, COUNTS, tiny.make_uneven_conversations)
        return made | changes

    return make


def train(made: TrainingRun) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """Loss and gradient norm of some updates, and the weights after them."""
    steps = train_steps(
        made.train_state, made.make_source(), made.task, made.config, made.runtime, total_updates=NUM_UPDATES
    )
    updates = [(update.loss, update.gradient_norm) for update in steps]
    return updates, {name: tensor.clone() for name, tensor in made.train_state.model.state_dict().items()}


def assert_same(ours: TrainingRun, theirs: TrainingRun) -> None:
    """The same numbers with shared rows and with rows of their own."""
    assert ours.train_state.row_sharing is not None
    assert theirs.train_state.row_sharing is None
    (line,) = describe_rows(ours)
    assert line.startswith("shared by examples, none longer than the longest example of the batch; on a probe")
    assert describe_rows(theirs) == []
    with pytest.MonkeyPatch.context() as patch:
        rows: list[Batch] = []
        patch.setattr(train_state, "share_rows", lambda *arguments: rows.append(share_rows(*arguments)) or rows[-1])
        updates, weights = train(ours)
    num_rows, num_examples = (
        sum(map(len, parts))
        for parts in ([batch.inputs["input_ids"] for batch in rows], [batch.feature_indices for batch in rows])
    )
    assert num_rows < 0.9 * num_examples
    expected_updates, expected_weights = train(theirs)
    assert updates == [pytest.approx(update, abs=CLOSE, rel=CLOSE) for update in expected_updates]
    for name, weight in expected_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize(
    ("family", "limit", "changes"),
    [
        ("llama", {"train.micro_batch_tokens": 20}, {}),
        ("llama", {"train.micro_batch_tokens": 60}, {}),
        ("gpt2", {}, {"task.kind": "model_language"}),  # with dropout 0.1
        ("gpt2", {"train.micro_batch_size": 20}, {"task.kind": "model_language"}),
        (
            "qwen2",
            {"train.micro_batch_tokens": 30},
            {"freeze.embeddings": True, "freeze.layers": 1, "adapter.kind": "lora", "adapter.dropout": 0.2},
        ),
    ],
    ids=str,
)
def test_losses_and_weights_are_those_of_rows_of_their_own(
    make_run: MakeRun,
    settings: Callable[..., dict[str, Any]],
    family: str,
    limit: dict[str, int],
    changes: dict[str, Any],
) -> None:
    made = settings(family, **changes)
    sgd = {
        "train.optimizer": "sgd",
        "train.learning_rate": 0.1,
    }  # AdamW's steps are no continuous function of a gradient
    ours = make_run(**{**made, **limit, **sgd, "name": "shared", "train.shared_rows": "on"})
    assert_same(ours, make_run(**{**made, **sgd, "name": "plain"}))


@pytest.mark.parametrize("limit", [{"train.micro_batch_tokens": 20}, {}], ids=str)
def test_what_a_run_says_of_its_micro_batches_names_shared_rows(
    make_run: MakeRun, settings: Callable[..., dict[str, Any]], limit: dict[str, int]
) -> None:
    made = settings("llama", **limit)
    ours = make_run(**{**made, "name": "shared", "train.shared_rows": "on"})
    theirs = make_run(**{**made, "name": "plain"})
    of_tokens = "micro-batches of at most 20 tokens"
    if limit:
        assert (describe_micro_batches(ours), describe_micro_batches(theirs)) == (
            f"{of_tokens} in shared rows",
            of_tokens,
        )
    else:
        assert describe_micro_batches(ours) == describe_micro_batches(theirs)  # as many examples
    assert describe_summation_order(ours) == f"{describe_summation_order(theirs)} in shared rows"


def test_rows_of_a_stream_are_shared(make_run: MakeRun, settings: Callable[..., dict[str, Any]]) -> None:
    made = settings("llama", **{"data.streaming": True, "train.max_updates": NUM_UPDATES, "train.optimizer": "sgd"})
    ours = make_run(**{**made, "name": "shared", "train.shared_rows": "on", "train.micro_batch_tokens": 30})
    assert_same(ours, make_run(**{**made, "name": "plain"}))


def test_a_task_whose_examples_need_rows_of_their_own_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(InputError, match=r"train.shared_rows \(on\): only causal models that predict the next token"):
        make_run(**{"train.shared_rows": "on"})
