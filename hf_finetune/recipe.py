"""How a recipe starts, and how any command of the package reports errors."""

import os
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_finetune.config.loading import load_config
from hf_finetune.system.console import configure_logging
from hf_finetune.system.errors import InputError, StoppedError, redact
from hf_finetune.system.signals import EXIT_TRY_AGAIN

EXIT_INPUT = 2


def run_recipe(
    task_name: str,
    defaults: Mapping[str, Any],
    *,
    demo: Mapping[str, Any] | None = None,
    description: str = "",
    arguments: Sequence[str] | None = None,
) -> int:
    """Reads settings (recipe defaults, --config, command line), fine-tunes, and returns the exit code.

    `demo` goes over the defaults where neither --config nor the command line names any data.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> None:
        config = load_config(defaults, words, demo=demo, prog=Path(sys.argv[0]).stem, description=description)
        if config is not None:
            from hf_finetune.train import finetune

            finetune(config, task_name=task_name)

    return exit_process(report_errors(run, debug="--debug" in words))


def exit_process(code: int) -> int:
    """The exit code; where several processes ran, ends this one with it here and now.

    Distributed data parallel never gives its process group free, so gloo's threads outlive the interpreter, and one that
    lets go of a tensor while it is torn down aborts the process ("terminate called without an active exception").
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "hf_finetune.system.processes" in sys.modules:
        sys.modules["hf_finetune.system.processes"].leave_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def report_errors(function: Callable[[], None], *, debug: bool = False) -> int:
    """Runs `function`; an InputError becomes one `error:` line on standard error and exit code 2, a signal that stopped a
    run exit code 75."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    configure_logging()
    if not debug:
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        function()
    except InputError as error:
        if debug:
            traceback.print_exc()
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once on each machine
            print(f"error: {redact(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
        return EXIT_INPUT
    except StoppedError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"stopped ({error}); the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        return EXIT_TRY_AGAIN
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def recipe_path(name: str) -> Path:
    """The file of a recipe: in the wheel inside the package, in a checkout beside it."""
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    known = sorted(
        path.stem for folder in (package / "recipes", package.parent / "recipes") for path in folder.glob("*.py")
    )
    raise InputError(f"train {name}: there is no such recipe; there are {', '.join(known)}")


def run_recipe_file(name: str, arguments: Sequence[str]) -> int:
    """Runs the recipe's own file as a script, with these arguments; returns its exit code."""
    path = recipe_path(name)
    sys.argv = [str(path), *arguments]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0
