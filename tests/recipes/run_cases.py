"""Runs many recipes in one process or one group of processes, for tests/recipes/test_recipes.py.

    python run_cases.py kill SETTINGS.json UPDATE       each run in a child that kills itself with SIGKILL after that update
    torchrun --nproc_per_node 2 run_cases.py train SETTINGS.json          each run in turn, on all processes

SETTINGS.json: [{dotted key: value}, ...]
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import extending_page
import torch

from hf_finetune import train as train_module
from hf_finetune.config.loading import load_config


def kill_after(update: int) -> None:
    """Has this process kill itself once everything that is due after an update is done."""
    original = train_module.finish_update

    def finish_and_kill(*arguments: Any, **options: Any) -> Any:
        progress = original(*arguments, **options)
        if progress.update == update:
            os.kill(os.getpid(), signal.SIGKILL)
        return progress

    train_module.finish_update = finish_and_kill


def main() -> int:
    """Trains with each of the settings; checks that runs that should be killed were."""
    torch.set_num_threads(1)
    extending_page.add_modules()
    for settings in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")):
        config = load_config(settings, [])
        if sys.argv[1] == "train":
            train_module.finetune(config)
            continue
        child = os.fork()  # this process has imported everything and trained nothing
        if child == 0:
            kill_after(int(sys.argv[3]))
            train_module.finetune(config)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"{settings['name']} ended with {status} and was not killed"
    return 0


if __name__ == "__main__":
    sys.exit(main())
