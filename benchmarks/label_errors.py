"""Measures how many planted wrong labels are among those that are shown first.

    python benchmarks/label_errors.py --data FOLDER [--only sst2_small trec] [--examples 2000]

A twentieth of the training labels of each set is replaced by another label at random, `hf-finetune train classify --folds 5` runs
on them, and of as many labels as were planted, the likeliest wrong ones, those that were planted are counted. Labels that were
wrong before count against it. FOLDER has a folder of each set, with train.jsonl. Writes benchmarks/results/label_errors.json and
the table in docs/choosing.md; --out FOLDER writes both into another folder.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from competitors import MINILM, make_words, measure_process
from pages import ROOT, describe_origin, describe_version, write_results, write_table

SETS = {"sst2_small": "text", "trec": "question"}  # the column of the texts
SHARE = 0.05


def plant(rows: list[dict[str, Any]], seed: int) -> set[int]:
    """Gives a share of the rows another label, in place. Returns their lines, from 1."""
    generator, labels = random.Random(seed), sorted({row["label"] for row in rows})
    places = generator.sample(range(len(rows)), max(1, round(SHARE * len(rows))))
    for place in places:
        rows[place]["label"] = generator.choice([label for label in labels if label != rows[place]["label"]])
    return {place + 1 for place in places}


def measure_set(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Plants wrong labels in a set, trains its folds, and returns how many of them are found."""
    lines = (options.data / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    if options.examples is not None:
        rows = random.Random(0).sample(rows, min(options.examples, len(rows)))
    planted = plant(rows, seed=1)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "name": name,
        "output_dir": str(folder),
        "data.train": [str(path)],
        "data.text_columns": [SETS[name]],
        "model.backbone": options.backbone,
        "freeze.layers": options.frozen,
        "train.epochs": options.epochs,
        "data.max_length": options.max_length,
        "tracking.trackers": [],
    }
    words = ["train", "classify", "--folds", str(options.folds), *make_words(settings)]
    _, measured = measure_process(
        [sys.executable, "-m", "hf_finetune", *words], {"HF_FINETUNE_CACHE": str(folder / "cache")}
    )
    found = [json.loads(line)["line"] for line in (folder / name / "label_errors.jsonl").read_text().splitlines()]
    first = found[: len(planted)]
    return {
        "rows": len(rows),
        "planted": len(planted),
        "found": len(found),
        "planted_among_first": len(planted.intersection(first)),
        "planted_found": len(planted.intersection(found)),
        "precision_of_first": len(planted.intersection(first)) / max(1, len(first)),
        "precision_of_first_20": len(planted.intersection(found[:20])) / max(1, len(found[:20])),
        "seconds": measured["command_seconds"],
        "load": measured["load"],
    }


def make_table(content: dict[str, Any]) -> str:
    """Returns the table of all sets."""
    lines = [
        describe_version("wrong labels", [content]),
        "| set | rows | planted | shown first | of them planted | of the first 20 | planted among all that are shown |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in content["sets"].items():
        shown = min(row["planted"], row["found"])
        lines.append(
            f"| {name} | {row['rows']:,} | {row['planted']} | {shown} | {row['precision_of_first']:.0%} | "
            f"{row['precision_of_first_20']:.0%} | {row['planted_found'] / row['planted']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures the sets, and writes results and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder of each set")
    parser.add_argument("--only", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--examples", type=int, help="number of training examples to draw; all if not given")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=128, help="in tokens")
    parser.add_argument("--frozen", type=int, default=4, help="number of frozen blocks")
    parser.add_argument("--backbone", default=MINILM, help="as model.backbone")
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sets = {name: measure_set(name, options, Path(folder)) for name in options.only}
    for name, row in sets.items():
        print(json.dumps({"set": name, **row}), flush=True)
    content = {**describe_origin(), "load": [row["load"] for row in sets.values()], "sets": sets}
    write_results("label_errors", content, options.out)
    write_table(make_table(content), "wrong labels", [ROOT / "docs" / "choosing.md"], options.out)


if __name__ == "__main__":
    main()
