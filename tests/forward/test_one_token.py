"""One token of each sequence: the last one for classifiers on decoders, the first one for embeddings. The same outputs, gradients
and losses of runs, and no cut for a head that reads others."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny
from support.forwards import ROWS, assert_same, capture_activations, compute_outcome, count_rows, make, make_batch
from support.ranked import write_splits
from support.runs import read_untimed_metrics, run_recipe
from support.script_server import ScriptServer

from hf_finetune.config.sections import FreezeConfig, RunConfig
from hf_finetune.data.reading import TokenReading, read_first_tokens, read_last_tokens
from hf_finetune.forward.dropout import choose_masks
from hf_finetune.forward.plan import ForwardPlan, find_forward_plan
from hf_finetune.forward.token_cuts import TokenCuts, find_last_token_cuts, find_token_cuts
from hf_finetune.model import freezing
from hf_finetune.train import finetune

DECODERS = ("gpt2", "llama", "qwen2", "qwen3")
ENCODERS = ("bert", "roberta", "distilbert", "mpnet", "deberta-v2", "modernbert")
DROPOUT: dict[str, dict[str, float]] = {"gpt2": {}, **{family: {"attention_dropout": 0.2} for family in DECODERS[1:]}}


def find(model: Any, plan: freezing.FreezePlan) -> TokenCuts:
    """The cuts of a model whose head reads the last token."""
    cuts = find_last_token_cuts(model, plan)
    assert cuts is not None
    return cuts


def choose(cuts: TokenCuts, batch: dict[str, torch.Tensor]) -> TokenReading:
    """The tokens that the model reads."""
    assert cuts.choose is not None
    return cuts.choose(batch["input_ids"])


def list_batches(model: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Batches with padding on the right and on the left, one example, one token, and texts with the id that pads."""
    pad = model.config.pad_token_id
    right = make_batch(model, extra=2)
    left = {name: tensor.flip(1) for name, tensor in right.items()}
    return {
        "right": right,
        "left": left,
        "one example": make_batch(model, [ROWS[1]]),
        "one token": make_batch(model, [(2,), (7,)]),
        "pads": make_batch(model, [(2, 7, pad, 9, pad), (pad, pad), (pad, 8)]),
    }


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", DECODERS)
def test_logits_and_gradients_are_those_of_the_complete_block(family: str, attention: str) -> None:
    model, plan = make(family, 2)
    model.set_attn_implementation(attention)
    cuts = find(model, plan)
    assert model.score in cuts.scattered
    for batch in list_batches(model).values():
        expected = compute_outcome(model, batch)
        with cuts.active(choose(cuts, batch)):
            assert_same(compute_outcome(model, batch), expected, 1e-5)


@pytest.mark.parametrize("family", DECODERS)
def test_dropout_is_the_same_for_one_token_and_from_cached_activations(family: str) -> None:
    model, freeze_plan = make(family, 2, **DROPOUT[family])
    plan, reason = find_forward_plan(model, freeze_plan)
    assert (plan.first_token, reason) == ({}, "")
    assert plan.token_cuts is not None
    assert plan.cached is not None
    assert plan.complete() == ForwardPlan()
    eval_modules = freezing.find_eval_modules(model)
    masks = choose_masks("stateless", 3, model, eval_modules)
    batch = make_batch(model)
    activations = capture_activations(plan.cached, model, batch["input_ids"].shape[1])
    without_dropout = compute_outcome(model, batch)
    freezing.set_train_mode(model, eval_modules)
    with masks.active(5, np.arange(4)):
        expected = compute_outcome(model, batch)
    assert not torch.allclose(expected[0], without_dropout[0])
    reading = choose(plan.token_cuts, batch)
    for start in (None, activations):
        with masks.active(5, np.arange(4), reading=reading), plan.active(start, reading):
            assert_same(compute_outcome(model, batch), expected, 1e-5)


def test_the_last_block_computes_keys_and_values_of_all_tokens_and_the_rest_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, plan = make("llama", 2)
    cuts, batch = find(model, plan), make_batch(model)
    num_rows = count_rows(model, monkeypatch)
    with torch.no_grad(), cuts.active(choose(cuts, batch)):
        model(**batch)
    assert min(num_rows.values()) > 0  # each layer ran
    one_token = {name for name, count in num_rows.items() if count == len(ROWS)}
    assert {count for name, count in num_rows.items() if name not in one_token} == {batch["input_ids"].numel()}
    block = {f"model.layers.3.{name}" for name in ("self_attn.q_proj", "self_attn.o_proj")}
    assert one_token == {"score", *block, *(f"model.layers.3.mlp.{name}_proj" for name in ("gate", "up", "down"))}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_block_that_is_recomputed_gets_the_same_tokens(use_reentrant: bool) -> None:
    """Gradient checkpointing, with dropout."""
    model, freeze_plan = make("llama", 2, **DROPOUT["llama"])
    cuts, batch = find(model, freeze_plan), make_batch(model)
    masks, reading = choose_masks("stateless", 3, model, ()), choose(cuts, batch)
    freezing.set_train_mode(model, ())
    with masks.active(5, np.arange(4)):
        expected = compute_outcome(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    with masks.active(5, np.arange(4), reading=reading), cuts.active(reading):
        assert_same(compute_outcome(model, batch), expected, 1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_the_vector_of_the_first_token_is_that_of_the_complete_block(family: str) -> None:
    """In eval mode, and in train mode with dropout."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(tiny.make_config(family, layers=4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # with tiny weights, wrong outputs look right
            parameter.mul_(6.0 if parameter.ndim >= 2 else 1.0)
    freeze_plan = freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=2))
    cuts = find_token_cuts(model, freeze_plan)
    assert cuts is not None
    assert len(cuts.in_block) >= 3
    assert cuts.projection is None
    eval_modules = freezing.find_eval_modules(model)
    masks = choose_masks("stateless", 3, model, eval_modules)

    def compute(batch: dict[str, torch.Tensor], plan: ForwardPlan) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        reading = read_first_tokens(batch["input_ids"])
        num_examples = len(batch["input_ids"])
        model.zero_grad(set_to_none=True)
        with masks.active(5, np.arange(num_examples), reading=reading):
            hidden_states = plan.run_model(model, batch, reading=reading)
        assert hidden_states.shape[:2] == (1, num_examples)
        vectors = hidden_states[0]
        vectors.sin().sum().backward()
        return vectors.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    for is_training in (False, True):
        if is_training:
            freezing.set_train_mode(model, eval_modules)
        for rows in (ROWS, [ROWS[1]], [(2,), (7,)]):
            batch = make_batch(model, rows)
            assert_same(compute(batch, ForwardPlan(token_cuts=cuts)), compute(batch, ForwardPlan()), 1e-5)


def test_the_last_token_is_found_by_its_id() -> None:
    ids = torch.tensor([[5, 6, 0, 0], [0, 0, 5, 6], [5, 0, 6, 0], [0, 0, 0, 0]])
    reading = read_last_tokens(ids, 0)
    assert (reading.positions % 4).tolist() == [1, 3, 2, 0]
    assert (reading.positions // 4).tolist() == [0, 1, 2, 3]
    assert reading.select(torch.arange(16.0).view(4, 4, 1)).tolist() == [[[1.0], [7.0], [10.0], [12.0]]]
    logits = torch.ones(4, 4)  # of sequences with as many labels as tokens
    assert reading.select(logits) is logits


# --- no cut ---------------------------------------------------------------------------------------------------------


class OtherPooling(transformers.LlamaForSequenceClassification):
    """A classifier on a decoder that reads other tokens than those of transformers."""

    pooling: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **others: Any) -> Any:
        states = self.model(input_ids, attention_mask=attention_mask, **others).last_hidden_state
        return transformers.modeling_outputs.SequenceClassifierOutputWithPast(
            logits=self.score(type(self).pooling(states, attention_mask))
        )


POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": lambda states, mask: (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
    "last column": lambda states, mask: states[:, -1],
    "attention mask": lambda states, mask: states[torch.arange(len(mask)), mask.cumsum(1).argmax(1)],
    "first": lambda states, mask: states[:, 0],
    "last two": lambda states, mask: states[:, -1] + 1e-3 * states[:, -2],
}


@pytest.mark.parametrize("name", POOLINGS)
def test_a_head_that_reads_other_tokens_is_not_cut(name: str) -> None:
    """They are the last token of most batches; the probe has the others, too."""
    model, plan = make("llama", 2)
    model.__class__ = type("Other", (OtherPooling,), {"pooling": staticmethod(POOLINGS[name])})
    assert find_last_token_cuts(model, plan) is None


@pytest.mark.parametrize("family", ["bert", "modernbert", "t5", "bart"])
def test_encoders_are_not_cut_to_the_last_token(family: str) -> None:
    assert find_last_token_cuts(*make(family, 2)) is None


def test_a_last_block_that_does_not_train_is_not_cut_and_neither_is_a_model_that_cannot_pad() -> None:
    assert find_last_token_cuts(*make("llama", "all")) is None
    model, plan = make("llama", 2)
    model.config.pad_token_id = None
    assert find_last_token_cuts(model, plan) is None
    model.config.decoder = model.config.text_encoder = transformers.LlamaConfig()  # which of them pads?
    assert find_last_token_cuts(model, plan) is None


def test_a_cut_of_the_wrong_token_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison on the probe is sharp by itself, without knowing what the head reads."""
    model, plan = make("llama", 2)

    def read_token_before(ids: torch.Tensor, pad_token_id: int) -> TokenReading:
        reading = read_last_tokens(ids, pad_token_id)
        return TokenReading(positions=(reading.positions - 1).clamp(min=0), shape=reading.shape)

    def say_so(_: Any, __: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        is_read = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        is_read.view(-1)[read_token_before(batch["input_ids"], model.config.pad_token_id).positions] = True
        return is_read

    monkeypatch.setattr("hf_finetune.forward.token_cuts.read_last_tokens", read_token_before)
    monkeypatch.setattr("hf_finetune.forward.token_cuts.find_read_tokens", say_so)
    assert find_last_token_cuts(model, plan) is None


# --- runs -----------------------------------------------------------------------------------------------------------

LAST_BLOCK = "last block  after attention, only the last token that is not padding is computed: the head reads no other"
FIRST_TOKEN = "tokens      the last block after attention for the first token only"
NORM = "train/gradient_norm"
RATIO = "train/update_ratio"

Make = Callable[..., RunConfig]


@pytest.fixture
def make_task_config(make_config: Make, tmp_path: Path) -> Make:
    """Returns configs of runs that classify, embed or rerank."""

    def make(kind: str, **settings: Any) -> RunConfig:
        if kind == "classify":
            return make_config(**settings)
        if kind == "rerank":
            return make_config(
                **{
                    "task.kind": "rerank",
                    "data.text_columns": ["query"],
                    "data.label_column": None,
                    **write_splits(tmp_path),
                    **settings,
                }
            )
        for number, split in enumerate(("train", "validation", "test")):
            generator = random.Random(number)
            rows = [
                {"text": tiny.make_text(generator, label), "other": tiny.make_text(generator, label), "score": score}
                for label, score in zip(list(tiny.CLASSES) * 8, range(24), strict=False)
            ]
            settings[f"data.{split}"] = [str(tiny.write_jsonl(tmp_path / f"{kind}-{split}.jsonl", rows))]
        label = "score" if kind == "scored" else None
        columns = {"data.text_columns": ["text", "other"], "data.label_column": label}
        return make_config(**{"task.kind": "embed", "task.pooling": "cls", **columns, **settings})

    return make


@pytest.mark.parametrize(
    ("kind", "family", "settings", "line"),
    [
        ("classify", "gpt2", {"cache.activations": "on"}, LAST_BLOCK),
        ("classify", "llama", {"cache.activations": "off"}, LAST_BLOCK),
        ("classify", "qwen3", {"freeze.embeddings": False, "freeze.layers": 0, "adapter.kind": "lora"}, LAST_BLOCK),
        ("rerank", "gpt2", {"cache.activations": "on"}, LAST_BLOCK),
        ("pairs", "bert", {"cache.activations": "on"}, FIRST_TOKEN),
        ("pairs", "bert", {"train.micro_batch_size": 3}, FIRST_TOKEN),
        (
            "scored",
            "modernbert",
            {},
            FIRST_TOKEN.replace("the last", "the head, and the last").replace("n for", "n, for"),
        ),
    ],
)
def test_a_run_has_the_same_losses_with_the_cuts_and_without(
    make_task_config: Make,
    backbones: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    family: str,
    settings: dict[str, Any],
    line: str,
) -> None:
    """The losses and the numbers of evaluations are equal to 1e-6, the norms of the gradients to 1e-5, dropout on."""
    given = {
        "model.backbone": str(backbones(family, layers=3, initializer_range=0.2)),
        "model.dropout": 0.2,
        "freeze.layers": 1,
        "freeze.embeddings": True,
        "cache.precision": "fp32",
        **settings,
    }
    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.forward.plan.find_last_token_cuts", lambda *_: None)
        patch.setattr("hf_finetune.forward.plan.find_token_cuts", lambda *_: None)
        without = finetune(make_task_config(kind, **given, name="without"))
    cut = finetune(make_task_config(kind, **given, name="cut"))
    assert capsys.readouterr().out.count(f"\n{line}\n") == 1
    for split in ("validation", "test"):
        assert cut.results[split] == pytest.approx(without.results[split], abs=1e-6)
    assert cut.results["validation_check"] is not None
    rows, expected = read_untimed_metrics(cut.run_dir), read_untimed_metrics(without.run_dir)
    assert len(rows) == len(expected) > 6
    for row, other in zip(rows, expected, strict=True):
        for name in [name for name in other if name.startswith(NORM)]:
            assert row.pop(name) == pytest.approx(other.pop(name), rel=1e-5)
        for name in [name for name in other if name.startswith(RATIO)]:
            # AdamW's first updates are signs of gradients: those of zero up to rounding are of either sign
            assert row.pop(name) == pytest.approx(other.pop(name), rel=0.1)
        assert row == pytest.approx(other, abs=1e-6, rel=1e-6)


@pytest.mark.processes
def test_two_processes_have_the_losses_of_one(
    make_task_config: Make, backbones: Callable[..., Any], tmp_path: Path, script_server: ScriptServer
) -> None:
    backbone = backbones("llama", layers=3, initializer_range=0.2)
    given = {"model.backbone": str(backbone), "model.dropout": 0.2, "freeze.layers": 1, "freeze.embeddings": True}
    alone, together = (make_task_config("classify", **given, name=name) for name in ("alone", "together"))
    finetune(alone)
    done = run_recipe(script_server, 2, together, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert LAST_BLOCK in done.stdout
    for ours, theirs in zip(read_untimed_metrics(together.run_dir), read_untimed_metrics(alone.run_dir), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
