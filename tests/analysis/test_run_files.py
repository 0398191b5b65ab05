"""The files of runs in all states."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_finetune.analysis.run_files import FINISHED, RUNNING, UNFINISHED, make_labels, read_runs
from hf_finetune.system.errors import InputError

CopyRun = Callable[..., Path]


def test_a_finished_run_has_all_files(finished: dict[str, Path]) -> None:
    (run,) = read_runs([finished["base"]])
    assert (run.state, run.missing, run.label, run.kind, run.metric) == (FINISHED, (), "base", "classify", "accuracy")
    assert run.settings["train.learning_rate"] == 1e-2
    assert run.last_update == run.results["updates"] == 90
    assert [update for update, _ in run.get_curve("train/loss")] == list(range(1, 91))
    assert [update for update, _ in run.get_curve("validation/accuracy")] == [15, 30, 45, 60, 75, 90]


def test_a_run_without_results_is_unfinished_or_running(copy_run: CopyRun) -> None:
    folder = copy_run("base", "cut", ("results.json", "data.json"))
    (run,) = read_runs([folder])
    assert run.state == UNFINISHED
    assert run.missing[0] == "The run was interrupted, or failed: final scores are written when it ends."
    assert run.missing[1].startswith("data.json is missing")
    assert run.metric == "accuracy"  # as it was logged after the loss
    lock = folder / ".lock"
    lock.write_text("{}")
    (run,) = read_runs([folder])
    assert run.state == RUNNING
    assert run.missing[0] == "The run is still running: final scores are written when it ends."
    os.utime(lock, (time.time() - 60,) * 2)  # its holder was killed
    assert read_runs([folder])[0].state == UNFINISHED


def test_a_run_that_trains_longer_has_old_results(copy_run: CopyRun) -> None:
    folder = copy_run("base", "longer")
    config = folder / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("epochs: 6", "epochs: 8"), encoding="utf-8")
    (run,) = read_runs([folder])
    assert run.missing == ("The run trains longer now: results.json and model/ are those of its earlier end.",)


def test_damaged_files_are_named(copy_run: CopyRun) -> None:
    folder = copy_run("base", "damaged", ("metrics.jsonl",))
    (folder / "data.json").write_text("[]")
    (folder / "environment.json").write_text("{")
    (run,) = read_runs([folder])
    assert [sentence.split()[0] for sentence in run.missing] == ["environment.json", "data.json", "metrics.jsonl"]
    assert "cannot be read" in run.missing[0]
    assert "does not hold an object" in run.missing[1]
    assert run.last_update == 0


def test_a_line_that_is_being_written_is_left_out(copy_run: CopyRun) -> None:
    folder = copy_run("base", "written")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"update": 3, "late": 1.0}) + "\n[1]\n" + '{"update": 99, "train/lo')
    (run,) = read_runs([folder])
    assert run.last_update == 90
    assert run.get_curve("late") == [(3, 1.0)]


def test_what_is_no_run_is_an_error(tmp_path: Path, copy_run: CopyRun) -> None:
    with pytest.raises(InputError, match=r"is not the folder of a run: it has no config\.yaml"):
        read_runs([tmp_path])
    (tmp_path / "sweep" / "trials").mkdir(parents=True)
    with pytest.raises(InputError, match=r"it has no config\.yaml; its runs are in .*sweep/trials$"):
        read_runs([tmp_path / "sweep"])
    folder = copy_run("base", "twice")
    with pytest.raises(InputError, match="is named twice"):
        read_runs([folder, str(folder) + "/."])
    (folder / "config.yaml").write_text("- a\n")
    with pytest.raises(InputError, match="does not hold settings"):
        read_runs([folder])
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match="cannot be read"):
        read_runs([folder])


def test_labels_tell_folders_apart() -> None:
    paths = [Path("/a/x/run"), Path("/b/x/run"), Path("/a/other")]
    assert make_labels(paths) == ["a/x/run", "b/x/run", "other"]
