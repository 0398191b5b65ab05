"""Runs many recipes in one process or one group of processes, for tests/recipes/test_recipes.py.

    python run_cases.py kill JOBS.json UPDATE         each job in a child that kills itself with SIGKILL after that update
    torchrun --nproc_per_node 2 run_cases.py train JOBS.json          each job in turn, on all processes

JOBS.json: [{"task": ..., "settings": {dotted key: value}}, ...]
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from hf_finetune import train as composition
from hf_finetune.config.loading import load_config
from hf_finetune.recipe import exit_process


def train(job: dict[str, Any]) -> None:
    """One run from its settings."""
    config = load_config(job["settings"], [])
    assert config is not None
    composition.finetune(config, task_name=job["task"])


def kill_after(update: int) -> None:
    """Has this process kill itself once everything due after an update is done."""
    whole = composition.after_update

    def killing(*arguments: Any, **options: Any) -> Any:
        progress = whole(*arguments, **options)
        if progress.update == update:
            os.kill(os.getpid(), signal.SIGKILL)
        return progress

    composition.after_update = killing


def main() -> int:
    """Runs the jobs; of the killed ones checks that they were."""
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    for job in jobs:
        if sys.argv[1] == "train":
            train(job)
            continue
        child = os.fork()  # this process has imported all and trained nothing
        if child == 0:
            kill_after(int(sys.argv[3]))
            train(job)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"{job['settings']['name']} ended with {status} and was not killed"
    return 0


if __name__ == "__main__":
    sys.exit(exit_process(main()))
