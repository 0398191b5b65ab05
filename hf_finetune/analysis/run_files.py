"""The files of a run, read from its folder: of one that is finished, still running or interrupted, and of earlier versions."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_finetune.config.changes import get_length
from hf_finetune.config.sections import flatten
from hf_finetune.config.yaml_files import YAML_ERRORS, load_yaml
from hf_finetune.system.errors import InputError
from hf_finetune.system.locks import STALE_SECONDS

FINISHED, RUNNING, UNFINISHED = "finished", "running", "unfinished"


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What lies in the folder of a run.

    Attributes:
        folder: The folder.
        label: A name that no other run of the report or the comparison has: that of the folder, with its parent's if it must be.
        state: FINISHED; RUNNING: its lock is being renewed; UNFINISHED: interrupted.
        settings: The content of config.yaml by dotted keys.
        environment: The content of environment.json; {} if it is missing, as of the next two.
        data_report: The content of data.json.
        results: The content of results.json.
        rows: The rows of metrics.jsonl.
        missing: Sentences about files and numbers that are not there.
    """

    folder: Path
    label: str
    state: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    data_report: Mapping[str, Any]
    results: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    missing: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The task."""
        return str(self.settings.get("task.kind", ""))

    @cached_property
    def metric(self) -> str | None:
        """The metric that chooses the best checkpoint, None if it is not known yet.

        A run without results has logged its metrics in the task's order: the loss, then the metric that decides by default.
        """
        named = self.results.get("metric") or self.settings.get("evaluation.metric")
        if named not in (None, "auto"):
            return str(named)
        logged = (name.partition("/")[2] for row in self.rows for name in row if name.startswith("validation/"))
        return next((name for name in logged if name != "loss"), None)

    @property
    def last_update(self) -> int:
        """The number of the last update that was logged; 0 if there is none."""
        return max((row["update"] for row in self.rows), default=0)

    def get_curve(self, name: str) -> list[tuple[int, float]]:
        """Returns the pairs of update and value of a logged number, without those that are not finite."""
        return [(row["update"], row[name]) for row in self.rows if row.get(name) is not None]


def read_runs(folders: Sequence[str | Path]) -> list[RunFiles]:
    """Returns the files of several runs. InputError if a folder is named twice, or is not that of a run."""
    paths = [Path(folder) for folder in folders]
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise InputError(f"{folders[number]}: is named twice")
    return [read_run(path, label) for path, label in zip(paths, make_labels(resolved), strict=True)]


def make_labels(paths: Sequence[Path]) -> list[str]:
    """Returns the shortest end of each path, from its last name on, that no other path ends with."""
    labels = []
    for path in paths:
        parts, length = path.parts, 1
        while length < len(parts) and sum(other.parts[-length:] == parts[-length:] for other in paths) > 1:
            length += 1
        labels.append("/".join(parts[-length:]))
    return labels


def read_run(folder: Path, label: str) -> RunFiles:
    """Returns the files of a run. InputError if the folder is not that of a run."""
    if not (folder / "config.yaml").is_file():
        trials = folder / "trials"
        hint = f"; its runs are in {trials}" if trials.is_dir() else ""
        raise InputError(f"{folder}: is not the folder of a run: it has no config.yaml{hint}")
    missing: list[str] = []
    settings = read_settings(folder)
    environment, data_report, results = (
        read_object(folder / name, missing) for name in ("environment.json", "data.json", "results.json")
    )
    state = find_state(folder, results)
    if state != FINISHED:
        missing = [sentence for sentence in missing if not sentence.startswith("results.json is missing")]
        what = "is still running" if state == RUNNING else "was interrupted, or failed"
        missing.insert(0, f"The run {what}: final scores are written when it ends.")
    elif results.get("length") not in (None, get_length(settings)):
        missing.insert(0, "The run trains longer now: results.json and model/ are those of its earlier end.")
    rows = read_rows(folder / "metrics.jsonl", missing)
    return RunFiles(
        folder=folder,
        label=label,
        state=state,
        settings=settings,
        environment=environment,
        data_report=data_report,
        results=results,
        rows=rows,
        missing=tuple(missing),
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns the settings of config.yaml by their dotted keys. InputError if it cannot be read."""
    path = folder / "config.yaml"
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, *YAML_ERRORS) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: does not hold settings")
    return dict(flatten({str(key): value for key, value in content.items()}))


def read_object(path: Path, missing: list[str]) -> dict[str, Any]:
    """Returns the content of a JSON file, or {} and a sentence about it in `missing`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(f"{path.name} is missing: the run did not come so far, or an earlier version made it.")
        return {}
    except (OSError, ValueError) as error:
        missing.append(f"{path.name} cannot be read: {error}.")
        return {}
    if not isinstance(content, dict):
        missing.append(f"{path.name} does not hold an object.")
        return {}
    return content


def read_rows(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl in the order of their updates, without a last line that is being written."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        missing.append("metrics.jsonl is missing: nothing has been logged.")
        return []
    return sorted(parse_rows(lines), key=lambda row: int(row["update"]))


def parse_rows(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    """Yields the rows that are objects with the number of an update."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("update"), int):
            yield row


def find_state(folder: Path, results: Mapping[str, Any]) -> str:
    """Returns whether a run is finished, running or unfinished. A running one renews its lock every few seconds."""
    try:
        if time.time() - (folder / ".lock").stat().st_mtime < STALE_SECONDS:
            return RUNNING
    except OSError:
        pass
    return FINISHED if results.get("status") == FINISHED else UNFINISHED
