"""Training rows that a function of one's own changes in each epoch."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.runs import assert_same_tensors, load_last_checkpoint, read_untimed_metrics

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.folder import open_run
from hf_finetune.run.parts import Parts
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
Row = dict[str, Any]
NAMED = {"train.augment": "my:function"}


def shuffle_words(row: Row, seed: int, epoch: int) -> Row:
    """The words in another order in each epoch."""
    words = row["text"].split()
    random.Random(f"{seed} {epoch}").shuffle(words)
    return {**row, "text": " ".join(words)}


def set_up_with(config: RunConfig, augment: Callable[..., Any]) -> TrainingRun:
    """A run with this augmentation that is ready for update 0."""
    with open_run(config) as runtime:
        return set_up(config, runtime, Clock(), parts=Parts(augment=augment))


def test_each_epoch_has_other_rows_and_the_same_ones_again(make_config: MakeConfig) -> None:
    run = set_up_with(make_config(**NAMED), shuffle_words)
    assert run.augmented is not None
    digests = [run.augmented(epoch).fingerprint() for epoch in (1, 2, 1)]
    assert digests[0] == digests[2] != digests[1]
    assert run.features["train"].fingerprint() not in digests


def test_each_row_has_a_seed_of_its_own_that_depends_on_the_runs(make_config: MakeConfig) -> None:
    seeds: dict[int, list[int]] = {}

    def note(row: Row, seed: int, epoch: int) -> Row:
        seeds[run_seed].append(seed)
        return row

    for run_seed in (0, 1):
        seeds[run_seed] = []
        run = set_up_with(make_config(name=f"seed{run_seed}", seed=run_seed, **NAMED), note)
        seeds[run_seed].clear()
        assert run.augmented is not None
        run.augmented(1)
        assert len(set(seeds[run_seed])) == len(seeds[run_seed]) == 60
    assert not set(seeds[0]) & set(seeds[1])


def test_training_sees_the_rows_and_validation_does_not(make_config: MakeConfig) -> None:
    """A function that changes nothing changes no number; one that does, changes the training loss of the first update."""
    parts = {"none": None, "same": lambda row, seed, epoch: row, "shuffled": shuffle_words}
    first: dict[str, float] = {}
    for name, augment in parts.items():
        config = make_config(name=name, **{"train.max_updates": 3, "cache.activations": "off"})
        result = finetune(config, Parts(augment=augment))
        first[name] = read_untimed_metrics(result.run_dir)[0]["train/loss"]
    assert first["none"] == first["same"] != first["shuffled"]
    none, same = (load_last_checkpoint(make_config(name=name).run_dir) for name in ("none", "same"))
    assert_same_tensors(none["model_state_dict"], same["model_state_dict"])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda row, seed, epoch: {**row, "text": str(random.random())}, "returned two different rows for"),
        (lambda row, seed, epoch: {"text": "a"}, "returned the columns text for"),
        (lambda row, seed, epoch: {}, "returned the columns none for"),
        (lambda row, seed, epoch: "a", "returned a str, not a dict for"),
        (lambda row, seed, epoch: None, "returned null for"),
    ],
)
def test_a_function_that_is_not_pure_or_returns_something_else_is_an_error(
    function: Callable[..., Any], message: str, make_config: MakeConfig
) -> None:
    with pytest.raises(InputError) as caught:
        set_up_with(make_config(**NAMED), function)
    assert str(caught.value).startswith(f"train.augment (my:function): {message} ")
    assert "train-single_label.jsonl:1" in str(caught.value)


def test_an_empty_text_and_an_unknown_label_are_errors_with_their_row(make_config: MakeConfig) -> None:
    for changed, message in (({"text": " "}, "text is empty"), ({"label": "cow"}, "the label 'cow' is not one of")):
        run = set_up_with(make_config(**NAMED), lambda row, seed, epoch, changed=changed: {**row, **changed})
        assert run.augmented is not None
        with pytest.raises(InputError, match=rf"train-single_label.jsonl:1: {message}"):
            run.augmented(1)


def test_rows_that_are_split_into_more_windows_are_an_error(tmp_path: Path, backbones: Callable[..., Path]) -> None:
    rows = [{"tokens": ["a", str(number), "cat"], "tags": ["O", "O", "B-animal"]} for number in range(30)]
    settings = {
        "task.kind": "tag",
        "model.backbone": str(backbones("bert")),
        "output_dir": str(tmp_path / "outputs"),
        "data.train": [str(tiny.write_jsonl(tmp_path / "train.jsonl", rows))],
        "data.text_columns": "tokens",
        "data.label_column": "tags",
        "data.max_length": 8,
        **NAMED,
    }
    run = set_up_with(
        load_config(settings), lambda row, seed, epoch: {"tokens": row["tokens"] * 4, "tags": row["tags"] * 4}
    )
    assert run.augmented is not None
    with pytest.raises(InputError, match=r"the rows of epoch 1 give \d+ features, and 24 without it"):
        run.augmented(1)


def test_the_cache_is_refused_with_the_reason(make_config: MakeConfig) -> None:
    settings = {"freeze.embeddings": True, "freeze.layers": 1, "train.max_updates": 2, **NAMED}
    with pytest.raises(
        InputError, match=r"cache.activations \(on\).*train.augment changes the training rows in each epoch"
    ):
        finetune(make_config(**settings, **{"cache.activations": "on"}), Parts(augment=shuffle_words))


def test_a_function_that_has_changed_is_refused_on_resume(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(**{"checkpoint.every": 2, "cache.activations": "off", **NAMED})
    updates: list[int] = []

    def stop_after_three(update: Any, model: Any) -> None:
        updates.append(update.number)
        if len(updates) == 3:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        finetune(config, Parts(augment=shuffle_words, on_update=stop_after_three))
    message = (
        r"train.augment \(my:function\): returns other rows for epoch 1 than those that the checkpoint was trained on"
    )
    with pytest.raises(InputError, match=message):
        finetune(config, Parts(augment=lambda row, seed, epoch: {**row, "text": row["text"] + " and"}))
    finetune(config, Parts(augment=shuffle_words, on_update=stop_after_three))
    assert updates[:4] == [1, 2, 3, 3]


def test_a_function_may_change_the_lists_of_its_row(make_config: MakeConfig) -> None:
    """It gets a copy: the training rows stay as they are, so that a resumed run makes the same rows of them."""

    def change_in_place(row: Row, seed: int, epoch: int) -> Row:
        row["label"].append("tools")
        return row

    rows = make_config(**{"task.problem": "multi_label"}, problem="multi_label")
    run = set_up_with(replace(rows, train=replace(rows.train, augment="my:function")), change_in_place)
    before = copy.deepcopy(run.splits.train.columns)
    assert run.augmented is not None
    assert run.augmented(1).fingerprint() == run.augmented(2).fingerprint()
    assert run.splits.train.columns == before
