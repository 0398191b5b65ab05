"""The commands that choose: sweep, train --folds and --seeds, learning-curve, label-errors, advise."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_finetune.config.loading import choose_kind, load_config, read_settings, split_arguments
from hf_finetune.config.recipes import read_defaults
from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import TASKS
from hf_finetune.recipe import FLAGS, report_errors
from hf_finetune.system.errors import InputError
from hf_finetune.system.startup import find_command_start, quick_imports

SWEEP_EPILOG = """The file of --search:

  trials: 8
  train.learning_rate: {log_uniform: [1e-5, 1e-3]}
  freeze.layers: {int_uniform: [2, 5]}
  train.schedule: {choice: [linear, cosine]}

All trials train a ninth of their updates, the best third of them a third, and the best third of those all. With halving: false,
all trials train to their end. docs/choosing.md has more."""


def add_sweep(commands: Any) -> None:
    """Adds the parser of hf-finetune sweep, which prints its help. run_sweep() reads the words."""
    parser = commands.add_parser(
        "sweep",
        help="search settings: many trials in one process, the worse ones left early",
        usage="hf-finetune sweep RECIPE --search FILE.yaml [settings as for train]",
        epilog=SWEEP_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", metavar="RECIPE", choices=tuple(TASKS), help=f"one of {', '.join(TASKS)}")
    parser.add_argument(
        "--search", metavar="FILE.yaml", help="the number of trials, and the values to draw settings from"
    )
    add_parallel(parser)


def add_parallel(parser: argparse.ArgumentParser) -> None:
    """Adds the option of commands that run several trainings, for their help. read_parallel() reads it."""
    parser.add_argument(
        "--parallel",
        metavar="N",
        help="how many run at the same time; if not given, one on each GPU, and one without GPUs",
    )


def read_parallel(text: str | None) -> int | None:
    """Returns the value of --parallel. InputError if it is not a whole number."""
    if text is not None and not text.isdecimal():
        raise InputError(f"--parallel ({text}): must be a whole number")
    return None if text is None else int(text)


def run_sweep(words: Sequence[str]) -> int:
    """hf-finetune sweep RECIPE ..."""

    def run() -> None:
        options, settings = take_options(words[1:], "search", "parallel")
        if options["search"] is None:
            raise InputError("--search (nothing): name the file of the search; hf-finetune sweep --help shows one")
        with quick_imports(is_command=True):
            from hf_finetune.choosing.sweep import DEFAULTS, sweep

        sweep(load_base(words[0], settings, "sweep", DEFAULTS), options["search"], read_parallel(options["parallel"]))

    return report_errors(run, debug="--debug" in words)


REPEATS_EPILOG = """Many runs of the same settings:
  --folds K    one for each of K folds of the training data: mean, deviation, out-of-fold predictions, wrong labels
  --seeds N    one for each of N seeds: mean, deviation
  --parallel N how many run at the same time; if not given, one on each GPU, and one without GPUs
docs/choosing.md has more."""


def asks_for_repeats(words: Sequence[str]) -> bool:
    """True if the words of hf-finetune train ask for folds or seeds, and not for help."""
    return not {"--help", "-h"} & {*words} and any(word.partition("=")[0] in ("--folds", "--seeds") for word in words)


def run_repeats(words: Sequence[str]) -> int:
    """hf-finetune train RECIPE --folds K or --seeds N."""

    def run() -> None:
        has_recipe = not words[0].startswith("-")
        options, settings = take_options(words[1:] if has_recipe else words, "folds", "seeds", "parallel")
        parallel = read_parallel(options.pop("parallel"))
        (kind, text), *others = [(key, value) for key, value in options.items() if value is not None]
        if others:
            raise InputError(f"--folds ({options['folds']}): cannot be used with --seeds; run them one after the other")
        if not text.isdecimal():
            raise InputError(f"--{kind} ({text}): must be a whole number")
        recipe = words[0] if has_recipe else choose_kind({}, read_settings(settings))
        with quick_imports(is_command=True):
            from hf_finetune.choosing import repeats

        if kind == "folds":
            repeats.run_folds(load_base(recipe, settings, kind, repeats.FOLD_DEFAULTS), int(text), parallel)
        else:
            repeats.run_seeds(load_base(recipe, settings, kind, repeats.SEED_DEFAULTS), int(text), parallel)

    return report_errors(run, debug="--debug" in words)


def add_learning_curve(commands: Any) -> None:
    """Adds the parser of hf-finetune learning-curve, which prints its help. run_learning_curve() reads the words."""
    parser = commands.add_parser(
        "learning-curve",
        help="train on an eighth, a quarter, half and all of the rows, and forecast what twice as many bring",
        usage="hf-finetune learning-curve RECIPE [settings as for train]",
    )
    parser.add_argument("recipe", metavar="RECIPE", choices=tuple(TASKS), help=f"one of {', '.join(TASKS)}")
    add_parallel(parser)


def run_learning_curve(words: Sequence[str]) -> int:
    """hf-finetune learning-curve RECIPE ..."""

    def run() -> None:
        options, settings = take_options(words[1:], "parallel")
        with quick_imports(is_command=True):
            from hf_finetune.choosing import learning_curve

        base = load_base(words[0], settings, learning_curve.KIND, learning_curve.DEFAULTS)
        learning_curve.run_learning_curve(base, read_parallel(options["parallel"]))

    return report_errors(run, debug="--debug" in words)


def add_label_errors(commands: Any) -> None:
    """Adds the parser of hf-finetune label-errors."""
    parser = commands.add_parser(
        "label-errors", help="list the likeliest wrong labels of training data, from its folds"
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="folder of hf-finetune train RECIPE --folds K; of several, with other seeds or settings, the mean counts",
    )
    parser.add_argument("--top", type=int, default=50, help="number of labels to print (default: 50); the file has all")
    parser.set_defaults(function=run_label_errors)


def run_label_errors(options: argparse.Namespace) -> None:
    """Runs hf-finetune label-errors."""
    from hf_finetune.choosing.label_errors import show_label_errors

    show_label_errors([Path(folder) for folder in options.folders], options.top)


def add_advise(commands: Any) -> None:
    """Adds the parser of hf-finetune advise, which prints its help. run_advise() reads the words."""
    parser = commands.add_parser(
        "advise",
        help="how many layers to freeze: the expected metric and seconds of each depth, without training",
        usage="hf-finetune advise classify [--out FILE.svg] [settings as for train]",
        epilog="Prints a table, a picture and the lines to paste. docs/advise.md has more.",
    )
    parser.add_argument("recipe", metavar="RECIPE", choices=tuple(TASKS), help="classify")
    parser.add_argument("--out", metavar="FILE.svg", help="write the picture to a file, too")


def run_advise(words: Sequence[str]) -> int:
    """hf-finetune advise RECIPE ..."""

    def run() -> None:
        options, settings = take_options(words[1:], "out")
        began = find_command_start() if "hf_finetune.train" not in sys.modules else None
        with quick_imports(is_command=True):
            from hf_finetune.choosing.advise import advise

        advise(load_base(words[0], settings, "advise", {}), options["out"], began=began)

    return report_errors(run, debug="--debug" in words)


def take_options(words: Sequence[str], *names: str) -> tuple[dict[str, str | None], list[str]]:
    """Returns the values of a command's own options, and the words of the settings. InputError for two values, and for
    the flags that change what a single run prints."""
    if flags := sorted(FLAGS & {*words} - {"--debug"}):
        raise InputError(f"{flags[0]}: is for hf-finetune train with one run; leave it out")
    options: dict[str, str | None] = dict.fromkeys(names)
    settings: list[str] = []
    for key, values in split_arguments([word for word in words if word != "--debug"]):
        if key in names:
            if len(values) != 1:
                raise InputError(f"--{key} ({' '.join(values) or 'nothing'}): takes one value")
            options[key] = values[0]
        elif len(values) == 1:
            settings.append(f"--{key}={values[0]}")
        else:
            settings += [f"--{key}", *values]
    return options, settings


def load_base(recipe: str, words: Sequence[str], kind: str, defaults: dict[str, Any]) -> RunConfig:
    """Returns the settings that all runs of a command share. Without a name, it is that of the data with the command's.

    defaults: What the command sets otherwise than the recipe.
    """
    config = load_config({**read_defaults(recipe), **defaults}, words)
    return config if "name" in read_settings(words) else replace(config, name=f"{config.name}-{kind}")
