"""Batches have few lengths where that is worth it, and where it changes no output."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from support import tiny

from hf_finetune.forward.padding import ignores_padding
from hf_finetune.run.training_run import TrainingRun

SMALL = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
SEVERAL = 8  # tokens


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_padding_after_the_inputs_changes_no_output(family: str) -> None:
    model = tiny.make_model(family, initializer_range=0.2) if family != "t5" else tiny.make_model(family)
    assert ignores_padding(model, model.config.pad_token_id or 0)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (
            "XLNetForSequenceClassification",
            transformers.XLNetConfig(vocab_size=120, d_model=32, n_layer=2, n_head=2, d_inner=64),
        ),
        ("FNetForSequenceClassification", transformers.FNetConfig(**SMALL)),
        (
            "ConvBertForTokenClassification",
            transformers.ConvBertConfig(**SMALL, embedding_size=32, num_attention_heads=4),
        ),
    ],
)
def test_models_whose_outputs_depend_on_padding_are_found(kind: str, config: Any) -> None:
    torch.manual_seed(0)
    assert not ignores_padding(getattr(transformers, kind)(config).eval(), 5)


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        ({"train.precision": "bf16"}, SEVERAL),
        ({"train.precision": "fp32"}, 1),
        ({"train.precision": "bf16", "train.micro_batch_tokens": 100}, 1),  # padding included
    ],
)
def test_batches_have_few_lengths_in_16_bit(
    make_run: Callable[..., TrainingRun], settings: dict[str, Any], step: int
) -> None:
    run = make_run(**settings)
    assert run.train_state.padding.step == step
    assert run.train_state.padding.max_length == run.max_length
