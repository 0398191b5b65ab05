"""Records the numbers of every recipe's test case and of the demo, so that a refactoring can show that it changed none.

    python tests/recipes/record_numbers.py record FILE.json       losses, metrics, digests of the exported weights
    python tests/recipes/record_numbers.py compare OLD.json NEW.json

One process with one thread: the numbers are the same, bit for bit, each time the same code runs on the same machine.
"""

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import test_recipes  # noqa: E402
import torch  # noqa: E402

from hf_finetune.config.loading import load_config  # noqa: E402
from hf_finetune.train import finetune  # noqa: E402


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def numbers(run_dir: Path) -> dict[str, Any]:
    """What a finished run came to."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [[row["update"], key, value] for row in rows for key, value in sorted(row.items())
              if key.startswith(("train/loss", "train/gradient_norm", "train/learning_rate", "validation/", "test/"))
              and "second" not in key]  # fmt: skip
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    return {
        "logged": losses,
        "results": {key: results[key] for key in ("best", "validation", "test")},
        "weights": {path.name: digest(path) for path in sorted((run_dir / "model").glob("*.safetensors"))},
    }


def run(settings: dict[str, Any], task: str) -> dict[str, Any]:
    """The numbers of one run."""
    config = load_config(settings, [])
    assert config is not None
    return numbers(finetune(config, task_name=task).run_dir)


def record() -> dict[str, Any]:
    """The numbers of all cases, cached and not, and of the demo."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case, job in zip(test_recipes.CASES, test_recipes.make_jobs(Path(folder)), strict=True):
            settings = job["settings"]
            found[str(case)] = run(settings | {"name": "plain"}, job["task"])
            if case.caches:
                cached = {"name": "cached", "cache.activations": "on", "cache.dir": f"{folder}/prefix"}
                found[f"{case} cached"] = run(settings | cached, job["task"])
            print(case, found[str(case)]["results"]["test"], flush=True)
        module = test_recipes.load_recipe("classify")
        demo = {
            **module.DEFAULTS,
            **module.DEMO,
            "output_dir": f"{folder}/demo",
            "cache.activations": "off",
            "train.precision": "fp32",
        }
        found["demo"] = run(demo, "classification")
    return found


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Prints a line for each case; 1 if any number differs."""
    changed = 0
    for case in old["cases"].keys() | new["cases"].keys():
        before, after = old["cases"].get(case), new["cases"].get(case)
        changed += before != after
        if before != after:
            parts = [
                key for key in ("logged", "results", "weights") if (before or {}).get(key) != (after or {}).get(key)
            ]
            print(f"{case}: DIFFERS in {', '.join(parts)}")
    print(f"{len(new['cases'])} runs, {changed} of them differ")
    return int(changed > 0)


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        sys.exit(compare(*(json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[2:4])))
    made = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "cases": record()}
    Path(sys.argv[2]).write_text(json.dumps(made, indent=1), encoding="utf-8")
