"""Counter-based dropout masks: as random as torch's, a function of the example only, with the right gradient, in every family.

Statistics are deterministic: seeds are fixed, so a bound of 5 standard deviations fails for a reason or never.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hf_finetune.forward.dropout import (
    GOLDEN,
    LONGEST_EAGER,
    MaskKey,
    StatelessDropout,
    apply_mask,
    choose_masks,
    draw_bits,
    make_salt,
    mix_bits,
)
from hf_finetune.model.structure import find_stack, make_probe_batch
from hf_finetune.system.errors import InputError


def effective(probability: float) -> float:
    """The probability, rounded to 16 bits."""
    return round(probability * 2**16) / 2**16


def active(
    examples: Sequence[int] | int, seed: int = 1, update: int = 1, shared: Sequence[int] = ()
) -> StatelessDropout:
    """The mode for these examples, or for the first N."""
    indices = torch.arange(examples) if isinstance(examples, int) else torch.tensor(examples)
    return StatelessDropout(seed, update, indices, shared=frozenset(MaskKey("", 0, draw) for draw in shared))


def list_shapes(mode: StatelessDropout) -> list[torch.Size]:
    """The shapes of the tensors that masks were drawn for."""
    return [shape for _, shape in mode.shapes]


def draw_masks(
    examples: Sequence[int] | int, shape: tuple[int, ...], probability: float = 0.5, calls: int = 1, **key: Any
) -> torch.Tensor:
    """What successive calls of dropout keep: bool [calls, B, *shape]."""
    with active(examples, **key) as mode:
        ones = torch.ones(len(mode.example_keys), *shape)
        return torch.stack([F.dropout(ones, probability) != 0 for _ in range(calls)])


# --- the masks are random -------------------------------------------------------------------------------------------


def check_independent(kept: torch.Tensor, probability: float) -> None:
    """Asserts that no two columns of bool [N samples, M] are correlated: all pairs together, and the worst pair."""
    keep = 1 - effective(probability)
    values = (kept.double() - keep) / (keep * (1 - keep)) ** 0.5
    scores = (values.T @ values / len(values) ** 0.5)[*torch.triu_indices(kept.shape[1], kept.shape[1], 1)]
    assert len(scores) > 1000
    assert scores.square().mean().item() == pytest.approx(1, abs=5 * (2.2 / len(scores)) ** 0.5)
    assert scores.abs().max() < 6.5  # of at most 140 000 pairs, with tails a little longer than normal


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5])
def test_rate_expectation_and_variance(probability: float, seed: int) -> None:
    p = effective(probability)
    for shape in ((64, 128, 128), (64, 4, 64, 64)):
        with active(64, seed=seed):
            dropped_out = F.dropout(torch.ones(shape, dtype=torch.float64), probability)
        deviation = (p * (1 - p) / dropped_out.numel()) ** 0.5
        assert dropped_out.unique().tolist() == [0, pytest.approx(1 / (1 - p), rel=1e-12)]
        assert (dropped_out == 0).double().mean().item() == pytest.approx(p, abs=4 * deviation)
        assert dropped_out.mean().item() == pytest.approx(1, abs=4 * deviation / (1 - p))
        assert dropped_out.var().item() == pytest.approx(p / (1 - p), rel=0.02)


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5])
def test_columns_are_independent(probability: float) -> None:
    """All pairs of 384 columns, with all four lanes of a hash and all neighbours among them, over 8192 tokens."""
    check_independent(draw_masks(64, (128, 384), probability, seed=5)[0].flatten(0, 1), probability)


@pytest.mark.slow
def test_triples_of_columns_are_independent() -> None:
    """The columns of a token are multiples of one key, so pairs might be independent and triples not."""
    dropped = ~draw_masks(128, (128, 96), 0.3, seed=6)[0].flatten(0, 1)
    generator = np.random.default_rng(0)
    chosen = [generator.choice(96, 3, replace=False) for _ in range(3000)] + [[i, i + 1, i + 2] for i in range(94)]
    for size in (2, 3):
        joint = torch.stack([dropped[:, list(columns[:size])].all(1).sum() for columns in chosen]).double()
        rate, count = effective(0.3) ** size, len(dropped)
        scores = (joint - count * rate) / (count * rate * (1 - rate)) ** 0.5
        assert scores.abs().max() < 5
        assert scores.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_tokens_heads_calls_examples_updates_and_seeds_are_independent(probability: float) -> None:
    """Each as [N samples, M], where M is all values of the kind times a few columns, so that a column's pattern cannot average
    out."""
    groups = [
        draw_masks(4096, (32, 8), probability)[0],  # [B, T, D]
        draw_masks(4096, (4, 4, 16), probability)[0],  # [B, h, T, T]
        draw_masks(64, (512, 8), probability)[0].transpose(0, 1),
        draw_masks(2048, (8,), probability, calls=32).transpose(0, 1),  # [B, D]
        torch.cat([draw_masks(2048, (8,), probability, update=update) for update in range(32)]).transpose(0, 1),
        torch.cat([draw_masks(2048, (8,), probability, seed=seed) for seed in range(32)]).transpose(0, 1),
    ]
    for kept in groups:
        check_independent(kept.flatten(1), probability)


@pytest.mark.parametrize(("seed", "update"), [(0, 0), (0, 1), (1, 0), (2, 7)])
def test_no_two_examples_and_calls_have_the_same_mask(seed: int, update: int) -> None:
    drawn = draw_masks(16, (4, 64), calls=16, seed=seed, update=update)
    assert len(drawn.flatten(0, 1).unique(dim=0)) == 16 * 16


@pytest.mark.parametrize("seed", [0, 1])
def test_no_two_calls_and_updates_have_the_same_shared_mask(seed: int) -> None:
    drawn = [draw_masks(1, (4, 64), calls=16, seed=seed, update=update, shared=range(16)) for update in range(16)]
    assert len(torch.cat(drawn).flatten(1).unique(dim=0)) == 16 * 16


@pytest.mark.parametrize("seed", range(3))
def test_lanes_are_uniform(seed: int) -> None:
    """Both bytes of each of the four lanes, over 2**18 hashes."""
    keys = mix_bits(torch.arange(seed << 40, (seed << 40) + 2048))
    numbers = draw_bits(keys, torch.Size([2048, 512]))
    assert numbers.dtype == torch.int16
    for lane in range(4):
        drawn = numbers[:, lane::4].flatten().int()
        for byte in (drawn & 255, drawn >> 8 & 255):
            counts = torch.bincount(byte, minlength=256).double()
            expected = len(drawn) / 256
            assert ((counts - expected).square() / expected).sum().item() == pytest.approx(255, abs=5 * 510**0.5)


def test_mix_is_splitmix64() -> None:
    """The published first numbers of its seed 1234567 (rosettacode.org, Pseudo-random numbers/Splitmix64)."""
    drawn = mix_bits(1234567 + torch.arange(1, 6) * GOLDEN).tolist()
    assert [number % 2**64 for number in drawn] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


# --- and belong to the example only ---------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [0, 3])
@pytest.mark.parametrize("shape", [(7, 30), (30,), (1, 1), (1,), (2, 7, 7), (1, 1, 5), (3, 2, 5, 6)])
def test_an_example_has_one_mask_in_any_batch_with_any_padding(shape: tuple[int, ...], call: int) -> None:
    examples = [7, 0, 2**40, 3]
    whole = draw_masks(examples, shape, calls=call + 1)[call]
    assert len(whole.flatten(1).unique(dim=0)) > 1 or whole[0].numel() == 1
    for picked in ([2], [3, 1], [1, 0, 3, 2]):
        torch.testing.assert_close(
            draw_masks([examples[i] for i in picked], shape, calls=call + 1)[call], whole[picked]
        )
    for size, extra in itertools.product(range(len(shape)), (1, 2, 7)):
        longer = (*shape[:size], shape[size] + extra, *shape[size + 1 :])
        padded = draw_masks(examples, longer, calls=call + 1)[call]
        torch.testing.assert_close(padded.narrow(size + 1, 0, shape[size]), whole)
    padded = draw_masks(examples, tuple(size + 5 for size in shape), calls=call + 1)[call]
    torch.testing.assert_close(padded[tuple(slice(size) for size in whole.shape)], whole)


@pytest.mark.parametrize("shape", [(1, 16, 32), (16, 32)])
def test_a_tensor_that_belongs_to_no_example_has_one_mask_in_an_update(shape: tuple[int, ...]) -> None:
    """DeBERTa's relative positions; also if there happen to be as many examples as positions."""

    def draw(examples: Sequence[int], update: int = 1) -> torch.Tensor:
        with active(examples, update=update, shared=[1]):
            F.dropout(torch.ones(len(examples), 8), 0.5)
            drawn = F.dropout(torch.ones(shape), 0.5)
        assert drawn.shape == shape
        return drawn.reshape(16, 32)

    assert len(draw([0]).unique(dim=0)) == 16
    assert torch.equal(draw([0]), draw([5, 6, 7]))
    assert torch.equal(draw([0]), draw(range(16)))
    assert not torch.equal(draw([0]), draw([0], update=2))


# --- as dropout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_and_gradients_are_those_of_a_product_with_the_mask(dtype: torch.dtype) -> None:
    """In every precision with the mask of fp32, for contiguous tensors and others."""
    torch.manual_seed(0)
    kept = draw_masks(4, (6, 11), 0.3)[0].to(dtype) * (1 / (1 - effective(0.3)))
    base, weights = torch.randn(6, 11, 4).to(dtype), torch.randn(11, 4, 6).to(dtype)
    views = [
        base.permute(2, 0, 1).contiguous(),
        base.permute(2, 0, 1),
        torch.randn(4, 6, 22).to(dtype)[..., ::2],
        base[0, :, 0].expand(4, 6, 11),
    ]
    losses = [lambda y: y.sum(), lambda y: (y.permute(2, 0, 1) * weights).sum(), lambda y: y[..., ::3].sum()]
    for values in views:
        x, reference = values.detach().requires_grad_(), values.clone().requires_grad_()
        with active(4):
            ours = F.dropout(x, 0.3)
        theirs = reference * kept
        assert ours.dtype == dtype
        assert torch.equal(ours == 0, theirs == 0)
        torch.testing.assert_close(ours, theirs)
        for loss in losses:
            ours_gradient = torch.autograd.grad(loss(ours), x, retain_graph=True)
            theirs_gradient = torch.autograd.grad(loss(theirs), reference, retain_graph=True)
            torch.testing.assert_close(ours_gradient, theirs_gradient)


def test_dropped_values_are_zero_even_if_they_were_infinite_or_nan() -> None:
    drawn = torch.tensor([[-5, 5, -5, 5]], dtype=torch.int32)
    values = torch.tensor([[np.inf, 2.0, np.nan, -3.0]], dtype=torch.float32)
    assert apply_mask(values, drawn, 0, 2.0).tolist() == [[0, 4, 0, -6]]
    assert apply_mask(values, drawn, 5, 2.0).tolist() == [[0, 0, 0, 0]]
    assert apply_mask(values[:, 1::2], drawn[:, 1::2].contiguous(), 4, 2.0).tolist() == [[4, -6]]


def test_every_call_is_caught_and_only_inside_the_mode() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(3, 4, 5), nn.Dropout(0.5)
    state = torch.get_rng_state()
    with active(3) as mode:
        ours = [layer(x), F.dropout(x, 0.5), F.dropout(x, p=0.5), F.dropout(x), F.dropout(input=x, training=True)]
    assert list_shapes(mode) == [(3, 4, 5)] * 5
    for call, kept in enumerate(draw_masks(3, (4, 5), calls=5)):
        torch.testing.assert_close(ours[call], x * kept * 2)
    assert torch.equal(torch.get_rng_state(), state)
    outside = layer(x)
    torch.set_rng_state(state)
    assert torch.equal(torch.dropout(x, 0.5, True), outside)
    assert len(mode.shapes) == 5


def test_nothing_is_drawn_if_nothing_drops_out() -> None:
    x, layer = torch.randn(3, 4), nn.Dropout(0.5)
    with active(3) as mode:
        assert F.dropout(x, 0.0) is x
        assert F.dropout(x, 0.5, training=False) is x
        assert F.dropout(x, 0.5, False) is x
        assert layer.eval()(x) is x
        assert nn.Dropout(0.0)(x) is x
    assert list_shapes(mode) == []


# --- in attention ---------------------------------------------------------------------------------------------------

ALLOWED = torch.arange(7) < torch.tensor([7, 4, 1])[:, None, None, None]  # [B, 1, 1, Tk]: padding
ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "bool": {"attn_mask": ALLOWED},
    "additive": {"attn_mask": torch.where(ALLOWED, 0.3, torch.finfo(torch.float32).min)},
    "causal": {"is_causal": True},
    "grouped": {"enable_gqa": True, "attn_mask": ALLOWED},
    "scale": {"scale": 0.9, "attn_mask": ALLOWED},
    "grouped causal scale": {"enable_gqa": True, "is_causal": True, "scale": 0.2},
}


def make_heads(name: str, dtype: torch.dtype = torch.float32, keys: int = 7) -> list[torch.Tensor]:
    """Query [3, 4, 5, 8], key and value [3, 4 or 2 heads, Tk, 8]."""
    generator = torch.Generator().manual_seed(0)
    few = 2 if "grouped" in name else 4
    shapes = ((3, 4, 5, 8), (3, few, keys, 8), (3, few, keys, 8))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, probability: float, name: str) -> torch.Tensor:
    """Attention from its definition in the functional's documentation."""
    options = ATTENTION[name]
    if "grouped" in name:
        k, v = (torch.stack([each[:, 0], each[:, 0], each[:, 1], each[:, 1]], 1) for each in (k, v))
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * options.get("scale", 8**-0.5)
    if options.get("is_causal"):
        scores = scores.masked_fill(torch.arange(5)[:, None] < torch.arange(7), -1e30)
    if name == "additive":
        scores = scores + options["attn_mask"]
    elif "attn_mask" in options:
        scores = scores.masked_fill(~ALLOWED, -1e30)
    return torch.einsum("bhqk,bhkd->bhqd", F.dropout(scores.softmax(-1), probability), v)


def gradients(output: torch.Tensor, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The gradients of a sum that weighs every number of the output differently."""
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return torch.autograd.grad((output.float() * weights).sum(), inputs, retain_graph=True)


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.3])
@pytest.mark.parametrize("name", list(ATTENTION))
def test_attention_is_torchs_apart_from_the_mask_of_its_weights(name: str, probability: float) -> None:
    """A probability of 1e-9 rounds to 0, and takes the matrix products."""
    inputs = make_heads(name)
    with active(3) as mode:
        ours = F.scaled_dot_product_attention(*inputs, dropout_p=probability, **ATTENTION[name])
    assert list_shapes(mode) == ([(3, 4, 5, 7)] if probability else [])
    theirs = undropped = F.scaled_dot_product_attention(*inputs, **ATTENTION[name])
    if probability == 0.3:
        with active(3):
            theirs = by_hand(*inputs, probability, name)
        assert not torch.allclose(ours, undropped, atol=0.05)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients(ours, inputs), gradients(theirs, inputs), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("keys", [7, LONGEST_EAGER, LONGEST_EAGER + 1])
def test_attention_in_bf16_is_close_to_fp32(keys: int, probability: float) -> None:
    half = make_heads("bool", torch.bfloat16, keys)
    whole = [each.detach().float().requires_grad_() for each in half]
    allowed = (torch.arange(keys) < torch.tensor([keys, 4, 1])[:, None])[:, None, None]
    results = []
    for inputs in (half, whole):
        with active(3):
            results.append(F.scaled_dot_product_attention(*inputs, attn_mask=allowed, dropout_p=probability))
    assert results[0].dtype == torch.bfloat16
    torch.testing.assert_close(results[0].float(), results[1], atol=0.03, rtol=0.03)
    for ours, theirs in zip(gradients(results[0], half), gradients(results[1], whole), strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("blocked", "probability"),
    [(False, 0.0), (False, 0.3), ("lowest", 0.0), ("lowest", 0.3), (-torch.inf, 0.3)],
)
def test_a_query_that_may_see_no_key_stays_finite(blocked: Any, probability: float, dtype: torch.dtype) -> None:
    """Queries at padding see no key in some families."""
    inputs = make_heads("plain", dtype)
    attn_mask = torch.ones(3, 1, 5, 7, dtype=torch.bool)
    attn_mask[1], attn_mask[2, :, 3:] = False, False
    if blocked is not False:
        lowest = torch.finfo(dtype).min if blocked == "lowest" else blocked
        attn_mask = torch.zeros(attn_mask.shape, dtype=dtype).masked_fill(~attn_mask, lowest)
    with active(3):
        output = F.scaled_dot_product_attention(*inputs, attn_mask=attn_mask, dropout_p=probability)
    assert all(each.isfinite().all() for each in (output, *gradients(output, inputs)))


def test_attention_in_bf16_takes_a_mask_in_fp32() -> None:
    inputs = make_heads("additive", torch.bfloat16)
    assert F.scaled_dot_product_attention(*inputs, **ATTENTION["additive"]).dtype == torch.bfloat16
    with active(3):
        assert F.scaled_dot_product_attention(*inputs, **ATTENTION["additive"]).dtype == torch.bfloat16


# --- in every family ------------------------------------------------------------------------------------------------

IDS = (
    (7, 9, 3),
    (5, 6, 7, 8, 9, 3),
    (11, 12, 13, 3),
    (20, 6, 25, 30, 8, 9, 3),
)  # one end token each, as BART and T5 require
INDICES = (11, 2, 40, 7)  # of these examples


def make_model(family: str) -> Any:
    """A model in train mode, with every dropout on. DeBERTa drops out as many positions as there are examples, [4, D]; its
    weights are large, so that it shows."""
    names = [name for name in vars(tiny.make_config(family)) if "drop" in name]
    changes = {"position_buckets": 2, "initializer_range": 0.2} if family == "deberta-v2" else {}
    return tiny.make_model(family, **{name: 0.0 if "layerdrop" in name else 0.3 for name in names}, **changes).train()


def run(model: Any, parts: Sequence[Sequence[int]], extra: int = 0, update: int = 3) -> dict[str, torch.Tensor]:
    """Returns logits in the order of the examples, and the gradients of a sum over them, from these micro-batches."""
    model.zero_grad()
    logits = torch.zeros(len(IDS), 3)
    factors = torch.linspace(-1, 1, logits.numel()).view(logits.shape)
    masks = choose_masks("stateless", 1, model, ())
    for part in parts:
        longest = max(len(IDS[i]) for i in part) + extra
        pad = model.config.pad_token_id
        ids = torch.tensor([[*IDS[i], *[pad] * (longest - len(IDS[i]))] for i in part])
        attention_mask = (torch.arange(longest) < torch.tensor([len(IDS[i]) for i in part])[:, None]).long()
        with masks.active(update, np.array([INDICES[i] for i in part])):
            output = model(input_ids=ids, attention_mask=attention_mask).logits
        (output * factors[list(part)]).sum().backward()
        logits[list(part)] = output.detach()
    named = model.named_parameters()
    return {"logits": logits, **{name: each.grad.clone() for name, each in named if each.grad is not None}}


@pytest.mark.slow
@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_numbers_do_not_depend_on_grouping_order_or_padding(family: str) -> None:
    model = make_model(family)
    whole = run(model, [[0, 1, 2, 3]])
    assert len(whole) > 10
    for parts, extra in (([[0], [1, 2, 3]], 0), ([[3, 0], [2, 1]], 0), ([[0, 1, 2, 3]], 5)):
        torch.testing.assert_close(run(model, parts, extra), whole, atol=1e-5, rtol=1e-5)
    another = run(model, [[0, 1, 2, 3]], update=4)["logits"]
    without = run(model.eval(), [[0, 1, 2, 3]])["logits"]
    for different in (another, without):
        assert ((different - whole["logits"]).abs().amax(1) > 1e-4).all()


def test_one_number_an_example_has_a_mask_too() -> None:
    with active(3):
        dropped = F.dropout(torch.ones(3), 0.5)
    assert dropped.shape == (3,)


# --- masks belong to modules ----------------------------------------------------------------------------------------


def list_keys(model: Any) -> list[MaskKey]:
    """Returns the keys of the masks of a forward pass in train mode."""
    batch = make_probe_batch(model, 5)
    with choose_masks("stateless", 1, model, ()).active(3, np.arange(2)) as mode:
        model(**batch)
    return [key for key, _ in mode.shapes]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_mask_belongs_to_the_innermost_module_that_runs(attention: str) -> None:
    model = make_model("bert")
    model.set_attn_implementation(attention)
    blocks = [
        MaskKey(f"bert.encoder.layer.{number}.{name}", 0, 0)
        for number in (0, 1)
        for name in ("attention.self", "attention.output.dropout", "output.dropout")
    ]
    assert list_keys(model) == [MaskKey("bert.embeddings.dropout", 0, 0), *blocks, MaskKey("dropout", 0, 0)]


@pytest.mark.skipif(tiny.BART_DRAWS, reason="this version of transformers draws for layerdrop")
def test_several_masks_of_a_call_and_several_calls_of_a_module_have_their_own_keys() -> None:
    keys = list_keys(make_model("bart"))
    assert [key.draw for key in keys if key.module == "model.encoder.layers.1"] == [0, 1, 2]
    keys = list_keys(make_model("albert"))
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention"
    assert [key.call for key in keys if key.module == layer] == [0, 1]
    for family in tiny.FAMILIES:
        keys = list_keys(make_model(family))
        assert len(keys) == len(set(keys))


def test_a_block_that_is_left_out_changes_no_other_mask() -> None:
    model = make_model("bert")
    keys = list_keys(model)
    model.bert.encoder.layer[0].forward = lambda hidden_states, *_, **__: hidden_states
    assert list_keys(model) == [key for key in keys if "layer.0." not in key.module]


def test_the_hash_of_a_key_is_the_same_on_every_machine() -> None:
    keys = [MaskKey("", 0, 0), MaskKey("bert.encoder.layer.1.output.dropout", 0, 0), MaskKey("model.encoder", 1, 2)]
    assert [make_salt(key) for key in keys] == [
        -897758671793864457, -599300199551676514, 7582774901142104040
    ]  # fmt: skip


def test_no_hook_is_left_even_after_an_error() -> None:
    model = make_model("bert")
    masks = choose_masks("stateless", 1, model, ())
    with pytest.raises(RuntimeError, match="stop"), masks.active(3, np.arange(2)):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(
    "family", ["bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert", "gpt2", "t5"]
)
def test_recomputation_draws_the_same_masks(family: str, use_reentrant: bool) -> None:
    """Gradient checkpointing: losses are those without it, and gradients are up to the order of sums."""
    model = make_model(family)
    masks = choose_masks("stateless", 1, model, ())
    batch = make_probe_batch(model, 5)
    calls: list[nn.Module] = []
    first_layer = next(module for module in find_stack(model)[1][0].modules() if not list(module.children()))
    first_layer.register_forward_pre_hook(lambda module, _: calls.append(module))

    def compute() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        with masks.active(3, np.array([5, 9])):
            loss = model(**batch).logits.sin().sum()
            loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    loss, gradients = compute()
    assert len(calls) == 1
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    recomputed_loss, recomputed_gradients = compute()
    assert len(calls) == 3, "the block must be recomputed"
    assert torch.equal(recomputed_loss, loss)
    assert recomputed_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(recomputed_gradients[name], gradient, rtol=0, atol=5e-6 * largest + 1e-9, msg=name)


def test_a_mask_outside_the_model_is_an_error() -> None:
    masks = choose_masks("stateless", 1, make_model("bert"), ())
    with masks.active(3, np.arange(2)), pytest.raises(RuntimeError, match="outside the model"):
        F.dropout(torch.ones(2, 3), 0.5)


def test_recomputation_of_a_module_that_runs_several_times_is_refused() -> None:
    model = make_model("albert")
    masks = choose_masks("stateless", 1, model, ())
    layer = model.albert.encoder.albert_layer_groups[0]
    own_forward = layer.forward
    layer.forward = lambda *arguments, **keywords: checkpoint(own_forward, *arguments, use_reentrant=False, **keywords)
    message = r"train.dropout_masks \(stateless\): must be torch .*albert_layers.0.* runs 2 times in a forward pass$"
    with masks.active(3, np.arange(2)):
        loss = model(**make_probe_batch(model, 5)).logits.sum()
        with pytest.raises(InputError, match=message):
            loss.backward()


@pytest.mark.skipif(tiny.BART_DRAWS, reason="this version of transformers draws for layerdrop")
def test_recomputation_of_a_block_that_calls_dropout_itself_is_refused() -> None:
    model = make_model("bart")
    masks = choose_masks("stateless", 1, model, ())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    message = r"must be torch .*model.encoder.layers.0 calls functional.dropout itself$"
    with masks.active(3, np.arange(2)), pytest.raises(InputError, match=message):
        model(**make_probe_batch(model, 5))


class Escaping(torch.nn.Module):
    """A model whose attention draws its masks inside torch, where no mode sees the call."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embedding = torch.nn.Embedding(50, 8)
        self.attention = torch.nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        """Returns the attention's output."""
        states = self.embedding(input_ids)
        return (self.attention(states, states, states)[0],)


def test_a_model_that_draws_in_another_way_keeps_torchs_masks() -> None:
    model = Escaping(tiny.make_config("bert"))
    masks = choose_masks("auto", 0, model, [])
    assert not masks.is_stateless
    assert "another way" in masks.reason
    with pytest.raises(InputError, match=r"train.dropout_masks \(stateless\): this backbone draws random numbers"):
        choose_masks("stateless", 0, model, [])
