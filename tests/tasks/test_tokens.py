"""Targets, metrics and greedy generation of tasks that predict tokens."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny

from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig, TaskSettings
from hf_finetune.data.features import IGNORED, Batch, Features
from hf_finetune.data.reading import read_targets
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Outputs
from hf_finetune.tasks.objectives import LOSSES, reads_some_tokens
from hf_finetune.tasks.projected_loss import score_projected
from hf_finetune.tasks.tokens import (
    CausalScoring,
    TokenObjective,
    check_columns,
    check_is_causal,
    compute_token_metrics,
    get_end_ids,
    get_targets,
    pad_left,
    score_batch,
    score_sequences,
    set_greedy_generation,
)

LABELS = torch.tensor([[5, 6, 7], [8, 9, IGNORED]])


class Continuations(CausalScoring):
    """The smallest scoring of a causal model."""

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        yield from ({"text": text} for text in outputs)


def make_batch(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None = None) -> Batch:
    """A batch of sequences."""
    indices = np.arange(len(ids))
    return Batch(
        feature_indices=indices,
        sequence_indices=indices,
        sequence_counts=np.ones(len(ids), dtype=np.int64),
        inputs={"input_ids": ids, "attention_mask": mask},
        labels=labels,
    )


def make_model(family: str) -> Any:
    """A small random model with a language-modelling head."""
    torch.manual_seed(0)
    auto_class = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    return auto_class.from_config(tiny.make_config(family)).eval()


def test_targets_of_a_causal_model_are_the_next_tokens() -> None:
    batch = make_batch(LABELS, torch.ones_like(LABELS), LABELS)
    assert get_targets(batch, is_causal=False).tolist() == LABELS.tolist()
    assert get_targets(batch, is_causal=True).tolist() == [[6, 7, IGNORED], [9, IGNORED, IGNORED]]


def test_metrics_are_over_all_targets_of_all_sequences() -> None:
    logits = torch.zeros(2, 3, 10)
    logits[0, 0, 5] = logits[0, 1, 1] = 3.0
    scores = score_sequences(logits, LABELS)
    assert [array.shape for array in scores] == [(3,), (3,)]
    entropies = torch.nn.functional.cross_entropy(logits.reshape(-1, 10), LABELS.reshape(-1), reduction="mean")
    values = compute_token_metrics(scores)
    assert values["perplexity"] == pytest.approx(math.exp(float(entropies)), rel=1e-5)
    assert values["token_accuracy"] == 1 / 5


@pytest.mark.parametrize("kept", [(0, 1, 3), ()])
def test_losses_and_scores_from_the_tokens_that_are_read_are_those_from_all(kept: tuple[int, ...]) -> None:
    """Of their logits, and of hidden states and projection. One sequence of two may have no target."""
    objective = TokenObjective(is_causal=True, label_smoothing=0.1)
    states, weight = torch.randn(2, 3, 4), torch.randn(10, 4)
    labels = torch.full((2, 3), IGNORED)
    labels.view(-1)[[position + 1 for position in kept]] = torch.arange(5, 5 + len(kept))
    batch = make_batch(LABELS, torch.ones_like(LABELS), labels)
    reading = read_targets(objective.find_targets(batch), IGNORED, objective.project)
    full, read = states @ weight.T, dataclasses.replace(batch, reading=reading)
    with torch.no_grad():
        projected = score_projected(reading.select(states), weight, None, reading.targets, 0.1)
    expected, scores = objective.loss(full, batch), score_batch(full, batch, is_causal=True)
    for outputs in (reading.select(full), projected):
        loss, count = objective.loss(outputs, read)
        assert float(loss) == pytest.approx(float(expected[0]), rel=1e-6)
        assert count == expected[1] == len(kept)
        np.testing.assert_allclose(score_batch(outputs, read, is_causal=True), scores, rtol=1e-6)


def test_a_loss_or_a_scoring_of_ones_own_gets_all_outputs() -> None:
    """Also if it is derived from a class that reads only the outputs of some tokens; unless it says so itself."""

    class OwnObjective(TokenObjective):
        def sum_loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
            return outputs.sum()

    class SameObjective(OwnObjective):
        reads_some_tokens = True

    class OwnContinuations(Continuations):
        def reduce(self, outputs: torch.Tensor, batch: Batch) -> list[Any]:
            return list(outputs.numpy())

    objective = TokenObjective(is_causal=True)
    assert reads_some_tokens(objective, *LOSSES)
    assert not reads_some_tokens(OwnObjective(is_causal=True), *LOSSES)
    assert reads_some_tokens(SameObjective(is_causal=True), *LOSSES)
    assert not reads_some_tokens(objective.with_loss(lambda outputs, batch: (outputs.sum(), 1.0)), *LOSSES)
    assert reads_some_tokens(Continuations(max_target_length=1), "reduce")
    assert not reads_some_tokens(OwnContinuations(max_target_length=1), "reduce")


def test_perplexity_is_nan_without_targets_and_infinite_if_it_overflows() -> None:
    assert math.isnan(compute_token_metrics([np.zeros(3)])["perplexity"])
    assert compute_token_metrics([np.array([9000.0, 0, 1])])["perplexity"] == math.inf


def test_padding_moves_to_the_left() -> None:
    ids, mask = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    moved_ids, moved_mask = pad_left(ids, mask)
    assert moved_ids.tolist() == [[0, 0, 1, 2], [3, 4, 5, 6]]
    assert moved_mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_a_prompt_loses_its_beginning_if_there_are_too_few_positions() -> None:
    model = make_model("gpt2")
    num_positions = model.config.max_position_embeddings
    scoring = Continuations(max_target_length=6).for_inference(tiny.make_tokenizer())
    ids = torch.randint(5, 20, (1, num_positions + 10), generator=torch.Generator().manual_seed(1))
    model.generation_config.eos_token_id = None
    (generated,) = scoring.generate(model, make_batch(ids, torch.ones_like(ids)))
    (of_the_end,) = scoring.generate(model, make_batch(ids[:, -60:], torch.ones_like(ids[:, -60:])))
    assert len(generated) == 6
    assert num_positions - 6 == 60
    assert generated.tolist() == of_the_end.tolist()


def test_prompts_are_padded_with_the_end_token_if_there_is_no_other() -> None:
    tokenizer = tiny.make_tokenizer()
    scoring = Continuations(max_target_length=6)
    assert scoring.for_inference(tokenizer).pad_token_id == tokenizer.pad_token_id
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    assert scoring.for_inference(tokenizer).pad_token_id == tokenizer.eos_token_id


def test_generation_is_greedy_and_keeps_the_models_first_and_last_token() -> None:
    model, tokenizer = make_model("gpt2"), tiny.make_tokenizer()
    tokenizer.eos_token = "[SEP]"
    model.generation_config = transformers.GenerationConfig(bos_token_id=2, do_sample=True, temperature=0.3)
    assert get_end_ids(model, tokenizer) == tokenizer.eos_token_id
    model.generation_config.eos_token_id = 9
    assert get_end_ids(model, tokenizer) == 9
    set_greedy_generation(model, tokenizer, end_ids=[9, 3], max_new_tokens=7)
    settings = model.generation_config.to_diff_dict()
    settings.pop("transformers_version", None)
    expected = {"bos_token_id": 2, "eos_token_id": [9, 3], "pad_token_id": tokenizer.pad_token_id, "max_new_tokens": 7}
    assert {name: value for name, value in settings.items() if value is not False} == expected


def test_a_model_that_reads_in_both_directions_is_refused(backbones: Callable[..., Path]) -> None:
    for family in ("gpt2", "llama"):
        check_is_causal(make_model(family))
    model = make_model("bert").train()
    with pytest.raises(InputError, match="must be a causal model; this one reads in both directions"):
        check_is_causal(model)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text_columns": ("a", "b", "c")}, r"data.text_columns \(\['a', 'b', 'c'\]\): takes one or two"),
        ({"label_column": "topic"}, r"data.label_column \(topic\): must be null: tests has no labels"),
    ],
)
def test_columns_that_a_task_without_labels_does_not_have_are_refused(columns: dict[str, Any], message: str) -> None:
    config = RunConfig(
        model=ModelConfig(backbone="-"), data=DataConfig(train=("-",), **columns), task=TaskSettings(kind="-")
    )
    with pytest.raises(InputError, match=message):
        check_columns(config, task_name="tests", most=2, takes="takes one or two")
