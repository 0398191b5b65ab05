"""Every recipe end to end: it learns; killed, it resumes to the same weights; and it gives the same numbers cached or not, on one
process or two, with any micro-batch.

Killed runs and runs on two processes are made once for all selected cases: starting Python takes longer than the runs.
"""

import ast
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_case import EVERY_UPDATE, Case, load_cases
from safetensors.torch import load_file
from support.script_server import ScriptServer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_finetune.config.loading import load_config
from hf_finetune.config.recipes import recipe_path
from hf_finetune.data.features import Padding
from hf_finetune.export.evaluation import describe_evaluation
from hf_finetune.export.evaluation_tables import format_evaluation
from hf_finetune.export.predict import Predictor
from hf_finetune.export.predictor_calls import evaluate_file_examples
from hf_finetune.run import checkpoint
from hf_finetune.run.scored import read_scored
from hf_finetune.system.errors import InputError
from hf_finetune.train import RunResult, finetune

HERE = Path(__file__).parent
CASES = load_cases()
RECIPES = sorted(recipe_path("classify").parent.glob("*.py"))
KILLED_AFTER = 5  # the last checkpoint before the kill is of update 4
LOSS = 1e-5  # largest difference of a loss between runs that sum in another order
Settings = dict[str, Any]


@pytest.fixture(scope="module")
def settings_of_cases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, script_server: ScriptServer
) -> dict[str, Settings]:
    """`{str(case): settings}` of the selected cases. A run of each was killed, and one has trained on two processes."""
    items: list[Any] = request.session.items
    names = {str(item.callspec.params["case"]) for item in items if "case" in getattr(item, "fixturenames", ())}
    folder = tmp_path_factory.mktemp("recipes")
    settings = {str(case): case.make_settings(folder / str(case)) for case in CASES if str(case) in names}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_FINETUNE_CACHE": str(folder / "cache")}
    environment["PYTHONPATH"] = str(HERE.parent)  # for support
    for name, ranks, words in (
        ("killed", 1, ["kill", "killed.json", str(KILLED_AFTER)]),
        ("both", 2, ["train", "both.json"]),
    ):
        made = json.dumps([each | {"name": name} for each in settings.values()])
        (folder / f"{name}.json").write_text(made, encoding="utf-8")
        started = script_server.start(HERE / "run_cases.py", words, folder, environment, ranks)
        log = f"{started.wait(600)}\n{started.read()}\n{started.read('stderr')}"
        (folder / f"{name}.log").write_text(log, encoding="utf-8")
    return settings


def run(settings: Settings, name: str, **changes: Any) -> RunResult:
    """A run with some settings changed."""
    return finetune(load_config(settings | changes | {"name": name}, []))


def find_run_dir(settings: Settings, name: str) -> Path:
    """The folder of a run that settings_of_cases made; the test fails with its log if it is missing."""
    folder = Path(settings["output_dir"]) / name
    log = folder.parent.parent.parent / f"{name}.log"
    assert (folder / "config.yaml").exists(), log.read_text(encoding="utf-8")[-3000:]
    return folder


def read_losses(folder: Path) -> dict[tuple[str, int], float]:
    """Every loss that a run logged, by kind and update."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {(key, row["update"]): value for row in rows for key, value in row.items() if key.endswith("/loss")}


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a finished run: weights and optimizer of its last checkpoint, and the exported weights."""
    path, _ = checkpoint.find_newest_intact(folder / "checkpoints")
    assert path is not None
    content = checkpoint.load_checkpoint(path)
    tensors = dict(content["model_state_dict"])
    for number, state in content["optimizer_state_dict"]["state"].items():
        tensors |= {f"{number}/{key}": value for key, value in state.items() if isinstance(value, torch.Tensor)}
    for file in (folder / "model").glob("*.safetensors"):
        tensors |= {f"model/{key}": value for key, value in load_file(file).items()}
    return tensors


def assert_same_losses(ours: Path, theirs: Path) -> None:
    """The same losses at the same updates, up to the order of sums."""
    found, expected = read_losses(ours), read_losses(theirs)
    assert found.keys() == expected.keys()
    assert len(found) > 6
    for place, value in expected.items():
        assert found[place] == pytest.approx(value, abs=LOSS, rel=LOSS), place


@pytest.fixture(scope="module")
def undisturbed(settings_of_cases: dict[str, Settings]) -> Callable[[Case], RunResult]:
    """`undisturbed(case)`: the run of a case on one process that nothing interrupts; made once."""
    made: dict[str, RunResult] = {}

    def make(case: Case) -> RunResult:
        if str(case) not in made:
            made[str(case)] = run(settings_of_cases[str(case)], "whole", **{"tracking.trackers": ["tensorboard"]})
        return made[str(case)]

    return make


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs lie in folders of the cases; what a function of one's own writes into the current folder lies here."""
    monkeypatch.chdir(tmp_path)


def test_every_recipe_has_a_case() -> None:
    assert {path.stem for path in RECIPES} == {case.recipe for case in CASES}
    assert len({str(case) for case in CASES}) == len(CASES)
    assert {"bert", "deberta-v2", "modernbert", "t5", "bart", "gpt2", "llama"} <= {case.family for case in CASES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
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
def test_a_recipe_learns_is_exact_and_resumes_after_a_kill(
    case: Case,
    settings_of_cases: dict[str, Settings],
    undisturbed: Callable[[Case], RunResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, result = settings_of_cases[str(case)], undisturbed(case)
    first = [value for (kind, _), value in read_losses(result.run_dir).items() if kind == "train/loss"]
    assert sum(first[-3:]) < sum(first[:3])
    for split in ("validation", "test"):
        assert all(math.isfinite(value) for value in result.results[split].values()), result.results[split]
    assert result.results["reload_difference"] <= 1e-5
    assert 0 < result.results["parameters"]["trainable"] < result.results["parameters"]["total"]

    killed = find_run_dir(settings, "killed")
    assert not (killed / "results.json").exists()
    path, _ = checkpoint.find_newest_intact(killed / "checkpoints")
    assert path is not None
    assert f"_update{KILLED_AFTER // EVERY_UPDATE * EVERY_UPDATE:06d}_" in path.name
    run(settings, "killed")
    assert read_losses(killed) == read_losses(result.run_dir)
    ours, theirs = read_tensors(killed), read_tensors(result.run_dir)
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in theirs.items() if not torch.equal(tensor, ours[name])] == []
    ours_scored, theirs_scored = (
        {path.name: path.read_bytes() for path in (folder / "scored").glob("*")} for folder in (killed, result.run_dir)
    )
    assert ours_scored == theirs_scored  # even if the best evaluation was before the kill

    with monkeypatch.context() as patch:  # in few lengths, too, as in 16 bit
        patch.setattr(
            "hf_finetune.run.setup.choose_padding",
            lambda loaded, max_length, *_: Padding(loaded.pad_token_id, 8, max_length),
        )
        small = run(settings, "small", **{"train.micro_batch_size": 3})
    assert_same_losses(small.run_dir, result.run_dir)


NOT_OF_SINGLE_EXAMPLES = {  # by case, or by recipe
    "classify-bert-own-loss": {"loss"},
    "classify-bert-own-metrics-and-function": {"kappa", "wrong"},
    "embed": {"loss"},  # of in-batch negatives, or of scores that are scaled to 0..1
    "rerank": {"loss"},  # of lists
    "translate": {"chrf"},
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_metrics_of_a_run_follow_from_its_scored_examples(
    case: Case, undisturbed: Callable[[Case], RunResult]
) -> None:
    result = undisturbed(case)
    if case.variant == "own-task":  # which does not say what it knows of each example
        assert not (result.run_dir / "scored").exists()
        return
    missing = NOT_OF_SINGLE_EXAMPLES.get(str(case), NOT_OF_SINGLE_EXAMPLES.get(case.recipe, set()))
    for split in ("validation", "test"):
        scored = read_scored(result.run_dir / "scored" / f"{split}.jsonl")
        values = {name: value for name, value in result.results[split].items() if ":" not in name}
        assert values.keys() - set(scored.metrics) == missing
        computed = {name: float(scored.compute(name)[0]) for name in values.keys() - missing}
        assert computed == pytest.approx({name: values[name] for name in computed}, abs=1e-6, rel=1e-6, nan_ok=True)
        assert (scored.task, scored.metric) == (case.recipe, result.results["metric"])
        assert 0 < len(scored) <= result.results["examples"][split]
        assert len(set(scored.digests)) > 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensorboard_shows_the_examples_of_a_run(case: Case, undisturbed: Callable[[Case], RunResult]) -> None:
    result = undisturbed(case)
    tags = EventAccumulator(str(result.run_dir)).Reload().Tags()
    details = result.results["details"]
    assert {tag for tag in tags["tensors"] if tag.startswith("worst mistakes")} == {
        f"worst mistakes/{split}/text_summary" for split in details
    }
    for split, entry in details.items():
        shown = {tag.removeprefix(f"results/{split}/") for tag in tags["images"] if f"/{split}/" in tag}
        assert ("length" in shown, "f1" in shown) == ("lengths" in entry, "labels" in entry)


@pytest.mark.parametrize("case", {case.recipe: case for case in reversed(CASES)}.values(), ids=str)
def test_evaluate_tells_what_it_knows_of_single_examples(
    case: Case, settings_of_cases: dict[str, Settings], undisturbed: Callable[[Case], RunResult]
) -> None:
    result, path = undisturbed(case), settings_of_cases[str(case)]["data.test"]
    predictor = Predictor.from_pretrained(result.run_dir)
    evaluation = evaluate_file_examples(predictor, path, slices=["length", "file"])
    assert evaluation.values == pytest.approx(result.results["test"], abs=1e-4, nan_ok=True)
    details = describe_evaluation(evaluation, ["length", "file"], 3)
    assert details["intervals"].keys() == result.results["details"]["test"]["intervals"].keys()
    assert details["worst"]
    text = format_evaluation(evaluation.values, details)
    assert f"\nworst\n  {details['worst'][0]['where']}  " in text
    assert "\nby length\n" in text


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_recipe_gives_the_same_numbers_cached_and_on_two_processes(
    case: Case, settings_of_cases: dict[str, Settings], undisturbed: Callable[[Case], RunResult]
) -> None:
    settings, result = settings_of_cases[str(case)], undisturbed(case)
    both = find_run_dir(settings, "both")
    assert_same_losses(both, result.run_dir)
    results = json.loads((both / "results.json").read_text(encoding="utf-8"))
    assert results["processes"] == 2
    for split in ("validation", "test"):
        assert results[split] == pytest.approx(result.results[split], abs=1e-4, nan_ok=True)
        if (result.run_dir / "scored").exists():
            ours, theirs = (read_scored(folder / "scored" / f"{split}.jsonl") for folder in (both, result.run_dir))
            assert (ours.digests, ours.lines) == (theirs.digests, theirs.lines)
            metric = ours.metrics[0]
            assert ours.compute(metric) == pytest.approx(theirs.compute(metric), abs=1e-4)
    cached = {"cache.activations": "on", "cache.precision": "fp32"}
    if not case.caches:
        with pytest.raises(InputError, match=re.escape("cache.activations (on): ")):
            run(settings, "cached", **cached)
        return
    assert_same_losses(run(settings, "cached", **cached).run_dir, result.run_dir)
