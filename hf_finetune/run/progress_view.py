"""The view of a run while it trains: a bar with loss, metric and time left, or plain lines."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.bars import make_progress_bar
from hf_finetune.system.processes import peak_memory_mb
from hf_finetune.training.loop import Update
from hf_finetune.training.progress import Progress


class ProgressView:
    """Shows loss, metric, speed, time left and memory: a bar on a run's screen or in a notebook, else a line for each logged
    update."""

    def __init__(self, run: TrainingRun, progress: Progress) -> None:
        self.runtime, self.schedule, self.metric = run.runtime, run.schedule, run.metric
        self.total, self.first, self.started = run.schedule.total_updates, progress.update, time.perf_counter()
        self.scores = self.describe_scores(progress, progress.history[-1]) if progress.history else ""
        self.numbers: tuple[str, ...] = ("",)
        self.bar = make_progress_bar(
            is_main=run.runtime.is_main, desc="train", total=self.total, initial=self.first, unit="updates"
        )

    def advance(self, update: Update, *, log: bool) -> None:
        """Shows one update. log: also as a line, if there is no bar, and as an event."""
        self.bar.update(1)
        epoch = self.schedule.measure_epochs(update.number)
        shown_epoch = f"epoch {epoch:.2f}" if isinstance(epoch, float) else f"epoch {epoch}"
        speed = update.num_tokens / update.seconds
        memory = peak_memory_mb(self.runtime.device)
        if not self.bar.disable:
            self.bar.set_description_str(shown_epoch, refresh=False)
            self.numbers = (f"loss {update.loss:.4f}", f"{speed:,.0f} tokens/s", f"{memory:,.0f} MB")
            self.show_numbers()
        if log:
            seconds_per_update = (time.perf_counter() - self.started) / (update.number - self.first)
            seconds_left = seconds_per_update * (self.total - update.number)
            self.runtime.say(
                f"update {update.number}/{self.total}  {shown_epoch}  loss {update.loss:.4f}  {speed:,.0f} tokens/s  "
                f"{seconds_left / 60:.1f} min left",
                level=None if self.bar.disable else logging.DEBUG,  # the bar shows it
                event="update",
                update=update.number,
                total_updates=self.total,
                epoch=epoch,
                loss=update.loss,
                gradient_norm=update.gradient_norm,
                learning_rates=update.learning_rates,
                tokens_per_second=round(speed, 1),
                seconds_left=round(seconds_left, 1),
                peak_memory_mb=round(memory, 1),
            )

    def show_evaluation(self, progress: Progress, values: Mapping[str, float], line: str) -> None:
        """Shows the metrics of an evaluation that followed the last update, as the line and in the bar."""
        self.scores = self.describe_scores(progress, values)
        if not self.bar.disable:
            self.show_numbers()
        self.runtime.say(
            line,
            event="evaluation",
            split="validation",
            update=progress.update,
            epoch=self.schedule.measure_epochs(progress.update),
            metrics=dict(values),
            is_best=progress.best_update == progress.update,
            best={"metric": self.metric, "value": progress.best_value, "update": progress.best_update},
        )

    def show_numbers(self) -> None:
        """Shows the numbers of the last update in the bar, and those of the last evaluation."""
        loss, *others = self.numbers
        self.bar.set_postfix_str("  ".join(filter(None, (loss, self.scores, *others))), refresh=False)

    def describe_scores(self, progress: Progress, values: Mapping[str, Any]) -> str:
        """Returns the metric of the last evaluation, and of the best one if that is another."""
        best = "best" if progress.best_update == progress.update else f"best {progress.best_value:.4f}"
        return f"{self.metric} {values[self.metric]:.4f} {best}"

    def close(self) -> None:
        """Removes the bar."""
        self.bar.close()
