"""What `recipes/answer.py` does, by transformers' Trainer as its run_qa.py uses it: same model, data, epochs, batch size,
learning rates, warm-up and frozen tensors.

    python benchmarks/beside/answering.py --config recipes/configs/answer/squad.yaml [--train.epochs 1 ...]

Takes the recipe's own settings, of questions that all have an answer. Prints one JSON line: f1 and exact match of validation
after the last epoch (hf-finetune takes the best on validation), and the seconds of training.
"""

import json
import runpy
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from hf_finetune import tasks
from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import Table
from hf_finetune.model import freezing
from hf_finetune.system.locations import local_path
from hf_finetune.tasks.answer import DEFAULT_OVERLAP
from hf_finetune.tasks.text import squad

ROOT = Path(__file__).resolve().parent.parent.parent
COLUMNS = squad.Columns(question="question", context="context", answers="answers")


def encode(table: Table, tokenizer: Any, config: RunConfig) -> tuple[list[dict[str, Any]], list[Any]]:
    """As prepare_train_features of run_qa.py: windows with their targets; and of each window its row and offsets."""
    encoded = tokenizer(
        table.columns["question"], table.columns["context"], truncation="only_second", max_length=config.data.max_length,
        stride=config.task.window_overlap or DEFAULT_OVERLAP, return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    rows, windows = [], []
    for number, row in enumerate(encoded["overflow_to_sample_mapping"]):
        text, start = squad.answers_of(table, row, COLUMNS)[0]
        inside = [token for token, sequence in enumerate(encoded.sequence_ids(number)) if sequence == 1]
        offsets = encoded["offset_mapping"][number]
        first, last = 0, 0
        if offsets[inside[0]][0] <= start and offsets[inside[-1]][1] >= start + len(text):
            first = max(token for token in inside if offsets[token][0] <= start)
            last = min(token for token in inside if offsets[token][1] >= start + len(text))
        inputs = {name: encoded[name][number] for name in tokenizer.model_input_names}
        rows.append({**inputs, "start_positions": first, "end_positions": last})
        windows.append((row, {token: offsets[token] for token in inside}))
    return rows, windows


def answers(windows: list[Any], starts: Any, ends: Any, table: Table, config: RunConfig) -> list[str]:
    """As postprocess_qa_predictions of run_qa.py."""
    tried: dict[int, list[tuple[float, str]]] = defaultdict(lambda: [(-np.inf, "")])
    for (row, offsets), start, end in zip(windows, starts, ends, strict=True):
        for i in np.argsort(start)[: -config.task.num_best - 1 : -1].tolist():
            for j in np.argsort(end)[: -config.task.num_best - 1 : -1].tolist():
                if i in offsets and j in offsets and i <= j < i + config.task.longest_answer:
                    text = table.columns["context"][row][offsets[i][0] : offsets[j][1]]
                    tried[row].append((float(start[i] + end[j]), text))
    return [max(tried[row])[1] for row in range(len(table))]


def optimizer_of(model: Any, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW with the recipe's two learning rates, and no decay of biases and norms, as Trainer has it."""
    train = config.train
    groups: dict[tuple[bool, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("qa_outputs"), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        {
            "params": parameters,
            "lr": (train.head_learning_rate or train.learning_rate) if is_head else train.learning_rate,
            "weight_decay": train.weight_decay if decays else 0.0,
        }
        for (is_head, decays), parameters in groups.items()
    )


def main() -> None:
    """Trains and measures."""
    defaults = runpy.run_path(str(ROOT / "recipes" / "answer.py"))["DEFAULTS"]
    config = load_config(defaults, sys.argv[1:])
    assert config is not None
    tables = load_splits(config.data, config.seed, tasks.form_of("answering", config)).tables()
    source = local_path(config.model.backbone, "model.backbone")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    transformers.set_seed(config.seed)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(source, dtype=torch.float32)
    freezing.apply_freezing(model, config.freeze)
    encoded = {split: encode(table, tokenizer, config) for split, table in tables.items()}
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                folder,
                num_train_epochs=config.train.epochs,
                per_device_train_batch_size=config.train.batch_size,
                per_device_eval_batch_size=config.evaluation.batch_size,
                warmup_steps=config.train.warmup_fraction,
                train_sampling_strategy="group_by_length",
                bf16=torch.cpu._is_amx_tile_supported(),
                use_cpu=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=config.seed,
            ),
            train_dataset=encoded["train"][0],
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            optimizers=(optimizer_of(model, config), None),
        )
        began = time.perf_counter()
        trainer.train()
        seconds = round(time.perf_counter() - began, 1)
        rows, windows = encoded["validation"]
        starts, ends = trainer.predict(rows).predictions[:2]
    table = tables["validation"]
    golds = [[text for text, _ in squad.answers_of(table, row, COLUMNS)] for row in range(len(table))]
    found = squad.score_answers(answers(windows, starts, ends, table, config), golds)
    print(json.dumps({"trainer": transformers.__version__, "validation": found, "train_seconds": seconds}))


if __name__ == "__main__":
    main()
