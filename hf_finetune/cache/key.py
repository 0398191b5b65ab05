"""The key of a run's entry in the activation cache: everything that the activations depend on."""

import json
from typing import Any

import torch
import transformers

from hf_finetune.cache import store
from hf_finetune.cache.layout import Layout
from hf_finetune.cache.store import Entry
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.files import digest_tensors

FORMAT = 1  # part of the key; raise it if the capture computes something else

# Beginnings of the settings of a transformers config that do not affect the forward of the frozen prefix
SETTINGS_WITHOUT_EFFECT = (
    "_",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "hf_finetune",
    "classifier",
    "summary_",
    "use_cache",
    "output_",
    "return_dict",
    "initializer",
)


def find_entry(run: TrainingRun, layout: Layout, hidden: int) -> Entry:
    """Returns the entry of this run's prefix and features.

    cache.precision decides its dtype. With 16-bit it is float16, unless only the bfloat16 entry exists: then values were too
    large for float16.
    """
    root = store.activations_dir(run.config.cache.dir)
    description = run.runtime.on_main(lambda: describe_key(run))

    def make_entry(dtype: str) -> Entry:
        return Entry(root=root, description=description, layout=layout, dtype=dtype, hidden=hidden)

    if run.config.cache.precision == "fp32":
        return make_entry("float32")
    half, brain_half = make_entry("float16"), make_entry("bfloat16")
    has_only_bfloat16 = run.runtime.on_main(lambda: brain_half.is_complete() and not half.is_complete())
    return brain_half if has_only_bfloat16 else half


def describe_key(run: TrainingRun) -> dict[str, Any]:
    """Returns everything that the activations depend on besides the features: the frozen weights and the forward of the prefix.

    A run with another head, label set or seed finds the same entry.
    """
    return {"format": FORMAT, "weights": digest_prefix_weights(run), **describe_forward(run)}


def describe_forward(run: TrainingRun) -> dict[str, Any]:
    """Returns what the forward of the frozen prefix depends on besides its weights: the boundary, the parts of the config that
    affect it, attention, precision and versions."""
    model, plan = run.train_state.model, run.plan
    base = getattr(model, model.base_model_prefix, model)
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if not key.startswith(SETTINGS_WITHOUT_EFFECT) and "drop" not in key  # frozen modules are in eval mode
    }
    return {
        "blocks": plan.num_prefix_blocks,
        "architecture": type(base).__name__,
        "config": json.loads(json.dumps(config, default=str)),
        # Private, but the only name of the attention that was chosen (looked at in transformers 5.23)
        "attention": str(model.config._attn_implementation),
        "precision": run.runtime.precision,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def digest_prefix_weights(run: TrainingRun) -> str:
    """Returns the digest of the name, dtype, shape and bytes of every frozen tensor of the prefix."""
    return digest_tensors(dict(run.train_state.model.named_parameters()), run.plan.prefix)
