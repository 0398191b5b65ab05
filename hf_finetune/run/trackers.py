"""Opens the trackers that tracking.trackers names, and keeps one that fails from ending the run."""

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import tracking as accelerate_tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

from hf_finetune.config.sections import RunConfig
from hf_finetune.run.tensorboard import ScoredSplit, TensorBoard
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import explain_failures, write_atomically
from hf_finetune.system.processes import Runtime

PROJECT = "hf-finetune"
# Half a minute in which the run waits for a server that is away. MLflow's own 7 take more than four minutes
MLFLOW_RETRIES = "4"

# Accelerate's name of a tracker -> its pip package, if it has another name
PIP_NAMES = {"comet_ml": "comet-ml", **{name: f"hf-finetune[{name}]" for name in ("mlflow", "trackio", "wandb")}}


def check_trackers(names: tuple[str, ...]) -> None:
    """Raises InputError for a tracker that Accelerate does not know or that is not installed, and for wandb without a key."""
    known = sorted(str(name) for name in accelerate_tracking.LOGGER_TYPE_TO_CLASS)
    for name in names:
        if name not in known:
            raise InputError(f"tracking.trackers ({name}): must be one of {', '.join(known)}")
        if name in LoggerType and find_spec(name) is None:  # others are classes that a program has registered
            raise InputError(f"tracking.trackers ({name}): is not installed; pip install '{PIP_NAMES.get(name, name)}'")
        if name == "wandb" and os.environ.get("WANDB_MODE") not in ("offline", "disabled", "dryrun"):
            import wandb

            if not wandb.api.api_key:
                raise InputError(
                    "tracking.trackers (wandb): there is no API key; run `wandb login`, or set WANDB_MODE=offline"
                )


class Trackers:
    """The open trackers of a run. One that raises an error is a warning, and is left out from then on: training continues."""

    def __init__(self, config: RunConfig, runtime: Runtime, *, metric: str, start_update: int) -> None:
        self.runtime = runtime
        self.accelerator = runtime.accelerator
        self.accelerator.trackers = []  # where accelerator.get_tracker() finds them
        finish_left_open()
        self.continues_mlflow = read_run_id(runtime, "mlflow") is not None
        for name in config.tracking.trackers:
            if name == "tensorboard":
                tracker: Any = TensorBoard(runtime.run_dir, metric=metric, purge_step=start_update + 1)
            else:
                tracker = make_tracker(name, config, runtime, is_resumed=start_update > 0)
            self.accelerator.trackers.append(tracker)
        if runtime.is_main:
            LEFT_OPEN.extend(self.accelerator.trackers)
        self.call(lambda tracker: tracker.start())
        self.call(lambda tracker: keep_run_id(tracker, runtime))

    def call(self, action: Callable[[Any], object]) -> None:
        """Does something with each tracker, on the main process: there alone Accelerate's trackers do anything."""
        for tracker in list(self.accelerator.trackers) if self.runtime.is_main else []:
            try:
                action(tracker)
            except Exception as error:  # noqa: BLE001  a tracker may raise what it likes
                self.accelerator.trackers.remove(tracker)
                with contextlib.suppress(Exception):  # its next run in this process could not begin
                    tracker.finish()
                self.runtime.say(
                    f"warning: the tracker {tracker.name} failed ({type(error).__name__}: {error}); the run continues without "
                    "it, and metrics.jsonl has all numbers"
                )

    def store_settings(self, settings: Mapping[str, Any]) -> None:
        """Records the settings of the run. MLflow keeps those of the run's first start: it takes no other value."""
        self.call(
            lambda tracker: (
                None
                if self.continues_mlflow and tracker.name == "mlflow"
                else tracker.store_init_configuration(dict(settings))
            )
        )

    def log(self, values: Mapping[str, float], *, update: int) -> None:
        """Records numbers."""
        self.call(lambda tracker: log_numbers(tracker, values, update))

    def show_results(self, metrics: Mapping[str, float], splits: Mapping[str, ScoredSplit], *, update: int) -> None:
        """Records the metrics of the exported model, by their names in metrics.jsonl. Most trackers have those of validation as a
        curve, and get those of the test split alone. Texts of examples and charts stay on this machine: TensorBoard has them."""
        test = {name: value for name, value in metrics.items() if name.startswith("test/")}
        self.call(
            lambda tracker: (
                tracker.show_results(metrics, splits, update=update)
                if isinstance(tracker, TensorBoard)
                else log_numbers(tracker, test, update)
                if test
                else None
            )
        )

    def finish(self) -> None:
        """Closes the trackers. Accelerator.end_training() would end the process group too."""
        self.call(lambda tracker: tracker.finish())
        LEFT_OPEN.clear()


# The open trackers of this process. A run that ends with an error leaves them open: W&B and MLflow then see whether the process
# ends with it
LEFT_OPEN: list[Any] = []


def finish_left_open() -> None:
    """Closes the trackers of an earlier run of this process that ended with an error: MLflow has one open run a process, and W&B
    would continue the earlier run."""
    while LEFT_OPEN:
        with contextlib.suppress(Exception):
            LEFT_OPEN.pop().finish()


def log_numbers(tracker: Any, values: Mapping[str, float], update: int) -> None:
    """Sends numbers to a tracker, by the names that it takes."""
    numbers = rename_numbers(values, tracker.name)
    if tracker.name == "trackio":  # Accelerate 1.12 does not hand the update over to it
        tracker.tracker.log(numbers, step=update)
    else:
        tracker.log(numbers, step=update)


def rename_numbers(values: Mapping[str, float], tracker: str) -> dict[str, float]:
    """Returns numbers by the names that a tracker takes. MLflow takes few characters, and keeps a name as a file and what is
    before a / as a folder: next to `validation/f1` it has `validation/f1.person`."""
    if tracker != "mlflow":
        return dict(values)
    renamed = {}
    for name, value in values.items():
        split, slash, rest = name.partition("/")
        renamed[split + slash + re.sub(r"[^\w.\- ]", "_", rest.replace("/", "."))] = value
    return renamed


def make_tracker(name: str, config: RunConfig, runtime: Runtime, *, is_resumed: bool) -> GeneralTracker:
    """Returns one of Accelerate's trackers, or of one's own that is registered there. It is not started.

    A resumed run continues its curves if the tracker can do that.
    """
    kind = accelerate_tracking.LOGGER_TYPE_TO_CLASS[name]
    options: dict[str, Any] = {}
    if name == "wandb":
        options = {"name": config.name, "dir": str(runtime.run_dir), "id": get_wandb_id(runtime), "resume": "allow"}
    elif name == "trackio":
        options = {"name": config.name, "resume": "allow" if is_resumed else "never"}
    elif name == "mlflow":
        options = {"run_name": config.name, "run_id": read_run_id(runtime, name)}
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", MLFLOW_RETRIES)
    place = [str(runtime.run_dir)] if kind.requires_logging_directory else []
    return kind(PROJECT, *place, **options)


# --- the run's id at a tracker --------------------------------------------------------------------------------------


def get_id_path(runtime: Runtime, name: str) -> Path:
    """Returns the file in the run folder that holds the run's id at a tracker."""
    return runtime.run_dir / f"{name}-id"


def read_run_id(runtime: Runtime, name: str) -> str | None:
    """Returns the run's id at a tracker, or None if it has none yet."""
    with explain_failures(runtime.run_dir), contextlib.suppress(FileNotFoundError):
        return get_id_path(runtime, name).read_text(encoding="utf-8")
    return None


def write_run_id(runtime: Runtime, name: str, run_id: str) -> None:
    """Keeps the run's id at a tracker, so that a resumed run continues its curves."""
    if runtime.is_main:
        write_atomically(get_id_path(runtime, name), run_id.encode())


def get_wandb_id(runtime: Runtime) -> str:
    """Returns the run's id at W&B, which is drawn once."""
    import secrets

    run_id = read_run_id(runtime, "wandb")
    if run_id is None:
        run_id = secrets.token_hex(8)
        write_run_id(runtime, "wandb", run_id)
    return run_id


def keep_run_id(tracker: Any, runtime: Runtime) -> None:
    """Keeps the id that MLflow has given the run."""
    if tracker.name == "mlflow":
        write_run_id(runtime, tracker.name, tracker.tracker.info.run_id)
