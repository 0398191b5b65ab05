"""Time and peak memory of hf-finetune at 1, 4 and 16 times the examples, with a cold and with a warm cache.

    python benchmarks/scaling.py [--examples 2000] [--train FILE]

The examples are those of the file, or of BBC News, over and over, each copy with a word of its own in front, so that no
two are equal and each has states of its own. One epoch. Peak memory must not grow with the examples: what grows are
files. Writes benchmarks/results/scaling.json and the table in docs/performance.md.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from against_trainer import MINILM, RESULTS, ROOT, launch, machine, write_bbc_news
from measure import rewrite

FACTORS = (1, 4, 16)


def multiplied(path: Path, target: Path, count: int, factor: int) -> Path:
    """`count` rows, drawn with a fixed seed, `factor` times over, every copy different."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = random.Random(0).sample(rows, min(count, len(rows)))
    with target.open("w", encoding="utf-8") as file:
        for copy in range(factor):
            for row in rows:
                file.write(json.dumps({"text": f"{copy} {row['text']}", "label": row["label"]}) + "\n")
    return target


def main() -> None:
    """Measures each size, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--train", type=Path, help="JSON lines with text and label; BBC News if not given")
    parser.add_argument("--max-length", type=int, default=64)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, validation = write_bbc_news(folder)
        if options.train:
            train = validation = options.train
        few = multiplied(validation, folder / "few.jsonl", 200, 1)
        for factor in FACTORS:
            path = multiplied(train, folder / f"train-{factor}.jsonl", options.examples, factor)
            job = {"train": str(path), "validation": str(few), "backbone": MINILM, "frozen": 4, "epochs": 1,
                   "batch_size": 32, "learning_rate": 2e-4, "max_length": options.max_length, "text_columns": ["text"],
                   "label_column": "label", "seed": 0}  # fmt: skip
            for competitor in ("uncached", "cold", "warm"):
                result = launch({**job, "competitor": competitor}, folder / "cache", 1)
                rows.append({"factor": factor, "examples": options.examples * factor, "run": competitor, **result})
                print(
                    f"{factor:>2}x  {competitor:<9} {result['seconds']:6.1f} s  {result['peak_memory_mb']:,.0f} MB",
                    flush=True,
                )
    (RESULTS / "scaling.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    rewrite(ROOT / "docs" / "performance.md", table(rows), "scaling")


def table(rows: list[dict[str, Any]]) -> str:
    """Seconds and peak memory by size."""
    lines = ["| examples | run | seconds | peak MB | of the smallest |", "|---|---|---|---|---|"]
    for row in rows:
        first = next(each for each in rows if each["run"] == row["run"])
        growth = row["peak_memory_mb"] / first["peak_memory_mb"]
        lines.append(
            f"| {row['examples']:,} | {row['run']} | {row['seconds']:.1f} | {row['peak_memory_mb']:,.0f} | {growth:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
