"""Records the numbers of a run: metrics.jsonl, and the trackers of Accelerate."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_finetune.config.changes import list_choices
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.tensorboard import ScoredSplit
from hf_finetune.run.trackers import Trackers
from hf_finetune.system.files import explain_failures, is_missing, write_atomically
from hf_finetune.system.json_text import replace_nan
from hf_finetune.system.processes import Runtime, peak_memory_mb
from hf_finetune.training.loop import Update

RATE = "train/learning_rate/"


class Tracking:
    """The open trackers of a run. All processes use it; only the main one writes."""

    def __init__(self, config: RunConfig, runtime: Runtime, *, metric: str, start_update: int) -> None:
        """Opens the trackers. metric: The one that chooses the best checkpoint.

        An interrupted run may have logged updates after `start_update`. Their rows are removed from metrics.jsonl, and
        TensorBoard purges them.
        """
        self.runtime = runtime
        self.path = runtime.run_dir / "metrics.jsonl"
        self.splits: dict[str, ScoredSplit] = {}
        if runtime.is_main:
            drop_rows_after(self.path, start_update)
        self.trackers = Trackers(config, runtime, metric=metric, start_update=start_update)
        self.trackers.store_settings({key: make_plain(value) for key, value in list_choices(config).items()})

    def log(self, values: Mapping[str, float], *, update: int, epoch: int) -> None:
        """Writes one row of numbers to metrics.jsonl and to every tracker."""
        self.write_row(values, update=update, epoch=epoch)
        self.trackers.log(drop_twins(values), update=update)

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

    def keep_split(self, split: str, scored: ScoredSplit) -> None:
        """Keeps what is known of a split's examples until finish()."""
        self.splits[split] = scored

    def close(self) -> None:
        """Closes the trackers of a run that is left for now."""
        self.trackers.finish()

    def finish(self, final: Mapping[str, Mapping[str, float]], *, update: int) -> None:
        """Shows the final metrics and examples in the trackers, and closes them. final: metrics by split."""
        metrics = {
            name: value for split, values in final.items() for name, value in name_metrics(split, values).items()
        }
        self.trackers.show_results(metrics, self.splits, update=update)
        self.trackers.finish()


def name_metrics(split: str, values: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of a split under the names that rows and trackers have."""
    return {f"{split}/{name}": value for name, value in values.items()}


def make_plain(value: Any) -> Any:
    """Returns a setting as the configs of TensorBoard and W&B take it: a number or a string."""
    if isinstance(value, (bool, int, float, str)):
        return value
    return "" if value is None else json.dumps(value)


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


def make_training_row(update: Update, runtime: Runtime) -> dict[str, float]:
    """Returns the numbers of an update that are logged."""
    row = {
        "train/loss": update.loss,
        "train/gradient_norm": update.gradient_norm,
        **{f"{RATE}{group}": rate for group, rate in update.learning_rates.items()},
        "train/examples_per_second": update.num_examples / update.seconds,
        "train/tokens_per_second": update.num_tokens / update.seconds,
        "train/padding_share": update.padding_share,
        "train/peak_memory_mb": round(peak_memory_mb(runtime.device), 1),
    }
    if update.norms is not None:
        row["train/update_ratio"] = update.norms.total_update_ratio
        row |= {f"train/gradient_norm/{part}": value for part, value in update.norms.gradient.items()}
        row |= {f"train/update_ratio/{part}": value for part, value in update.norms.update_ratio.items()}
    return row


def drop_twins(row: Mapping[str, float]) -> dict[str, float]:
    """Returns the numbers of a row that trackers draw: one curve for equal learning rates, and one speed.

    A learning rate is named by its part of the model, without the kind of its parameters; if all are equal, by no part.
    """
    kept = {name: value for name, value in row.items() if not name.startswith(RATE)}
    kept.pop("train/examples_per_second", None)
    rates: dict[float, str] = {}
    for name, rate in row.items():
        if name.startswith(RATE):
            rates.setdefault(rate, name.removesuffix("_no_decay").removesuffix("_hidden"))
    if len(rates) == 1:
        rates = dict.fromkeys(rates, RATE.rstrip("/"))
    return kept | {name: rate for rate, name in rates.items()}
