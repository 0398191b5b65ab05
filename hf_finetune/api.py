"""The door from Python: finetune() takes data frames and functions, and returns a Run.

    run = finetune("classify", train=frame, test=test_frame, settings={"train.epochs": 3})
    run.results["test"], run.history, run.predict(["a text", "another"])

The same words give the same run as on the command line. docs/python.md shows all of it.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_finetune.config.loading import load_config
from hf_finetune.config.recipes import read_defaults
from hf_finetune.config.references import make_reference
from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import load_task
from hf_finetune.data.formats import name_type
from hf_finetune.data.iterable_shards import is_stream
from hf_finetune.data.memory import MEMORY, read_memory
from hf_finetune.data.plain import name_library
from hf_finetune.data.splits import SPLITS, load_splits
from hf_finetune.export.trained_run import Run
from hf_finetune.run.parts import NO_PARTS, Parts, check_are_functions, name_metrics
from hf_finetune.system.console import LOOKS, show_run
from hf_finetune.system.errors import AGAIN, InputError, StoppedError
from hf_finetune.system.signals import StopSignals
from hf_finetune.system.startup import quick_imports

# Names that data sets give to their splits, by ours
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def finetune(
    task: str | type | RunConfig,
    train: Any = None,
    *,
    validation: Any = None,
    test: Any = None,
    settings: Mapping[str, Any] | None = None,
    loss: Callable[..., Any] | None = None,
    metrics: Mapping[str, Callable[..., Any]] | Sequence[Callable[..., Any]] = (),
    optimizer: Callable[..., Any] | None = None,
    augment: Callable[..., Any] | None = None,
    on_update: Callable[..., Any] | None = None,
    show: str = "auto",
) -> Run:
    """Fine-tunes a model, and returns the finished run. A run that was interrupted continues if it is called again.

    Args:
        task: The name of a task, such as "classify"; a class of your own; or a RunConfig, which has all settings.
        train: The training data: a pandas or polars frame, a datasets.Dataset, a list of dicts (rows), a dict of lists (columns),
            or paths of files. A datasets.DatasetDict gives validation and test, too. A datasets.IterableDataset, or a function
            without arguments that returns an iterator of rows, is read during training (data.streaming).
        validation: Validation data. If not given, a part of the training data is used (data.validation_fraction).
        test: Test data. If not given, a part of the training data is used (data.test_fraction).
        settings: Settings by their dotted keys, such as {"train.epochs": 3}. Others have the defaults of the task's recipe, as on
            the command line.
        loss: loss(outputs, batch) -> (sum over targets, number of targets).
        metrics: Functions metric(inputs) -> number, by name, or a list of them.
        optimizer: optimizer(groups, **options) -> torch.optim.Optimizer.
        augment: augment(row, seed, epoch) -> row, for the training rows of each epoch.
        on_update: on_update(update, model), called after each update.
        show: How the run is shown: "auto" (live on a terminal, a bar in a notebook, lines elsewhere), "lines", "quiet" (warnings
            and the final line), or "json" (an object a line for each event). docs/python.md says more.

    A run that is given no name (settings {"name": ...}) has that of its data. If another run has that name, one with other
    settings, data or functions, it gets a number, as reviews-2. docs/extending.md describes the functions.

    Raises InputError for anything that you can fix, and StoppedError (a KeyboardInterrupt) if the run was interrupted and has
    been saved.
    """
    began = time.perf_counter()
    if show not in LOOKS:
        raise InputError(f"show ({show}): must be one of {', '.join(LOOKS)}")
    functions = {"loss": loss, "optimizer": optimizer, "augment": augment, "on_update": on_update}
    data = {"train": train, "validation": validation, "test": test}
    with show_run(show):
        try:
            with StopSignals().install():
                config, parts, is_named = prepare(task, data, settings, functions, metrics)
                # Nothing heavy is imported before this line: what the user can get wrong shows at once
                with quick_imports():
                    from hf_finetune.run.naming import name_run
                    from hf_finetune.train import finetune as train_run

                config = config if is_named else name_run(config, parts)
        except StoppedError as error:
            message = f"{error}: there was nothing to save yet; {AGAIN} to start from the beginning"
            raise StoppedError(message) from None
        result = train_run(config, parts, began=began)
    return Run(config=config, run_dir=result.run_dir, model_dir=result.model_dir, results=result.results, parts=parts)


def prepare(
    task: str | type | RunConfig,
    data: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    functions: Mapping[str, Callable[..., Any] | None],
    metrics: Mapping[str, Callable[..., Any]] | Sequence[Callable[..., Any]],
) -> tuple[RunConfig, Parts, bool]:
    """Returns the checked settings of a run, its rows and functions, and whether it was given a name. Errors as finetune()."""
    if isinstance(task, RunConfig):
        if metrics or settings or any(value is not None for value in (*data.values(), *functions.values())):
            raise InputError("finetune(): a RunConfig has all settings; give a task's name to add data or functions")
        return task, NO_PARTS, True
    if not isinstance(settings or {}, Mapping):
        raise InputError(f"settings: is {name_type(settings)}; give a dict of settings by their dotted keys")
    for name, function in functions.items():
        if function is not None and not callable(function):
            hint = f"; an import path is the setting train.{name}" if isinstance(function, str) else ""
            raise InputError(f"{name}: is {name_type(function)}; give a function{hint}")
    settings = {key: make_setting(value) for key, value in (settings or {}).items()}
    named = name_metrics(metrics)
    check_are_functions(named.values())
    config, parts = make_run_config(task, data, settings, functions, named)
    return config, replace(parts, rows=read_rows(config, parts.rows)), "name" in settings


def make_run_config(
    task: str | type,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    functions: Mapping[str, Callable[..., Any] | None],
    metrics: Mapping[str, Callable[..., Any]],
) -> tuple[RunConfig, Parts]:
    """Returns the config of a run and its parts. Rows and functions stand in the config by a name, so that it can be saved.

    Raises InputError if something is given twice.
    """
    kind = task if isinstance(task, str) else make_reference(task)
    if "<locals>" in kind:
        raise InputError(f"task ({kind}): must be a class at the top level of a module, program or notebook")
    locations, rows = split_data(data)
    named: dict[str, Any] = {
        f"train.{name}": make_reference(function) for name, function in functions.items() if function is not None
    }
    if metrics:
        listed = settings.get("evaluation.metrics", ())
        others = [listed] if isinstance(listed, str) else list(listed or ())
        named["evaluation.metrics"] = [
            *others,
            *(f"{name}={make_reference(function)}" for name, function in metrics.items()),
        ]
    streaming = {"data.streaming": True} if is_stream(rows.get("train")) and "data.streaming" not in settings else {}
    given = {"task.kind": kind, **locations, **named, **streaming}
    if twice := sorted((given.keys() - {"evaluation.metrics"}) & settings.keys()):
        raise InputError(f"settings: {twice[0]} is an argument of finetune() too; give it once")
    if rows and settings.get("data.dataset") is not None:
        raise InputError(f"data.dataset ({settings['data.dataset']}): goes with the names of its splits, not with rows")
    config = load_config({**read_defaults(kind), **settings, **given})
    return config, Parts(rows=rows, metrics=metrics, **functions)


def read_rows(config: RunConfig, rows: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the rows of memory as tables, by split, and a stream as it is. Checks their texts, and their labels if all splits
    are in memory.

    InputError, with the row, if one cannot be used.
    """
    task_class = load_task(config.task.kind)
    spec = task_class.make_columns(config).spec
    given = {split: value for split, value in rows.items() if split == "train" and config.data.streaming}
    tables = {
        split: read_memory(value, split, config.data, spec) for split, value in rows.items() if split not in given
    }
    if given:
        return {**tables, **given}
    if tables and all(split in tables for split in SPLITS if getattr(config.data, split)):
        task_class.from_table(config, load_splits(config.data, config.seed, spec, tables).train)
    return tables


def split_data(data: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Returns the settings data.train, data.validation and data.test, and the rows that were given in memory, by split.

    Raises InputError if a split is given twice.
    """
    data = {split: value for split, value in data.items() if value is not None}
    if isinstance(data.get("train"), Mapping) and name_library(data["train"]) == "datasets":
        data = {**unpack_splits(data.pop("train"), data), **data}
    locations: dict[str, list[str]] = {}
    rows: dict[str, Any] = {}
    for split, value in data.items():
        if isinstance(value, (str, os.PathLike)):
            locations[f"data.{split}"] = [os.fspath(value)]
        elif isinstance(value, (list, tuple)) and value and all(isinstance(item, (str, os.PathLike)) for item in value):
            locations[f"data.{split}"] = [os.fspath(item) for item in value]
        else:
            locations[f"data.{split}"] = [f"{MEMORY}{split}"]
            rows[split] = list_once(value)
    return locations, rows


def make_setting(value: Any) -> Any:
    """Returns the value of a setting as YAML can write it: paths and runs as strings, numbers and arrays of numpy as Python's."""
    if isinstance(value, Run):
        return str(value.run_dir)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [make_setting(item) for item in value]
    return value.tolist() if name_library(value) == "numpy" and hasattr(value, "tolist") else value


def list_once(value: Any) -> Any:
    """Returns rows that can be read again: the items of a generator as a list, anything else as it is."""
    return list(value) if hasattr(value, "__next__") else value


def unpack_splits(splits: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the splits of a datasets.DatasetDict by our names. InputError if it has no training split, or if `others` has a
    split too."""
    found = {split: splits[name] for split in SPLITS for name in reversed(SPLIT_NAMES[split]) if name in splits}
    if "train" not in found:
        raise InputError(f"train: the DatasetDict has no split train (it has {', '.join(map(str, splits))})")
    if twice := sorted(found.keys() & others.keys()):
        raise InputError(f"{twice[0]}: is given, and the DatasetDict has it too; leave one of them out")
    return found
