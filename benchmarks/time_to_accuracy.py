"""Seconds from a command to a saved model that is good enough on validation: `hf-finetune train --auto`, and what one would use
instead.

    make time-to-accuracy DATA=FOLDER    or: python benchmarks/time_to_accuracy.py --data FOLDER [--only trec] [--rounds 3]
                                             [--contenders auto trainer setfit probe] [--limit 120]

    sst2_small    accuracy 0.88                            FOLDER/sst2_small
    trec          accuracy 0.96, on a tenth of the rows    FOLDER/trec
    go_emotions   micro-F1 0.45, a third of the rows       FOLDER/go_emotions
    stsb          Pearson correlation 0.86                 FOLDER/stsb

    auto      `hf-finetune train classify --auto`, with an empty cache; it does not know the target
    trainer   full fine-tuning by transformers.Trainer as an expert sets it; it stops at the target
    setfit    SetFit: contrastive pairs, then logistic regression; not for stsb. pip install --no-deps setfit
    probe     logistic or ridge regression on sentence-transformers' vectors

benchmarks/comparisons/contenders.py has all but the first. The clock is that of this script: from the start of the process to the
line that says that a model is saved. A contender is stopped after --limit seconds. Each measurement is written at once: the same
command continues. Writes benchmarks/results/time_to_accuracy.json and the table in docs/choosing.md; --out FOLDER writes both
into another folder.
"""

import argparse
import importlib.util
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competitors import MINILM, make_words, resolve_backbone
from pages import RESULTS, ROOT, describe_origin, describe_version, measure_load, write_results, write_table
from rounds import order_competitors

NAME, MARKER = "time_to_accuracy", "time to accuracy"
CONTENDERS = {
    "auto": "hf-finetune train --auto",
    "trainer": "Trainer tuned, nothing frozen",
    "setfit": "SetFit",
    "probe": "linear probe",
}
EXPECTED = {"auto": 60, "trainer": 100, "setfit": 110, "probe": 30}  # seconds, seen on two cores


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set and its target.

    Args:
        texts, label: Columns.
        problem: As task.problem.
        target: Value of the metric on validation that is good enough.
        share: Of the training rows that is used.
    """

    texts: tuple[str, ...]
    label: str
    problem: str = "single_label"
    metric: str = "accuracy"
    target: float
    share: float = 1.0
    max_length: int = 64

    @property
    def has_pairs(self) -> bool:
        """True if each row has two texts."""
        return len(self.texts) == 2


SETS = {
    "sst2_small": DataSet(texts=("text",), label="label", target=0.88),
    "trec": DataSet(texts=("question",), label="label", target=0.96),
    "go_emotions": DataSet(
        texts=("text",), label="labels", problem="multi_label", metric="f1_micro", target=0.45, share=1 / 3
    ),
    "stsb": DataSet(
        texts=("sentence1", "sentence2"),
        label="score",
        problem="regression",
        metric="pearson",
        target=0.86,
        max_length=96,
    ),
}


# --- one measurement ------------------------------------------------------------------------------------------------


def write_data(name: str, data: Path, folder: Path, examples: int | None) -> dict[str, str]:
    """Writes the rows that all contenders train on and those of validation, drawn with a fixed seed. Returns both paths."""
    sources = {split: data / name / f"{split}.jsonl" for split in ("train", "validation")}
    lines = {
        split: path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        for split, path in sources.items()
    }
    random.Random(0).shuffle(lines["train"])
    if not lines["validation"]:  # TREC has none
        count = len(lines["train"]) // 10
        lines = {"train": lines["train"][count:], "validation": lines["train"][:count]}
    lines["train"] = lines["train"][: examples or round(SETS[name].share * len(lines["train"]))]
    paths = {split: folder / f"{name}-{split}.jsonl" for split in lines}
    for split, path in paths.items():
        path.write_text("".join(lines[split]), encoding="utf-8")
    return {split: str(path) for split, path in paths.items()}


def make_command(
    name: str, contender: str, files: Mapping[str, str], options: argparse.Namespace, folder: Path, seed: int
) -> list[str]:
    """Returns the command of a contender."""
    data = SETS[name]
    if contender == "auto":
        settings = {
            "model.backbone": options.backbone,
            "data.train": [files["train"]],
            "data.validation": [files["validation"]],
            "data.test_fraction": 0.0,
            "data.max_length": data.max_length,
            "data.text_columns": list(data.texts),
            "data.label_column": data.label,
            "task.problem": data.problem,
            "evaluation.metric": data.metric,
            "output_dir": str(folder),
            "seed": seed,
        }
        return [sys.executable, "-m", "hf_finetune", "train", "classify", "--auto", "--json", *make_words(settings)]
    job = {
        "contender": contender,
        "source": resolve_backbone({"backbone": options.backbone}),
        **files,
        "text_columns": data.texts,
        "label_column": data.label,
        "problem": data.problem,
        "metric": data.metric,
        "target": data.target if options.target is None else options.target,
        "max_length": data.max_length,
        "batch_size": 32,
        "learning_rate": options.learning_rate,
        "epochs": options.epochs,
        "seed": seed,
        "folder": str(folder),
    }
    return [sys.executable, str(ROOT / "benchmarks" / "comparisons" / "contenders.py"), json.dumps(job)]


def follow(
    command: Sequence[str], folder: Path, limit: float
) -> tuple[list[tuple[float, dict[str, Any]]], float | None]:
    """Runs a command until its end or the limit. Returns its events, each with the seconds since the start, and the seconds that
    it took, None if it was stopped. SystemExit with the end of its errors if it fails."""
    own = {"HF_FINETUNE_CACHE": f"{folder}/cache", "HF_DATASETS_CACHE": f"{folder}/datasets"}
    environment = {**os.environ, **own, "TOKENIZERS_PARALLELISM": "false"}
    events: list[tuple[float, dict[str, Any]]] = []
    with tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True)
        timer = threading.Timer(limit, process.kill)
        timer.start()
        assert process.stdout is not None
        events = [(time.perf_counter() - began, json.loads(line)) for line in process.stdout]
        code = process.wait()
        seconds = time.perf_counter() - began
        timer.cancel()
        if code != 0 and seconds < limit:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)[:300]} failed:\n{errors.read()[-3000:]}")
    return events, None if code != 0 else seconds


def list_saved(events: Iterable[tuple[float, Mapping[str, Any]]], metric: str) -> list[tuple[float, float]]:
    """Returns the seconds at which models were saved, with the metric of each on validation. A checkpoint of an update that was
    not evaluated is left out."""
    values: dict[int, float] = {}
    saved = []
    for seconds, event in events:
        if event["event"] == "evaluation":
            values[event["update"]] = event["metrics"][metric]
        elif event["event"] == "save" and event["update"] in values:
            saved.append((round(seconds, 2), values[event["update"]]))
    return saved


def measure(name: str, contender: str, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a contender once. number: That of the round, which is the seed."""
    load, data = measure_load(), SETS[name]
    with tempfile.TemporaryDirectory() as each:
        folder = Path(each)
        files = write_data(name, options.data, folder, options.examples)
        command = make_command(name, contender, files, options, folder, number)
        events, seconds = follow(command, folder, options.limit)
    saved = list_saved(events, data.metric)
    target = data.target if options.target is None else options.target
    return {
        "data": name,
        "contender": contender,
        "round": number,
        "target": target,
        "metric": data.metric,
        "saved": saved,
        "reached": next((when for when, value in saved if value >= target), None),
        "best": max((value for _, value in saved), default=None),
        "command_seconds": None if seconds is None else round(seconds, 2),
        "limit": options.limit,
        **describe_origin(),
        "load": [load],
    }


# --- the table ------------------------------------------------------------------------------------------------------


def compute_median(values: Iterable[float | None]) -> float:
    """Returns the median, where None counts as more than any number."""
    return statistics.median(math.inf if value is None else value for value in values)


def describe_contender(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the cell of a contender: medians of the seconds to the target, if that is reached, of those of the command, and of
    the best value."""
    if not runs:
        return "-"
    reached, entire = (compute_median(run[key] for run in runs) for key in ("reached", "command_seconds"))
    limit = max(run["limit"] for run in runs)
    best = statistics.median(run["best"] or 0.0 for run in runs)
    command = f"command {entire:.0f} s" if math.isfinite(entire) else f"stopped after {limit:.0f} s"
    if math.isfinite(reached):
        return f"**{reached:.0f} s**; {command}, best {best:.3f}"
    if not any(run["saved"] for run in runs):
        return f"nothing within {limit:.0f} s"
    return f"not reached; {command}, best {best:.3f}"


def make_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table: a row for each data set, with the medians of its rounds."""
    lines = [
        describe_version(MARKER, runs),
        f"| data, target | rounds | {' | '.join(CONTENDERS.values())} | tuned Trainer / --auto |",
        f"|---|---|{'---|' * len(CONTENDERS)}---|",
    ]
    for name, data in SETS.items():
        own = {each: [run for run in runs if (run["data"], run["contender"]) == (name, each)] for each in CONTENDERS}
        known = [*filter(None, own.values())]
        if not known:
            continue
        ratio = ""
        if own["auto"] and own["trainer"]:
            auto, trainer = (compute_median(run["reached"] for run in own[each]) for each in ("auto", "trainer"))
            least = min(trainer, max(run["limit"] for run in own["trainer"]))
            ratio = f"{'' if math.isfinite(trainer) else 'over '}{least / auto:.1f} x" if math.isfinite(auto) else ""
        title = f"{name}, {data.metric} {known[0][0]['target']:g}"
        cells = [title, str(max(map(len, known))), *map(describe_contender, own.values()), ratio]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def list_measurements(options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Returns data set, contender and round of all measurements in their order: rounds are interleaved."""
    return [
        (name, contender, number)
        for number in range(options.rounds)
        for name in options.only
        for contender in order_competitors(options.contenders, number)
        if contender != "setfit" or not SETS[name].has_pairs
    ]


def main() -> None:
    """Measures, and writes results and table after each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--only", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3, help="each round has its own seed")
    parser.add_argument("--limit", type=float, default=120, help="most seconds of a contender")
    parser.add_argument("--epochs", type=int, default=3, help="of the Trainer")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="of the Trainer; that of the recipe")
    parser.add_argument("--examples", type=int, help="training rows; those of the table if not given")
    parser.add_argument("--target", type=float, help="instead of those of the table")
    parser.add_argument("--backbone", default=MINILM, help="as model.backbone")
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options = parser.parse_args()
    if "setfit" in options.contenders and importlib.util.find_spec("setfit") is None:
        print("setfit is left out: pip install --no-deps setfit")
        options.contenders.remove("setfit")
    path = (options.out or RESULTS) / f"{NAME}.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    done = {(run["data"], run["contender"], run["round"]) for run in runs}
    missing = [each for each in list_measurements(options) if each not in done]
    expected = sum(min(EXPECTED[contender], options.limit) for _, contender, _ in missing)
    print(
        f"{len(missing)} measurements, about {expected:.0f} s, at most {len(missing) * options.limit:.0f} s", flush=True
    )
    for name, contender, number in missing:
        run = measure(name, contender, number, options)
        runs.append(run)
        write_results(NAME, runs, options.out)
        write_table(make_table(runs), MARKER, [ROOT / "docs" / "choosing.md"], options.out)
        print(f"{name}  round {number}  {contender:<8} {describe_contender([run])}", flush=True)


if __name__ == "__main__":
    main()
