"""GGUF files of tiny models."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from support import tiny


def make_causal_model(seed: int) -> Any:
    """A small random llama."""
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(tiny.make_config("llama")).eval()


def write_gguf(path: Path, model: Any) -> None:
    """A llama model as GGUF holds it, in fp32, with a byte-level tokenizer of the tiny words."""
    import gguf

    config, out = model.config, gguf.GGUFWriter(path, "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(tiny.VOCABULARY)
    out.add_token_types([3] * 5 + [1] * (len(tiny.VOCABULARY) - 5))
    out.add_token_scores([0.0] * len(tiny.VOCABULARY))
    out.add_bos_token_id(2)
    out.add_eos_token_id(3)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        for kind, count in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:  # as llama.cpp's convert_hf_to_gguf.py permutes them
                array = (
                    array.reshape(count, 2, len(array) // count // 2, *array.shape[1:])
                    .swapaxes(1, 2)
                    .reshape(array.shape)
                )
        out.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(array))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
