"""Trains LoRA adapters on instructions as recipes/instruct.py does, with peft and transformers.Trainer.

    python benchmarks/comparisons/instruct.py --adapter.kind lora --model.backbone FOLDER --data.train FILE ...

Takes the settings of the recipe. Sequences, labels and splits are made by hf-finetune, and the adapters are in the same linear
layers, so that only the loop differs. Batches have examples of similar length. Prints one JSON line: the loss of validation after
every epoch, as Trainer computes it (a mean of the means of batches), the number of trained parameters, and the seconds of
training with these evaluations and saves. The adapters and the tokenizer are saved.
"""

import sys
import tempfile
from typing import Any

import peft
import torch
import transformers
from model_language import collate
from trainer import (
    EVERY_EPOCH,
    list_evaluations,
    load_recipe_config,
    load_task_and_tables,
    make_arguments,
    measure_peak,
    print_result,
    run_trainer,
)

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import IGNORED
from hf_finetune.data.table import Table
from hf_finetune.model import backbone, freezing, lora, structure
from hf_finetune.tasks.instruct import Instruction


def encode(task: Instruction, table: Table, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Returns the sequences of a split; their labels are the tokens of answers."""
    arrays = task.encoding.tokenize(table, tokenizer, max_length)
    ids = torch.from_numpy(arrays["input_ids"].astype("int64"))
    labels = ids.masked_fill(~torch.from_numpy(arrays["answers"]), IGNORED)
    lengths = (arrays["offsets"][1:] - arrays["offsets"][:-1]).tolist()
    return [
        {"input_ids": tokens, "labels": targets}
        for tokens, targets in zip(ids.split(lengths), labels.split(lengths), strict=True)
    ]


def add_adapters(model: Any, config: RunConfig) -> Any:
    """Returns peft's model, with adapters in the same linear layers as hf-finetune's."""
    num_frozen = freezing.resolve_num_blocks(config.freeze, structure.analyze_structure(model))
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.adapter.rank,
        lora_alpha=config.adapter.alpha,
        lora_dropout=config.adapter.dropout,
        target_modules=lora.find_layers(model, config.adapter.targets, num_frozen),
    )
    return peft.get_peft_model(model, settings)


def main() -> None:
    """Trains and evaluates."""
    config = load_recipe_config("instruct", sys.argv[1:])
    task, tables = load_task_and_tables(config)
    tokenizer = backbone.load_tokenizer(config.model)
    task.prepare_tokenizer(tokenizer)
    transformers.set_seed(config.seed)
    loaded = backbone.load_backbone(config.model, task.head, tokenizer)
    model = add_adapters(loaded.model, config)
    length = backbone.resolve_max_length(loaded, config.data.max_length)
    rows = {split: encode(task, table, tokenizer, length) for split, table in tables.items()}
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = transformers.Trainer(
            model=model,
            args=make_arguments(
                config, folder, train_sampling_strategy="group_by_length", prediction_loss_only=True, **EVERY_EPOCH
            ),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            data_collator=collate,
            processing_class=tokenizer,
        )
        seconds, peak = run_trainer(trainer), measure_peak(trainer)
        trainer.save_model()
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print_result(
        each_epoch=list_evaluations(trainer, "loss"), train_seconds=seconds, peak_memory_mb=peak, trainable=trainable
    )


if __name__ == "__main__":
    main()
