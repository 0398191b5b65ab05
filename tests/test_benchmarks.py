"""Each script of benchmarks/ runs to its end on small data, and writes what it should. No file of the repository changes."""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ranked, sentence_pairs, tagged, text_pairs, tiny
from support.script_server import ScriptServer

import hf_finetune

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="scripts run in forks")]

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
SMALL = ["--train.epochs", "1", "--train.max_updates", "2", "--train.batch_size", "8", "--data.max_length", "32"]
# What the other scripts start
RUN_BY_OTHERS = {"competitors.py", "comparisons/instruct.py", "comparisons/contenders.py"}


@pytest.fixture(scope="module", autouse=True)
def unchanged_repository() -> Iterator[None]:
    """Fails if a script has changed a results file or a table of the repository."""
    pages = [ROOT / "docs" / f"{name}.md" for name in ("performance", "reliability", "results")]
    paths = [*BENCHMARKS.rglob("*.json"), *pages]
    before = {path: path.read_bytes() for path in paths}
    yield
    assert {path: path.read_bytes() for path in [*BENCHMARKS.rglob("*.json"), *paths]} == before


@pytest.fixture
def run_script(tmp_path: Path, script_server: ScriptServer) -> Callable[..., str]:
    """`run_script("measure.py", "--only", "sst2")`: runs a script to its end, and returns what it printed."""

    def run(name: str, *words: object) -> str:
        environment = {"HF_FINETUNE_CACHE": str(tmp_path / "cache")}
        code = script_server.run(BENCHMARKS / name, list(map(str, words)), tmp_path, environment, forks=True)
        output, errors = ((tmp_path / stream).read_text(encoding="utf-8") for stream in ("stdout", "stderr"))
        assert code == 0, output[-1000:] + errors[-3000:]
        return output

    return run


def write_rows(folder: Path, make_rows: Callable[..., list[dict[str, Any]]], **options: Any) -> list[str]:
    """Writes made rows of all splits. Returns the settings that name the files."""
    words = []
    for seed, (split, count) in enumerate({"train": 24, "validation": 8, "test": 8}.items()):
        path = tiny.write_jsonl(folder / f"{split}.jsonl", make_rows(count=count, seed=seed, **options))
        words += [f"--data.{split}", str(path)]
    return words


def read_lines(output: str) -> list[dict[str, Any]]:
    """Returns the JSON lines that a script printed. It must have printed nothing else."""
    return [json.loads(line) for line in output.splitlines()]


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_script_has_a_test() -> None:
    """Scripts are found by their last lines; other files of benchmarks/ are modules that scripts import."""
    paths = [path for path in BENCHMARKS.rglob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    names = {path.relative_to(BENCHMARKS).as_posix() for path in paths}
    own_text = Path(__file__).read_text(encoding="utf-8")
    assert len(names) > 10
    assert {name for name in names if f'"{name}", ' not in own_text} <= RUN_BY_OTHERS


# --- hf-finetune alone, and with transformers.Trainer ---------------------------------------------------------------


def test_against_trainer_writes_the_results_and_the_table(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    write_rows(tmp_path, tiny.make_rows)
    out, files = tmp_path / "out", ("--train", tmp_path / "train.jsonl", "--validation", tmp_path / "validation.jsonl")
    sizes = ("--epochs", 1, "--batch-size", 8, "--max-length", 32, "--rounds", 1, "--examples", 16, "--frozen", 1)
    competitors = ("--only", "tuned", "cold")
    run_script(
        "against_trainer.py", *files, *sizes, *competitors, "--backbone", backbones(), "--out", out, "--name", "small"
    )
    result = read_json(out / "small.json")
    assert result["medians"].keys() == result["runs"].keys() == {"tuned", "cold"}
    for runs in result["runs"].values():
        assert [len(run["accuracies"]) for run in runs] == [1]
    (tuned,), (cold,) = result["runs"]["tuned"], result["runs"]["cold"]
    assert tuned["precision"] == cold["precision"]
    assert cold["prefix"][0].startswith("on: ")
    assert cold["phases"]["cache"] > 0
    # Both trained on the same 16 texts, so they saw the same number of tokens
    tokens = [run["tokens_per_second"] * run["seconds"] for run in (tuned, cold)]
    assert tokens[0] == pytest.approx(tokens[1])
    for run in (tuned, cold):  # both clocks: training, and from the command to the exported model
        assert 0 < run["seconds"] < run["command_seconds"]
        assert run["cpu_seconds"] > 0
        assert run["process_peak_mb"] >= run["peak_memory_mb"] > 100
    assert result["command_medians"]["cold"] == pytest.approx(cold["command_seconds"], abs=0.01)
    assert result["load"] == [tuned["load"], cold["load"]]
    table = (out / "benchmark.md").read_text(encoding="utf-8")
    (row,) = [line for line in table.splitlines() if "| hf-finetune, cold cache |" in line]
    assert row.count("|") == 13
    assert f"{tuned['command_seconds'] / cold['command_seconds']:.1f}x" in row
    assert f"| {cold['peak_memory_mb'] / tuned['peak_memory_mb']:.2f} |" in row
    assert table.startswith(f"Measured with version {result['version']} ")


def test_a_stopped_benchmark_continues_with_the_rounds_that_are_missing(tmp_path: Path) -> None:
    code = (
        "import against_trainer, pathlib, sys\n"
        "words = ['--rounds', '3', '--only', 'tuned', '--out', sys.argv[1], '--name', 'small']\n"
        "job, options = {'validation': 'v'}, against_trainer.make_parser().parse_args(words)\n"
        "result = against_trainer.start_result(options, job) | {'rounds': 2}\n"
        "against_trainer.write_results('small', result, pathlib.Path(sys.argv[1]))\n"
        "print(against_trainer.start_result(options, job)['rounds'])\n"
        "print(against_trainer.start_result(options, {'validation': 'w'})['rounds'])\n"
        "options.rounds = 2\n"
        "print(against_trainer.start_result(options, job)['rounds'])\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, cwd=BENCHMARKS, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.splitlines() == ["small.json has 2 of 3 rounds", "2", "0", "0"]


@pytest.mark.parametrize(
    ("row", "family", "make_rows", "competitors"),
    [
        ("trec", "bert", "tiny", ("other", "cold")),
        ("wnut17", "bert", "tagged", ("other", "cold", "warm")),
        ("stsb", "bert", "pairs", ("other", "warm")),
        ("instruct", "llama", "tiny", ("other", "cold")),
    ],
)
def test_a_row_of_the_other_tasks(
    row: str,
    family: str,
    make_rows: str,
    competitors: tuple[str, ...],
    tmp_path: Path,
    backbones: Callable[..., Path],
    run_script: Callable[..., str],
) -> None:
    """Both clocks, the metric after each epoch, memory: of each competitor. The settings of the row are those of its task."""
    write_rows_of(make_rows, tmp_path / {"instruct": "trec"}.get(row, row), has_validation=row in ("wnut17", "stsb"))
    sizes = ("--examples", 24, "--epochs", 1, "--rounds", 1, "--frozen", 1, "--max-length", 32)
    words = ["--data", tmp_path, "--only", row, "--competitors", *competitors, "--out", tmp_path / "out"]
    words += ["--backbone", backbones(family)]
    if row == "instruct":
        words += ["--chat-template", tiny.write_conversations(tmp_path, {})["task.chat_template"]]
    run_script("other_tasks.py", *words, *sizes)
    result = read_json(tmp_path / "out" / "tasks" / f"{row}.json")
    assert set(result["runs"]) == set(result["medians"]) == set(competitors)
    for (run,) in result["runs"].values():
        assert 0 < run["seconds"] < run["command_seconds"]
        assert len(run["accuracies"]) == 1
        assert run["peak_memory_mb"] > 100
    table = (tmp_path / "out" / "other tasks.md").read_text(encoding="utf-8")
    assert f"| {result['data']}, 24 rows, 1 epochs | {result['other']} |" in table


def write_rows_of(form: str, folder: Path, *, has_validation: bool) -> None:
    """Writes the files of a data set as benchmarks/other_tasks.py reads them."""
    folder.mkdir()
    for seed, split in enumerate(("train", "validation") if has_validation else ("train",)):
        if form == "tagged":
            rows = tagged.make_rows(40, seed=seed)
        elif form == "pairs":
            scored = sentence_pairs.make_rows("scored", 40, seed=seed)
            rows = [dict(zip(("sentence1", "sentence2", "score"), row.values(), strict=True)) for row in scored]
        else:
            rows = [{"question": row["text"], "label": row["label"]} for row in tiny.make_rows(40, seed=seed)]
        tiny.write_jsonl(folder / f"{split}.jsonl", rows)


def test_scaling_measures_a_size(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    write_rows(tmp_path, tiny.make_rows)
    sizes = ("--examples", 12, "--factors", 2, "--max-length", 16, "--frozen", 1, "--only", "cold")
    out, train = tmp_path / "out", tmp_path / "train.jsonl"
    run_script("scaling.py", *sizes, "--train", train, "--backbone", backbones(), "--out", out)
    assert [row["examples"] for row in read_json(out / "scaling.json")["rows"]] == [24]
    assert (out / "scaling.md").read_text(encoding="utf-8").count("| cold |") == 1


def test_fixed_costs_are_seconds_by_phase_from_the_command_to_its_end(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    write_rows(tmp_path, tiny.make_rows)
    files = ("--train", tmp_path / "train.jsonl", "--validation", tmp_path / "validation.jsonl")
    sizes = ("--rounds", 1, "--max-length", 16, "--epochs", 1, "--frozen", 1, "--backbone", backbones())
    out = tmp_path / "out"
    (seconds,) = read_lines(run_script("fixed_costs.py", *files, *sizes, "--out", out))
    phases = [
        value
        for name, value in seconds.items()
        if name not in ("command", "fixed", "first_update", "tracked", "machine_load")
    ]
    assert seconds["tracked"] > seconds["start"]
    assert sum(phases) == pytest.approx(seconds["command"], abs=0.1)
    assert seconds["start"] < seconds["first_update"] < seconds["command"]
    assert seconds["fixed"] == pytest.approx(seconds["command"] - seconds["train"] - seconds["evaluate"], abs=0.01)
    assert -0.05 < seconds["rest"] < 10
    content = read_json(out / "fixed_costs.json")
    assert content["median_seconds"]["fixed"] == pytest.approx(seconds["fixed"], abs=0.01)
    table = (out / "fixed costs.md").read_text(encoding="utf-8")
    assert f"| **besides training and validation** | {seconds['fixed']:.1f} |" in table


def test_a_dry_run_is_compared_with_the_run(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    folder = tmp_path / "data" / "sst2_small"
    folder.mkdir(parents=True)
    write_rows(folder, tiny.make_rows)
    settings = ("--model.backbone", backbones(), "--freeze.layers", 1, "--data.max_length", 16)
    out, name = tmp_path / "out", "sst2, not cached"
    words = ("--data", tmp_path / "data", "--only", name, "--out", out, *settings)
    (row,) = read_lines(run_script("dry_run.py", *words))
    assert row["predicted"].keys() == row["measured"].keys()
    assert row["predicted"]["total"] > 0
    assert read_json(out / "dry_run.json")["rows"] == [row]
    table = (out / "dry run.md").read_text(encoding="utf-8")
    assert f"| {name} | {row['dry_run_seconds']:.1f} s | {row['predicted']['total']:.1f} s |" in table


def test_the_profile_lists_operators(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    settings = [*write_rows(tmp_path, tiny.make_rows), "--model.backbone", backbones(), "--data.max_length", 32]
    counts = ("--warmup", 1, "--updates", 2, "--profiled", 1, "--size", 64, "--out", tmp_path / "out")
    run_script("profile_update.py", *counts, *settings, "--freeze.layers", 1, "--train.batch_size", 4)
    table = (tmp_path / "out" / "profile.md").read_text(encoding="utf-8")
    result = read_json(tmp_path / "out" / "profile.json")
    assert f"2 updates in {result['precision']}: " in table
    share = 1e3 * result["gigaflop"] / result["milliseconds"] / result["peak"][result["precision"]]
    assert f" GFLOP/s over the entire update, {share:.0%} of the peak." in table
    assert result["alone"] > 0
    assert len(re.findall(r"^\| `aten::\w+` \| [\d.]+% \|", table, flags=re.MULTILINE)) >= 3


def test_batch_lengths_measures_both_kinds_of_run(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    settings = [*write_rows(tmp_path, tiny.make_rows), "--model.backbone", backbones(), "--data.max_length", 32]
    counts = ("--rounds", 1, "--updates", 4, "--out", tmp_path / "out")
    run_script("batch_lengths.py", *counts, *settings, "--freeze.layers", 1, "--train.batch_size", 4)
    results = read_json(tmp_path / "out" / "batch_lengths.json")
    assert [run["step"] for run in results["runs"]] == [1, 8]
    assert all(len(run["milliseconds"]) == 4 and run["peak_mb"] > 100 for run in results["runs"])
    table = (tmp_path / "out" / "batch lengths.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (.*?) \| [\d.]+ \|", table, flags=re.MULTILINE) == [
        "its longest text",
        "a multiple of 8 tokens",
    ]


def test_head_start_counts_the_updates_to_an_accuracy_and_continues(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    folder = tmp_path / "sst2_small"
    folder.mkdir()
    write_rows(folder, tiny.make_rows)
    settings = ["--model.backbone", backbones(), *SMALL, "--freeze.layers", 1, "--cache.activations", "off"]
    words = ("--data", tmp_path, "--only", "sst2", "--out", tmp_path / "out", *settings)
    run_script("head_start.py", *words, "--seeds", 0)
    (first, *_) = read_json(tmp_path / "out" / "head_start.json")
    run_script("head_start.py", *words, "--seeds", 0, 1)
    runs = read_json(tmp_path / "out" / "head_start.json")
    assert runs[0] == first  # not repeated
    assert [(run["head"], run["seed"]) for run in runs] == [("none", 0), ("ridge", 0), ("none", 1), ("ridge", 1)]
    assert all([update for update, _ in run["values"]] == [2] for run in runs)
    table = (tmp_path / "out" / "head start.md").read_text(encoding="utf-8")
    assert re.search(r"^\| sst2 \| accuracy \| [\d.]+, [\d.]+ \| 2 \|", table, flags=re.MULTILINE)
    assert "| all | geometric mean of random / fitted |" in table


def test_a_target_that_a_run_misses_has_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module: Any = importlib.import_module("head_start")
    random = [{"head": "none", "values": [(5, 0.5), (10, top)]} for top in (0.7, 0.9)]
    fitted = [{"head": "ridge", "values": values} for values in ([(5, 0.8)], [(5, 0.61), (10, 0.79)])]
    assert module.compare([*random, *fitted], 0.75) == (pytest.approx(0.6), {"none": 10, "ridge": 5})
    assert module.compare([*random, *fitted], 1.0) == (pytest.approx(0.8), {"none": None, "ridge": None})


def test_matrix_products_are_counted_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module: Any = importlib.import_module("matrix_products")
    first, second = torch.randn(2, 8, 4), torch.randn(3, 4, requires_grad=True)
    with module.ProductRecorder() as recorder, module.count_flops() as get_flops:
        torch.nn.functional.linear(first.view(16, 4), second).sum().backward()
        torch.bmm(first, first.transpose(1, 2))
    assert sorted(product.name for product in recorder.counts.elements()) == ["bmm", "mm", "mm"]
    assert get_flops() == 2 * (2 * 16 * 4 * 3) + 2 * (2 * 8 * 4 * 8)  # forward and a gradient; a batch of two
    seconds, flops = module.time_products(recorder.counts)
    assert seconds > 0
    assert flops == get_flops()
    assert module.measure_peak(torch.float32, size=32, repetitions=1) > 0


def test_measure_runs_a_config_and_writes_the_results_and_the_tables(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    (tmp_path / "sst2_small").mkdir()
    write_rows(tmp_path / "sst2_small", tiny.make_rows)
    settings = [*SMALL, "--model.backbone", backbones(), "--tracking.trackers", "[]"]
    run_script("measure.py", "--data", tmp_path, "--only", "sst2", "--out", tmp_path / "out", *settings)
    row = read_json(tmp_path / "out" / "results.json")["sst2"]
    assert row["command"].startswith(
        "python recipes/classify.py --config recipes/configs/classify/sst2.yaml --train.epochs"
    )
    table = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert f"| accuracy | {row['validation']['accuracy']:.4f} | {row['test']['accuracy']:.4f} |" in table
    assert "benchmarks/comparisons/tag.py" in (tmp_path / "out" / "comparisons.md").read_text(encoding="utf-8")


def test_the_tables_of_the_pages_are_those_of_the_results_files() -> None:
    code = (
        "import json, against_trainer, measure, pages\n"
        "tables = {\n"
        "    'results': measure.make_table(json.loads((pages.ROOT / 'benchmarks/results.json').read_text())),\n"
        "    'comparisons': measure.make_comparison_table(json.loads(measure.COMPARISONS.read_text())),\n"
        "    'benchmark': against_trainer.make_table(against_trainer.read_results(pages.RESULTS)),\n"
        "}\n"
        "print(json.dumps(tables))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, timeout=100, check=True
    )
    for marker, table in json.loads(done.stdout).items():
        rows = table.partition("\n")[2]  # the line above them has a test of its own
        for name in ("README.md", "docs/performance.md") if marker == "benchmark" else ("docs/results.md",):
            assert f"\n{rows}\n<!-- end of {marker} -->" in (ROOT / name).read_text(encoding="utf-8")


def test_the_line_above_each_table_says_what_it_was_measured_with(run_script: Callable[..., str]) -> None:
    """If code has changed since a measurement, `make docs` says so above its table."""
    run_script("pages.py", "--check")


def test_a_line_above_a_table_names_what_has_changed() -> None:
    code = (
        "import json, pages\n"
        "now = {**pages.describe_origin(), 'commit': 'abc', 'machine': 'X, 2 cores, AVX2', 'load': [0.25, 1.5]}\n"
        "old = {**now, 'code': {**now['code'], 'training': '-'}}\n"
        "lists = ([now], [old], [now, {}], [{'version': '0.2', 'machine': 'Y'}])\n"
        "flags = ('avx avx2', 'avx2 avx512f', 'avx2 avx512f avx512_bf16 amx_bf16', 'asimd', '')\n"
        "lines = [pages.describe_version('profile', results) for results in lists]\n"
        "print(json.dumps([lines, [pages.name_instructions(each) for each in flags], pages.PARTS]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, timeout=100, check=True)
    lines, instructions, parts = json.loads(done.stdout)
    start = f"Measured with version {hf_finetune.__version__}"
    assert lines == [
        f"{start} at commit abc on X, 2 cores, AVX2, load 0.2 to 1.5 before the runs.\n",
        f"{start} at commit abc on X, 2 cores, AVX2, load 0.2 to 1.5 before the runs; hf_finetune/training has changed since.\n",
        f"{start.replace('version ', 'version 0.1 and ')} at commit abc on X, 2 cores, AVX2, load 0.2 to 1.5 before the runs; "
        "the code has changed since.\n",
        "Measured with version 0.2 (no commit recorded) on Y; the code has changed since.\n",
    ]
    assert instructions == ["AVX2", "AVX512", "AMX", "NEON", ""]
    assert all((ROOT / "hf_finetune" / part).exists() for part in parts)


def test_numbers_of_a_case_are_recorded_and_compared(tmp_path: Path, run_script: Callable[..., str]) -> None:
    script, path = "../tests/recipes/record_numbers.py", tmp_path / "numbers.json"
    run_script(script, "record", path, "embed-bert")
    numbers = read_json(path)
    assert numbers["cases"].keys() == {"embed-bert", "embed-bert cached"}
    assert run_script(script, "compare", path, path) == "2 runs, 0 of them differ\n"


def test_make_names_files_that_exist() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = set(re.findall(r"[\w.][\w./-]+\.py\b", text))
    assert {"benchmarks/against_trainer.py", "tests/recipes/record_numbers.py", ".ci/newest.py"} <= found
    assert all((ROOT / name).exists() for name in found)


# --- runs that are killed -------------------------------------------------------------------------------------------


@pytest.mark.processes
def test_killed_runs_lose_nothing(tmp_path: Path, run_script: Callable[..., str]) -> None:
    run_script("soak.py", "--kills", 6, "--rows", 300, "--fresh-every", 0, "--seed", 1, "--out", tmp_path / "out")
    results = read_json(tmp_path / "out" / "soak.json")
    assert results["kills"] == sum(results["aimed"].values()) == sum(results["hit"].values()) == 6
    assert results["checkpoints"] >= 12
    assert results["tensors compared"] > 100
    assert set(results["failures"].values()) == {0}, results["messages"]
    table = (tmp_path / "out" / "crash.md").read_text(encoding="utf-8")
    assert "| kills (SIGKILL) | 6 |" in table
    assert "| saved updates lost | 0 |" in table


@pytest.mark.processes
def test_the_start_of_a_run_is_timed(tmp_path: Path, run_script: Callable[..., str]) -> None:
    run_script("reliability.py", "--examples", 1280, "--rounds", 1, "--out", tmp_path / "out")
    results = read_json(tmp_path / "out" / "reliability.json")
    assert results["resume"].keys() == {"examples", "resumed at update", "fresh seconds", "resumed seconds"}
    assert results["resume"]["resumed at update"] == 21
    assert "| 1,280 | " in (tmp_path / "out" / "resume.md").read_text(encoding="utf-8")


# --- comparisons ----------------------------------------------------------------------------------------------------


def test_encoding_is_compared_with_datasets(run_script: Callable[..., str]) -> None:
    """The script fails if the tokens differ."""
    (line,) = read_lines(run_script("comparisons/encode.py", "--rows", 3000, "--rounds", 2, "--workers", 2))
    assert (line["rows"], line["workers"]) == (3000, 2)
    assert [len(line["seconds"][name]) for name in ("hf_finetune", "datasets")] == [2, 2]
    assert line["ratio"] == round(line["medians"]["datasets"] / line["medians"]["hf_finetune"], 3) > 0


def test_predict_is_measured_as_a_process(run_script: Callable[..., str]) -> None:
    """The script fails if a line is missing."""
    (line,) = read_lines(run_script("comparisons/predict_memory.py", "--rows", 70, "--classes", 4))
    assert (line["rows"], line["classes"], line["processes"]) == (70, 4, 1)
    assert 100 < line["peak_mb"] < 2000
    assert line["first_line_seconds"] > 0
    assert line["rows_per_second"] > 0


def make_answered_questions(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns questions that all have an answer."""
    rows = tiny.make_questions(2 * count, seed=seed)
    return [row for row in rows if row["answers"]["text"]][:count]


def make_pairs_of_choices(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns rows that all have two choices."""
    return [row for row in tiny.make_choices(3 * count, seed=seed) if len(row["choices"]) == 2]


def test_comparison_of_tagging(tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]) -> None:
    data = write_rows(tmp_path, tagged.make_rows)
    (line,) = read_lines(run_script("comparisons/tag.py", "--model.backbone", backbones(), *data, *SMALL))
    assert line.keys() == {"trainer", "validation", "test", "each_epoch", "train_seconds", "peak_memory_mb"}
    assert line["each_epoch"] == [line["validation"]["f1"]]
    assert line["test"].keys() == {"f1", "precision", "recall", "accuracy"}


def test_comparison_of_multiple_choice(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    data = write_rows(tmp_path, make_pairs_of_choices)
    (line,) = read_lines(run_script("comparisons/choose.py", "--model.backbone", backbones(), *data, *SMALL))
    assert line["validation_accuracy"]
    assert 0 <= line["validation_accuracy"][-1] <= 1


def test_comparison_of_question_answering(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    data = [*write_rows(tmp_path, make_answered_questions), "--task.window_overlap", "4"]
    (line,) = read_lines(run_script("comparisons/answer.py", "--model.backbone", backbones(), *data, *SMALL))
    assert line["validation"].keys() == {"f1", "exact_match"}


def test_comparison_of_embeddings(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    data = write_rows(tmp_path, sentence_pairs.make_rows, kind="pairs")
    (line,) = read_lines(run_script("comparisons/embed.py", "--model.backbone", backbones(), *data, *SMALL))
    for moment in ("before", "after"):
        assert 0 <= line[moment]["test"]["cosine_accuracy@1"] <= 1


def test_comparison_of_embeddings_with_scores(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    data = write_rows(tmp_path, sentence_pairs.make_rows, kind="scored")
    columns = ("--data.text_columns", "one", "two", "--data.label_column", "score", "--freeze.layers", "1")
    settings = ["--model.backbone", backbones(), *columns, *data, *SMALL]
    (line,) = read_lines(run_script("comparisons/embed.py", *settings))
    assert line["before"]["test"]["pearson_cosine"] != line["after"]["test"]["pearson_cosine"]


def test_comparison_of_reranking(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    data = write_rows(tmp_path, ranked.make_rows)
    settings = ["--model.backbone", backbones(), *data, *SMALL]
    found = {}
    for words in ([], ["--lambda"], ["--task.loss", "pairwise"], ["--task.loss", "pointwise"]):
        (line,) = read_lines(run_script("comparisons/rerank.py", *settings, *words))
        assert 0 < line["test"]["ndcg@10"] <= 1
        found[line["loss"]] = line
    assert found.keys() == {"ListNetLoss", "LambdaLoss", "RankNetLoss", "BinaryCrossEntropyLoss"}


def test_reranking_data_are_made_of_questions(tmp_path: Path, run_script: Callable[..., str]) -> None:
    """The sentence with the answer is the one relevant document, and no context is in two splits."""
    for split, first in (("train", 0), ("validation", 40)):
        rows = []
        for number in range(first, first + 40):
            context = f"the {number} . a cat{number} is old here . big dog ."
            answers = {"text": [f"cat{number}"], "answer_start": [context.index("cat")]}
            rows.append({"question": f"is cat{number} old", "context": context, "answers": answers})
        tiny.write_jsonl(tmp_path / f"{split}.jsonl", rows)
    sizes = ("--queries", 20, 4, 10, "--documents", 3, 5, 5)
    (line,) = read_lines(run_script("make_reranking_data.py", tmp_path, tmp_path / "out", *sizes))
    assert line["test"]["ndcg_at_10"] == 1.0
    queries = []
    for split, size in (("train", 3), ("validation", 5), ("test", 5)):
        for row in map(json.loads, (tmp_path / "out" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()):
            queries.append(row["query"])
            assert len(row["documents"]) == len(row["labels"]) == size
            assert row["documents"][row["labels"].index(1)] == f"a {row['query'].split()[1]} is old here ."
            assert sum(row["labels"]) == 1
    assert len(set(queries)) == 34


def test_comparison_of_language_modelling(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    lines = [row["text"] for row in tiny.make_rows(200)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = ["--data.train", tmp_path / "text.txt", "--model.backbone", backbones("gpt2")]
    (line,) = read_lines(run_script("comparisons/model_language.py", *data, *SMALL))
    assert line["test"]["loss"] > 0
    assert line["seconds"]["total"] >= line["seconds"]["train"]


def test_comparison_of_summarization_with_a_small_model(tmp_path: Path, run_script: Callable[..., str]) -> None:
    data = text_pairs.make_summaries(tmp_path)
    model, columns = tmp_path / "model", ("--columns", "document", "summary")
    sizes = ("--pieces", 60, "--width", 64, "--depth", 1)
    output = run_script("make_small_seq2seq.py", model, "--data", tmp_path / "train.jsonl", *columns, *sizes)
    assert f"{model}: t5, " in output
    settings = [word for key, (path,) in data.items() for word in (f"--{key}", path)]
    settings += ["--model.backbone", model, "--task.max_target_length", "6", "--task.num_beams", "1", *SMALL]
    (line,) = read_lines(run_script("comparisons/summarize.py", *settings))
    assert line.keys() == {"loss", "rouge1", "rouge2", "rougeL", "rougeLsum", "seconds"}
    (line,) = read_lines(run_script("comparisons/summarize.py", *settings, "--lead"))
    assert 0 < line["rouge1"] < 1


def test_comparison_of_long_texts_trains_each_way(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    data = write_rows(tmp_path, tiny.make_rows)
    settings = [
        "--seeds",
        0,
        1,
        "--model.backbone",
        backbones(),
        "--data.max_length",
        8,
        "--freeze.layers",
        1,
        "--out",
        tmp_path / "out",
        *data,
        *SMALL,
    ]
    lines = read_lines(run_script("comparisons/long_texts.py", *settings))
    assert [line["long_texts"] for line in lines] == ["cut", "windows", "cut", "windows"]
    assert all(len(line["test_accuracy"]) == 2 for line in lines)
    assert lines[0]["test_accuracy"] == lines[2]["test_accuracy"]
    assert [row["updates"] > 0 for row in read_json(tmp_path / "out" / "long_texts.json")] == [True] * 4
    assert (tmp_path / "out" / "long texts.md").read_text().count("\n| windows |") == 2


def test_data_measures_memory_starts_damage_and_an_epoch(tmp_path: Path, run_script: Callable[..., str]) -> None:
    sizes = ["--rows", 400, "--sizes", 1200, "--formats", "csv", "emoji", "--predictions", 60, "--rounds", 1]
    sizes += ["--damages", 6, "--trainings", 1, "--out", tmp_path / "out"]
    run_script("data.py", *sizes)
    results = read_json(tmp_path / "out" / "data.json")
    assert [(row["format"], row["rows"]) for row in results["memory"]] == [
        ("csv", 1000),
        ("csv", 1200),
        ("jsonl with one emoji", 400),
    ]
    assert all(row["peak_mb"] > 100 for row in results["memory"])
    assert results["damage"] == {"damages": 6, "same features": 6, "trainings": 1, "same weights": 1}
    assert 0 < results["start"]["second"] < 120
    assert [row["classes"] for row in results["predict"]] == [3, 5000]
    assert len(results["epoch"]["curve"]) > 5
    pages = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.md")}
    assert pages["data.md"].count("\n| ") == 7
    assert "1,200" in pages["memory by rows.md"]
    assert "#" in pages["memory curve.md"]


def test_comparison_of_lora_trains_the_same_number_of_parameters(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    data = write_rows(tmp_path, tiny.make_rows)
    settings = ["--model.backbone", backbones(), "--adapter.kind", "lora", "--freeze.layers", "1", *data, *SMALL]
    lines = {line.pop("kind"): line for line in read_lines(run_script("comparisons/lora.py", *settings))}
    assert lines.keys() == {"LoRA", "blocks without adapters", "peft and Trainer"}
    assert lines["LoRA"]["trainable"] == lines["peft and Trainer"]["trainable"]
    assert lines["LoRA"]["trainable"] < lines["blocks without adapters"]["trainable"]


def test_labelled_tokens_measures_time_and_memory(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    sizes = ["--rounds", 1, "--layers", 5, "--vocabulary", 300, "--length", 9, "--memory-tokens", 18]
    run_script("labelled_tokens.py", *sizes, "--backbone", backbones(), "--out", tmp_path / "out")
    results = read_json(tmp_path / "out" / "labelled_tokens.json")
    assert [row["job"] for row in results["speed"]] == [
        "masked",
        "instruct",
        "instruct cached",
        "classify",
        "classify cached",
    ]
    assert all(row["all"] > 0 < row["targets"] for row in results["speed"])
    assert all(0 < row["share"] < 0.6 for row in results["speed"])
    assert all(peak > 100 for peak in results["memory"].values())
    assert (tmp_path / "out" / "labelled tokens.md").read_text().count("\n| ") == 7


def test_advice_is_compared_with_real_training_and_continues(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    for name in ("sst2_small", "wnut17"):
        (tmp_path / name).mkdir()
    write_rows(tmp_path / "sst2_small", tiny.make_rows)
    write_rows(tmp_path / "wnut17", tagged.make_rows)
    out = tmp_path / "out"
    words = ("--data", tmp_path, "--data-set", "sst2", "--model", backbones(), "--out", out, *SMALL)
    run_script("advise.py", *words, "--depths", 1)
    table = (out / "advice.md").read_text(encoding="utf-8")
    assert re.search(
        r"^\| sst2 \| minilm \| accuracy \| 1 \| \d \| not all trained \| 1: 0\.\d{3} \|", table, flags=re.MULTILINE
    )
    first = read_json(out / "advice.json")["sst2 minilm"]
    run_script("advise.py", *words)
    result = read_json(out / "advice.json")["sst2 minilm"]
    assert result["advice"] == first["advice"]
    assert [run["depth"] for run in result["runs"]] == [1, 0, 2]
    table = (out / "advice.md").read_text(encoding="utf-8")
    assert "Of 1 rows with all depths" in table
    result["advice"] |= {"depth": 0, "own_seconds": 1000.0}
    (out / "advice.json").write_text(json.dumps({"sst2 minilm": result}), encoding="utf-8")
    run_script("advise.py", *words, "--again")
    again = read_json(out / "advice.json")["sst2 minilm"]
    assert again["runs"] == result["runs"]
    assert again["advice"]["metrics"] == first["advice"]["metrics"]
    assert again["advice"]["seconds"] == first["advice"]["seconds"]
    assert 0 < again["advice"]["own_seconds"] < 1000


def test_all_data_sets_become_classification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module: Any = importlib.import_module("advise")
    tagged_row = {"tokens": ["in", "Paris"], "tags": ["O", "B-place"]}
    assert module.find_entities(tagged_row) == [{"text": "in Paris", "label": "entity"}]
    pairs = module.pair_texts([(f"q{number}", f"c{number}") for number in range(4)])
    assert [(row["other"], row["label"]) for row in pairs] == [
        ("c0", "own"),
        ("c3", "another"),
        ("c2", "own"),
        ("c1", "another"),
    ]
    (folder,) = module.make_settings("bbc-news", tmp_path, tmp_path, None)["data.train"]
    assert folder.startswith("package://")
    assert "data.test" not in module.make_settings("bbc-news", tmp_path, tmp_path, None)  # a part of the articles is
    (tmp_path / "input.txt").write_text("A B:\nWho is it?\nSay.\n\nC:\nI.\n\nA B:\nSo.\n", encoding="utf-8")
    assert module.list_lines(tmp_path / "input.txt") == [
        {"text": "Who is it? Say.", "label": "A B"},
        {"text": "I.", "label": "C"},
        {"text": "So.", "label": "A B"},
    ]


def test_advice_counts_the_points_and_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module: Any = importlib.import_module("advise")
    advice = {"depth": 1, "seconds": [{"depth": 0, "cold": 20.0}, {"depth": 1, "cold": 12.0}]}
    runs = [
        {"depth": depth, "seed": seed, "value": value, "seconds": 10.0}
        for depth, seed, value in ((0, 0, 0.9), (0, 1, 0.8), (1, 0, 0.84), (1, 1, 0.84))
    ]
    advice |= {"metric": "accuracy"}
    found = module.compare(advice, runs, 100)
    assert (found["chosen"], found["best"]) == (1, 0)
    assert found["loss"] == pytest.approx(0.01)
    assert found["loss_error"] == pytest.approx(((0.85 * 0.15 + 0.84 * 0.16) / 100) ** 0.5)
    assert (found["error"], found["largest_error"]) == pytest.approx((0.2, 1.0))
    assert module.compare(advice, runs[:2], 100) is None
    assert module.compare({**advice, "depth": 0}, runs, 100)["loss_error"] == 0
    assert module.find_error("pearson", 0.8, 101) == pytest.approx(0.036)


# --- many runs in one process ---------------------------------------------------------------------------------------


def test_sweep_writes_results_and_table(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    write_rows(tmp_path, tiny.make_rows)
    files = [word for split in ("train", "validation", "test") for word in (f"--{split}", tmp_path / f"{split}.jsonl")]
    sizes = ("--rounds", 1, "--trials", 2, "--folds", 2, "--epochs", 1, "--batch-size", 8, "--max-length", 32)
    out = tmp_path / "out"
    run_script("sweep.py", *files, *sizes, "--frozen", 1, "--backbone", backbones(), "--out", out)
    result = read_json(out / "sweep.json")
    medians = result["median_seconds"]
    assert medians.keys() == {"run", "sweep", "folds", "trainer"}
    assert min(medians.values()) > 0
    table = (out / "sweep.md").read_text(encoding="utf-8")
    assert (
        f"| sweep of 2 trials | {medians['sweep']:.0f} | {medians['sweep'] / medians['run']:.1f} x one run |" in table
    )
    assert f"{2 * medians['trainer'] / medians['sweep']:.1f} x the sweep" in table
    assert f"Test accuracy of the chosen trial: {result['rounds'][0]['chosen']['test']:.3f}." in table


def test_time_to_accuracy_has_the_seconds_to_each_saved_model_and_continues(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    (tmp_path / "trec").mkdir()
    rows = [{"question": row["text"], "label": row["label"]} for row in tiny.make_rows(60)]
    tiny.write_jsonl(tmp_path / "trec" / "train.jsonl", rows)
    contenders = ["auto", "trainer", "probe", *(["setfit"] if importlib.util.find_spec("setfit") else [])]
    words = ("--data", tmp_path, "--only", "trec", "--rounds", 1, "--examples", 40, "--epochs", 1, "--target", 0.01)
    words = (*words, "--backbone", backbones(), "--out", tmp_path / "out", "--limit", 300)
    first = run_script("time_to_accuracy.py", *words, "--contenders", *contenders[:1])
    assert first.startswith("1 measurements, about ")
    again = run_script("time_to_accuracy.py", *words, "--contenders", *contenders)
    assert again.startswith(f"{len(contenders) - 1} measurements, about ")
    runs = read_json(tmp_path / "out" / "time_to_accuracy.json")
    assert [run["contender"] for run in runs] == contenders
    for run in runs:
        times, values = zip(*run["saved"], strict=True)
        assert list(times) == sorted(times)
        assert run["reached"] == next((when for when, value in run["saved"] if value >= 0.01), None)
        assert run["reached"] is None or 0 < run["reached"] <= run["command_seconds"] < 300
        assert run["best"] == max(values) <= 1
    table = (tmp_path / "out" / "time to accuracy.md").read_text(encoding="utf-8")
    assert "| trec, accuracy 0.01 | 1 | **" in table


def test_time_to_accuracy_says_what_was_not_reached_or_not_finished(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module: Any = importlib.import_module("time_to_accuracy")
    run = {"saved": [[20.0, 0.9]], "reached": 20.0, "command_seconds": 30.0, "best": 0.9, "limit": 60}
    missed = run | {"reached": None, "best": 0.7}
    stopped = run | {"saved": [], "reached": None, "command_seconds": None, "best": None}
    assert module.describe_contender([run, run, stopped]) == "**20 s**; command 30 s, best 0.900"
    assert module.describe_contender([run, missed, missed]) == "not reached; command 30 s, best 0.700"
    assert (
        module.describe_contender([missed | {"command_seconds": None}]) == "not reached; stopped after 60 s, best 0.700"
    )
    assert module.describe_contender([stopped]) == "nothing within 60 s"
    # A process that goes on after the limit is stopped, and what it had saved counts
    code = 'import time\nprint(\'{"event": "save", "update": 1}\', flush=True)\ntime.sleep(60)'
    events, seconds = module.follow([sys.executable, "-c", code], tmp_path, 2)
    assert [event for _, event in events] == [{"event": "save", "update": 1}]
    assert seconds is None
    evaluated = {"event": "evaluation", "update": 2, "metrics": {"accuracy": 0.5}}
    saves = [(3.0, {"event": "save", "update": 2}), (4.0, {"event": "save", "update": 3})]
    assert module.list_saved([(1.0, {"event": "start"}), (2.0, evaluated), *saves], "accuracy") == [(3.0, 0.5)]


def test_contenders_score_all_kinds_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "comparisons"))
    module: Any = importlib.import_module("contenders")
    single, several, number = ({"problem": each} for each in ("single_label", "multi_label", "regression"))
    assert (
        module.list_names(single, ["b", "a", "b"]) == module.list_names(several, [["b"], [], ["a", "b"]]) == ["a", "b"]
    )
    assert module.list_names(number, [1.5, 2.0]) == []
    targets = module.encode_labels(several, ["a", "b"], [["b"], [], ["a", "b"]])
    assert targets.tolist() == [[0, 1], [0, 0], [1, 1]]
    assert module.compute_metric(several, targets > 0, targets) == 1
    assert module.compute_metric(several, 1 - targets, targets) == 0
    assert module.encode_labels(single, ["a", "b"], ["b", "a"]).tolist() == [1, 0]
    assert module.compute_metric(number, np.array([[1.0], [2.0], [4.0]]), np.array([2.0, 4.0, 8.0])) == pytest.approx(1)


def test_label_errors_counts_what_was_planted(
    tmp_path: Path, backbones: Callable[..., Path], run_script: Callable[..., str]
) -> None:
    (tmp_path / "trec").mkdir()
    rows = [{"question": row["text"], "label": row["label"]} for row in tiny.make_rows(240)]
    tiny.write_jsonl(tmp_path / "trec" / "train.jsonl", rows)
    sizes = (
        "--examples",
        200,
        "--folds",
        2,
        "--epochs",
        8,
        "--max-length",
        32,
        "--backbone",
        backbones(),
        "--frozen",
        0,
    )
    places = ("--data", tmp_path, "--out", tmp_path / "out")
    run_script("label_errors.py", *places, *sizes, "--only", "trec", "--plantings", 1)
    one, two = read_json(tmp_path / "out" / "label_errors.json")["results"]
    assert [(row["planting"], row["seeds"], row["rows"], row["planted"]) for row in (one, two)] == [
        (1, 1, 200, 10),
        (1, 2, 200, 10),
    ]
    assert 0 < one["precision_of_planted"] <= 1
    assert one["found"] != two["found"] or one["share_found"] != two["share_found"]
    table = (tmp_path / "out" / "wrong labels.md").read_text(encoding="utf-8")
    assert f"| trec | 200 | 10 | 2 | {two['precision_of_20']:.0%} | {two['precision_of_planted']:.0%} |" in table
