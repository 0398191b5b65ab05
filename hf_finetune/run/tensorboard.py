"""What TensorBoard shows of a run: its tags sort alphabetically, so they are named in the order in which one looks at them.

The event files lie in the run folder, so that `tensorboard --logdir outputs` shows the run by its name. Curves of one tag share a
chart, so those of validation have the tags of training, and a subfolder of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker

from hf_finetune.data.table import Table
from hf_finetune.run.figures import draw_figures, list_renamed
from hf_finetune.run.mistakes import format_mistakes
from hf_finetune.run.scored import ScoredExamples
from hf_finetune.system.markdown import escape_marks

TAGS = {
    "train/loss": "loss",
    "train/gradient_norm": "optimizer/gradient_norm",
    "train/learning_rate": "optimizer/learning_rate",
    "train/update_ratio": "optimizer/update_ratio",
    "train/padding_share": "speed/padding_share",
    "train/peak_memory_mb": "speed/peak_memory_mb",
    "train/tokens_per_second": "speed/tokens_per_second",
}
BY_PART = {"train/gradient_norm/": "weights/gradient_norm/", "train/update_ratio/": "weights/update_ratio/"}

# The tab of custom scalars: charts of several tags, which are regular expressions there
LAYOUT = {
    "training and validation": {"loss": ["Multiline", ["^loss$"]], "metric": ["Multiline", ["^metric/.*"]]},
    "parts of the model": {
        "gradient norm": ["Multiline", ["^weights/gradient_norm/.*"]],
        "update ratio": ["Multiline", ["^weights/update_ratio/.*"]],
    },
}


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredSplit:
    """What is known of a split's examples at the end of a run.

    Args:
        scored: The examples.
        details: What results.json says of them.
        table: The rows of the split.
        inputs: The columns that the task reads.
    """

    scored: ScoredExamples
    details: Mapping[str, Any]
    table: Table
    inputs: Sequence[str]


class TensorBoard(GeneralTracker):
    """Accelerate's tracker of TensorBoard, with tags and folders of its own. Used on the main process only.

    Args:
        run_dir: The run folder, in which the event files lie.
        metric: The metric that chooses the best checkpoint.
        purge_step: The first update that this start of the run makes. A run that was killed may have written later ones.
    """

    name = "tensorboard"
    requires_logging_directory = True

    def __init__(self, run_dir: Path, *, metric: str, purge_step: int) -> None:
        super().__init__()
        self.run_dir, self.metric, self.purge_step = run_dir, metric, purge_step
        self.settings: dict[str, Any] = {}
        self.writers: dict[str, Any] = {}  # by subfolder, "" for the run folder

    @property
    def tracker(self) -> Any:
        """The writer of the run folder."""
        return self.open_writer("")

    def open_writer(self, folder: str) -> Any:
        """Returns the SummaryWriter of a subfolder, which is made at its first use."""
        if folder not in self.writers:
            from torch.utils.tensorboard import SummaryWriter

            # Purges from update 1 on, too: a run may have been killed before its first checkpoint
            self.writers[folder] = SummaryWriter(str(self.run_dir / folder), purge_step=self.purge_step)
        return self.writers[folder]

    def start(self) -> None:
        """Opens the event file of the run folder."""
        self.open_writer("").add_custom_scalars(LAYOUT)

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Keeps the settings until show_results(): TensorBoard reads the values of its HParams tab once."""
        self.settings = dict(values)

    def show_results(self, metrics: Mapping[str, float], splits: Mapping[str, ScoredSplit], *, update: int) -> None:
        """Shows the settings next to the final metric, and all final metrics, charts of the examples and the worst mistakes.

        metrics: By their names in metrics.jsonl. A curve for each would be one point.
        """
        self.show_hparams(metrics)
        self.add_table(
            "results", ("metric", "value"), {name: f"{value:.4f}" for name, value in metrics.items()}, update
        )
        for split, part in splits.items():
            for name, image in draw_figures(split, part.scored.scores, part.details):
                self.tracker.add_image(f"results/{split}/{name}", np.asarray(image), update, dataformats="HWC")
            mistakes = format_mistakes(split, part.scored, part.table, part.inputs)
            self.tracker.add_text(f"worst mistakes/{split}", mistakes, update)
        renamed = {
            text: name
            for part in splits.values()
            for text, name in list_renamed(part.scored.scores, part.details).items()
        }
        if renamed:
            self.add_table("labels of the charts", ("in charts", "label"), renamed, update)

    def show_hparams(self, metrics: Mapping[str, float]) -> None:
        """Shows the metric that chooses the best checkpoint next to the settings in the HParams tab.

        A column for each metric would push the settings out of the tab. The tab's columns are those that any run has: with a list
        of columns, which add_hparams() writes, they would be those of one run.
        """
        from torch.utils.tensorboard.summary import hparams

        chosen = {name: value for name, value in metrics.items() if name.partition("/")[2] == self.metric}
        _, start, end = hparams({**self.settings, **chosen}, {})
        for summary in (start, end):
            self.tracker.file_writer.add_summary(summary)

    def add_table(self, tag: str, head: Sequence[str], rows: Mapping[str, str], update: int) -> None:
        """Adds a table of two columns to the Text tab."""
        lines = "".join(f"| {escape_marks(name)} | {escape_marks(value)} |\n" for name, value in rows.items())
        self.tracker.add_text(tag, f"| {' | '.join(head)} |\n|---|---|\n{lines}", update)

    def log(self, values: Mapping[str, float], step: int | None = None, **_: Any) -> None:
        """Adds a point to each curve."""
        folders = set()
        for name, value in values.items():
            folder, tag = self.find_place(name)
            self.open_writer(folder).add_scalar(tag, value, step)
            folders.add(folder)
        for folder in folders:
            self.writers[folder].flush()

    def find_place(self, name: str) -> tuple[str, str]:
        """Returns the subfolder and the tag of a number, by its name in metrics.jsonl."""
        split, _, rest = name.partition("/")
        if split == "validation":
            group = "" if rest == "loss" else "metric/" if rest == self.metric else "metrics/"
            return split, group + rest
        for old, new in [*BY_PART.items(), *TAGS.items()]:
            if name.startswith(old):
                return "", new + name.removeprefix(old)
        return "", name

    def finish(self) -> None:
        """Closes the event files."""
        for writer in self.writers.values():
            writer.close()
