"""What is settled before update 0."""

from types import SimpleNamespace
from typing import Any

import pytest

from hf_finetune.run import setup


@pytest.mark.parametrize("is_main", [True, False])
def test_a_line_about_all_splits_is_printed_once_and_by_the_main_process(
    monkeypatch: pytest.MonkeyPatch, is_main: bool
) -> None:
    def encode(encoding: Any, table: str, *_: Any, say: Any, **options: Any) -> str:
        if say is not None:
            say("warning: the folder cannot be written")
            say(f"{table} is damaged")
        return f"features of {table}"

    monkeypatch.setattr(setup, "encode", encode)
    said: list[str] = []
    splits: Any = SimpleNamespace(tables=lambda: {"train": "a", "validation": "b"})
    runtime: Any = SimpleNamespace(
        is_main=is_main, say=said.append, on_main=lambda function: function() if is_main else None
    )
    config: Any = SimpleNamespace(cache=SimpleNamespace(dir=None), data=SimpleNamespace(workers=None))
    features: Any = setup.encode_splits(splits, None, None, 8, config, runtime)  # type: ignore[arg-type]
    assert features == {"train": "features of a", "validation": "features of b"}
    lines = ["warning: the folder cannot be written", "a is damaged", "b is damaged"]
    assert said == (lines if is_main else [])
