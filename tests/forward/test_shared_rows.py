"""Examples in shared rows: logits and gradients are those of each alone, a neighbour changes nothing, and models that cannot keep
the examples of a row apart are refused."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny
from support.forwards import Gradients, assert_same
from transformers.modeling_flash_attention_utils import _is_packed_sequence, prepare_fa_kwargs_from_position_ids

from hf_finetune.config.sections import FreezeConfig
from hf_finetune.data.features import Batch, Features, Padding, collate
from hf_finetune.data.shared_rows import RowSharing, share_rows
from hf_finetune.forward.cached import find_cached_forward
from hf_finetune.forward.dropout import DropoutMasks, choose_masks
from hf_finetune.forward.plan import FULL_FORWARD, ForwardPlan
from hf_finetune.forward.shared_rows import find_row_sharing
from hf_finetune.model import freezing, heads
from hf_finetune.system.errors import InputError

LENGTHS = (12, 7, 5, 3, 1, 9)
ROWS, ONE_ROW = RowSharing(in_one_row=False), RowSharing(in_one_row=True)
SMALL: dict[str, Any] = {"num_hidden_layers": 2, **tiny.LLAMA_LIKE}
# name -> (config class, arguments). The window of the sliding attention is shorter than most examples
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SMALL),
    "qwen2": ("Qwen2Config", SMALL),
    "gpt2": ("GPT2Config", {**tiny.SIZES, "n_embd": 32, "n_head": 2, "n_positions": 66, "n_layer": 2}),
    "mistral": ("MistralConfig", {**SMALL, "sliding_window": 4}),
    "gemma3": ("Gemma3TextConfig", {**SMALL, "sliding_window": 4, "head_dim": 16,
                                    "layer_types": ["sliding_attention", "full_attention"]}),
    "bloom": ("BloomConfig", {**tiny.SIZES, "hidden_size": 32, "n_head": 2, "n_layer": 2}),
    "mamba": ("MambaConfig", {**tiny.SIZES, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}  # fmt: skip


def make(name: str, attention: str = "sdpa", frozen: int | None = None, **changes: Any) -> Any:
    """Returns a causal model with large weights: with tiny ones, wrong outputs look right. frozen: That many blocks, and the
    embeddings."""
    torch.manual_seed(0)
    kind, arguments = MODELS[name]
    config = getattr(transformers, kind)(**{**arguments, **changes}, tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.ndim >= 2 else 1.0)
    return model


def make_features(changed: int | None = None) -> Features:
    """Features of LENGTHS, with random tokens. changed: The number of one whose tokens are all others."""
    generator = np.random.default_rng(0)
    parts = [generator.integers(4, len(tiny.VOCABULARY) - 1, length) for length in LENGTHS]
    if changed is not None:
        parts[changed] = parts[changed] + 1
    offsets = np.cumsum([0, *LENGTHS])
    ids = np.concatenate(parts).astype(np.int32)
    return Features(inputs={"input_ids": ids}, offsets=offsets, labels=None, num_truncated=0)


def make_rows(sharing: RowSharing, changed: int | None = None) -> Batch:
    """All examples in shared rows."""
    row_length = sharing.find_row_length(np.array(LENGTHS))
    return share_rows(collate(make_features(changed), np.arange(len(LENGTHS)), Padding(0)), row_length)


def pick(logits: torch.Tensor, batch: Batch, example: int) -> torch.Tensor:
    """The logits of an example in shared rows."""
    assert batch.rows is not None
    return logits[batch.rows.sequences == example]


def compute_alone(model: Any, masks: DropoutMasks | None = None) -> tuple[list[torch.Tensor], Gradients]:
    """Logits of each example alone, and the sums of their gradients."""
    model.zero_grad(set_to_none=True)
    outputs = []
    for number in range(len(LENGTHS)):
        batch = collate(make_features(), np.array([number]), Padding(0))
        with (masks or no_masks()).active(5, batch.sequence_indices):
            logits = heads.run_model(model, batch.inputs)[0]
        logits.sin().sum().backward()
        outputs.append(logits.detach())
    return outputs, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compute_shared(
    model: Any,
    sharing: RowSharing,
    masks: DropoutMasks | None = None,
    activations: torch.Tensor | None = None,
    plan: ForwardPlan = FULL_FORWARD,
) -> tuple[list[torch.Tensor], Gradients]:
    """The same in shared rows."""
    model.zero_grad(set_to_none=True)
    batch = make_rows(sharing)
    with plan.active(activations), (masks or no_masks()).active(5, batch.sequence_indices, "cpu", batch.rows):
        logits = heads.run_model(model, batch.inputs)
    picked = [pick(logits, batch, number) for number in range(len(LENGTHS))]
    sum(part.sin().sum() for part in picked).backward()  # type: ignore[union-attr]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return [part.detach() for part in picked], gradients


def no_masks() -> DropoutMasks:
    """Masks of torch."""
    return DropoutMasks(seed=0, is_stateless=False)


def assert_all_same(ours: tuple[list[torch.Tensor], Gradients], theirs: tuple[list[torch.Tensor], Gradients]) -> None:
    """The same logits and gradients."""
    assert_same((torch.cat(ours[0]), ours[1]), (torch.cat(theirs[0]), theirs[1]), 2e-6)


def choose(model: Any, setting: str = "on", why_not: str = "", **parts: Any) -> tuple[RowSharing | None, str]:
    """What a run with this setting does."""
    eval_modules = freezing.find_eval_modules(model)
    masks = choose_masks("auto", 0, model, eval_modules)
    return find_row_sharing(setting, model, masks, parts.get("plan", FULL_FORWARD), eval_modules, why_not)


@pytest.mark.parametrize("sharing", [ROWS, ONE_ROW], ids=["rows", "one row"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mistral", "gemma3"])
def test_an_example_in_a_shared_row_is_the_example_alone(name: str, attention: str, sharing: RowSharing) -> None:
    model = make(name, attention)
    assert_all_same(compute_shared(model, sharing), compute_alone(model))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mistral", "gemma3"])
def test_a_neighbour_changes_not_a_bit(name: str, attention: str) -> None:
    model = make(name, attention)
    with torch.no_grad():
        batch = make_rows(ONE_ROW)
        before = heads.run_model(model, batch.inputs)
        for changed in range(len(LENGTHS)):
            after = heads.run_model(model, make_rows(ONE_ROW, changed).inputs)
            for example in range(len(LENGTHS)):
                is_same = torch.equal(pick(before, batch, example), pick(after, batch, example))
                assert is_same == (example != changed)


def test_the_window_of_sliding_attention_stays() -> None:
    """A token further back than the window changes nothing in one layer; the one at its end does."""
    model = make("mistral", num_hidden_layers=1)
    batch = make_rows(ROWS)
    assert batch.rows is not None
    row, start = (batch.rows.sequences == 2).nonzero()[0].tolist()  # 5 tokens, after 7 in their row
    assert start == 7
    with torch.no_grad():
        before = heads.run_model(model, batch.inputs)[row, start + 4]
        for place, changes in ((0, False), (1, True)):
            inputs = {name: tensor.clone() for name, tensor in batch.inputs.items()}
            inputs["input_ids"][row, start + place] = 4
            assert torch.equal(before, heads.run_model(model, inputs)[row, start + 4]) == (not changes)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [("gpt2", {}), ("llama", {"attention_dropout": 0.3}), ("mistral", {"attention_dropout": 0.3})],
)
def test_dropout_is_that_of_the_example_alone(name: str, changes: dict[str, Any], attention: str) -> None:
    """GPT-2 drops out embeddings, attention weights and hidden states."""
    model = make(name, attention, **changes)
    masks = choose_masks("stateless", 3, model, [])
    model.train()
    expected = compute_alone(model, masks)
    for sharing in (ROWS, ONE_ROW):
        assert_all_same(compute_shared(model, sharing, masks), expected)
    model.eval()
    assert not torch.allclose(compute_alone(model)[0][0], expected[0][0], atol=1e-2)
    assert choose(model)[0] == ROWS


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_cached_activations_fill_the_rows(name: str) -> None:
    model = make(name)
    plan = freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=1))
    forward_plan = ForwardPlan(cached=find_cached_forward(model, plan))
    assert forward_plan.cached is not None
    expected = compute_alone(model)
    for sharing in (ROWS, ONE_ROW):
        batch = make_rows(sharing)
        with torch.no_grad():
            activations = forward_plan.cached.compute_activations(
                collate(make_features(), np.arange(6), Padding(0)).inputs
            )
        assert batch.rows is not None
        placed = activations[batch.rows.sequences.clamp(min=0), batch.rows.positions.clamp(max=max(LENGTHS) - 1)]
        assert_all_same(compute_shared(model, sharing, activations=placed, plan=forward_plan), expected)
    assert choose(model, plan=forward_plan)[0] == ROWS


@pytest.mark.parametrize("name", ["bloom", "mamba"])
def test_models_that_mix_the_examples_of_a_row_are_refused(name: str) -> None:
    model = make(name, "eager")
    with pytest.raises(InputError, match=r"train.shared_rows \(on\): its layers mix the examples of a row; choose off"):
        choose(model)
    assert choose(model, "off") == choose(model, "auto") == (None, "")


def test_a_model_whose_positions_are_not_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its examples lie apart, at the positions of the row."""
    model = make("llama")
    own_rotary = model.model.rotary_emb.forward
    monkeypatch.setattr(
        model.model.rotary_emb,
        "forward",
        lambda states, position_ids: own_rotary(states, torch.arange(states.shape[1])[None] ** 2),
    )
    with pytest.raises(InputError, match="its logits are other ones than those of an example alone"):
        choose(model)


def test_a_model_that_takes_no_positions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return type(model).forward(model, input_ids=input_ids, attention_mask=attention_mask)

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(InputError, match=r"this backbone cannot run with positions that start again: .*position_ids"):
        choose(model)


def test_masks_of_other_tensors_are_refused() -> None:
    model = make("llama", attention_dropout=0.1)
    model.model.norm.register_forward_hook(
        lambda _, __, output: torch.nn.functional.dropout(output.flatten(1), 0.1, model.training).view_as(output)
    )
    with pytest.raises(InputError, match="is neither hidden states nor attention weights"):
        choose(model)


def test_tasks_without_tokens_to_predict_are_refused() -> None:
    model = make("llama")
    with pytest.raises(InputError, match=r"train.shared_rows \(on\): only causal models"):
        choose(model, why_not="only causal models can")
    assert choose(model, "auto", why_not="only causal models can") == (None, "")


# --- kernels of variable lengths ------------------------------------------------------------------------------------


def attend_by_lengths(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **keywords: Any
) -> tuple[torch.Tensor, None]:
    """What transformers gives flash_attn_varlen_func, computed example by example: it cannot run here.

    As there, only a batch of one row counts as rows of several examples, and sliding windows are ignored.
    """
    assert attention_mask is None
    position_ids = keywords["position_ids"]
    starts = [0, query.shape[2]]
    if _is_packed_sequence(position_ids, query.shape[0]):
        (lengths, _), _ = prepare_fa_kwargs_from_position_ids(position_ids)
        starts = lengths.tolist()
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(tensor[:, :, begin:end] for tensor in (query, key, value)), is_causal=True, scale=keywords["scaling"]
        )
        for begin, end in pairwise(starts)
    ]
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


@pytest.fixture
def flash() -> str:
    """The name of an attention that gets what flash_attention_2 gets. transformers loads a kernel for names with "flash"."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register("flex_by_lengths", attend_by_lengths)
    AttentionMaskInterface.register("flex_by_lengths", flash_attention_mask)
    return "flex_by_lengths"


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_kernels_of_variable_lengths_get_one_row_and_find_its_examples(name: str, flash: str) -> None:
    batch = make_rows(ONE_ROW)
    assert batch.inputs["input_ids"].shape == (1, sum(LENGTHS))  # no padding
    (lengths, _), (longest, _) = prepare_fa_kwargs_from_position_ids(batch.inputs["position_ids"])
    assert lengths.diff().tolist() == sorted(LENGTHS, reverse=True)
    assert longest == max(LENGTHS)
    model = make(name, flash, **({"attn_pdrop": 0.0} if name == "gpt2" else {}))
    assert_all_same(compute_shared(model, ONE_ROW), compute_alone(model))
    assert choose(model, "auto") == choose(model, "on") == (ONE_ROW, "")
    assert choose(model, "off") == (None, "")


def test_auto_says_why_a_model_does_not_share_rows(flash: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama", flash)
    monkeypatch.setattr(model.model.layers[1], "forward", lambda states, **_: states.cumsum(1))
    assert choose(model, "auto") == (None, "not shared: its layers mix the examples of a row")
