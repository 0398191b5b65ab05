"""Values as JSON has them."""

import math
from collections.abc import Mapping
from typing import Any


def replace_nan(value: Any) -> Any:
    """Returns nested values with None for nan and the infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: replace_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
