"""The head that a task asks of its backbone. Imports nothing heavy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """The head that a task asks of its backbone.

    Args:
        auto_class: Name of the transformers class that loads the model, such as AutoModelForSequenceClassification.
        config_entries: Entries of the model's config that follow from the labels.
        has_labels: The head has one output for each label, so a pretrained head of another size is replaced by a new one.
        spell_label: Returns the label of a pretrained head in the form that the task's own labels have.
    """

    auto_class: str
    config_entries: Mapping[str, Any] = field(default_factory=dict)
    has_labels: bool = False
    spell_label: Callable[[str], str] = field(default=str, compare=False, repr=False)
