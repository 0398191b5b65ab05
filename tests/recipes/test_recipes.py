"""Every recipe end to end: learns, is killed and goes on to the same weights, and gives the same numbers cached or not, on one
process or two, with any micro-batch.

Killed runs and runs on two processes are made once for all cases: starting Python takes longer than the runs.
"""

import ast
import importlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from recipe_case import Case
from safetensors.torch import load_file
from support import tiny

from hf_finetune.config.loading import load_config
from hf_finetune.recipe import recipe_path
from hf_finetune.run import checkpoint
from hf_finetune.system.errors import InputError
from hf_finetune.train import RunResult, finetune

HERE = Path(__file__).parent
CASES: list[Case] = [
    case for path in sorted(HERE.glob("case_*.py")) for case in importlib.import_module(path.stem).CASES
]
EVERY_UPDATE, KILLED_AFTER = 2, 5  # the last checkpoint before the kill is of update 4
LOSS = 1e-5  # largest difference of a loss between runs that sum in another order
COMMON = {
    "data.max_length": 48,
    "train.epochs": 2,
    "train.batch_size": 8,
    "train.learning_rate": 2e-3,
    "train.head_learning_rate": None,
    "train.precision": "fp32",
    "train.dropout_masks": "stateless",
    "freeze.embeddings": True,
    "freeze.layers": 1,
    "cache.activations": "off",
    "tracking.trackers": [],
    "tracking.log_every": 1,
    "checkpoint.every": EVERY_UPDATE,
}


def load_recipe(recipe: str) -> Any:
    """The recipe's module."""
    spec = importlib.util.spec_from_file_location(recipe, recipe_path(recipe))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_jobs(folder: Path) -> list[dict[str, Any]]:
    """The settings of every case, its data and backbone made."""
    jobs = []
    for case in CASES:
        own = folder / str(case)
        (own / "data").mkdir(parents=True)
        backbone = tiny.make_backbone(own / "backbone", case.family, **{"layers": 2, **case.tiny_options})
        made = {"model.backbone": str(backbone), "output_dir": str(own / "outputs"), **case.make_data(own / "data")}
        settings = load_recipe(case.recipe).DEFAULTS | COMMON | made | case.settings
        jobs.append({"task": case.task, "settings": settings})
    return jobs


def run_all(folder: Path) -> None:
    """Makes all jobs, kills each once, and trains each on two processes."""
    jobs = make_jobs(folder)
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_FINETUNE_CACHE": str(folder / "cache")}
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for kind, words in (("killed", [sys.executable, str(HERE / "run_cases.py"), "kill", "{}", str(KILLED_AFTER)]),
                        ("both", [*two, str(HERE / "run_cases.py"), "train", "{}"])):  # fmt: skip
        path = folder / f"{kind}.json"
        named = [{**job, "settings": job["settings"] | {"name": kind}} for job in jobs]
        path.write_text(json.dumps(named), encoding="utf-8")
        command = [str(path) if word == "{}" else word for word in words]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        (folder / f"{kind}.log").write_text(f"{done.returncode}\n{done.stdout}\n{done.stderr}", encoding="utf-8")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """`{str(case): job}`; made by the first of several test workers, the others wait for it."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "recipes"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            run_all(folder)
            (folder / "done").touch()
    made = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    return {str(case): job for case, job in zip(CASES, made, strict=True)}


def run(job: dict[str, Any], name: str, **settings: Any) -> RunResult:
    """A run of a job under a name, with settings over its own."""
    config = load_config(job["settings"] | settings | {"name": name}, [])
    assert config is not None
    return finetune(config, task_name=job["task"])


def run_dir(job: dict[str, Any], name: str) -> Path:
    """The folder of a run; the test fails with the log where it is not finished."""
    folder = Path(job["settings"]["output_dir"]) / name
    log = folder.parent.parent.parent / f"{name}.log"
    assert (folder / "config.yaml").exists(), log.read_text(encoding="utf-8")[-3000:]
    return folder


def losses(folder: Path) -> dict[tuple[str, int], float]:
    """Every loss that a run logged, by kind and update."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {(key, row["update"]): value for row in rows for key, value in row.items() if key.endswith("/loss")}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a finished run: weights and optimizer of its last checkpoint, and the exported weights."""
    path, _ = checkpoint.find_newest_intact(folder / "checkpoints")
    assert path is not None
    content = checkpoint.load_checkpoint(path)
    found = dict(content["model_state_dict"])
    for number, state in content["optimizer_state_dict"]["state"].items():
        found |= {f"{number}/{key}": value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return found | {f"model/{key}": value for file in (folder / "model").glob("*.safetensors")
                    for key, value in load_file(file).items()}  # fmt: skip


def assert_same_losses(ours: Path, theirs: Path) -> None:
    """The same losses at the same updates, but for the order of sums."""
    found, expected = losses(ours), losses(theirs)
    assert found.keys() == expected.keys()
    assert len(found) > 6
    for place, value in expected.items():
        assert found[place] == pytest.approx(value, abs=LOSS, rel=LOSS), place


@pytest.fixture(scope="module")
def whole(jobs: dict[str, dict[str, Any]]) -> Callable[[Case], RunResult]:
    """`whole(case)`: the run of a case on one process, that nothing disturbs; made once."""
    made: dict[str, RunResult] = {}

    def make(case: Case) -> RunResult:
        if str(case) not in made:
            made[str(case)] = run(jobs[str(case)], "whole")
        return made[str(case)]

    return make


def test_every_recipe_has_a_case() -> None:
    recipes = {path.stem for path in recipe_path("classify").parent.glob("*.py")}
    assert recipes == {case.recipe for case in CASES}
    assert len({str(case) for case in CASES}) == len(CASES)
    assert {"bert", "deberta-v2", "modernbert", "t5", "bart", "gpt2", "llama"} <= {case.family for case in CASES}


@pytest.mark.parametrize("path", sorted(recipe_path("classify").parent.glob("*.py")), ids=lambda path: path.stem)
def test_a_recipe_is_its_defaults_and_nothing_else(path: Path) -> None:
    """No logic, so that none is shared: a docstring, two imports, settings, and the call."""
    text = path.read_text(encoding="utf-8")
    docstring, system, package, *settings, call = ast.parse(text).body
    assert isinstance(docstring, ast.Expr)
    assert [ast.unparse(node) for node in (system, package)] == ["import sys", "from hf_finetune import run_recipe"]
    names = [ast.unparse(node.targets[0]) for node in settings if isinstance(node, ast.Assign)]
    assert names == ["DEFAULTS", "DEMO"][: len(settings)]
    assert all(isinstance(node, ast.Assign) and ast.literal_eval(node.value) for node in settings)
    assert ast.unparse(call).startswith("if __name__ == '__main__':\n    sys.exit(run_recipe(")
    assert len(text.splitlines()) <= 60


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_recipe_learns_is_exact_and_goes_on_where_it_was_killed(
    case: Case, jobs: dict[str, dict[str, Any]], whole: Callable[[Case], RunResult]
) -> None:
    job, result = jobs[str(case)], whole(case)
    first = [value for (kind, _), value in losses(result.run_dir).items() if kind == "train/loss"]
    assert sum(first[-3:]) < sum(first[:3])
    for split in ("validation", "test"):
        assert all(math.isfinite(value) for value in result.results[split].values()), result.results[split]
    assert result.results["reload_difference"] <= 1e-5
    assert 0 < result.results["parameters"]["trainable"] < result.results["parameters"]["total"]

    killed = run_dir(job, "killed")
    assert not (killed / "results.json").exists()
    path, _ = checkpoint.find_newest_intact(killed / "checkpoints")
    assert path is not None
    assert f"_update{KILLED_AFTER - 1:06d}_" in path.name
    run(job, "killed")
    assert losses(killed) == losses(result.run_dir)
    ours, theirs = tensors(killed), tensors(result.run_dir)
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in theirs.items() if not torch.equal(tensor, ours[name])] == []

    small = run(job, "small", **{"train.micro_batch_size": 3})
    assert_same_losses(small.run_dir, result.run_dir)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_recipe_gives_the_same_numbers_cached_and_on_two_processes(
    case: Case, jobs: dict[str, dict[str, Any]], whole: Callable[[Case], RunResult]
) -> None:
    job, result = jobs[str(case)], whole(case)
    both = run_dir(job, "both")
    assert_same_losses(both, result.run_dir)
    results = json.loads((both / "results.json").read_text(encoding="utf-8"))
    assert results["processes"] == 2
    for split in ("validation", "test"):
        assert results[split] == pytest.approx(result.results[split], abs=1e-4, nan_ok=True)
    cached = {"cache.activations": "on", "cache.precision": "fp32"}
    if not case.caches:
        with pytest.raises(InputError, match=re.escape("cache.activations (on): ")):
            run(job, "cached", **cached)
        return
    assert_same_losses(run(job, "cached", **cached).run_dir, result.run_dir)
