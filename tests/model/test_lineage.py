"""What a model was made from, as its config records it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_finetune.model.lineage import Lineage, read_lineage


def test_each_run_is_recorded_after_those_before() -> None:
    first = read_lineage(SimpleNamespace(), "someone/bert")
    assert first == Lineage(base="someone/bert")
    recorded = first.add_run("domain", "model_language", token_limit=512)
    second = read_lineage(SimpleNamespace(hf_finetune=recorded), "outputs/domain/model")
    assert second == Lineage(base="someone/bert", runs=(("domain", "model_language"),), token_limit=512)
    third = read_lineage(SimpleNamespace(hf_finetune=second.add_run("topics", "classify", token_limit=64)), "elsewhere")
    assert third.describe() == "domain (model_language), then topics (classify)"
    assert third.token_limit == 512


@pytest.mark.parametrize(
    "recorded",
    [{"task": {"kind": "classify"}}, {"base_model": 3, "runs": [], "token_limit": 3}, {"base_model": "a", "runs": "b"}],
)
def test_the_record_of_another_version(recorded: dict[str, Any]) -> None:
    lineage = read_lineage(SimpleNamespace(hf_finetune=recorded), "outputs/old/model")
    assert lineage.base == "outputs/old/model"
    assert lineage.describe() == "an earlier run (of another version)"


@pytest.mark.parametrize("recorded", [None, "text", ["list"]])
def test_what_is_no_record(recorded: Any) -> None:
    assert read_lineage(SimpleNamespace(hf_finetune=recorded), "someone/bert") == Lineage(base="someone/bert")


def test_random_numbers_are_those_of_no_run_before() -> None:
    drawn = []
    for count in (0, 0, 1, 1, 2):
        torch.manual_seed(0)
        with Lineage(base="a", runs=(("run", "classify"),) * count).other_random_numbers():
            drawn.append(float(torch.rand(())))
        after = float(torch.rand(()))
        assert (after != drawn[0]) == (count == 0)  # the block of a trained model leaves the generator as it was
    assert drawn[0] == drawn[1]
    assert drawn[2] == drawn[3]
    assert len(set(drawn)) == 3
