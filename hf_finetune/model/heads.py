"""How a model is called and what it returns, for every kind of head.

S sequences, T tokens, H hidden.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import nn


class Head(NamedTuple):
    """One kind of head.

    Args:
        suffix: End of the names of the model classes that have it, as they stand in a config's `architectures`.
        auto_class: Name of the transformers class that loads it.
        peft_task_type: peft's name for its task (peft.TaskType), if it has one.
    """

    suffix: str
    auto_class: str
    peft_task_type: str | None = None


# The first is the default of find_auto_class()
HEADS = (
    Head("ForSequenceClassification", "AutoModelForSequenceClassification", "SEQ_CLS"),
    Head("ForTokenClassification", "AutoModelForTokenClassification", "TOKEN_CLS"),
    Head("ForQuestionAnswering", "AutoModelForQuestionAnswering", "QUESTION_ANS"),
    Head("ForMultipleChoice", "AutoModelForMultipleChoice"),
    Head("ForMaskedLM", "AutoModelForMaskedLM"),
    Head("ForCausalLM", "AutoModelForCausalLM", "CAUSAL_LM"),
    Head("LMHeadModel", "AutoModelForCausalLM", "CAUSAL_LM"),
    Head("ForConditionalGeneration", "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
)
CONFIGS = WeakKeyDictionary[nn.Module, list[Any]]()  # those in a model, found at its first forward
NO_HEAD = Head("Model", "AutoModel", "FEATURE_EXTRACTION")  # not searched by name: BertLMHeadModel ends with it, too


def get_architecture(hf_config: Any) -> str:
    """Returns the name of the model class in a transformers config, "" if it names none."""
    return (getattr(hf_config, "architectures", None) or [""])[0]


def find_head(hf_config: Any) -> Head | None:
    """Returns the head that a transformers config names. None if it names no head of the table."""
    architecture = get_architecture(hf_config)
    return next((head for head in HEADS if architecture.endswith(head.suffix)), None)


def find_auto_class(hf_config: Any) -> Any:
    """Returns the transformers class that loads the head that a config names; that of a classifier if it names none."""
    return getattr(transformers, (find_head(hf_config) or HEADS[0]).auto_class)


def find_peft_task_type(auto_class: str) -> str | None:
    """Returns peft's name for the task of an auto class. None if it has none."""
    return next((head.peft_task_type for head in (*HEADS, NO_HEAD) if head.auto_class == auto_class), None)


def run_model(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], through: Callable[..., Any] | None = None
) -> torch.Tensor:
    """Runs the model on inputs [S, T] and returns the output of its head.

    That is: logits; for question answering the start and end logits [S, T, 2]; for multiple choice one logit for each sequence
    [S, 1], so that questions may differ in their number of choices; without a head the last hidden states [S, T, H].

    Args:
        model: The bare model, whose class shows how it is called.
        inputs: Tensors by the names of the model's arguments.
        through: Called in place of the model: its distributed wrapper.
    """
    if is_multiple_choice(model):
        inputs = {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}
    with without_key_value_cache(model):
        output = (through or model)(**inputs)
    if isinstance(output, tuple):  # a config with return_dict off
        return output[0]
    if getattr(output, "start_logits", None) is not None:
        return torch.stack((output.start_logits, output.end_logits), -1)
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


@contextlib.contextmanager
def without_key_value_cache(model: nn.Module) -> Iterator[None]:
    """Keeps decoders from collecting keys and values for further tokens until the block ends: only generate() needs them.

    Not every forward has an argument use_cache, but all of them read their config. T5's decoder has a copy of it.
    """
    if model not in CONFIGS:  # else each forward would look through all modules
        models = (module for module in model.modules() if isinstance(module, transformers.PreTrainedModel))
        CONFIGS[model] = list({id(part.config): part.config for part in models}.values())
    collecting = [config for config in CONFIGS[model] if getattr(config, "use_cache", False)]
    for config in collecting:
        config.use_cache = False
    try:
        yield
    finally:
        for config in collecting:
            config.use_cache = True


def is_multiple_choice(model: nn.Module) -> bool:
    """True if a model takes [questions, choices, T]."""
    return type(model).__name__.endswith("ForMultipleChoice")


def is_sequence_to_sequence(model: Any) -> bool:
    """True if a model is an encoder-decoder that writes text, so that its decoder takes the text written so far."""
    return bool(getattr(model.config, "is_encoder_decoder", False)) and model.get_output_embeddings() is not None


def make_decoder_inputs(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """Returns what a decoder reads to write `labels`: the labels shifted by one position as the model itself shifts them, with
    ignored labels replaced by padding [S, T]."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    config = model.config
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    shifted = torch.cat((start, labels[:, :-1]), 1)
    return shifted.masked_fill(shifted < 0, config.pad_token_id)


def find_backbone_prefix(model: nn.Module) -> str:
    """Returns the start of the names of the backbone's parameters, such as "bert."; "" if the model is a backbone itself, or
    has its parts at the top (T5)."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""
