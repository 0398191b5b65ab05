"""The same summarization by transformers.Seq2SeqTrainer, as its example run_summarization.py does it.

    python benchmarks/beside/sequence_to_sequence.py --config recipes/configs/summarize/scitldr.yaml

Model, data, lengths, epochs, batch size, learning rate, seed and beams are those of the config; settings may follow it, such as
--seed 1. Prints one JSON line: the loss and ROUGE (rouge-score, stemmed, the best of several references, as hf-finetune counts
it) on the test split after the last epoch, and the seconds of training. With
--lead it prints the ROUGE of each document's first sentence instead.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset

from hf_finetune.config.loading import load_config
from hf_finetune.system.processes import choose_precision
from hf_finetune.tasks.sequence_to_sequence import references_in
from hf_finetune.tasks.summarize import rouge


class Rows(Dataset[dict[str, Any]]):
    """Encoded rows of a file of JSON lines."""

    def __init__(self, path: str, config: Any, tokenizer: Any) -> None:
        self.rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        self.references = [references_in(row[config.data.label_column]) for row in self.rows]
        texts = [config.task.input_prefix + row[config.data.text_columns[0]] for row in self.rows]
        self.encoded = tokenizer(texts, truncation=True, max_length=config.data.max_length)
        targets = [right[0] for right in self.references]
        length = config.task.max_target_length
        self.labels = tokenizer(text_target=targets, truncation=True, max_length=length)["input_ids"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        names = ("input_ids", "attention_mask")
        return {**{name: self.encoded[name][row] for name in names}, "labels": self.labels[row]}


def train(config: Any) -> dict[str, Any]:
    """Loss, ROUGE and seconds of Seq2SeqTrainer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.model.backbone)
    options = {} if config.model.dropout is None else {"dropout_rate": config.model.dropout}
    transformers.set_seed(config.seed)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(config.model.backbone, dtype=torch.float32, **options)
    splits = {split: Rows(getattr(config.data, split)[0], config, tokenizer) for split in ("train", "test")}
    steps = -(-len(splits["train"]) // config.train.batch_size) * config.train.epochs
    arguments = transformers.Seq2SeqTrainingArguments(
        output_dir=str(Path(config.output_dir) / "seq2seq-trainer"),
        per_device_train_batch_size=config.train.batch_size,
        per_device_eval_batch_size=config.evaluation.batch_size,
        num_train_epochs=config.train.epochs,
        learning_rate=config.train.learning_rate,
        warmup_steps=int(config.train.warmup_fraction * steps),
        weight_decay=config.train.weight_decay,
        bf16=choose_precision("auto")[0] == "bf16",
        predict_with_generate=True,
        generation_max_length=config.task.max_target_length,
        generation_num_beams=config.task.num_beams,
        seed=config.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=50,
        use_cpu=not torch.accelerator.is_available(),
    )
    trainer = transformers.Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        processing_class=tokenizer,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=-100),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    output = trainer.predict(splits["test"], metric_key_prefix="test")
    written = np.where(output.predictions >= 0, output.predictions, tokenizer.pad_token_id)
    texts = [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    scores = rouge(texts, splits["test"].references)
    return {"loss": round(output.metrics["test_loss"], 4), **shown(scores), "seconds": round(seconds, 1)}


def lead(config: Any) -> dict[str, Any]:
    """ROUGE of the first sentence of each document of the test split."""
    rows = [json.loads(line) for line in Path(config.data.test[0]).read_text(encoding="utf-8").splitlines()]
    documents = [row[config.data.text_columns[0]] for row in rows]
    texts = [re.split(r"(?<=[.!?])\s+(?=[A-Z])", document, maxsplit=1)[0] for document in documents]
    return shown(rouge(texts, [references_in(row[config.data.label_column]) for row in rows]))


def shown(scores: dict[str, float]) -> dict[str, float]:
    """Rounded."""
    return {name: round(value, 4) for name, value in scores.items()}


def main() -> None:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="of recipes/summarize.py, which names the three splits")
    parser.add_argument("--lead", action="store_true", help="the first sentence is the summary")
    options, settings = parser.parse_known_args()  # such as --seed 1
    config = load_config({}, ["--config", options.config, *settings])
    assert config is not None
    print(json.dumps(lead(config) if options.lead else train(config)))


if __name__ == "__main__":
    main()
