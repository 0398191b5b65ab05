"""The files that make a model folder one of sentence-transformers."""

import json
from pathlib import Path
from typing import Any

# The files are byte for byte those that this version writes and reads. The model card asks for it or a newer one.
FORMAT_VERSION = "6.2.0"

TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"


def write_files(folder: Path, *, dimension: int, pooling: str, normalize: bool) -> None:
    """Writes all that sentence_transformers.SentenceTransformer(folder) reads apart from the model and its tokenizer.

    Args:
        folder: A folder with a saved transformers model.
        dimension: D, numbers of a vector.
        pooling: mean or cls.
        normalize: Vectors have length 1.
    """
    import torch
    import transformers

    modules = [("", TRANSFORMER), ("1_Pooling", POOLING)]
    if normalize:
        modules.append(("2_Normalize", NORMALIZE))
    versions = {
        "pytorch": torch.__version__,
        "sentence_transformers": FORMAT_VERSION,
        "transformers": transformers.__version__,
    }
    write_json(
        folder / "modules.json",
        [{"idx": index, "name": str(index), "path": path, "type": name} for index, (path, name) in enumerate(modules)],
        indent=2,
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": versions,
            "default_prompt_name": None,
            "model_type": "SentenceTransformer",
            "prompts": {"document": "", "query": ""},
            "similarity_fn_name": "cosine",
        },
        indent=2,
    )
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
    )
    write_json(
        folder / "1_Pooling" / "config.json",
        {"embedding_dimension": dimension, "pooling_mode": pooling, "include_prompt": True},
    )
    if normalize:
        names = ("module_input_name", "module_output_name")
        write_json(folder / "2_Normalize" / "config.json", dict.fromkeys(names, "sentence_embedding"))


def write_json(path: Path, value: Any, indent: int = 4) -> None:
    """Writes JSON, in a new folder if there is none."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False), encoding="utf-8")
