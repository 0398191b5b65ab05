"""Makes small random backbones of many families, and small learnable data."""

import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from tokenizers import Tokenizer, models, pre_tokenizers, processors

CLASSES = {
    "animals": "cat dog horse bird fish",
    "food": "bread apple cheese soup rice",
    "tools": "hammer saw drill nail rope",
}
FILLER = [
    "the",
    "a",
    "one",
    "some",
    "this",
    "that",
    "big",
    "small",
    "old",
    "new",
    "red",
    "blue",
    "here",
    "there",
    "now",
    "then",
    "very",
    "quite",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# BART of older versions draws a random number for layerdrop even if its probability is 0, so its masks are torch's
BART_DRAWS = Version(transformers.__version__) < Version("5.23")
VOCABULARY = [*SPECIAL, *FILLER, *(word for words in CLASSES.values() for word in words.split())]
SIZES = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
BERT_LIKE = {
    **SIZES,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
}
LLAMA_LIKE = {**BERT_LIKE, "num_key_value_heads": 2}
T5_LIKE = {**SIZES, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "decoder_start_token_id": 0}

# family -> (config class, its arguments, the name of the argument that sets the number of blocks)
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert": ("BertConfig", BERT_LIKE, "num_hidden_layers"),
    "roberta": ("RobertaConfig", BERT_LIKE, "num_hidden_layers"),
    "xlm-roberta": ("XLMRobertaConfig", BERT_LIKE, "num_hidden_layers"),
    "camembert": ("CamembertConfig", BERT_LIKE, "num_hidden_layers"),
    "distilbert": (
        "DistilBertConfig",
        {**SIZES, "dim": 32, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 66},
        "n_layers",
    ),
    "electra": ("ElectraConfig", {**BERT_LIKE, "embedding_size": 16}, "num_hidden_layers"),
    "deberta-v2": (
        "DebertaV2Config",
        {**BERT_LIKE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
         "conv_kernel_size": 3},
        "num_hidden_layers",
    ),
    "mpnet": ("MPNetConfig", {**BERT_LIKE, "pad_token_id": 1}, "num_hidden_layers"),
    "modernbert": ("ModernBertConfig", {**BERT_LIKE, "cls_token_id": 2, "sep_token_id": 3}, "num_hidden_layers"),
    "albert": ("AlbertConfig", {**BERT_LIKE, "embedding_size": 16}, "num_hidden_layers"),
    "gpt2": ("GPT2Config", {**SIZES, "n_embd": 32, "n_head": 2, "n_positions": 66}, "n_layer"),
    "llama": ("LlamaConfig", LLAMA_LIKE, "num_hidden_layers"),
    "qwen2": ("Qwen2Config", LLAMA_LIKE, "num_hidden_layers"),
    "qwen3": ("Qwen3Config", {**LLAMA_LIKE, "head_dim": 16}, "num_hidden_layers"),
    "t5": ("T5Config", T5_LIKE, "num_layers"),
    "bart": (
        "BartConfig",
        {**SIZES, "d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
         "decoder_ffn_dim": 64, "decoder_layers": 2, "max_position_embeddings": 66, "decoder_start_token_id": 3},
        "encoder_layers",
    ),
}  # fmt: skip


def make_tokenizer(*, ends_only: bool = False) -> Any:
    """Returns a word-level fast tokenizer over VOCABULARY: [CLS] text [SEP], or text [SEP] for encoder-decoder families."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single, pair = ("$A [SEP]", "$A $B [SEP]") if ends_only else ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    special_tokens = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special_tokens)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[SEP]",
        model_max_length=64,
    )


def make_config(family: str = "bert", *, layers: int = 2, **changes: Any) -> Any:
    """Returns the config of a small model of a family."""
    name, arguments, depth = FAMILIES[family]
    return getattr(transformers, name)(**{**arguments, depth: layers, **changes})


def make_model(family: str = "bert", *, layers: int = 2, seed: int = 0, num_labels: int = 3, **changes: Any) -> Any:
    """Returns a small random sequence classifier of a family, in eval mode."""
    torch.manual_seed(seed)
    config = make_config(family, layers=layers, num_labels=num_labels, **changes)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def make_backbone(folder: Path, family: str = "bert", *, layers: int = 2, seed: int = 0, **changes: Any) -> Path:
    """Saves a small random model without a head, and its tokenizer. Returns the folder."""
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(make_config(family, layers=layers, **changes))
    model.save_pretrained(folder)
    make_tokenizer(ends_only=family in ("t5", "bart")).save_pretrained(folder)
    return folder


def make_text(generator: random.Random, label: str, *, longest: int = 12) -> str:
    """Returns a few filler words, and one or two words of the class."""
    words = generator.choices(FILLER, k=generator.randint(2, longest))
    words += generator.choices(CLASSES[label].split(), k=generator.randint(1, 2))
    generator.shuffle(words)
    return " ".join(words)


def make_rows(count: int, *, seed: int = 0, problem: str = "single_label", pair: bool = False) -> list[dict[str, Any]]:
    """Returns learnable rows: `text` (and `other` for pairs), and `label`: a name, a list of names, or a number."""
    generator = random.Random(seed)
    names = list(CLASSES)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        label = names[number % len(names)]
        row: dict[str, Any] = {"text": make_text(generator, label)}
        if pair:
            row["other"] = make_text(generator, generator.choice(names))
        if problem == "multi_label":
            second = generator.choice([name for name in names if name != label])
            row["text"] += " " + make_text(generator, second, longest=2)
            row["label"] = sorted({label, second})
        elif problem == "regression":
            row["label"] = round(float(names.index(label)) + generator.random() * 0.2, 3)
        else:
            row["label"] = label
        rows.append(row)
    return rows


def make_questions(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Returns rows like those of SQuAD 2.0. The answer is the one word of a class in the context; every fourth question has none;
    some contexts are long."""
    generator = random.Random(seed)
    answers = [word for words in CLASSES.values() for word in words.split()]
    rows = []
    for number in range(count):
        words = generator.choices(FILLER, k=generator.choice([4, 8, 30]))
        answer: dict[str, list[Any]] = {"text": [], "answer_start": []}
        if number % 4:
            position, word = generator.randint(0, len(words)), generator.choice(answers)
            words.insert(position, word)
            answer = {"text": [word], "answer_start": [len(" ".join([*words[:position], ""]))]}
        rows.append({"id": f"q{number}", "question": generator.choice(["this one", "that one here"]),
                     "context": " ".join(words), "answers": answer})  # fmt: skip
    return rows


def make_choices(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Returns rows of a prompt, two to four choices, and the index of the right one, which is an animal."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        choices = [f"{generator.choice(FILLER)} {generator.choice(['bread', 'saw'])}" for _ in range(2 + number % 3)]
        right = generator.randrange(len(choices))
        choices[right] = generator.choice(["cat", "dog"])
        stem = " ".join(generator.choices(FILLER, k=generator.randint(1, 9)))
        rows.append({"stem": stem, "choices": choices, "label": right})
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes one JSON object a line. Returns the path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


# Words of VOCABULARY only; an answer ends with the end token
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ message.content }} [SEP] {% else %}[CLS] {{ message.content }} [CLS] {% endif %}"
    "{% endfor %}"
)


def make_conversations(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Returns learnable `messages` of one or two turns: a word of a class is answered by the next word of the class."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        messages = []
        for _ in range(1 + number % 2):
            words = generator.choice(list(CLASSES.values())).split()
            position = generator.randrange(len(words))
            messages.append({"role": "user", "content": f"{generator.choice(FILLER)} {words[position]}"})
            messages.append({"role": "assistant", "content": words[(position + 1) % len(words)]})
        rows.append({"messages": messages})
    return rows


def make_uneven_conversations(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Returns the same with up to twelve words more before the first one."""
    generator = random.Random(seed)
    rows = make_conversations(count, seed=seed)
    for row in rows:
        more = " ".join(generator.choices(FILLER, k=generator.randint(0, 12)))
        row["messages"][0]["content"] = f"{more} {row['messages'][0]['content']}".strip()
    return rows


def write_conversations(
    folder: Path, counts: Mapping[str, int], make: Callable[..., list[dict[str, Any]]] = make_conversations
) -> dict[str, Any]:
    """Writes a file of conversations for each split, and one with their template. Returns the settings that name them."""
    settings: dict[str, Any] = {"task.chat_template": str(folder / "template.jinja")}
    for seed, (split, count) in enumerate(counts.items()):
        settings[f"data.{split}"] = [str(write_jsonl(folder / f"{split}.jsonl", make(count, seed=seed)))]
    (folder / "template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return settings
