"""What tests/recipes/test_recipes.py runs of a recipe: small made data, a small random backbone, a few settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of a recipe.

    task: key of TASKS. recipe: file under recipes/. family: of tiny.FAMILIES. make_data: writes train, validation and test
    files into a folder and returns the data.* settings. settings: over the recipe's own DEFAULTS. caches: the prefix can be
    cached with embeddings and one block frozen. variant: what tells it from others of its recipe and family.
    """

    task: str
    recipe: str
    family: str
    make_data: Callable[[Path], dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    tiny_options: dict[str, Any] = field(default_factory=dict)
    caches: bool = True
    variant: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.recipe, self.family, self.variant)))
