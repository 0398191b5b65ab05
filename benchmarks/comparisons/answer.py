"""Trains what recipes/answer.py trains, with transformers.Trainer as in its example run_qa.py.

    python benchmarks/comparisons/answer.py --config recipes/configs/answer/squad.yaml [--train.epochs 1 ...]

Takes the settings of the recipe: model, data, epochs, batch size, learning rates, warm-up and frozen tensors are the same. Every
question must have an answer. Prints one JSON line: F1 and exact match on validation after the last epoch (hf-finetune takes the
best epoch on validation), and the seconds of training.
"""

import contextlib
import sys
import tempfile
from collections import defaultdict
from typing import Any

import numpy as np
import transformers
from trainer import (
    load_model,
    load_recipe_config,
    load_task_and_tables,
    make_arguments,
    make_optimizer,
    print_result,
    run_trainer,
)

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.table import Table
from hf_finetune.tasks.answer import Settings, get_settings
from hf_finetune.tasks.text import squad
from hf_finetune.tasks.text.answer_reader import AnswerReader
from hf_finetune.tasks.text.contexts import DEFAULT_OVERLAP


def encode(
    table: Table, reader: AnswerReader, tokenizer: Any, config: RunConfig
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Encodes as prepare_train_features() of run_qa.py does.

    Returns the windows with their targets; and for each window its row of the table, and the characters of its context tokens.
    """
    encoded = tokenizer(
        list(table.columns[reader.question]),
        list(table.columns[reader.context]),
        truncation="only_second",
        max_length=config.data.max_length,
        stride=get_settings(config).window_overlap or DEFAULT_OVERLAP,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    features, windows = [], []
    for number, row in enumerate(encoded["overflow_to_sample_mapping"]):
        text, start = reader.read(table, row)[0]
        context_tokens = [token for token, sequence in enumerate(encoded.sequence_ids(number)) if sequence == 1]
        characters = {token: encoded["offset_mapping"][number][token] for token in context_tokens}
        first, last = find_answer(characters, start, start + len(text))
        inputs = {name: encoded[name][number] for name in tokenizer.model_input_names}
        features.append({**inputs, "start_positions": first, "end_positions": last})
        windows.append((row, characters))
    return features, windows


def find_answer(characters: dict[int, tuple[int, int]], begin: int, end: int) -> tuple[int, int]:
    """Returns the first and the last token of the answer; 0 and 0 if the window does not hold it completely."""
    spans = list(characters.values())
    if not (spans[0][0] <= begin and spans[-1][1] >= end):
        return 0, 0
    first = max(token for token, span in characters.items() if span[0] <= begin)
    last = min(token for token, span in characters.items() if span[1] >= end)
    return first, last


def predict(windows: list[Any], starts: Any, ends: Any, contexts: list[str], settings: Settings) -> list[str]:
    """Returns the answers as postprocess_qa_predictions() of run_qa.py does. starts, ends: logits [windows, tokens]."""
    spans: dict[int, list[tuple[float, str]]] = defaultdict(lambda: [(-np.inf, "")])
    for (row, characters), start, end in zip(windows, starts, ends, strict=True):
        for i in np.argsort(start)[: -settings.num_best - 1 : -1].tolist():
            for j in np.argsort(end)[: -settings.num_best - 1 : -1].tolist():
                if i in characters and j in characters and i <= j < i + settings.longest_answer:
                    text = contexts[row][characters[i][0] : characters[j][1]]
                    spans[row].append((float(start[i] + end[j]), text))
    return [max(spans[row])[1] for row in range(len(contexts))]


def main() -> None:
    """Trains and evaluates."""
    config = load_recipe_config("answer", sys.argv[1:])
    task, tables = load_task_and_tables(config)
    reader = task.columns.reader
    if task.unanswerable:
        raise SystemExit("answer.py: every question must have an answer, and some training questions have none")
    model, tokenizer = load_model(config, transformers.AutoModelForQuestionAnswering)
    features, _ = encode(tables["train"], reader, tokenizer, config)
    validation, windows = encode(tables["validation"], reader, tokenizer, config)
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = transformers.Trainer(
            model=model,
            args=make_arguments(config, folder, train_sampling_strategy="group_by_length"),
            train_dataset=features,
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            optimizers=(make_optimizer(model, config, "qa_outputs"), None),
        )
        seconds = run_trainer(trainer)
        with contextlib.redirect_stdout(sys.stderr):
            starts, ends = trainer.predict(validation).predictions[:2]
    table = tables["validation"]
    answers = predict(windows, starts, ends, list(table.columns[reader.context]), get_settings(config))
    references = [[text for text, _ in reader.read(table, row)] for row in range(len(table))]
    scores = squad.score_answers(answers, references)
    print_result(trainer=transformers.__version__, validation=scores, train_seconds=seconds)


if __name__ == "__main__":
    main()
