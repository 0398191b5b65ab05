"""Starting a recipe, and reporting the errors of all commands."""

import contextlib
import errno
import os
import runpy
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from hf_finetune.config.help import format_help
from hf_finetune.config.loading import choose_kind, load_config, read_settings, to_yaml
from hf_finetune.config.recipes import recipe_path
from hf_finetune.config.sections import RunConfig, require
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.system.console import configure_logging, is_main_process, show_run
from hf_finetune.system.errors import InputError, StoppedError, first_line, redact
from hf_finetune.system.output import STDOUT, OutputError, guard_output, open_standard_output
from hf_finetune.system.signals import EXIT_TRY_AGAIN
from hf_finetune.system.startup import find_command_start, quick_imports

EXIT_INPUT = 2
EXIT_UNREAD = 141  # as a shell reports SIGPIPE (128 + 13): nobody reads what is printed, as after `| head -1`
FLAGS = frozenset({"--help", "-h", "--print_config", "--debug", "--quiet", "--json", "--dry-run", "--auto"})


def run_recipe(
    defaults: Mapping[str, Any],
    *,
    demo: Mapping[str, Any] | None = None,
    description: str = "",
    arguments: Sequence[str] | None = None,
) -> int:
    """Reads settings (recipe defaults, --config, command line), fine-tunes, and returns the exit code.

    Args:
        defaults: Settings by their dotted keys, task.kind included.
        demo: Settings that override the defaults if neither --config nor the command line names data.
        description: Text at the top of --help.
        arguments: Words of the command line; those of this process if not given.
    """
    given_words = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given_words if word not in FLAGS]
    flags = FLAGS & {*given_words}

    def run() -> None:
        if flags & {"--help", "-h"}:
            print_help(defaults, words, demo=demo, description=description)
            return
        config = load_config(defaults, words, demo=demo)
        for flag in sorted(flags & {"--print_config", "--dry-run"}):
            require(
                "--auto" not in flags,
                flag,
                "--auto",
                "leave one out; what a run with --auto chooses is in its config.yaml",
            )
        if "--print_config" in flags:
            print(to_yaml(config), end="", file=open_standard_output())
            return
        start = find_command_start() if "hf_finetune.train" not in sys.modules else None
        began = time.perf_counter() if start is None else start
        if "--dry-run" in flags:
            print_plan(config, began, as_json="--json" in flags)
            return
        with show_run(choose_look(flags)):
            with quick_imports(is_command=start is not None):
                from hf_finetune.train import finetune

            if "--auto" in flags:
                from hf_finetune.choosing.auto import choose_settings

                config = choose_settings(config, read_settings(words).keys())
            finetune(config, began=began)

    return report_errors(run, debug="--debug" in flags)


def print_plan(config: RunConfig, began: float, *, as_json: bool) -> None:
    """Prints what the run will take (choosing.dry_run)."""
    output = open_standard_output()
    with contextlib.redirect_stdout(sys.stderr) if as_json else show_run(), quick_imports(is_command=True):
        from hf_finetune.choosing.dry_run import dry_run

        plan = dry_run(config, began=began)
    if is_main_process():
        print(plan.to_json() if as_json else plan.describe(), file=output)


def choose_look(flags: Set[str]) -> str:
    """Returns how the run is shown (console.LOOKS). InputError for both --quiet and --json."""
    if flags >= {"--quiet", "--json"}:
        raise InputError("--quiet: does not go with --json, whose lines are events; leave one of them out")
    return next((flag[2:] for flag in ("--quiet", "--json") if flag in flags), "auto")


def print_help(
    defaults: Mapping[str, Any], words: Sequence[str], *, demo: Mapping[str, Any] | None, description: str
) -> None:
    """Prints the settings of the recipe's task, or, if there is no recipe, of the task that the words name."""
    kind = defaults.get("task.kind") or choose_kind(defaults, read_settings(words))
    prog = f"hf-finetune train {kind}" if kind in TASKS else f"hf-finetune train --task.kind {kind}"
    print(format_help(load_task(kind).Settings, defaults, demo=demo, prog=prog, description=description))


def report_errors(function: Callable[[], None], *, debug: bool = False) -> int:
    """Runs `function`, and returns the exit code.

    An InputError becomes an `error:` line on standard error, with its details under it, and exit code 2; so does standard output
    that cannot be written, except in a run. A signal that stopped a run becomes exit code 75.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    configure_logging()
    if not debug:
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
    with guard_output():
        return find_exit_code(function, debug=debug)


def find_exit_code(function: Callable[[], None], *, debug: bool) -> int:
    """Runs `function`, prints its errors, and returns the exit code."""
    try:
        function()
        if sys.stdout is not None:
            sys.stdout.flush()
    except OutputError as error:
        if error.errno == errno.EPIPE:
            return EXIT_UNREAD
        print(f"error: {STDOUT}: cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_INPUT
    except InputError as error:
        if debug:
            traceback.print_exc()
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once on each machine
            print("\n".join(error.to_lines("error")), file=sys.stderr, flush=True)
        return EXIT_INPUT
    except OSError as error:  # of a disk or a network, at a place that has no better words for it
        if debug:
            traceback.print_exc()
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or first_line(error)
        print(redact(f"error: {place}{reason}"), file=sys.stderr, flush=True)
        return EXIT_INPUT
    except StoppedError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"stopped by {error}", file=sys.stderr, flush=True)
        return EXIT_TRY_AGAIN
    except KeyboardInterrupt:
        print("interrupted; the same command continues from what was saved", file=sys.stderr)
        return 130
    return 0


def run_recipe_file(name: str, arguments: Sequence[str]) -> int:
    """Runs the file of a recipe as a script with these arguments, and returns its exit code."""
    path = recipe_path(name)
    sys.argv = [str(path), *arguments]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, int):
            return end.code
        return 0 if end.code is None else 1
    return 0


def run_settings(arguments: Sequence[str]) -> int:
    """Trains with `--config FILE.yaml` and other settings that name the task: by its recipe, if it has one."""
    kind = choose_kind({}, read_settings([word for word in arguments if word not in FLAGS]))
    return run_recipe_file(kind, arguments) if kind in TASKS else run_recipe({}, arguments=arguments)
