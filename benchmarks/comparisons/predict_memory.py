"""Peak memory and speed of `hf-finetune predict` as a process of its own, for a number of rows and of classes.

    python benchmarks/comparisons/predict_memory.py [--rows 200000] [--classes 3] [--processes 1]

The model is a small random one of two layers, so that what is measured is reading, encoding and writing. Prints JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support import tiny  # noqa: E402 - after the path

ROWS_AT_ONCE = 1000


def write_model(folder: Path, num_classes: int) -> None:
    """Writes a small random classifier."""
    tiny.make_model("bert", num_labels=num_classes).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)


def write_rows(path: Path, num_rows: int) -> None:
    """Writes rows of short texts as lines of JSON: the same 1000 again and again, with ids."""
    texts = [row["text"] for row in tiny.make_rows(ROWS_AT_ONCE)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            file.write(json.dumps({"id": number, "text": texts[number % ROWS_AT_ONCE]}) + "\n")


def measure_predict(num_rows: int, num_classes: int, folder: Path, *, processes: int = 1) -> dict[str, Any]:
    """Returns the peak memory of the command in MB (10**6 bytes), the seconds to its first line, and rows a second from there.

    With several processes, the memory is that of the first, which reads and writes.
    """
    write_model(folder / "model", num_classes)
    data = folder / "rows.jsonl"
    write_rows(data, num_rows)
    command = [
        sys.executable,
        "-m",
        "hf_finetune",
        "predict",
        str(folder / "model"),
        "--data",
        str(data),
        "--device",
        "cpu",
    ]
    started_at = time.perf_counter()
    process = subprocess.Popen([*command, "--processes", str(processes)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    num_lines, first_at = 0, started_at
    for _ in process.stdout:
        num_lines += 1
        if num_lines == 1:
            first_at = time.perf_counter()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert (process.returncode, num_lines) == (0, num_rows)
    return {
        "rows": num_rows,
        "classes": num_classes,
        "processes": processes,
        "peak_mb": round(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6, 1),
        "first_line_seconds": round(first_at - started_at, 2),
        "rows_per_second": round(num_rows / (time.perf_counter() - first_at)),
    }


def main() -> None:
    """Measures what the options say."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure_predict(options.rows, options.classes, Path(folder), processes=options.processes)))


if __name__ == "__main__":
    main()
