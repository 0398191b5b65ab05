"""What data.streaming needs, and what it refuses."""

from typing import Any

import pytest

from hf_finetune.config.sections import RunConfig
from hf_finetune.system.errors import InputError

SETTINGS: dict[str, Any] = {
    "task.kind": "classify",
    "model.backbone": "some/model",
    "data.train": ["a.jsonl"],
    "data.validation": ["b.jsonl"],
    "data.streaming": True,
    "train.max_updates": 10,
}


def test_a_streamed_run_needs_no_more_than_a_length_and_validation() -> None:
    assert RunConfig.from_settings(SETTINGS).data.streaming
    hub = {**SETTINGS, "data.dataset": "some/set", "data.train": [], "data.validation": []}
    assert RunConfig.from_settings(hub).data.streaming


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.max_updates", None),
        ("data.validation", []),
        ("data.max_train_examples", 50),
        ("freeze.unfreeze", [{"epoch": 2, "layers": 0}]),
        ("train.augment", "my_module:augment"),
        ("cache.activations", "on"),
    ],
)
def test_what_does_not_go_together_is_refused_by_its_name(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{key} \(.*with data\.streaming"):
        RunConfig.from_settings({**SETTINGS, key: value})
