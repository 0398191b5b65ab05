"""Fine-tune pretrained Hugging Face language models on your own text. Importing this loads nothing heavy.

A run from Python: `from hf_finetune.train import finetune`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hf_finetune.config.sections import RunConfig
    from hf_finetune.errors import InputError
    from hf_finetune.predict import Predictor
    from hf_finetune.recipe import run_recipe
    from hf_finetune.settings import load_config

# Public name -> module; loaded when first used, because torch takes seconds.
PUBLIC = {
    "InputError": "system.errors",
    "Predictor": "export.predict",
    "RunConfig": "config.sections",
    "load_config": "config.loading",
    "run_recipe": "recipe",
}
__all__ = ["InputError", "Predictor", "RunConfig", "__version__", "load_config", "run_recipe"]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'hf_finetune' has no attribute {name!r}")
    return getattr(import_module(f"hf_finetune.{PUBLIC[name]}"), name)
