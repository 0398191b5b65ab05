"""Fine-tune pretrained Hugging Face language models on your own text. Importing this loads nothing heavy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.5.0"

if TYPE_CHECKING:
    from hf_finetune.api import finetune
    from hf_finetune.config.loading import load_config
    from hf_finetune.config.sections import RunConfig
    from hf_finetune.export.predict import Predictor
    from hf_finetune.export.trained_run import Run
    from hf_finetune.recipe import run_recipe
    from hf_finetune.system.errors import InputError
    from hf_finetune.tasks.base import Task

# Public name -> module; loaded when first used, because torch takes seconds to import.
PUBLIC = {
    "InputError": "system.errors",
    "Predictor": "export.predict",
    "RunConfig": "config.sections",
    "Task": "tasks.base",
    "Run": "export.trained_run",
    "finetune": "api",
    "load_config": "config.loading",
    "run_recipe": "recipe",
}
__all__ = [
    "InputError",
    "Predictor",
    "Run",
    "RunConfig",
    "Task",
    "__version__",
    "finetune",
    "load_config",
    "run_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'hf_finetune' has no attribute {name!r}")
    return getattr(import_module(f"hf_finetune.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
