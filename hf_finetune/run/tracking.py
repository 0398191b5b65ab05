"""Records the numbers of a run: metrics.jsonl, and the trackers of Accelerate."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import tracking as accelerate_tracking
from accelerate.tracking import GeneralTracker, TensorBoardTracker

from hf_finetune.config.sections import RunConfig, flatten, to_dict
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import explain_failures, is_missing, write_atomically
from hf_finetune.system.json_text import replace_nan
from hf_finetune.system.processes import Runtime
from hf_finetune.training.loop import Update

# Accelerate's name of a tracker -> its pip package, if it has another name
PIP_NAMES = {"comet_ml": "comet-ml", "clearml": "clearml", "wandb": "hf-finetune[wandb]"}


def check_trackers(names: tuple[str, ...]) -> None:
    """Raises InputError for a tracker that Accelerate does not know or that is not installed, and for wandb without a key."""
    known = sorted(str(name) for name in accelerate_tracking.LOGGER_TYPE_TO_CLASS)
    for name in names:
        if name not in known:
            raise InputError(f"tracking.trackers ({name}): must be one of {', '.join(known)}")
        if find_spec(name) is None:
            raise InputError(f"tracking.trackers ({name}): is not installed; pip install '{PIP_NAMES.get(name, name)}'")
        if name == "wandb" and os.environ.get("WANDB_MODE") not in ("offline", "disabled", "dryrun"):
            import wandb

            if not wandb.api.api_key:
                raise InputError(
                    "tracking.trackers (wandb): there is no API key; run `wandb login`, or set WANDB_MODE=offline"
                )


class Tracking:
    """The open trackers of a run. All processes use it; only the main one writes."""

    def __init__(self, config: RunConfig, runtime: Runtime, *, start_update: int) -> None:
        """Opens the trackers.

        An interrupted run may have logged updates after `start_update`. Their rows are removed from metrics.jsonl, and
        TensorBoard purges them.
        """
        self.runtime = runtime
        self.path = runtime.run_dir / "metrics.jsonl"
        self.settings = {key: make_plain(value) for key, value in flatten(to_dict(config))}
        if runtime.is_main:
            drop_rows_after(self.path, start_update)
        trackers: list[str | GeneralTracker] = []
        options: dict[str, dict[str, Any]] = {}
        for name in config.tracking.trackers:
            if name == "tensorboard":
                # Purges from update 1 on, too: a run may have been interrupted before its first checkpoint
                trackers.append(TensorBoardTracker("tensorboard", str(runtime.run_dir), purge_step=start_update + 1))
            else:
                trackers.append(name)
        if "wandb" in config.tracking.trackers:
            options["wandb"] = {
                "name": config.name,
                "dir": str(runtime.run_dir),
                "id": make_run_id(runtime),
                "resume": "allow",
            }
        accelerator = runtime.accelerator
        accelerator.trackers = []
        accelerator.log_with = accelerate_tracking.filter_trackers(trackers, str(runtime.run_dir))
        with explain_failures(runtime.run_dir):
            accelerator.init_trackers("hf-finetune", init_kwargs=options)
        for tracker in accelerator.trackers:
            if tracker.name != "tensorboard":  # its HParams tab needs the metrics too: see finish()
                tracker.store_init_configuration(self.settings)

    def log(self, values: Mapping[str, float], *, update: int, epoch: int) -> None:
        """Writes one row of numbers to metrics.jsonl and to every tracker."""
        self.write_row(values, update=update, epoch=epoch)
        with explain_failures(self.runtime.run_dir):
            self.runtime.accelerator.log(dict(values), step=update)

    def write_row(self, values: Mapping[str, float], *, update: int, epoch: int) -> None:
        """Writes one row of numbers to metrics.jsonl."""
        if self.runtime.is_main:
            row = {"update": update, "epoch": epoch, "time": round(time.time(), 3), **values}
            with explain_failures(self.runtime.run_dir), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(replace_nan(row)) + "\n")

    def log_split(self, split: str, values: Mapping[str, float], *, update: int, epoch: int) -> None:
        """Writes the metrics of a split as one row; nothing if there are none."""
        if values:
            self.log(name_metrics(split, values), update=update, epoch=epoch)

    def write_test_row(self, values: Mapping[str, float], *, update: int, epoch: int) -> None:
        """Writes the metrics of the test split to metrics.jsonl, in place of a row of a run that was killed before its end.

        That is before results.json, with which a run is finished: one that is killed after it would never write them.
        """

        def write() -> None:
            keep_rows(self.path, lambda row: row["update"] != update or not any(key.startswith("test/") for key in row))
            self.write_row(name_metrics("test", values), update=update, epoch=epoch)

        if values:
            self.runtime.on_main(write)

    def close(self) -> None:
        """Closes the trackers of a run that is left for now."""
        with explain_failures(self.runtime.run_dir):
            for tracker in self.runtime.accelerator.trackers:
                tracker.finish()

    def finish(self, final: Mapping[str, Mapping[str, float]], *, update: int) -> None:
        """Sends the metrics of the test split to the trackers, and closes them. final: metrics by split, which TensorBoard's
        HParams tab shows next to the settings."""
        from torch.utils.tensorboard.summary import hparams

        tags = {f"{split}/{name}": 0.0 for split, values in final.items() for name in values}
        with explain_failures(self.runtime.run_dir):
            if final.get("test"):
                self.runtime.accelerator.log(name_metrics("test", final["test"]), step=update)
            for tracker in self.runtime.accelerator.trackers:
                if tracker.name == "tensorboard" and self.runtime.is_main:
                    # Not add_hparams(), which adds a curve of one point for each metric
                    for summary in hparams(self.settings, tags):
                        tracker.writer.file_writer.add_summary(summary)
                tracker.finish()  # not Accelerator.end_training(), which would end the process group too


def name_metrics(split: str, values: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of a split under the names that rows and trackers have."""
    return {f"{split}/{name}": value for name, value in values.items()}


def make_plain(value: Any) -> Any:
    """Returns a setting as the configs of TensorBoard and W&B take it: a number or a string."""
    if isinstance(value, (bool, int, float, str)):
        return value
    return "" if value is None else json.dumps(value)


def make_run_id(runtime: Runtime) -> str:
    """Returns the run's id at W&B. It is drawn once and kept in the run folder, so that a resumed run continues its curves."""
    path = runtime.run_dir / "wandb-id"
    with explain_failures(runtime.run_dir), contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8")
    if not runtime.is_main:
        return ""
    import secrets

    run_id = secrets.token_hex(8)
    write_atomically(path, run_id.encode())
    return run_id


def drop_rows_after(path: Path, update: int) -> None:
    """Removes the rows of later updates, and a last line that was cut off, from metrics.jsonl. A run that starts at its first
    update keeps no row."""
    keep_rows(path, lambda row: update > 0 and row["update"] <= update)


def keep_rows(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Removes all other rows, and a last line that was cut off, from metrics.jsonl. Rows of other programs stay."""
    if is_missing(path):
        return
    with explain_failures(path.parent):
        text = path.read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(row, dict) or not isinstance(row.get("update"), int) or is_kept(row):
            lines.append(line + "\n")
    write_atomically(path, "".join(lines).encode())


def make_training_row(update: Update) -> dict[str, float]:
    """Returns the numbers of an update that are logged."""
    return {
        "train/loss": update.loss,
        "train/gradient_norm": update.gradient_norm,
        **{f"train/learning_rate/{group}": rate for group, rate in update.learning_rates.items()},
        "train/examples_per_second": update.num_examples / update.seconds,
        "train/tokens_per_second": update.num_tokens / update.seconds,
    }
