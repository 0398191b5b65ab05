"""Encodes made texts as a run does, and with datasets.map(tokenizer, batched=True), in turn.

    python benchmarks/comparisons/encode.py [--rows 1000000] [--rounds 3] [--workers 2]

Prints one JSON line: the seconds of each round, and their medians. Both write what they make to the disk, from texts that lie
there. The token ids must be the same.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_finetune.data.encoding import encode
from hf_finetune.data.features import Features
from hf_finetune.data.table import Table, TableBuilder
from hf_finetune.data.table_store import open_or_build
from hf_finetune.tasks.classify import TextEncoding

MAX_LENGTH = 64
WORDS = [f"word{number}" for number in range(20_000)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class UnlabelledEncoding(TextEncoding):
    """The encoding of `classify`, without targets."""

    def labels(self, table: Table, arrays: Any) -> None:
        return None


def make_tokenizer() -> Any:
    """Returns a tokenizer that works as BERT's does, with 20,000 words and pieces of three characters for the rest."""
    pieces = [*"abcdefghijklmnopqrstuvwxyz0123456789", *(f"##{a}" for a in "abcdefghijklmnopqrstuvwxyz0123456789")]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *pieces, *WORDS])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def make_table(folder: Path, texts: Sequence[str]) -> Table:
    """Returns a table on disk."""

    def add_rows(builder: TableBuilder) -> dict[str, Any]:
        for line, text in enumerate(texts, 1):
            builder.add([text], "made.txt", line)
        return {}

    return open_or_build(folder, ["made"], ("text",), add_rows)


def encode_with_datasets(folder: Path, rows: datasets.Dataset, tokenizer: Any, workers: int) -> datasets.Dataset:
    """Returns the rows with their tokens, as transformers' examples make them."""
    return rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH),
        batched=True,
        num_proc=workers,
        remove_columns=["text"],
        load_from_cache_file=False,
        cache_file_name=str(folder / "mapped.arrow"),
    )


def compare(num_rows: int, rounds: int, workers: int) -> dict[str, Any]:
    """Returns the seconds of both, [rounds] each, their medians, and how many times as long datasets.map takes."""
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=10)) for _ in range(num_rows)]
    seconds: dict[str, list[float]] = {"hf_finetune": [], "datasets": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(folder / "dataset"))
        rows = datasets.load_from_disk(str(folder / "dataset"))
        table = make_table(folder, texts)
        del texts
        for number in range(rounds):
            began = time.perf_counter()
            mapped = encode_with_datasets(folder, rows, make_tokenizer(), workers)
            seconds["datasets"].append(time.perf_counter() - began)
            began = time.perf_counter()
            features = encode(
                UnlabelledEncoding(texts=("text",)), table, make_tokenizer(), MAX_LENGTH,
                root=folder / str(number), workers=workers, has_labels=False,
            )  # fmt: skip
            seconds["hf_finetune"].append(time.perf_counter() - began)
            check_tokens(features, mapped)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = round(medians["datasets"] / medians["hf_finetune"], 3)
    return {
        "rows": num_rows, "workers": workers, "cores": os.cpu_count(), "seconds": seconds, "medians": medians, "ratio": ratio
    }  # fmt: skip


def check_tokens(features: Features, mapped: datasets.Dataset) -> None:
    """Fails if the first or the last thousand rows have other tokens."""
    count = len(features)
    for first, last in ((0, min(1000, count)), (max(0, count - 1000), count)):
        theirs = np.concatenate([np.array(ids) for ids in mapped[first:last]["input_ids"]])
        ours = features.inputs["input_ids"][features.offsets[first] : features.offsets[last]]
        assert np.array_equal(ours, theirs)


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="threads of hf_finetune, processes of datasets")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    datasets.disable_progress_bars()
    print(json.dumps(compare(options.rows, options.rounds, options.workers)))


if __name__ == "__main__":
    main()
