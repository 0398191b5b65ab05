"""A test case of a recipe: small made data, a small random backbone, and a few settings."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import tiny

from hf_finetune.config.recipes import recipe_path

EVERY_UPDATE = 2  # updates between checkpoints
COMMON = {
    "data.max_length": 48,
    "train.epochs": 2,
    "train.batch_size": 8,
    "train.learning_rate": 2e-3,
    "train.head_learning_rate": None,
    "train.precision": "fp32",
    "train.dropout_masks": "stateless",
    "freeze.embeddings": True,
    "freeze.layers": 1,
    "cache.activations": "off",
    "tracking.trackers": [],
    "tracking.log_every": 1,
    "checkpoint.every": EVERY_UPDATE,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of a recipe.

    recipe: name of the file under recipes/, which is the task's. family: of tiny.FAMILIES. make_data: writes train, validation
    and test files into a folder and returns the data.* settings. settings: override the recipe's own DEFAULTS and COMMON.
    caches: the activations can be cached with embeddings and one block frozen. variant: distinguishes cases of one recipe and
    family.
    """

    recipe: str
    family: str
    make_data: Callable[[Path], dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    tiny_options: dict[str, Any] = field(default_factory=dict)
    caches: bool = True
    variant: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.recipe, self.family, self.variant)))

    def make_settings(self, folder: Path) -> dict[str, Any]:
        """Makes data and backbone in `folder`, and returns all settings of the case."""
        (folder / "data").mkdir(parents=True)
        backbone = tiny.make_backbone(folder / "backbone", self.family, **{"layers": 2, **self.tiny_options})
        made = {"model.backbone": str(backbone), "output_dir": str(folder / "outputs")}
        kind = {"task.kind": self.recipe}
        defaults = load_recipe(self.recipe).DEFAULTS
        return kind | defaults | COMMON | made | self.make_data(folder / "data") | self.settings


def load_recipe(name: str) -> Any:
    """The module of a recipe."""
    spec = importlib.util.spec_from_file_location(name, recipe_path(name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_cases() -> list[Case]:
    """All cases of all case_*.py."""
    paths = sorted(Path(__file__).parent.glob("case_*.py"))
    return [case for path in paths for case in importlib.import_module(path.stem).CASES]
