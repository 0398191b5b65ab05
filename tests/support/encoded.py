"""Small texts, and their features."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Features, make_features
from support import tiny

TEXTS = [[row["text"] for row in tiny.make_rows(25, seed=3)]]
PAIRS = [TEXTS[0], [row["text"] for row in tiny.make_rows(25, seed=4)]]


def make_tokenizer(*, token_types: bool = True, **options: Any) -> Any:
    """Returns the small tokenizer, with token types like BERT's or without like RoBERTa's."""
    tokenizer = tiny.make_tokenizer(**options)
    tokenizer.model_input_names = ["input_ids", *["token_type_ids"] * token_types, "attention_mask"]
    return tokenizer


def flat_features(texts: Sequence[Sequence[str]], tokenizer: Any, max_length: int) -> Features:
    """Encodes columns of texts without the cache. All labels are 0."""
    return make_features(tokenize(texts, tokenizer, max_length), np.zeros(len(texts[0])))
