"""Only the tokens that are read: the same logits, losses and gradients in every family, and no cut where they would differ."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny
from support.forwards import ROWS, count_rows, make_batch
from torch import nn
from torch.nn import functional as F

from hf_finetune.config.sections import FreezeConfig
from hf_finetune.data.features import IGNORED
from hf_finetune.data.reading import TokenReading, read_targets
from hf_finetune.forward.cached import CannotCacheError, find_cached_forward
from hf_finetune.forward.dropout import choose_masks
from hf_finetune.forward.plan import ForwardPlan, find_forward_plan
from hf_finetune.forward.token_cuts import TokenCuts, find_token_cuts
from hf_finetune.model import freezing, heads
from hf_finetune.tasks.projected_loss import TokenScores, score_projected

CASES = [
    *((family, "MaskedLM") for family in ("bert", "distilbert", "mpnet", "deberta-v2", "modernbert", "albert")),
    *((family, "CausalLM") for family in ("gpt2", "llama")),
    *((family, "TokenClassification") for family in ("bert", "modernbert", "llama", "t5")),
    *((family, "Seq2SeqLM") for family in ("t5", "bart")),
]


def make(family: str, kind: str, blocks: int | str = 2, **changes: Any) -> tuple[Any, freezing.FreezePlan]:
    """A model of four layers with a head, and the freeze plan."""
    torch.manual_seed(0)
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(tiny.make_config(family, layers=4, **changes))
    with torch.no_grad():
        for parameter in model.parameters():  # with tiny weights, wrong outputs look right
            parameter.mul_(6.0 if parameter.ndim >= 2 and family != "t5" else 1.0)
    blocks = "all" if family == "albert" else blocks
    return model.eval(), freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=blocks))


def make_inputs(model: Any, rows: Any = ROWS) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A padded batch, and targets at about a third of its output tokens [B, T]."""
    batch = make_batch(model, rows)
    targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    if heads.is_sequence_to_sequence(model):  # fewer output tokens than input tokens
        targets = targets[:, :4].contiguous()
        batch["decoder_input_ids"] = heads.make_decoder_inputs(model, targets)
        return batch, targets
    hidden = torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    hidden[0, 1] = False
    return batch, targets.masked_fill(hidden, IGNORED)


def compute(
    model: Any, plan: ForwardPlan, batch: dict[str, torch.Tensor], targets: torch.Tensor, reading: TokenReading | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The summed loss, and the gradient of each parameter."""
    model.zero_grad(set_to_none=True)
    with plan.active(None, reading):
        outputs: Any = heads.run_model(model, batch)
    if isinstance(outputs, TokenScores):
        loss = outputs.total
    else:
        wanted = targets if reading is None else reading.targets
        wanted = torch.where(wanted == IGNORED, wanted, wanted % outputs.shape[-1])
        loss = F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), wanted.reshape(-1), reduction="sum")
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(outcome: tuple[torch.Tensor, Any], expected: tuple[torch.Tensor, Any]) -> None:
    """Equal losses and gradients, up to the order of sums."""
    torch.testing.assert_close(outcome[0], expected[0], rtol=1e-5, atol=1e-5)
    assert outcome[1].keys() == expected[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        assert float((outcome[1][name] - gradient).abs().max()) <= 1e-5 * largest, name


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_losses_and_gradients_are_those_of_all_tokens(family: str, kind: str) -> None:
    """In eval mode, and in train mode with dropout; with logits, and with the loss in place of the projection."""
    model, freeze_plan = make(family, kind)
    cuts = find_token_cuts(model, freeze_plan)
    assert cuts is not None
    assert (cuts.projection is None) == (family == "bart")  # it adds a bias to the logits
    has_block = (family, kind) not in (("albert", "MaskedLM"), ("t5", "Seq2SeqLM"), ("bart", "Seq2SeqLM"))
    assert bool(cuts.in_block) == has_block
    plan, eval_modules = ForwardPlan(token_cuts=cuts), freezing.find_eval_modules(model)
    masks = choose_masks("auto", 3, model, eval_modules)
    batch, targets = make_inputs(model)
    expected = compute(model, ForwardPlan(), batch, targets, None)
    is_language = kind != "TokenClassification"
    for project in (None, score_projected) if is_language else (None,):
        assert_same(compute(model, plan, batch, targets, read_targets(targets, IGNORED, project)), expected)
    if not masks.is_stateless:
        return
    freezing.set_train_mode(model, eval_modules)
    reading = read_targets(targets, IGNORED, score_projected if is_language else None)
    with masks.active(5, np.arange(4)):
        expected = compute(model, ForwardPlan(), batch, targets, None)
    with masks.active(5, np.arange(4), reading=reading):
        assert_same(compute(model, plan, batch, targets, reading), expected)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_tries_from_the_boundary_find_the_same_cuts(family: str, kind: str) -> None:
    """Their forwards begin at the boundary, so no module below it computes more often than once a case."""
    model, freeze_plan = make(family, kind)
    try:
        cached = find_cached_forward(model, freeze_plan)
    except CannotCacheError:
        pytest.skip("the activations of this model cannot be cached")
    expected = find_token_cuts(model, freeze_plan)
    calls: list[nn.Module] = []
    parts = {part for module in cached.placeholders for part in module.modules()} - {*cached.placeholders}
    for part in parts:  # they run only if the module itself computes
        part.register_forward_hook(lambda part, *_: calls.append(part))
    assert find_token_cuts(model, freeze_plan, cached) == expected
    assert max(map(calls.count, parts)) <= 2 * 2  # for logits and activations of two batches


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_one_example_one_token_and_no_target(family: str) -> None:
    model, freeze_plan = make(family, "MaskedLM" if family == "bert" else "CausalLM")
    plan = ForwardPlan(token_cuts=find_token_cuts(model, freeze_plan))
    one = [ROWS[3]]
    for rows, kept in ((one, [1, 4]), (one, list(range(9))), (ROWS, [29]), (ROWS, [])):
        batch = make_batch(model, rows)
        targets = torch.full_like(batch["input_ids"], IGNORED)
        targets.view(-1)[kept] = 7
        reading = read_targets(targets, IGNORED, score_projected)
        assert len(reading) == max(1, len(kept))
        loss, gradients = compute(model, plan, batch, targets, reading)
        expected = compute(model, ForwardPlan(), batch, targets, None)
        if kept:
            assert_same((loss, gradients), expected)
        else:
            assert float(loss) == 0.0
            assert gradients.keys() == expected[1].keys()
            assert not any(bool(gradient.any()) for gradient in gradients.values())


@pytest.mark.parametrize(("family", "kind"), [("bert", "MaskedLM"), ("llama", "CausalLM")])
def test_modules_above_the_last_attention_compute_only_the_tokens_that_are_read(
    monkeypatch: pytest.MonkeyPatch, family: str, kind: str
) -> None:
    """And the queries of the last block; all tokens have keys and values."""
    model, freeze_plan = make(family, kind)
    cuts = find_token_cuts(model, freeze_plan)
    assert cuts is not None
    batch, targets = make_inputs(model)
    num_rows = count_rows(model, monkeypatch)
    reading = read_targets(targets, IGNORED)
    with torch.no_grad(), cuts.active(reading):
        model(**batch)
    full = [name for name, count in num_rows.items() if count == targets.numel()]
    assert {count for name, count in num_rows.items() if name not in full} == {len(reading)}
    assert min(num_rows.values()) > 0  # each layer ran
    in_last = [name.rpartition(".")[2] for name in full if ".3." in name]
    assert in_last == {"bert": ["key", "value"], "llama": ["k_proj", "v_proj"]}[family]
    assert all(".layer" in name for name in full)


def test_with_most_tokens_read_the_block_stays_complete() -> None:
    model, freeze_plan = make("llama", "CausalLM")
    cuts = find_token_cuts(model, freeze_plan)
    assert cuts is not None
    mlp = model.model.layers[3].mlp
    assert mlp in cuts.scattered
    batch = make_batch(model, [ROWS[3]])
    for num_read, is_cut in ((5, True), (8, False)):
        targets = batch["input_ids"].clone()
        targets[:, num_read:] = IGNORED
        with cuts.active(read_targets(targets, IGNORED)):
            assert ("forward" in vars(mlp)) == is_cut
    above = cuts.above_blocks()
    assert above is not None
    assert above.gathered == (model.lm_head, model.model.norm)
    assert above == TokenCuts(gathered=above.gathered, projection=cuts.projection)


def test_a_last_block_that_does_not_train_is_not_cut() -> None:
    cuts = find_token_cuts(*make("bert", "TokenClassification", "all"))
    assert cuts is not None
    assert cuts.gathered
    assert not cuts.in_block
    assert not cuts.scattered


# --- no cut ---------------------------------------------------------------------------------------------------------


class SoftCap(nn.Module):
    """A projection, and a function of its logits."""

    def __init__(self, linear: nn.Linear, function: Any) -> None:
        super().__init__()
        self.linear, self.function = linear, function

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.function(self.linear(hidden_states))


@pytest.mark.parametrize("function", [lambda x: 5 * torch.tanh(x / 5), lambda x: 2 * x, lambda x: x.float()])
def test_logits_that_something_is_done_to_are_computed(function: Any) -> None:
    """Soft caps, scales, a cast: the head still has only the tokens that are read, and the loss gets their logits."""
    model, freeze_plan = make("llama", "CausalLM", tie_word_embeddings=False)
    model.lm_head = SoftCap(model.lm_head, function)
    cuts = find_token_cuts(model, freeze_plan)
    assert cuts is not None
    assert cuts.gathered
    assert cuts.projection is None


def test_a_head_that_mixes_tokens_is_not_cut() -> None:
    model, freeze_plan = make("bert", "TokenClassification")
    model.classifier.register_forward_hook(lambda _, __, output: output + 1e-3 * output.mean(1, keepdim=True))
    assert find_token_cuts(model, freeze_plan) is None


def test_outputs_without_a_token_axis_are_not_cut() -> None:
    model, freeze_plan = make("bert", "SequenceClassification")
    assert find_token_cuts(model, freeze_plan) is None


def test_only_tasks_that_read_some_tokens_are_cut() -> None:
    model, freeze_plan = make("bert", "MaskedLM")
    assert find_forward_plan(model, freeze_plan)[0].token_cuts is None
    plan, reason = find_forward_plan(model, freeze_plan, reads_some_tokens=True)
    assert plan.token_cuts is not None
    assert reason == ""
    assert plan.complete().cached is None
    assert plan.complete().token_cuts == plan.token_cuts.above_blocks()


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_cached_activations_and_tokens_that_are_read(family: str) -> None:
    model, freeze_plan = make(family, "MaskedLM" if family == "bert" else "CausalLM")
    plan, _ = find_forward_plan(model, freeze_plan, reads_some_tokens=True)
    assert plan.cached is not None
    batch, targets = make_inputs(model)
    with torch.no_grad():
        activations = plan.cached.compute_activations(batch)
    expected = compute(model, ForwardPlan(), batch, targets, None)
    reading = read_targets(targets, IGNORED, score_projected)
    model.zero_grad(set_to_none=True)
    with plan.active(activations, reading):
        outputs: Any = heads.run_model(model, batch)
    outputs.total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same((outputs.total.detach(), gradients), expected)
