"""Generation settings: what a backbone's own contribute, and which models cannot generate."""

from typing import Any

import pytest
import torch
import transformers
from support import tiny

from hf_finetune.system.errors import InputError
from hf_finetune.tasks.generation import Generation

TOKENIZER = tiny.make_tokenizer(ends_only=True)


def make_model(family: str) -> Any:
    """Returns a small random encoder-decoder."""
    torch.manual_seed(0)
    return transformers.AutoModelForSeq2SeqLM.from_config(tiny.make_config(family))


def configure(model: Any, tokenizer: Any = TOKENIZER, **settings: Any) -> transformers.GenerationConfig:
    """Configures a model, by default with greedy search and 9 tokens; returns its generation settings."""
    Generation(**{"max_length": 9, "num_beams": 1, "length_penalty": 1.0, **settings}).configure(model, tokenizer)
    return model.generation_config


def test_of_the_backbones_settings_those_of_its_vocabulary_are_kept() -> None:
    model = make_model("bart")
    model.generation_config.update(
        min_length=56,
        max_length=142,
        do_sample=True,
        temperature=0.3,
        no_repeat_ngram_size=3,
        early_stopping=True,
        forced_bos_token_id=2,
        num_beams=6,
    )
    new = configure(model, num_beams=3, length_penalty=2.0)
    assert (new.num_beams, new.length_penalty, new.max_new_tokens, new.early_stopping) == (3, 2.0, 9, True)
    assert (new.no_repeat_ngram_size, new.forced_bos_token_id, new.decoder_start_token_id) == (3, 2, 3)
    assert (new.eos_token_id, new.pad_token_id) == (3, 0)
    assert not new.do_sample
    assert (new.min_length, new.max_length, new.temperature) == (None, None, None)
    new = configure(model)
    assert (new.num_beams, new.early_stopping) == (None, None)


def test_a_model_must_have_a_token_that_texts_start_from() -> None:
    model = make_model("t5")
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(InputError, match=r"its config has no decoder_start_token_id, the token that a generated text"):
        configure(model)
    model.generation_config.decoder_start_token_id = 0
    configure(model)
    assert model.config.decoder_start_token_id == 0  # from which the decoder inputs are made


def test_a_tokenizer_must_end_targets_with_the_models_end_token() -> None:
    endless = tiny.make_tokenizer(ends_only=True)
    endless.backend_tokenizer.post_processor = tiny.processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(InputError, match=r"its tokenizer does not end a target with the model's end token"):
        configure(make_model("t5"), endless)


def test_a_decoder_must_have_enough_positions() -> None:
    with pytest.raises(InputError, match=r"task.max_target_length \(128\): must be at most 66, the positions of this"):
        configure(make_model("bart"), max_length=128)
    assert configure(make_model("t5"), max_length=128).max_new_tokens == 128  # relative positions have no limit


def test_the_search_is_described() -> None:
    assert Generation(max_length=9, num_beams=1, length_penalty=1.0).describe() == "greedy"
    assert Generation(max_length=9, num_beams=4, length_penalty=0.5).describe() == "4 beams, length penalty 0.5"
