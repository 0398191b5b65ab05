"""How a model is called and what it answers, whatever its head.

S sequences, T tokens, H hidden.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn


def find_auto_class(hf_config: Any) -> Any:
    """The class of transformers that loads the head which a model's config names; that of a classifier where it names none."""
    heads = {
        **{kind: f"AutoModelFor{kind}" for kind in ("TokenClassification", "QuestionAnswering", "MultipleChoice")},
        **{kind: f"AutoModelFor{kind}" for kind in ("CausalLM", "MaskedLM")},
        "LMHeadModel": "AutoModelForCausalLM",
        "ConditionalGeneration": "AutoModelForSeq2SeqLM",
    }
    named = (getattr(hf_config, "architectures", None) or [""])[0]
    return getattr(
        transformers,
        next((auto for ending, auto in heads.items() if named.endswith(ending)), "AutoModelForSequenceClassification"),
    )


def run_model(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], through: Callable[..., Any] | None = None
) -> torch.Tensor:
    """What the model's head says of inputs [S, T]: logits; of question answering start and end logits [S, T, 2]; of multiple
    choice one logit a sequence [S, 1], so that questions may have any number of choices; without a head the last hidden
    states [S, T, H]. `through` is called in the model's place (its distributed wrapper)."""
    if is_multiple_choice(model):
        inputs = {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}
    output = (through or model)(**inputs)
    if isinstance(output, tuple):  # of a config with return_dict off
        return output[0]
    if getattr(output, "start_logits", None) is not None:
        return torch.stack((output.start_logits, output.end_logits), -1)
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


def is_multiple_choice(model: nn.Module) -> bool:
    """Whether a model takes [S, choices, T]."""
    return type(model).__name__.endswith("ForMultipleChoice")


def is_sequence_to_sequence(model: Any) -> bool:
    """Whether a model is an encoder with a decoder that writes text: its decoder must be given what it has written."""
    return bool(getattr(model.config, "is_encoder_decoder", False)) and model.get_output_embeddings() is not None


def make_decoder_inputs(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """[B, L] what a decoder reads to write `labels` [B, L]: the model's own shift of them, ignored labels as padding."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    config = model.config
    shifted = torch.cat((torch.full_like(labels[:, :1], config.decoder_start_token_id), labels[:, :-1]), 1)
    return shifted.masked_fill(shifted < 0, config.pad_token_id)


def find_backbone_prefix(model: nn.Module) -> str:
    """What the names of the backbone's parameters begin with: "bert."; "" where the model is one itself, or has its parts at
    the top (T5)."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""
