"""How a model is called."""

import gc
import weakref
from typing import Any

import pytest
import torch
import transformers
from support import tiny

from hf_finetune.model import heads

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 10, 3]])
DECODERS = [
    "llama-AutoModelForSequenceClassification",
    "gpt2-AutoModelForQuestionAnswering",
    "t5-AutoModelForSeq2SeqLM",
]


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_forward_collects_no_keys_and_values(decoder: str) -> None:
    """GPT-2's forward for answers has no argument use_cache, and T5's decoder has a config of its own."""
    family, auto_class = decoder.split("-")
    torch.manual_seed(0)
    model = getattr(transformers, auto_class).from_config(tiny.make_config(family)).eval()
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    inputs |= {"decoder_input_ids": IDS} if family == "t5" else {}
    outputs: list[Any] = []

    def call(**arguments: Any) -> Any:
        outputs.append(model(**arguments))
        return outputs[-1]

    updates: list[Any] = []
    cache_class, original = transformers.DynamicCache, transformers.DynamicCache.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_class, "update", lambda *args, **kwargs: updates.append(1) or original(*args, **kwargs))
        expected = call(**inputs)
        assert updates
        updates.clear()
        actual = heads.run_model(model, inputs, call)
        assert not updates
    assert getattr(outputs[1], "past_key_values", None) is None
    torch.testing.assert_close(actual, heads.run_model(model, inputs, lambda **_: expected), rtol=1e-5, atol=2e-6)
    assert all(part.config.use_cache for part in (model, getattr(model, "decoder", model)))


def test_an_error_in_a_forward_leaves_the_config_as_it_was() -> None:
    model = tiny.make_model("llama")

    def fail(**_: Any) -> Any:
        assert not model.config.use_cache
        raise ValueError

    with pytest.raises(ValueError):
        heads.run_model(model, {}, fail)
    assert model.config.use_cache


def test_the_configs_of_a_model_are_searched_once_and_the_model_can_be_freed() -> None:
    model = tiny.make_model("llama")
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    heads.run_model(model, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "modules", None)
        with heads.without_key_value_cache(model):
            assert not model.config.use_cache
    assert model.config.use_cache
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
