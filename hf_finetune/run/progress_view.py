"""What a run shows while it trains: a progress bar, or plain lines."""

import time

from hf_finetune.system.console import make_progress_bar
from hf_finetune.system.processes import Runtime
from hf_finetune.training.loop import Update


class ProgressBar:
    """Shows loss, speed and time left: a bar in a terminal or a notebook, else a plain line for each logged update."""

    def __init__(self, total_updates: int, start_update: int, runtime: Runtime) -> None:
        self.runtime = runtime
        self.bar = make_progress_bar(
            is_main=runtime.is_main, total=total_updates, initial=start_update, unit="update", dynamic_ncols=True
        )
        self.total, self.first, self.started = total_updates, start_update, time.perf_counter()

    def advance(self, update: Update, *, log: bool) -> None:
        """Shows one update. log: without a bar, print a line."""
        self.bar.update(1)
        self.bar.set_postfix(loss=f"{update.loss:.4f}", refresh=False)
        if self.bar.disable and log:
            num_done = update.number - self.first
            seconds_left = (time.perf_counter() - self.started) / num_done * (self.total - update.number)
            self.runtime.say(
                f"update {update.number}/{self.total}  epoch {update.epoch}  loss {update.loss:.4f}  "
                f"{update.num_tokens / update.seconds:,.0f} tokens/s  {seconds_left:.0f} s left"
            )

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        with self.bar.external_write_mode():  # clears the bar, and draws it again
            self.runtime.say(text)

    def close(self) -> None:
        """Closes the bar and leaves it on the screen."""
        self.bar.close()
