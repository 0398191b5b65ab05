"""What finetune() returns: a finished run with its numbers, its history and its model."""

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import TASKS
from hf_finetune.run.parts import NO_PARTS, Parts, own_metrics
from hf_finetune.system.errors import InputError
from hf_finetune.system.locations import install_hint

if TYPE_CHECKING:
    import pandas

    from hf_finetune.export.predict import Predictor


@dataclass(frozen=True, kw_only=True, repr=False)
class Run:
    """A finished run.

    Attributes:
        config: Its settings.
        run_dir: Its folder.
        model_dir: The folder of the exported model, which from_pretrained loads.
        results: The content of results.json: the best value, the metrics of validation and test, seconds, counts.
        parts: The rows and functions that finetune() was given.
    """

    config: RunConfig
    run_dir: Path
    model_dir: Path
    results: dict[str, Any]
    parts: Parts = NO_PARTS

    def __repr__(self) -> str:
        metric = self.results["metric"]
        values = [
            f"{metric} {self.results[split][metric]:.4f} on {split}"
            for split in ("validation", "test")
            if metric in self.results[split]
        ]
        return f"Run({', '.join([repr(str(self.run_dir)), *values])})"

    def _repr_html_(self) -> str:
        """Returns a table of the metrics of validation and test, which a notebook shows."""
        splits = {split: values for split in ("validation", "test") if (values := self.results[split])}
        names = [name for name in self.results["validation"] if "/" not in name]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        rows = "".join(
            f"<tr><th>{split}</th>{''.join(f'<td>{format_number(values.get(name))}</td>' for name in names)}</tr>"
            for split, values in splits.items()
        )
        best, metric = self.results["best"], self.results["metric"]
        title = f"{self.run_dir}: {self.results['task']}, best {metric} {format_number(best['value'])} in epoch {best['epoch']}"
        return f"<table><caption>{html.escape(title)}</caption><tr><th></th>{head}</tr>{rows}</table>"

    @property
    def history(self) -> "pandas.DataFrame":
        """A frame with a row for each evaluation: epoch, update, train/loss, and validation/ and the name of each metric.

        train/loss is the mean of the losses that were logged since the evaluation before (tracking.log_every).
        """
        import pandas

        rows, losses = [], []
        for row in self.read_metrics():
            if "train/loss" in row:
                losses.append(row["train/loss"])
            values = {name: value for name, value in row.items() if name.startswith("validation/")}
            if values:
                mean = sum(losses) / len(losses) if losses else None
                rows.append({"epoch": row["epoch"], "update": row["update"], "train/loss": mean, **values})
                losses = []
        frame = pandas.DataFrame(rows)
        return frame.astype({name: float for name in frame.columns if "/" in name})  # null is nan

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl."""
        lines = (self.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def plot(self) -> Any:
        """Draws the losses of training and validation, and the deciding metric, by update. Returns matplotlib's axes.

        InputError if matplotlib is not installed.
        """
        if find_spec("matplotlib") is None:
            raise InputError(f"Run.plot() draws with matplotlib, which is not installed: {install_hint('matplotlib')}")
        from matplotlib import pyplot

        history, metric = self.history, self.results["metric"]
        logged = [row for row in self.read_metrics() if "train/loss" in row]
        _, axes = pyplot.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
        axes[0].plot([row["update"] for row in logged], [row["train/loss"] for row in logged], label="train")
        axes[0].plot(history["update"], history["validation/loss"], marker="o", label="validation")
        axes[0].set(xlabel="update", ylabel="loss")
        axes[0].legend()
        axes[1].plot(history["update"], history[f"validation/{metric}"], marker="o", color="tab:orange")
        axes[1].axvline(self.results["best"]["update"], linestyle=":", color="gray", label="best")
        axes[1].set(xlabel="update", ylabel=f"{metric}, validation")
        axes[1].legend()
        return axes

    @cached_property
    def predictor(self) -> "Predictor":
        """The exported model, ready to predict and evaluate. It is loaded when it is first asked for.

        InputError if a later call has trained the run on.
        """
        from hf_finetune.export.predict import Predictor

        if read_updates(self.run_dir) != self.results["updates"]:
            raise InputError(
                f"{self.run_dir}: a later call has trained it on, so its model is another one; use the run of that call"
            )
        kind = self.config.task.kind
        return Predictor.from_pretrained(
            self.run_dir,
            task=None if kind in TASKS else kind,
            loss=self.parts.loss or self.config.train.loss,
            metrics=get_metrics(self.config, self.parts),
            trust_remote_code=self.config.model.trust_remote_code,
        )

    def predict(self, rows: Any, **options: Any) -> Any:
        """Returns the prediction of a text, or a list with one for each row. The arguments are those of Predictor.predict()."""
        return self.predictor.predict(rows, **options)

    def evaluate(self, rows: Any, **options: Any) -> dict[str, float]:
        """Returns loss and metrics on labelled rows. The arguments are those of Predictor.evaluate()."""
        metric = self.results["metric"]
        named = {} if metric in get_metrics(self.config, self.parts) else {"metric": metric}
        trust = {"trust_metric_code": self.config.evaluation.trust_metric_code}
        return self.predictor.evaluate(rows, **{**named, **trust, **options})


def get_metrics(config: RunConfig, parts: Parts) -> Mapping[str, Any]:
    """Returns the metrics of one's own by name: functions that Python gave, import paths of others."""
    return {**own_metrics(config.evaluation.metrics), **parts.metrics}


def format_number(value: float | None) -> str:
    """Returns a metric as a cell shows it."""
    return "" if value is None else f"{value:.4f}"


def read_updates(run_dir: Path) -> Any:
    """Returns the number of updates of the finished run in a folder, None if it has none."""
    try:
        return json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["updates"]
    except (OSError, ValueError, KeyError):
        return None
