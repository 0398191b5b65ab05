"""Made sentences with tags, and tokenizers of several kinds that split words into pieces."""

import random
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from support import tiny

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ENDS = [("[CLS]", 2), ("[SEP]", 3)]


def make_rows(count: int, *, seed: int = 0, longest: int = 12) -> list[dict[str, Any]]:
    """Returns rows in IOB2 that a model can learn: the one or two words of a class in a sentence are an entity of its type."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        kind = list(tiny.CLASSES)[number % 3]
        tokens = generator.choices(tiny.FILLER, k=generator.randint(1, longest))
        tags = ["O"] * len(tokens)
        position, size = generator.randint(0, len(tokens)), generator.randint(1, 2)
        tokens[position:position] = generator.choices(tiny.CLASSES[kind].split(), k=size)
        tags[position:position] = [f"B-{kind}", f"I-{kind}"][:size]
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def write_splits(folder: Path, counts: tuple[int, int, int] = (48, 16, 16), **options: Any) -> dict[str, Any]:
    """Writes three files of rows. Returns the settings that name them."""
    return {
        f"data.{split}": [str(tiny.write_jsonl(folder / f"{split}.jsonl", make_rows(count, seed=seed, **options)))]
        for seed, (split, count) in enumerate(zip(("train", "validation", "test"), counts, strict=True))
    }


def wrap(tokenizer: Any, **options: Any) -> Any:
    """Returns the tokenizer as one of transformers, with special tokens."""
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names, **options)


def word_piece() -> Any:
    """Returns a tokenizer like BERT's. Its pieces are all letters and a few longer ones; it drops control characters."""
    pieces = [*tiny.VOCABULARY, "ing", "##ing", "##s", *LETTERS, *(f"##{letter}" for letter in LETTERS), *".,'!"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ENDS)
    return wrap(tokenizer)


def byte_level(kind: str = "RobertaTokenizer") -> Any:
    """Returns a tokenizer like RoBERTa's, which marks the space before a word. kind: its class in transformers; "" for one like
    ModernBERT's, which has no class of its own."""
    trained = tokenizers.ByteLevelBPETokenizer()
    texts = [" ".join(row["tokens"]) for row in make_rows(40)]
    trained.train_from_iterator(texts, vocab_size=320, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    if not kind:
        return transformers.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, pad_token="<pad>")
    model = trained._tokenizer.model
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        lines = (Path(folder) / "merges.txt").read_text("utf-8").split("\n")[1:]
    merges = [tuple(line.split()) for line in lines if line]
    return getattr(transformers, kind)(vocab=trained.get_vocab(), merges=merges, model_max_length=64)


def unigram() -> Any:
    """Returns a tokenizer like those of SentencePiece."""
    trained = tokenizers.SentencePieceUnigramTokenizer()
    texts = [" ".join(row["tokens"]) for row in make_rows(40)]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trained.train_from_iterator(texts, vocab_size=90, special_tokens=specials, unk_token="[UNK]", show_progress=False)
    return wrap(trained._tokenizer)
