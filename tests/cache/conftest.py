"""Fixtures of the tests of cache/."""

import pytest

from hf_finetune.cache import layout


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of few tokens, so that small entries have many."""
    monkeypatch.setattr(layout, "CHUNK_TOKENS", 16)
