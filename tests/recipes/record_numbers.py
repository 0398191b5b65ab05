"""Records the numbers of every recipe's test case and of the demo, so that a refactoring can show that it changed none.

    python tests/recipes/record_numbers.py record FILE.json [CASE ...]      losses, metrics, digests of the exported weights
    python tests/recipes/record_numbers.py compare OLD.json NEW.json

One process with one thread: the numbers are the same, bit for bit, each time the same code runs on the same machine.
"""

import hashlib
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from recipe_case import load_cases, load_recipe  # noqa: E402

from hf_finetune.config.loading import load_config  # noqa: E402
from hf_finetune.train import finetune  # noqa: E402

LOGGED = ("train/loss", "train/gradient_norm", "train/learning_rate", "validation/", "test/")


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_numbers(run_dir: Path) -> dict[str, Any]:
    """Logged losses and metrics, final metrics, and digests of the exported weights of a finished run."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = [
        [row["update"], key, value]
        for row in rows
        for key, value in sorted(row.items())
        if key.startswith(LOGGED) and "second" not in key
    ]
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    return {
        "logged": logged,
        "results": {key: results[key] for key in ("best", "validation", "test")},
        "weights": {path.name: hash_file(path) for path in sorted((run_dir / "model").glob("*.safetensors"))},
    }


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one run."""
    return read_numbers(finetune(load_config(settings, [])).run_dir)


def record(names: Sequence[str] = ()) -> dict[str, Any]:
    """The numbers of the cases with these names, or of all cases and of the demo; cached and not."""
    torch.set_num_threads(1)
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in load_cases():
            if names and str(case) not in names:
                continue
            settings = case.make_settings(Path(folder) / str(case))
            numbers[str(case)] = run(settings | {"name": "plain"})
            if case.caches:
                cached = {"name": "cached", "cache.activations": "on", "cache.dir": f"{folder}/cache"}
                numbers[f"{case} cached"] = run(settings | cached)
            print(case, numbers[str(case)]["results"]["test"], flush=True)
        if names:
            return numbers
        recipe = load_recipe("classify")
        machine = {"cache.activations": "off", "train.precision": "fp32", "output_dir": f"{folder}/demo"}
        numbers["demo"] = run({"task.kind": "classify", **recipe.DEFAULTS, **recipe.DEMO, **machine})
    return numbers


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Prints a line for each case that differs; returns 1 if any does."""
    changed = 0
    for case in sorted(old["cases"].keys() | new["cases"].keys()):
        before, after = old["cases"].get(case, {}), new["cases"].get(case, {})
        parts = [key for key in ("logged", "results", "weights") if before.get(key) != after.get(key)]
        changed += bool(parts)
        if parts:
            print(f"{case}: DIFFERS in {', '.join(parts)}")
    print(f"{len(new['cases'])} runs, {changed} of them differ")
    return int(changed > 0)


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        sys.exit(compare(*(json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[2:4])))
    made = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cases": record(sys.argv[3:]),
    }
    Path(sys.argv[2]).write_text(json.dumps(made, indent=1), encoding="utf-8")
