"""The `hf-finetune` command as a user types it."""

import ast
import csv
import importlib
import io
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.configs import make_small_config

import hf_finetune
from hf_finetune import cli, recipe
from hf_finetune.config import recipes
from hf_finetune.export.predict import Predictor
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.classify import Classification

ROOT = Path(__file__).parent.parent
COMMANDS = ("train", "inspect", "evaluate", "predict", "push")


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes write their arguments into sys.argv, which is restored after the test."""
    monkeypatch.setattr(sys, "argv", ["hf-finetune"])


def call(*words: str) -> int:
    """Runs `hf-finetune WORDS`, and returns the exit code."""
    try:
        return cli.main(words)
    except SystemExit as end:
        return int(end.code or 0)


def write_data(folder: Path) -> dict[str, str]:
    counts = {"train": 60, "validation": 24, "test": 24}
    return {
        split: str(tiny.write_jsonl(folder / f"{split}.jsonl", tiny.make_rows(count, seed=seed)))
        for seed, (split, count) in enumerate(counts.items())
    }


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Path:
    """The folder of a run that `hf-finetune train classify` made."""
    folder = tmp_path_factory.mktemp("typed")
    words = ["--model.backbone", str(backbones("bert")), "--output_dir", str(folder / "outputs"), "--name", "typed"]
    words += [
        "--train.epochs",
        "4",
        "--train.batch_size",
        "8",
        "--train.learning_rate=1e-2",
        "--tracking.trackers",
        "[]",
    ]
    words += ["--train.precision", "fp32", "--freeze.embeddings", "false", "--data.max_length", "32"]
    for split, path in write_data(folder).items():
        words += [f"--data.{split}", path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))
        patch.setattr(sys, "argv", ["hf-finetune"])
        assert call("train", "classify", *words) == 0
    return folder / "outputs" / "typed"


# --- train ----------------------------------------------------------------------------------------------------------


def test_train_runs_the_file_of_the_recipe() -> None:
    assert recipes.recipe_path("classify") == ROOT / "recipes" / "classify.py"


def test_settings_of_the_command_line_override_those_of_the_recipe(run_dir: Path) -> None:
    import yaml

    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    assert config["freeze"] == {
        "embeddings": False,
        "layers": "2/3",
        "patterns": [],
        "unfreeze": [],
    }  # 2/3 is the recipe's
    assert config["train"]["learning_rate"] == 1e-2
    assert json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["status"] == "finished"


def test_a_finished_run_is_not_trained_again(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert call("train", "classify", "--config", str(run_dir / "config.yaml")) == 0
    assert "is finished, there is nothing to train" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name != ".lock"} == before


def test_an_unknown_recipe_is_an_error_that_lists_all_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "clasify") == 2
    names = "answer, choose, classify, embed, instruct, model_language, rerank, summarize, tag, translate"
    assert capsys.readouterr() == ("", f"error: train clasify: there is no such recipe; the recipes are {names}\n")


def test_recipes_are_also_found_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the wheel, which has them in hf_finetune/recipes and not next to the package."""
    (tmp_path / "hf_finetune" / "recipes").mkdir(parents=True)
    (tmp_path / "hf_finetune" / "recipes" / "mine.py").write_text("import sys\nsys.exit(7)\n", encoding="utf-8")
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "hf_finetune" / "config" / "recipes.py"))
    assert recipes.recipe_path("mine") == tmp_path / "hf_finetune" / "recipes" / "mine.py"
    assert call("train", "mine", "--anything", "1") == 7
    with pytest.raises(InputError, match=r"there is no such recipe; the recipes are mine$"):
        recipes.recipe_path("classify")


def test_a_recipes_exit_code_is_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "hf_finetune" / "config" / "recipes.py"))
    for ending, code in (("sys.exit()", 0), ("sys.exit('no')", 1), ("sys.exit(3)", 3), ("", 0)):
        (tmp_path / "recipes" / "mine.py").write_text(f"import sys\n{ending}\n", encoding="utf-8")
        assert call("train", "mine") == code


def test_the_wheel_carries_the_recipes(tmp_path: Path) -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    assert wheel["force-include"] == {"recipes": "hf_finetune/recipes"}
    if find_spec("hatchling") is None:
        return
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(ROOT)]
    subprocess.run([*command, "--wheel-dir", str(tmp_path)], check=True)
    (built,) = tmp_path.glob("hf_finetune-*.whl")
    names = set(zipfile.ZipFile(built).namelist())
    assert {"hf_finetune/recipes/classify.py", "hf_finetune/cli.py", "hf_finetune/py.typed"} <= names
    recipes = {f"hf_finetune/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.py")}
    assert recipes <= names
    assert not [name for name in names if name.startswith("tests/")]


def test_the_installed_command_calls_main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["hf-finetune"].split(":")
    assert getattr(importlib.import_module(module), function) is cli.main


# --- predict and evaluate -------------------------------------------------------------------------------------------


def test_predict_prints_a_line_of_json_for_a_text(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("predict", str(run_dir), "--text", "the old cat") == 0
    output = capsys.readouterr()
    row = json.loads(output.out)
    assert output.err == ""
    assert row == Predictor.from_pretrained(str(run_dir)).predict("the old cat")
    assert set(row["probabilities"]) == {"animals", "food", "tools"}


def test_predict_writes_the_predictions_of_a_file_in_order_or_prints_them(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [row["text"] for row in tiny.make_rows(30, seed=8)]
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    expected = list(Predictor.from_pretrained(str(run_dir)).predict([{"text": text} for text in texts]))
    out = tmp_path / "predictions.jsonl"
    assert call("predict", str(run_dir), "--data", str(data), "--out", str(out)) == 0
    assert capsys.readouterr() == (f"30 rows written to {out}\n", "")
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == expected
    assert call("predict", str(run_dir), "--data", str(data)) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected


def test_predict_takes_options_and_keeps_columns(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": row["text"], "id": number} for number, row in enumerate(tiny.make_rows(5, seed=8))]
    data, out = tiny.write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "predictions.csv"
    predictor = Predictor.from_pretrained(run_dir)
    expected = predictor.predict(rows, top_k=1)
    words = ["predict", str(run_dir), "--data", str(data), "--top-k", "1", "--batch-size", "2", "--device", "cpu"]
    assert call(*words, "--keep", "id") == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.pop("input") for row in printed] == [{"id": number} for number in range(5)]
    assert [row["label"] for row in printed] == [row["label"] for row in expected]
    assert all(list(row["probabilities"]) == [row["label"]] for row in printed)
    assert call(*words, "--keep", "id", "text", "--out", str(out)) == 0
    with out.open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    assert [(row["id"], row["text"]) for row in cells] == [(str(row["id"]), row["text"]) for row in rows]
    assert [row["label"] for row in cells] == [row["label"] for row in expected]
    assert float(cells[0][f"probabilities.{cells[0]['label']}"]) > 0.3
    assert call("predict", str(run_dir), "--data", str(data), "--keep", "none") == 2
    assert "rows.jsonl:1: no column 'none' (columns: text, id); see --keep" in capsys.readouterr().err


@pytest.mark.processes
def test_predict_reads_standard_input_and_ends_quietly_if_nobody_reads_on(run_dir: Path) -> None:
    command = [sys.executable, "-m", "hf_finetune", "predict", str(run_dir), "--data", "-", "--batch-size", "2"]

    def start(*words: str) -> "subprocess.Popen[str]":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*command, *words], text=True, **pipes)  # type: ignore[call-overload]

    output, errors = start().communicate("the old cat\na red saw\nthis bread\n")
    predictions = Predictor.from_pretrained(run_dir).predict(["the old cat", "a red saw", "this bread"])
    assert [json.loads(line)["label"] for line in output.splitlines()] == [row["label"] for row in predictions]
    assert errors == "standard input: plain lines, a text each\n"
    output, errors = start("--strict").communicate('{"text": "the old cat"}\n{"text": " "}\n')
    assert [json.loads(line)["label"] for line in output.splitlines()] == [predictions[0]["label"]]
    assert errors.splitlines() == ["standard input: JSON lines", "error: stdin[1]: text is empty"]

    process = start()
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write("the old cat\na red saw\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["label"] == predictions[0]["label"]  # while the input is still open
    process.stdout.close()
    process.stdin.write("this bread\n" * 10)
    process.stdin.close()
    assert (process.wait(60), process.stderr.read()) == (0, "standard input: plain lines, a text each\n")
    process.stderr.close()


def test_evaluate_gives_the_test_metrics_of_the_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(run_dir.parent.parent / "test.jsonl")
    expected = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["test"]
    assert call("evaluate", str(run_dir), "--data", data, "--format", "json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values.pop("details")["intervals"].keys() == expected.keys()
    assert values == expected
    assert call("evaluate", str(run_dir), "--data", data, "--metric", "matthews") == 0
    lines, _, _ = capsys.readouterr().out.partition("\nintervals: 95%, 1,000 resamples of ")
    table = dict(line.split()[:2] for line in lines.splitlines())
    assert {name: table[name] for name in expected} == {name: f"{value:.4f}" for name, value in expected.items()}
    assert set(table) == {*expected, "matthews_correlation"}


def test_evaluate_takes_other_columns(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tiny.make_rows(9, seed=8)
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"body": row["text"], "kind": row["label"]} for row in rows])
    words = ["--data", str(data), "--text-columns", "body", "--label-column", "kind"]
    assert call("evaluate", str(run_dir), *words) == 0
    assert "accuracy" in capsys.readouterr().out


def test_predict_and_evaluate_take_the_settings_of_reading_by_their_names(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tiny.make_rows(9, seed=8)
    data = tmp_path / "rows.csv"
    lines = [f"{row['text']} \xe9;{row['label']}" for row in rows]
    data.write_bytes("\n".join([*lines, "a cat;"]).encode("cp1252"))
    words = [
        "--data",
        str(data),
        "--data.header",
        "false",
        "--data.encoding",
        "utf-8",
        "cp1252",
        "--data.delimiter",
        ";",
    ]
    words += ["--data.text_columns", "1"]
    assert call("predict", str(run_dir), *words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    labelled = [*words, "--data.label_column", "2"]
    assert call("evaluate", str(run_dir), *labelled) == 2
    assert "task.ignore_labels" in capsys.readouterr().err
    assert call("evaluate", str(run_dir), *labelled, "--task.ignore_labels", "null") == 0
    assert "accuracy" in capsys.readouterr().out
    assert call("predict", str(run_dir), *words, "--data.headers", "false") == 2
    assert capsys.readouterr().err == (
        "error: unrecognized arguments: --data.headers false; see hf-finetune predict --help\n"
    )


# --- inspect --------------------------------------------------------------------------------------------------------


def test_inspect_lists_the_same_parameters_in_every_format(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["--freeze.embeddings", "--freeze.layers", "1", "--freeze.patterns", "pooler", "classifier.bias"]
    assert call("inspect", str(run_dir), "--format", "json", *plan) == 0
    read = json.loads(capsys.readouterr().out)
    frozen = {row["name"] for row in read["entries"] if row["state"] == "frozen"}
    names = [row["name"] for row in read["entries"]]
    assert frozen == {
        name for name in names if re.search(r"embeddings|layer\.0\.|pooler|classifier\.bias", name)
    }  # fmt: skip
    assert read["parameters"]["total"] == 21_699
    assert sum(part["parameters"] for part in read["parts"]) == 21_699

    assert call("inspect", str(run_dir), "--format", "csv", *plan) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["name"], row["state"]) for row in rows] == [(row["name"], row["state"]) for row in read["entries"]]

    assert call("inspect", str(run_dir), *plan) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in names)
    assert table.splitlines()[-1].split()[:2] == ["total", "21,699"]


@pytest.mark.parametrize(("layers", "count"), [("0", 0), ("-1", 1), ("1/2", 1), ("all", 2)])
def test_inspect_reads_layers_as_the_config_does(
    run_dir: Path, capsys: pytest.CaptureFixture[str], layers: str, count: int
) -> None:
    assert call("inspect", str(run_dir), "--format", "json", f"--freeze.layers={layers}") == 0
    entries = json.loads(capsys.readouterr().out)["entries"]
    frozen = {row["part"] for row in entries if row["state"] == "frozen"}
    assert frozen == {f"block {number}" for number in range(count)}


# --- help, version, errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_subcommand_has_help_that_names_all_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert f"hf-finetune {command}" in output.out
    parser = cli.build_parser()._subparsers._group_actions[0].choices[command]  # type: ignore[union-attr,index]
    for action in parser._actions:
        assert all(option in output.out for option in action.option_strings)
        assert action.help


def test_help_lists_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    output = capsys.readouterr().out
    assert all(re.search(rf"^    {command} +\S", output, re.MULTILINE) for command in COMMANDS)


def test_the_help_of_command_and_recipe_loads_nothing_heavy() -> None:
    code = """
import json, sys
from hf_finetune.cli import main
for words in (["--help"], ["predict", "--help"], ["--version"], ["train", "classify", "--help"], ["train", "x"]):
    try:
        main(words)
    except SystemExit as end:
        assert end.code == 0, (words, end.code)
print(json.dumps([name for name in ("torch", "transformers", "accelerate", "datasets") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert "--train.learning_rate" in done.stdout


def test_python_dash_m_is_the_command() -> None:
    command = [sys.executable, "-m", "hf_finetune"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.strip() == hf_finetune.__version__
    wrong = subprocess.run([*command, "tain"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: argument COMMAND: invalid choice: 'tain'")


BAD: dict[str, list[str]] = {
    "the following arguments are required: COMMAND": [],
    "argument COMMAND: invalid choice: 'tain'": ["tain"],
    "the following arguments are required: RECIPE": ["train"],
    "unrecognized arguments: --fast": ["predict", "RUN", "--text", "x", "--fast"],
    "one of the arguments --text --data is required": ["predict", "RUN"],
    "argument --text: expected at least one argument": ["predict", "RUN", "--text"],
    "argument --data: not allowed with argument --text": ["predict", "RUN", "--text", "x", "--data", "y"],
    "argument --format: invalid choice: 'yaml'": ["inspect", "RUN", "--format", "yaml"],
    "the following arguments are required: --data": ["evaluate", "RUN"],
    "the following arguments are required: --repo-id": ["push", "RUN"],
    "train.epochs (many): must be a whole number": ["train", "classify", "--train.epochs", "many"],
    "model.bakbone (x): there is no such setting; did you mean model.backbone?": ["train", "classify", "--model.bakbone", "x"],
    "--text: is empty": ["predict", "RUN", "--text", "  "],
    "--text: takes one text, as the model was trained": ["predict", "RUN", "--text", "x", "y"],
    "--out: goes with --data": ["predict", "RUN", "--text", "x", "--out", "y"],
    "--keep: goes with --data": ["predict", "RUN", "--text", "x", "--keep", "y"],
    "top_k (0): must be 1 or more": ["predict", "RUN", "--text", "x", "--top-k", "0"],
    "threshold (0.5): is for models that predict several labels": ["predict", "RUN", "--text", "x", "--threshold", "0.5"],
    "batch_size (0): must be 1 or more": ["predict", "RUN", "--text", "x", "--batch-size", "0"],
    "device (abacus): cannot be used here": ["predict", "RUN", "--text", "x", "--device", "abacus"],
    "metrics (kappa): must be an import path as my_module:name": ["evaluate", "RUN", "--data", "TEST", "--metrics", "kappa"],
    "loss (no_such:loss): cannot be imported": ["evaluate", "RUN", "--data", "TEST", "--loss", "no_such:loss"],
    "--data (nothing.csv): no such file or folder": ["predict", "RUN", "--data", "nothing.csv"],
    "--data (none.csv): no such file or folder": ["evaluate", "RUN", "--data", "none.csv"],
    "--out (no/where.jsonl): there is no folder no": ["predict", "RUN", "--data", "x.csv", "--out", "no/where.jsonl"],
    "--metric (mse): cannot be computed for a single_label": ["evaluate", "RUN", "--data", "TEST", "--metric", "mse"],
    "freeze.layers (9): this backbone has 2 blocks": ["inspect", "RUN", "--freeze.layers", "9"],
    "freeze.layers (some): must be a count": ["inspect", "RUN", "--freeze.layers", "some"],
    "freeze.patterns ((): must be a regular expression": ["inspect", "RUN", "--freeze.patterns", "("],
    "MODEL (package://no_such_pkg/x): no package 'no_such_pkg' is installed": ["inspect", "package://no_such_pkg/x"],
    "nowhere: no such run folder": ["push", "nowhere", "--repo-id", "ada/clf"],
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_usage_is_one_line_on_standard_error_and_exit_code_2(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"RUN": str(run_dir), "TEST": str(run_dir.parent.parent / "test.jsonl")}
    assert call(*(names.get(word, word) for word in BAD[message])) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {message}")
    assert output.err.count("\n") == 1
    assert output.err.endswith("\n")


def test_one_text_for_a_model_of_pairs_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_small_config(tmp_path, "backbone", pair=True)
    named: list[str | None] = []

    class Pairs:
        task = Classification.from_state(config, {"problem": "single_label", "labels": ("a", "b")})

        @classmethod
        def from_pretrained(cls, _: str, *, task: str | None, **others: Any) -> "Pairs":
            assert not any(others.values())
            named.append(task)
            return cls()

        def make_table(self, rows: list[dict[str, str]]) -> list[dict[str, str]]:
            return rows

        def predict_table(self, rows: list[dict[str, str]], **options: Any) -> Iterator[dict[str, Any]]:
            assert options == {"top_k": None, "threshold": None, "batch_size": 64}
            return iter([{"label": row} for row in rows])

    monkeypatch.setattr("hf_finetune.export.predict.Predictor", Pairs)
    assert call("predict", "somewhere", "--text", "x") == 2
    assert capsys.readouterr().err == "error: --text: takes two texts, as the model was trained\n"
    assert call("predict", "somewhere", "--text", "x", "y") == 0
    assert json.loads(capsys.readouterr().out) == {"label": {"text": "x", "other": "y"}}
    assert call("predict", "somewhere", "--task", "mine:Pairs", "--text", "x", "y") == 0
    assert named == [None, None, "mine:Pairs"]


def test_debug_shows_the_traceback_and_the_exit_code_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["push", "nowhere", "--repo-id", "ada/clf"], ["train", "classify", "--data.train", "nothing.csv"]):
        assert call(*words) == 2
        assert "Traceback" not in capsys.readouterr().err
        assert call(*words, "--debug") == 2
        assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_interrupted_command_prints_how_to_continue(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert recipe.report_errors(interrupt) == 130
    assert capsys.readouterr() == ("", "interrupted; the same command continues from what was saved\n")


# --- the public names -----------------------------------------------------------------------------------------------


def test_every_public_name_is_there_and_no_other() -> None:
    assert set(hf_finetune.__all__) == {*hf_finetune.PUBLIC, "__version__"}
    for name in hf_finetune.PUBLIC:
        assert getattr(hf_finetune, name) is getattr(
            importlib.import_module(f"hf_finetune.{hf_finetune.PUBLIC[name]}"), name
        )
    (typed,) = [node for node in ast.parse(Path(hf_finetune.__file__).read_text()).body if isinstance(node, ast.If)]
    imported = {
        (alias.name, node.module.removeprefix("hf_finetune."))
        for node in typed.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert imported == set(hf_finetune.PUBLIC.items())  # what type checkers see
    with pytest.raises(AttributeError, match="module 'hf_finetune' has no attribute 'fintune'"):
        hf_finetune.fintune  # noqa: B018
