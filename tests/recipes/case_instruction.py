"""Conversations for recipes/instruct.py: the answer is a word of the class that the question is about."""

import random
from pathlib import Path
from typing import Any

import tiny
from recipe_case import Case

COUNTS = {"train": 48, "validation": 16, "test": 16}
# Words of the tiny vocabulary only; an answer ends with the end token
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ message.content }} [SEP] {% else %}[CLS] {{ message.content }} [CLS] {% endif %}"
    "{% endfor %}"
)


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Conversations of one or two turns: a word of a class is answered by the next of the class."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        messages = []
        for _ in range(1 + number % 2):
            words = generator.choice(list(tiny.CLASSES.values())).split()
            place = generator.randrange(len(words))
            messages.append({"role": "user", "content": f"{generator.choice(tiny.FILLER)} {words[place]}"})
            messages.append({"role": "assistant", "content": words[(place + 1) % len(words)]})
        rows.append({"messages": messages})
    return rows


def make_data(folder: Path) -> dict[str, Any]:
    """Files of conversations, and the template."""
    for seed, (split, count) in enumerate(COUNTS.items()):
        tiny.write_jsonl(folder / f"{split}.jsonl", make_rows(count, seed))
    (folder / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    files = {f"data.{split}": [str(folder / f"{split}.jsonl")] for split in COUNTS}
    return {**files, "task.chat_template": str(folder / "template.jinja")}


CASES = [
    Case(task="instruction", recipe="instruct", family=family, make_data=make_data,
         settings={"data.max_length": 32, "train.learning_rate": 5e-3, "train.epochs": 6})
    for family in ("llama", "gpt2")
]  # fmt: skip
