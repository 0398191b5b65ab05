"""Makes a small encoder-decoder model with random weights, and a tokenizer that is trained on given texts.

    python benchmarks/make_small_seq2seq.py OUT --data FILE.jsonl --columns document summaries [--family bart]

No package index has a pretrained encoder-decoder. With this model, the recipes of summarization and translation run on real text
without a download. OUT is a folder for `model.backbone`: T5 or BART with 2 + 2 blocks of width 256 (5.7 million parameters with
8,000 pieces).
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PAD, END = 0, 1  # token ids, by the order of the special tokens


def read_texts(path: Path, columns: list[str]) -> Iterator[str]:
    """Yields all texts in these columns of a file of JSON lines. A list gives each of its items."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for column in columns:
            yield from row[column] if isinstance(row[column], list) else [row[column]]


def train_tokenizer(texts: Iterator[str], num_pieces: int) -> Any:
    """Returns a unigram tokenizer like T5's: pieces carry a mark for the space before them, and
    texts end with the end token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=num_pieces, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def make_model(family: str, vocabulary: int, width: int, depth: int) -> Any:
    """Returns a model of a family with random weights, which are the same each time.

    Args:
        family: t5 or bart.
        vocabulary: Number of pieces.
        width: Size of the hidden states.
        depth: Number of blocks of the encoder, and of the decoder.
    """
    torch.manual_seed(0)
    heads = width // 64
    if family == "t5":
        config: Any = transformers.T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=64,
            d_ff=4 * width,
            num_heads=heads,
            num_layers=depth,
            num_decoder_layers=depth,
            pad_token_id=PAD,
            eos_token_id=END,
            decoder_start_token_id=PAD,
        )
        return transformers.T5ForConditionalGeneration(config)
    stack: dict[str, Any] = {"layers": depth, "attention_heads": heads, "ffn_dim": 4 * width}
    config = transformers.BartConfig(
        vocab_size=vocabulary,
        d_model=width,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=END,
        forced_eos_token_id=END,
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in stack.items()},
    )
    return transformers.BartForConditionalGeneration(config)


def main() -> None:
    """Writes model and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--data", type=Path, required=True, help="JSON lines; the tokenizer is trained on them")
    parser.add_argument("--columns", nargs="+", default=["document", "summary"], help="columns of the texts")
    parser.add_argument("--family", choices=("t5", "bart"), default="t5")
    parser.add_argument("--pieces", type=int, default=8000, help="size of the vocabulary")
    parser.add_argument("--width", type=int, default=256, help="size of the hidden states, a multiple of 64")
    parser.add_argument("--depth", type=int, default=2, help="number of blocks of the encoder, and of the decoder")
    options = parser.parse_args()
    tokenizer = train_tokenizer(read_texts(options.data, options.columns), options.pieces)
    model = make_model(options.family, len(tokenizer), options.width, options.depth)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.out}: {options.family}, {total:,} parameters, {len(tokenizer):,} pieces")


if __name__ == "__main__":
    main()
