"""Measures an update that computes head and last block only for the tokens that are read, against one that computes them for all.

    python benchmarks/labelled_tokens.py [--rounds 5] [--length 128] [--backbone FOLDER] [--layers 30] [--vocabulary 49152]

Three jobs: a masked language model of a pretrained encoder with two trained blocks and 15 % of the tokens masked; and, of a
Llama in the shape of SmolLM2-135M with four trained blocks and random weights, instruction tuning with the second half of each
row as the answer, and classification, which reads the last token. The latter two also from cached activations. Both kinds of
update take turns; the figures are medians of CPU seconds. Peak memory is that of a process of its own that makes an update of
instruction tuning.

Writes benchmarks/results/labelled_tokens.json and the table in docs/performance.md; --out FOLDER writes both into another folder.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from against_trainer import MINILM
from pages import ROOT, describe_origin, describe_version, measure_load, write_results, write_table

from hf_finetune.config.sections import FreezeConfig
from hf_finetune.data.features import IGNORED, Batch
from hf_finetune.forward.dropout import DropoutMasks, choose_masks
from hf_finetune.forward.plan import FULL_FORWARD, ForwardPlan, find_forward_plan
from hf_finetune.model import freezing
from hf_finetune.system.locations import local_path
from hf_finetune.tasks.class_scoring import ClassificationObjective
from hf_finetune.tasks.objectives import CountedObjective
from hf_finetune.tasks.tokens import TokenObjective
from hf_finetune.training.train_state import add_reading

NUM_TRAINED = {"masked": 2, "instruct": 4, "classify": 4}  # blocks
NUM_LABELS = 4
MASKED_SHARE = 0.15
BATCH_SIZE = {"masked": 32, "instruct": 4, "classify": 4}
NAMES = {
    "masked": "masked language model, 2 blocks",
    "instruct": "instruction tuning, 4 blocks",
    "instruct cached": "instruction tuning, 4 blocks, cached activations",
    "classify": "classification by a decoder, 4 blocks",
    "classify cached": "classification by a decoder, 4 blocks, cached activations",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model in training, a batch, and the plan that computes only the tokens that are read."""

    model: Any
    batch: Batch
    objective: CountedObjective
    plan: ForwardPlan
    masks: DropoutMasks
    optimizer: torch.optim.Optimizer

    def update(self, plan: ForwardPlan, activations: torch.Tensor | None = None) -> None:
        """Makes one update with a plan."""
        batch = add_reading(self.batch, self.objective, plan)
        self.optimizer.zero_grad()
        masks = self.masks.active(0, batch.sequence_indices, reading=batch.reading)
        with masks:
            outputs = plan.run_model(self.model, batch.inputs, activations, batch.reading)
        loss, count = self.objective.loss(outputs, batch)
        (loss / count).backward()
        self.optimizer.step()


def make_model(name: str, options: argparse.Namespace) -> Any:
    """Returns the model of a job."""
    if name == "masked":
        folder = local_path(options.backbone, "--backbone")
        return transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=False)
    config = transformers.LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=options.layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        use_cache=False,
        pad_token_id=0,
        num_labels=NUM_LABELS,
    )
    if name == "classify":
        return transformers.LlamaForSequenceClassification(config)
    return transformers.LlamaForCausalLM(config)


def make_labels(name: str, ids: torch.Tensor) -> torch.Tensor:
    """Returns the labels of random tokens [rows, length]: of each token, or of each row."""
    if name == "classify":
        return torch.randint(NUM_LABELS, (len(ids),))
    if name == "masked":
        return ids.masked_fill(torch.rand(ids.shape) >= MASKED_SHARE, IGNORED)
    is_question = torch.arange(ids.shape[1]) < ids.shape[1] // 2
    return ids.masked_fill(is_question, IGNORED)


def make_job(name: str, options: argparse.Namespace, num_rows: int) -> Job:
    """Returns the job with this name, on random tokens."""
    torch.manual_seed(0)
    model = make_model(name, options)
    num_frozen = max(0, model.config.num_hidden_layers - NUM_TRAINED[name])
    plan = freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=num_frozen))
    eval_modules = freezing.find_eval_modules(model)
    masks = choose_masks("auto", 0, model, eval_modules)
    forward_plan, _ = find_forward_plan(model, plan, reads_some_tokens=name != "classify")
    freezing.set_train_mode(model, eval_modules)
    ids = torch.randint(5, model.config.vocab_size, (num_rows, options.length))
    indices = np.arange(num_rows)
    objective: CountedObjective = TokenObjective(is_causal=name == "instruct")
    if name == "classify":
        objective = ClassificationObjective(problem="single_label")
    return Job(
        model=model,
        batch=Batch(
            feature_indices=indices,
            sequence_indices=indices,
            sequence_counts=np.ones(num_rows, dtype=np.int64),
            inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            labels=make_labels(name, ids),
        ),
        objective=objective,
        plan=forward_plan,
        masks=masks,
        optimizer=torch.optim.AdamW([each for each in model.parameters() if each.requires_grad]),
    )


def time_updates(updates: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Returns the median CPU seconds of each kind of update. They take turns, after one of each that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(rounds + 1):
        for name, update in updates.items():
            began = time.process_time()
            update()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def measure_speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the seconds of an update of each job, for all tokens and for those that are read."""
    results = []
    for name in NUM_TRAINED:
        job = make_job(name, options, BATCH_SIZE[name])
        starts: dict[str, Any] = {name: None}
        if name != "masked":
            assert job.plan.cached is not None
            with torch.no_grad():
                starts[f"{name} cached"] = job.plan.cached.compute_activations(job.batch.inputs)
        for start, activations in starts.items():
            all_tokens = ForwardPlan(cached=job.plan.cached) if activations is not None else FULL_FORWARD
            seconds = time_updates(
                {
                    "all": lambda job=job, plan=all_tokens, start=activations: job.update(plan, start),  # type: ignore[misc]
                    "targets": lambda job=job, start=activations: job.update(job.plan, start),  # type: ignore[misc]
                },
                options.rounds,
            )
            num_tokens, reading = (
                job.batch.inputs["input_ids"].numel(),
                add_reading(job.batch, job.objective, job.plan).reading,
            )
            assert reading is not None
            results.append({"job": start, "tokens": num_tokens, "share": len(reading) / num_tokens, **seconds})
    return results


def report_peak(options: argparse.Namespace, kind: str, pipe: Any) -> None:
    """Sends the peak memory of this process in MB after an update."""
    job = make_job("instruct", options, max(1, options.memory_tokens // options.length))
    job.update(FULL_FORWARD if kind == "all" else job.plan)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def measure_memory(options: argparse.Namespace) -> dict[str, float]:
    """Returns the peak memory in MB of instruction tuning, for all tokens and for those with a target."""
    peaks = {}
    processes = multiprocessing.get_context("fork")  # before this process has computed anything
    for kind in ("all", "targets"):
        receiver, sender = processes.Pipe(duplex=False)
        child = processes.Process(target=report_peak, args=(options, kind, sender))
        child.start()
        peaks[kind] = receiver.recv()
        child.join()
    return peaks


def make_table(results: dict[str, Any]) -> str:
    """Returns the table of the times and of the memory."""
    lines = ["| update | tokens | read | all tokens | those that are read | |", "|---|---|---|---|---|---|"]
    for row in results["speed"]:
        lines.append(
            f"| {NAMES[row['job']]} | {row['tokens']:,} | {row['share']:.0%} | {row['all']:.2f} s | {row['targets']:.2f} s | "
            f"{row['all'] / row['targets']:.1f}x |"
        )
    memory = results["memory"]
    lines.append(
        f"| {NAMES['instruct']}, peak memory | {results['memory_tokens']:,} | 50% | {memory['all']:,.0f} MB | "
        f"{memory['targets']:,.0f} MB | {memory['all'] / memory['targets']:.1f}x |"
    )
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=MINILM, help="of the masked language model")
    parser.add_argument("--layers", type=int, default=30, help="of the Llama")
    parser.add_argument("--vocabulary", type=int, default=49152, help="of the Llama")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--memory-tokens", type=int, default=2048, help="tokens of an update whose memory is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    results = {
        **describe_origin(),
        "load": [measure_load()],
        "memory": measure_memory(options),
        "memory_tokens": options.memory_tokens,
    }
    results["speed"] = measure_speed(options)
    text = f"{describe_version('labelled tokens', [results])}\n{make_table(results)}"
    print(text)
    write_results("labelled_tokens", results, options.out)
    write_table(text, "labelled tokens", [ROOT / "docs" / "performance.md"], options.out)


if __name__ == "__main__":
    main()
