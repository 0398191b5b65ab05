"""Every command of docs/training.md runs, and its tables name what there is."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support import tiny
from support.desk import at_desk
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from hf_finetune import cli
from hf_finetune.config.loading import load_config
from hf_finetune.config.optimizers import OPTIMIZERS
from hf_finetune.config.schedules import SCHEDULES
from hf_finetune.config.sections import flatten

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
SMALL = {
    "train.epochs": "4",
    "train.batch_size": "20",
    "tracking.trackers": "[]",
    "train.precision": "fp32",
    "data.max_length": "32",
    "cache.activations": "off",
}


def commands() -> list[str]:
    """The commands of the page."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [line for kind, text in found if not kind for line in text.splitlines()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the page's data, in which the commands run."""
    folder = tmp_path_factory.mktemp("training")
    rows = [f"{row['text']},{row['label']}\n" for row in tiny.make_rows(60)]
    (folder / "reviews.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
    with at_desk(folder):
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_the_pages_commands_run(desk: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    words = shlex.split(command)
    small = [word for key, value in SMALL.items() for word in (f"--{key}", value)]
    code = cli.main([*words[1:], *small, "--model.backbone", "backbone"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    name = words[words.index("--name") + 1]
    assert (desk / "outputs" / name / "results.json").exists()
    shown = {
        "lion": "optimizer   lion\n",
        "betas": "optimizer   adamw, betas [0.9, 0.95]\n",
        "schedule_free": "average     the average of the weights that the optimizer keeps is evaluated, saved and exported\n",
        "wsd": "schedule    wsd, decay_fraction 0.2\n",
        "averaged": "average     an exponential moving average of the weights (decay 0.99) is evaluated, saved and exported\n",
        "mean": "model/ is the mean of 3 checkpoints (updates ",
    }
    assert shown.get(name, "") in printed.out


def test_the_pages_yaml_is_a_config() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    needed = {"task.kind": "classify", "model.backbone": "backbone", "data.train": ["reviews.csv"]}
    config = load_config(needed | dict(flatten(yaml.safe_load(text))))
    assert config.train.optimizer_options == {"momentum": 0.9, "nesterov": True}


def list_names(header: str) -> list[tuple[str, str]]:
    """The cells of the two columns of the table with this header."""
    table = PAGE[PAGE.index(header) :].split("\n\n")[0]
    return [(cells[1], cells[2]) for cells in (line.split("|") for line in table.splitlines()[2:])]


def test_the_tables_for_users_of_trainer_name_what_both_have() -> None:
    optimizers = list_names("| `TrainingArguments(optim=...)` | here |")
    theirs = {name for cell, _ in optimizers for name in re.findall(r"`([a-z0-9_]+)`", cell)}
    assert theirs <= {str(name.value) for name in OptimizerNames}
    schedules = list_names("| `TrainingArguments(lr_scheduler_type=...)` | here |")
    names = {name for cell, _ in schedules for name in re.findall(r"`([a-z0-9_]+)`", cell)}
    assert names <= {str(name.value) for name in SchedulerType}
    for rows, ours in ((optimizers, OPTIMIZERS.keys()), (schedules, SCHEDULES.keys())):
        for cell, here in rows:
            if here.strip().startswith("the same names"):
                assert set(re.findall(r"`([a-z0-9_]+)`", cell)) <= set(ours)
            else:
                assert not here.strip().startswith("`") or re.findall(r"`([a-z0-9_]+)`", here)[0] in ours


def test_the_settings_page_lists_every_optimizer_and_schedule() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for name, kind in OPTIMIZERS.items():
        (row,) = re.findall(rf"^\| `{name}` \| .*$", page, flags=re.MULTILINE)
        assert row.startswith(f"| `{name}` | {kind.state_bytes:g}")
        assert all(f"`{option}`" in row for option in kind.options)
    for name in SCHEDULES:
        assert len(re.findall(rf"^\| `{name}` \| .*$", page, flags=re.MULTILINE)) == 1
