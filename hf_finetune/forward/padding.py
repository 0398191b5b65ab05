"""Shows whether a model's outputs depend on the padding after its inputs."""

import torch
from torch import nn
from torch.nn import functional as F

from hf_finetune.forward.cached import PROBE_TOKENS, is_close
from hf_finetune.forward.first_token import OTHER_SUMS
from hf_finetune.model import heads
from hf_finetune.model.structure import eval_mode, make_probe_batch

NUM_ADDED = 3  # tokens


def ignores_padding(model: nn.Module, pad_token_id: int) -> bool:
    """True if padding after the inputs changes no output, as shown on a probe in fp32. XLNet's classifier reads the last column,
    whatever it is; FNet and ConvBERT mix each token with those after it."""
    batch = make_probe_batch(model, PROBE_TOKENS)
    padded = {
        **batch,
        "input_ids": F.pad(batch["input_ids"], (0, NUM_ADDED), value=pad_token_id),
        "attention_mask": F.pad(batch["attention_mask"], (0, NUM_ADDED)),
    }
    with eval_mode(model), torch.no_grad():
        expected, outputs = heads.run_model(model, batch), heads.run_model(model, padded)
    if outputs.ndim == 3 and outputs.shape[1] == PROBE_TOKENS + NUM_ADDED:
        outputs = outputs[:, :PROBE_TOKENS]
    return outputs.shape == expected.shape and is_close(outputs, expected, OTHER_SUMS)
