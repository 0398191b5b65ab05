"""Makes a small encoder-decoder model with random weights, and a tokenizer trained on the texts it is to be trained on.

    python benchmarks/make_small_seq2seq.py OUT --data FILE.jsonl --columns document summaries [--family bart]

No pretrained encoder-decoder comes from a package index; this one lets the recipes of summarization and translation run on real
text from nothing. OUT is a folder that any `model.backbone` takes: T5 or BART of 2 + 2 blocks of width 256 (5.7 million
parameters with 8,000 pieces).
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PAD, END, UNKNOWN = 0, 1, 2


def texts_in(path: Path, columns: list[str]) -> Iterator[str]:
    """All texts of these columns of a file of JSON lines; of lists, their members."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for column in columns:
            yield from row[column] if isinstance(row[column], list) else [row[column]]


def train_tokenizer(texts: Iterator[str], num_pieces: int) -> Any:
    """A unigram tokenizer as T5's: pieces with a mark for the space before them, and the end token behind a text."""
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
    """A random model of a family; the same each time."""
    torch.manual_seed(0)
    heads = width // 64
    if family == "t5":
        config: Any = transformers.T5Config(
            vocab_size=vocabulary, d_model=width, d_kv=64, d_ff=4 * width, num_heads=heads, num_layers=depth,
            num_decoder_layers=depth, pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config)
    config = transformers.BartConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=depth, decoder_layers=depth, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width, max_position_embeddings=512,
        pad_token_id=PAD, bos_token_id=PAD, eos_token_id=END, decoder_start_token_id=END, forced_eos_token_id=END,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines to train the tokenizer on")
    parser.add_argument("--columns", nargs="+", default=["document", "summary"])
    parser.add_argument("--family", choices=("t5", "bart"), default="t5")
    parser.add_argument("--pieces", type=int, default=8000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=2, help="blocks of the encoder, and of the decoder")
    options = parser.parse_args()
    tokenizer = train_tokenizer(texts_in(options.data, options.columns), options.pieces)
    model = make_model(options.family, len(tokenizer), options.width, options.depth)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.out}: {options.family}, {total:,} parameters, {len(tokenizer):,} pieces")


if __name__ == "__main__":
    main()
