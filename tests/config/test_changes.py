"""Which settings differ from those of a recorded run, also one of an earlier version."""

from pathlib import Path

import pytest
import support
import yaml

from hf_finetune.config import changes
from hf_finetune.config.changes import changed_keys, list_changes
from hf_finetune.config.loading import get_setting_types, load_config
from hf_finetune.config.recipes import read_defaults
from hf_finetune.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    HubConfig,
    ModelConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
    to_dict,
)
from hf_finetune.config.tasks import TASKS, load_task

MODEL = ModelConfig(backbone="backbone")
DATA = DataConfig(train=("train.csv",))
SETTINGS = {kind: load_task(kind).Settings for kind in TASKS}
TASK = SETTINGS["classify"](kind="classify")


def test_the_backbone_does_not_matter_next_to_the_same_start() -> None:
    def find(first: tuple[str | None, str], second: tuple[str | None, str]) -> list[str]:
        configs = [
            RunConfig(model=ModelConfig(backbone=backbone), data=DATA, task=TASK, start_from=start)
            for start, backbone in (first, second)
        ]
        return [key for key, _, _ in changed_keys(to_dict(configs[0]), configs[1])]

    assert find(("outputs/a", "one"), ("outputs/a", "two")) == []
    assert find((None, "one"), (None, "two")) == ["model.backbone"]
    assert find(("outputs/a", "one"), ("outputs/b", "one")) == ["start_from"]


def test_changed_keys_names_what_differs_and_passes_over_what_no_number_depends_on() -> None:
    before = RunConfig(model=MODEL, data=DATA, task=TASK)
    after = RunConfig(
        model=MODEL,
        data=DATA,
        task=TASK,
        seed=1,
        output_dir="elsewhere",
        train=TrainConfig(epochs=5, micro_batch_size=2, weight_decay=0.5),
        evaluation=EvaluationConfig(batch_size=1, metric="loss"),
        checkpoint=CheckpointConfig(every=7, keep_best=2, keep_last=3, resume="never"),
        tracking=TrackingConfig(trackers=(), log_every=1),
        hub=HubConfig(push=True, repo_id="a/b"),
    )
    assert changed_keys(to_dict(before), after) == [
        ("evaluation.metric", "auto", "loss"),
        ("seed", 0, 1),
        ("train.weight_decay", 0.01, 0.5),
    ]
    assert changed_keys(to_dict(before), before) == []


def test_changed_keys_names_settings_that_an_older_version_did_not_have() -> None:
    """Only if the value is not the default of the section's class, which does what the older version did."""
    now = RunConfig(model=MODEL, data=DATA, task=TASK)
    then = to_dict(now)
    del then["train"]["layer_decay"], then["train"]["optimizer_options"], then["data"]["encoding"], then["start_from"]
    assert list_changes(then, now) == []
    changed = RunConfig(
        model=MODEL, data=DATA, task=TASK, train=TrainConfig(layer_decay=0.9, optimizer_options={"eps": 1})
    )
    assert list_changes(then, changed) == [("train.layer_decay", 1.0, 0.9), ("train.optimizer_options.eps", None, 1)]


def test_the_command_of_a_run_of_version_0_3_has_the_settings_of_that_run() -> None:
    """The file is the config.yaml that version 0.3 wrote for this command. It lacks settings that are newer."""
    recorded = yaml.safe_load((Path(support.__file__).parent / "config_0_3.yaml").read_text(encoding="utf-8"))
    command = (
        "--name fin --model.backbone bert --data.train train.jsonl --data.test test.jsonl --data.label_column label "
        "--tracking.trackers [] --train.epochs 2 --freeze.embeddings false --freeze.layers 0 --data.max_length 32"
    )
    defaults = read_defaults("classify")
    assert list_changes(recorded, load_config(defaults, command.split())) == []
    assert "label_names" not in recorded["task"]
    other = load_config(defaults, [*command.split(), "--task.label_names", "a", "b", "--data.quoting", "none"])
    assert list_changes(recorded, other) == [("data.quoting", "auto", "none"), ("task.label_names", [], ["a", "b"])]


def test_a_new_setting_whose_default_changes_the_numbers_is_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older version clipped no gradient, say."""
    now = RunConfig(model=MODEL, data=DATA, task=TASK)
    then = to_dict(now)
    del then["train"]["max_grad_norm"]
    monkeypatch.setitem(changes.BEFORE_SETTING, "train.max_grad_norm", 0.0)
    assert changed_keys(then, now) == [("train.max_grad_norm", 0.0, 1.0)]
    off = RunConfig(model=MODEL, data=DATA, task=TASK, train=TrainConfig(max_grad_norm=0.0))
    assert changed_keys(then, off) == []
    assert changed_keys(to_dict(now), now) == []


def test_a_setting_without_a_default_that_an_older_version_did_not_have_is_a_change() -> None:
    now = RunConfig(model=MODEL, data=DATA, task=TASK)
    then = to_dict(now)
    del then["task"]["kind"]
    assert changed_keys(then, now) == [("task.kind", None, TASK.kind)]


def test_every_key_that_may_change_on_resume_is_a_setting() -> None:
    settings = {setting for task_settings in SETTINGS.values() for setting in get_setting_types(task_settings)}
    for key in (*changes.FREE_ON_RESUME, *changes.EXTENDABLE, *changes.AFTER_TRAINING):
        assert key in settings or any(setting.startswith(key) for setting in settings if key.endswith(".")), key


def test_the_length_of_a_run_has_what_is_fitted_after_it_only_if_something_is() -> None:
    """A run that an earlier version finished has the same length as before."""
    config = RunConfig(model=MODEL, data=DATA, task=SETTINGS["classify"](kind="classify"))
    assert tuple(changes.get_length(to_dict(config))) == changes.EXTENDABLE
    fitted = RunConfig(model=MODEL, data=DATA, task=SETTINGS["classify"](kind="classify", calibrate=("temperature",)))
    assert tuple(changes.get_length(to_dict(fitted))) == (*changes.EXTENDABLE, *changes.AFTER_TRAINING)
    assert changed_keys(to_dict(config), fitted) == []
