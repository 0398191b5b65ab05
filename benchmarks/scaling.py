"""Measures time and peak memory of hf-finetune at 1, 4 and 16 times the examples, without, with a cold and with a warm cache.

    python benchmarks/scaling.py [--examples 2000] [--train FILE]

The rows of the file (or of BBC News) are repeated. Each copy begins with the number of the copy, so that no two texts are equal
and each has its own activations. Each run is one epoch. Peak memory must not grow with the examples, because what grows is kept
in files. Writes benchmarks/results/scaling.json and the table in docs/performance.md; --out FOLDER writes both into another
folder.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from against_trainer import write_bbc_news
from competitors import MINILM, launch
from pages import ROOT, describe_origin, describe_version, write_results, write_table

RUNS = ("uncached", "cold", "warm")


def repeat_rows(path: Path, target: Path, count: int, factor: int) -> Path:
    """Draws `count` rows with a fixed seed and writes each `factor` times, every copy different. Returns the new file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = random.Random(0).sample(rows, min(count, len(rows)))
    with target.open("w", encoding="utf-8") as file:
        for copy in range(factor):
            for row in rows:
                file.write(json.dumps({"text": f"{copy} {row['text']}", "label": row["label"]}) + "\n")
    return target


def measure_sizes(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Runs every size without and with a cache. Returns a row of the results for each run."""
    train, validation = (options.train, options.train) if options.train else write_bbc_news(folder)
    few = repeat_rows(validation, folder / "few.jsonl", 200, 1)
    rows: list[dict[str, Any]] = []
    for factor in options.factors:
        job = {
            "train": str(repeat_rows(train, folder / f"train-{factor}.jsonl", options.examples, factor)),
            "validation": str(few),
            "backbone": options.backbone,
            "frozen": options.frozen,
            "epochs": 1,
            "batch_size": 32,
            "learning_rate": 2e-4,
            "max_length": options.max_length,
            "text_columns": ["text"],
            "label_column": "label",
            "seed": 0,
        }
        for name in options.only:
            result = launch({**job, "competitor": name}, folder / "cache", 1)
            rows.append({"factor": factor, "examples": options.examples * factor, "run": name, **result})
            print(f"{factor:>2}x  {name:<9} {result['seconds']:6.1f} s  {result['peak_memory_mb']:,.0f} MB", flush=True)
    return rows


def make_table(content: dict[str, Any]) -> str:
    """Returns the table of seconds and peak memory by size."""
    rows = content["rows"]
    lines = [
        describe_version("scaling", [content]),
        "| examples | run | seconds | peak MB | of the smallest |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        smallest = next(other for other in rows if other["run"] == row["run"])
        growth = row["peak_memory_mb"] / smallest["peak_memory_mb"]
        lines.append(
            f"| {row['examples']:,} | {row['run']} | {row['seconds']:.1f} | {row['peak_memory_mb']:,.0f} | {growth:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures each size, and writes results and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000, help="number of rows of the smallest size")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 4, 16], help="sizes, as multiples of --examples")
    parser.add_argument("--train", type=Path, help="JSON lines with text and label; BBC News if not given")
    parser.add_argument("--max-length", type=int, default=64, help="in tokens")
    parser.add_argument("--backbone", default=MINILM, help="as model.backbone")
    parser.add_argument(
        "--frozen", type=int, default=4, help="number of frozen blocks; the embeddings are always frozen"
    )
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_sizes(options, Path(folder))
    content = {**describe_origin(), "load": [row["load"] for row in rows], "rows": rows}
    write_results("scaling", content, options.out)
    write_table(make_table(content), "scaling", [ROOT / "docs" / "performance.md"], options.out)


if __name__ == "__main__":
    main()
