"""Measures what data cost: memory by rows and format, encoding, the second start, predictions, damage of the cache, an epoch.

    python benchmarks/data.py [--only memory encode start predict damage epoch] [--rows 1000000]

The model is a small random one with MiniLM's tokenizer, so that what is measured is the data. The rows are eight words each, no
two alike. Memory is the resident set of the command's process, 20 times a second, and what its children do not share with it.
Mapped pages count. Writes benchmarks/results/data.json and the tables in docs/scale.md; what is not measured keeps its earlier
figures. --out FOLDER writes both into another folder.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from competitors import MINILM
from pages import RESULTS, ROOT, describe_origin, describe_version, measure_load, write_results, write_table

LABELS = ("animals", "food", "tools")
FORMATS = ("jsonl", "csv", "parquet")
EMOJI = "jsonl with one emoji"
MB = 1e6


# --- what is measured -----------------------------------------------------------------------------------------------


def write_backbone(folder: Path) -> Path:
    """Writes a random BERT of two layers with the tokenizer of MiniLM. Returns its folder."""
    import torch
    import transformers

    from hf_finetune.system.locations import local_path

    tokenizer = transformers.AutoTokenizer.from_pretrained(local_path(MINILM, "MINILM"), trust_remote_code=False)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(count: int, emoji: bool = False) -> Iterator[dict[str, Any]]:
    """Yields rows of eight words, no two alike. emoji: One in the middle."""
    generator = random.Random(0)
    words = [
        f"{a}{b}" for a in ("star", "moon", "sun", "rain", "wind") for b in ("light", "fall", "ship", "fish", "man")
    ]
    for number in range(count):
        text = " ".join([*generator.choices(words, k=7), str(number)])
        yield {
            "text": f"{text} \N{GRINNING FACE}" if emoji and number == count // 2 else text,
            "label": LABELS[number % 3],
        }


def write_rows(path: Path, count: int, emoji: bool = False) -> Path:
    """Writes rows in the format of the file's ending. Returns the path."""
    rows = make_rows(count, emoji)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet

        schema = pa.schema([("text", pa.string()), ("label", pa.string())])
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            while part := [row for row, _ in zip(rows, range(50_000), strict=False)]:
                writer.write_table(pa.Table.from_pylist(part, schema))
        return path
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("text,label\n")
        for row in rows:
            file.write(
                f"{row['text']},{row['label']}\n"
                if path.suffix == ".csv"
                else json.dumps(row, ensure_ascii=False) + "\n"
            )
    return path


class MemoryCurve(threading.Thread):
    """Measures the memory of a process and its children while it runs.

    points: Pairs of seconds since the start and MB.
    """

    def __init__(self, process: "subprocess.Popen[Any]") -> None:
        super().__init__(daemon=True)
        self.process, self.points, self.started_at = process, [(0.0, 0.0)], time.perf_counter()

    def run(self) -> None:
        """Measures until the process has ended."""
        while self.process.poll() is None:
            self.points.append((time.perf_counter() - self.started_at, measure_tree(self.process.pid)))
            time.sleep(0.05)

    @property
    def peak(self) -> float:
        """The largest memory, in MB."""
        return max(megabytes for _, megabytes in self.points)


def measure_tree(pid: int) -> float:
    """Returns the memory of a process in MB, and what its children have besides. Pages of libraries count, whoever else has them:
    the figure does not depend on the other programs of the machine."""
    total, waiting = 0, [(pid, "")]
    while waiting:
        number, of_parent = waiting.pop()
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()[1:]
            children = [
                child
                for task in Path(f"/proc/{number}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
        except OSError:  # it has just ended
            continue
        sizes = "".join(lines)
        if sizes != of_parent:  # between vfork and exec, a child has its parent's memory itself
            kinds = ("Rss:",) if number == pid else ("Private_Clean:", "Private_Dirty:")
            total += sum(int(line.split()[1]) for line in lines if line.startswith(kinds)) * 1024
        waiting += [(int(child), sizes) for child in children]
    return total / MB


def train(
    folder: Path,
    backbone: Path,
    data: Path,
    name: str,
    updates: int | None,
    watches_memory: bool = True,
    **settings: Any,
) -> tuple[MemoryCurve, float | None]:
    """Trains in a process of its own. Returns its memory, and the seconds until its first update was logged.

    watches_memory: If not set, memory is not measured: measuring it stops the process for a moment each time.
    """
    few = folder / "few.jsonl"
    if not few.exists():
        write_rows(few, 200)
    values = {
        "name": name,
        "output_dir": folder / "outputs",
        "model.backbone": backbone,
        "data.train": data,
        "data.validation": few,
        "data.test": few,
        "data.max_length": 64,
        "train.batch_size": 64,
        "train.epochs": 1,
        "cache.activations": "off",
        "cache.dir": folder / "cache",
        "tracking.trackers": "[]",
        "tracking.log_every": 1,
        **({} if updates is None else {"train.max_updates": updates}),
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    log = (folder / f"{name}.log").open("w")
    started_at = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_finetune", "train", "classify", *words], stdout=log, stderr=log
    )
    curve = MemoryCurve(process)
    if watches_memory:
        curve.start()
    metrics, first_update = folder / "outputs" / name / "metrics.jsonl", None
    while process.poll() is None:
        if first_update is None and metrics.exists() and metrics.stat().st_size:
            first_update = time.perf_counter() - started_at
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit((folder / f"{name}.log").read_text()[-2000:])
    return curve, first_update


# --- the measurements -----------------------------------------------------------------------------------------------


def measure_memory(options: argparse.Namespace, folder: Path, backbone: Path) -> list[dict[str, Any]]:
    """Returns the peak memory of three updates by rows and format, and by how much it is more than with 1,000 rows."""
    rows = []
    for ending in [ending for ending in options.formats if ending != "emoji"]:
        base: float | None = None
        for count in (1000, *options.sizes):
            data = write_rows(folder / f"{count}.{ending}", count)
            curve, _ = train(
                folder, backbone, data, f"memory-{ending}-{count}", 3, cache__dir=folder / f"cache-{ending}"
            )
            base = curve.peak if base is None else base
            rows.append({"format": ending, "rows": count, "peak_mb": curve.peak, "more_mb": curve.peak - base})
            print(f"{ending} {count:,} rows: {curve.peak:.0f} MB, {curve.peak - base:+.0f} MB", flush=True)
            data.unlink()
    if "emoji" not in options.formats:
        return rows
    plain, emoji = (
        train(
            folder,
            backbone,
            write_rows(folder / f"{name}.jsonl", options.rows, name == "emoji"),
            name,
            3,
            cache__dir=folder / f"cache-{name}",
        )[0].peak
        for name in ("plain", "emoji")
    )
    rows.append({"format": EMOJI, "rows": options.rows, "peak_mb": emoji, "more_mb": emoji - plain})
    print(f"one emoji: {emoji:.0f} MB, {emoji - plain:+.0f} MB", flush=True)
    return rows


def merge_memory(earlier: list[dict[str, Any]], measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows of measure_memory(), with those of earlier calls for other formats and numbers of rows."""
    rows = {(row["format"], row["rows"]): row for row in (*earlier, *measured)}
    return sorted(rows.values(), key=lambda row: ((*FORMATS, EMOJI).index(row["format"]), row["rows"]))


def measure_encode(options: argparse.Namespace, folder: Path, backbone: Path) -> dict[str, Any]:
    """Returns the seconds of encoding, interleaved with those of datasets.map(tokenizer, batched=True, num_proc=2)."""
    script = ROOT / "benchmarks" / "comparisons" / "encode.py"
    command = [sys.executable, str(script), "--rows", str(options.rows), "--rounds", str(options.rounds)]
    printed: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    print(json.dumps(printed), flush=True)
    return printed


def measure_start(options: argparse.Namespace, folder: Path, backbone: Path) -> dict[str, Any]:
    """Returns the seconds to the first update of a first and of a second run on the same rows, and of a run on 1,000 rows."""
    data, few = write_rows(folder / "start.jsonl", options.rows), write_rows(folder / "start-few.jsonl", 1000)
    seconds: dict[str, Any] = {"rows": options.rows}
    for name, path in (("few", few), ("first", data), ("second", data)):
        _, seconds[name] = train(folder, backbone, path, f"start-{name}", 3, watches_memory=False)
    print(json.dumps(seconds), flush=True)
    return seconds


def measure_predict(options: argparse.Namespace, folder: Path, backbone: Path) -> list[dict[str, Any]]:
    """Returns memory and speed of predictions with 3 and with 5,000 classes."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "comparisons"))
    import predict_memory

    rows = []
    for classes in (3, 5000):
        part = folder / f"predict-{classes}"
        part.mkdir()
        rows.append(predict_memory.measure_predict(options.predictions, classes, part))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_damage(options: argparse.Namespace, folder: Path, backbone: Path) -> dict[str, Any]:
    """Damages the encoded text of a run 200 times: a bit, a cut, a file. Each time the next run must find it and have the same
    features; every tenth is a training whose weights must be the same."""
    from hf_finetune.system.files import hash_file

    data, generator = write_rows(folder / "damage.jsonl", 600), random.Random(0)
    encode = encode_in_process(folder, backbone, data)
    every = max(1, options.damages // options.trainings)
    expected, digests, same = encode(), [], 0
    for number in range(options.damages):
        damage_file(choose_file(folder / "cache" / "encoded", generator), generator)
        if number % every:
            same += encode() == expected
            continue
        train(folder, backbone, data, f"damage-{number}", 2, watches_memory=False)
        digests.append(hash_file(folder / "outputs" / f"damage-{number}" / "model" / "model.safetensors"))
        same += encode() == expected
    same_weights = sum(digest == digests[-1] for digest in digests)
    result = {
        "damages": options.damages,
        "same features": same,
        "trainings": len(digests),
        "same weights": same_weights,
    }
    print(json.dumps(result), flush=True)
    return result


def choose_file(folder: Path, generator: random.Random) -> Path:
    """Returns one of the files in a folder that are not empty."""
    return generator.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))


def damage_file(path: Path, generator: random.Random) -> None:
    """Flips a bit of a file, cuts it, or removes it."""
    kind, content = generator.choice(("flip", "flip", "cut", "remove")), bytearray(path.read_bytes())
    path.unlink()  # so that what is mapped from it does not change
    if kind == "remove":
        return
    if kind == "flip":
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content[: generator.randrange(len(content))] if kind == "cut" else content)


def encode_in_process(folder: Path, backbone: Path, data: Path) -> Callable[[], str]:
    """Returns a function that encodes the rows by the cache and returns a digest of their features."""
    import transformers

    from hf_finetune.config.sections import RunConfig
    from hf_finetune.config.tasks import load_task
    from hf_finetune.data.encoding import encode
    from hf_finetune.data.sources import read_table

    config = RunConfig.from_settings(
        {"task.kind": "classify", "model.backbone": str(backbone), "data.train": [str(data)]}
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(backbone, trust_remote_code=False)
    table = read_table(config.data.train, config.data, "data.train")
    task = load_task("classify").from_table(config, table)
    return lambda: encode(task.encoding, table, tokenizer, 64, root=folder / "cache").fingerprint()


def measure_epoch(options: argparse.Namespace, folder: Path, backbone: Path) -> dict[str, Any]:
    """Returns the memory curve of an epoch, about 60 points, and how long it took."""
    data = write_rows(folder / "epoch.jsonl", options.rows)
    curve, first = train(folder, backbone, data, "epoch", None, tracking__log_every=1000)
    every = max(1, len(curve.points) // 60)
    points = [[round(seconds, 1), round(megabytes)] for seconds, megabytes in curve.points[1::every]]
    result = {
        "rows": options.rows,
        "seconds": curve.points[-1][0],
        "first update": first,
        "peak_mb": curve.peak,
        "curve": points,
    }
    print(json.dumps({name: value for name, value in result.items() if name != "curve"}), flush=True)
    return result


MEASUREMENTS: Mapping[str, Callable[[argparse.Namespace, Path, Path], Any]] = {
    "memory": measure_memory,
    "encode": measure_encode,
    "start": measure_start,
    "predict": measure_predict,
    "damage": measure_damage,
    "epoch": measure_epoch,
}


# --- the page -------------------------------------------------------------------------------------------------------


def make_memory_table(results: Mapping[str, Any]) -> str:
    """Returns the table of peak memory by rows and format."""
    lines = [
        "| file | rows | peak MB | more than the same run on 1,000 rows, or without the emoji |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['format']} | {row['rows']:,} | {row['peak_mb']:,.0f} | {row['more_mb']:+,.0f} MB |"
        for row in results["memory"]
    ]
    return "\n".join(lines)


def make_table(results: Mapping[str, Any]) -> str:
    """Returns the other figures as a table."""
    rows: list[tuple[str, str]] = []
    if encode := results.get("encode"):
        ours, theirs = encode["medians"]["hf_finetune"], encode["medians"]["datasets"]
        times = f"{ours:.1f} s against {theirs:.1f} s: {encode['ratio']:.2f} times as fast"
        rows.append(
            (f"encoding {encode['rows']:,} rows, against `datasets.map(tokenizer, batched=True, num_proc=2)`", times)
        )
    if start := results.get("start"):
        times = f"{start['first']:.1f} s the first time, {start['second']:.1f} s the second time"
        rows.append(
            (f"from the call to the first update, {start['rows']:,} rows", f"{times}; 1,000 rows: {start['few']:.1f} s")
        )
    for row in results.get("predict", ()):
        speed = f"first line after {row['first_line_seconds']:.1f} s; {row['rows_per_second']:,} rows a second"
        rows.append(
            (f"`predict`, {row['rows']:,} rows, {row['classes']:,} classes", f"peak {row['peak_mb']:,.0f} MB; {speed}")
        )
    if damage := results.get("damage"):
        weights = f"{damage['same weights']} of {damage['trainings']} trainings with the same weights"
        rows.append(
            (
                f"encoded text damaged {damage['damages']} times (bits, cuts, removed files)",
                f"{damage['same features']} times the same features; {weights}",
            )
        )
    if epoch := results.get("epoch"):
        rows.append(
            (f"one epoch on {epoch['rows']:,} rows", f"{epoch['seconds']:,.0f} s; peak {epoch['peak_mb']:,.0f} MB")
        )
    return "\n".join(["| what | measured |", "|---|---|", *(f"| {what} | {measured} |" for what, measured in rows)])


def make_curve(results: Mapping[str, Any]) -> str:
    """Returns the memory curve of an epoch as a chart of text: a line for each tenth of its time."""
    points, peak = results["epoch"]["curve"], results["epoch"]["peak_mb"]
    end = points[-1][0]
    lines = ["```", "seconds      MB"]
    for seconds, megabytes in points:
        lines.append(f"{seconds:7.1f}  {megabytes:6,.0f}  {'#' * round(60 * megabytes / peak)}")
    return "\n".join([*lines, f"the run ends after {end:.0f} s", "```"])


def write_pages(results: Mapping[str, Any], out: Path | None) -> None:
    """Writes the tables of what has been measured."""
    pages = [ROOT / "docs" / "scale.md"]
    origins = list(results["origins"].values())
    if "memory" in results:
        write_table(
            f"{describe_version('memory by rows', origins)}\n{make_memory_table(results)}", "memory by rows", pages, out
        )
    if results.keys() & {"encode", "start", "predict", "damage", "epoch"}:
        write_table(f"{describe_version('data', origins)}\n{make_table(results)}", "data", pages, out)
    if "epoch" in results:
        write_table(make_curve(results), "memory curve", pages, out)


def main() -> None:
    """Measures what the options say, and writes results and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(MEASUREMENTS), default=list(MEASUREMENTS))
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of most measurements")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000], help="rows for which memory is measured"
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=(*FORMATS, "emoji"),
        default=[*FORMATS, "emoji"],
        help="for which memory is measured",
    )
    parser.add_argument("--trainings", type=int, default=10, help="how many of the damages a training must find")
    parser.add_argument("--predictions", type=int, default=200_000, help="rows to predict")
    parser.add_argument("--damages", type=int, default=200, help="number of damages")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the comparison of encoding")
    parser.add_argument("--out", type=Path, help="folder of results and tables; those of the repository if not given")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    path = (options.out or RESULTS) / "data.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    origins = results.pop(
        "origins", {"earlier": {key: results.pop(key) for key in ("version", "machine") if key in results}}
    )
    results["origins"] = {name: origin for name, origin in origins.items() if origin}
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            backbone = write_backbone(Path(folder) / "backbone")
            load = measure_load()
            measured = MEASUREMENTS[name](options, Path(folder), backbone)
            results[name] = merge_memory(results.get(name, []), measured) if name == "memory" else measured
        results["origins"][name] = {**describe_origin(), "load": [load]}
        if MEASUREMENTS.keys() <= results["origins"].keys():
            results["origins"].pop("earlier", None)
        write_results("data", results, options.out)
        write_pages(results, options.out)


if __name__ == "__main__":
    main()
