"""Trains every recipe from the installed wheel, far from the repository, and loads each model with plain transformers.

    python wheel.py          in an environment that holds the wheel and its dependencies, from an empty folder

`make test-wheel` builds the wheel, makes that environment and runs this file. It takes nothing from the repository: the
backbones are small random ones, the data are made here.
"""

import argparse
import importlib.metadata
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

# The settings of all runs, and those of the cache: each name stands here and nowhere else in this file
FROZEN = {"freeze.embeddings": "true", "freeze.layers": "1"}
CACHE = {"cache.activations": "on"}
SETTINGS = {
    "train.epochs": "1",
    "train.batch_size": "8",
    "train.precision": "fp32",
    "data.max_length": "32",
    "tracking.log_every": "1",
}
GENERATION = {
    "task.input_prefix": "",
    "task.max_target_length": "6",
    "task.num_beams": "2",
    "task.generate_examples": "4",
}

WORDS = {
    "animals": "cat dog horse bird fish",
    "food": "bread apple cheese soup rice",
    "filler": "the a one some this that big small old new red blue here there now then",
}
ANIMALS, FOOD, FILLER = (words.split() for words in WORDS.values())
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *FILLER, *ANIMALS, *FOOD]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ message.content }} [SEP] {% else %}[CLS] {{ message.content }} [CLS] {% endif %}"
    "{% endfor %}"
)
SIZES = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
BERT_LIKE = {
    **SIZES,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", BERT_LIKE),
    "gpt2": ("GPT2Config", {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 66}),
    "llama": ("LlamaConfig", {**BERT_LIKE, "num_key_value_heads": 2}),
    "t5": ("T5Config", {**SIZES, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 1,
                        "decoder_start_token_id": 0}),
}  # fmt: skip


def make_backbone(family: str) -> Path:
    """The folder of a small random pretrained model with a word-level tokenizer."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    if family == "t5":
        single, pair = "$A [SEP]", "$A $B [SEP]"
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)
    folder = Path("backbones", family)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)
    name, arguments = BACKBONES[family]
    torch.manual_seed(0)
    transformers.AutoModel.from_config(getattr(transformers, name)(**arguments)).save_pretrained(folder)
    return folder


def made_text(generator: random.Random, word: str) -> str:
    """A few filler words around a word."""
    words = [*generator.choices(FILLER, k=generator.randint(2, 6)), word]
    generator.shuffle(words)
    return " ".join(words)


def classify_row(generator: random.Random, number: int) -> dict[str, Any]:
    """A text and its class."""
    return {
        "text": made_text(generator, generator.choice((ANIMALS, FOOD)[number % 2])),
        "label": ("animals", "food")[number % 2],
    }


def tag_row(generator: random.Random, number: int) -> dict[str, Any]:
    """Words, one of them an animal."""
    tokens = made_text(generator, ANIMALS[number % len(ANIMALS)]).split()
    return {"tokens": tokens, "tags": ["B-animal" if word in ANIMALS else "O" for word in tokens]}


def answer_row(generator: random.Random, number: int) -> dict[str, Any]:
    """A context whose animal is the answer."""
    answer = ANIMALS[number % len(ANIMALS)]
    context = made_text(generator, answer)
    starts = [len(" ".join([*context.split()[: context.split().index(answer)], ""]))]
    return {
        "id": str(number),
        "question": "this one",
        "context": context,
        "answers": {"text": [answer], "answer_start": starts},
    }


def choose_row(generator: random.Random, number: int) -> dict[str, Any]:
    """An animal and a food; the animal is right."""
    choices = [generator.choice(ANIMALS), generator.choice(FOOD)]
    return {"stem": "this one", "choices": choices[:: 1 if number % 2 else -1], "label": 0 if number % 2 else 1}


def instruct_row(generator: random.Random, number: int) -> dict[str, Any]:
    """An animal is asked for, and the next one is answered."""
    ask, answer = ANIMALS[number % 5], ANIMALS[(number + 1) % 5]
    content = f"{generator.choice(FILLER)} {ask}"
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def summarize_row(generator: random.Random, number: int) -> dict[str, Any]:
    """The animal of a text is its summary."""
    word = ANIMALS[number % 5]
    return {"document": made_text(generator, word), "summary": word}


def translate_row(generator: random.Random, number: int) -> dict[str, Any]:
    """Each animal has one translation."""
    places = [generator.randrange(5), number % 5]
    return {"source": " ".join(ANIMALS[place] for place in places), "target": " ".join(FOOD[place] for place in places)}


def embed_row(generator: random.Random, number: int) -> dict[str, Any]:
    """Two texts about the same word."""
    word = [*ANIMALS, *FOOD][number % 10]
    return {"anchor": made_text(generator, word), "positive": made_text(generator, word)}


def rerank_row(generator: random.Random, number: int) -> dict[str, Any]:
    """A query for an animal, a text about it, and texts about food."""
    word = ANIMALS[number % 5]
    return {"query": word, "positive": made_text(generator, word), "negatives": [made_text(generator, FOOD[0])]}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One recipe on one small backbone. make_row: a row of its data; without one, plain text. auto_class: the class of
    transformers that must load what is exported."""

    recipe: str
    family: str
    auto_class: str
    make_row: Callable[[random.Random, int], dict[str, Any]] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return f"{self.recipe}-{self.family}"


RUNS = (
    Run(recipe="classify", family="bert", auto_class="AutoModelForSequenceClassification", make_row=classify_row,
        settings=FROZEN | CACHE),
    Run(recipe="tag", family="bert", auto_class="AutoModelForTokenClassification", make_row=tag_row),
    Run(recipe="answer", family="bert", auto_class="AutoModelForQuestionAnswering", make_row=answer_row,
        settings={"task.window_overlap": "8"}),
    Run(recipe="choose", family="bert", auto_class="AutoModelForMultipleChoice", make_row=choose_row),
    Run(recipe="model_language", family="gpt2", auto_class="AutoModelForCausalLM"),
    Run(recipe="model_language", family="bert", auto_class="AutoModelForMaskedLM", settings={"task.objective": "masked"}),
    Run(recipe="instruct", family="llama", auto_class="AutoModelForCausalLM", make_row=instruct_row,
        settings={"task.chat_template": "template.jinja"}),
    Run(recipe="summarize", family="t5", auto_class="AutoModelForSeq2SeqLM", make_row=summarize_row, settings=GENERATION),
    Run(recipe="translate", family="t5", auto_class="AutoModelForSeq2SeqLM", make_row=translate_row, settings=GENERATION),
    Run(recipe="embed", family="bert", auto_class="AutoModel", make_row=embed_row),
    Run(recipe="rerank", family="bert", auto_class="AutoModelForSequenceClassification", make_row=rerank_row),
)  # fmt: skip


def write_data(run: Run) -> dict[str, str]:
    """Writes the three splits of a run; returns the settings that name them."""
    settings = {}
    for seed, (split, count) in enumerate((("train", 48), ("validation", 16), ("test", 16))):
        generator = random.Random(seed)
        if run.make_row is None:
            path = Path("data", f"{run.name}-{split}.txt")
            lines: Iterable[str] = (made_text(generator, generator.choice(ANIMALS)) for _ in range(4 * count))
        else:
            path = Path("data", f"{run.name}-{split}.jsonl")
            lines = (json.dumps(run.make_row(generator, number)) for number in range(count))
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        settings[f"data.{split}"] = str(path)
    return settings


def command(run: Run) -> list[str]:
    """The command line of a run, its data written and its backbone made."""
    given = {**SETTINGS, **run.settings, **write_data(run), "model.backbone": str(make_backbone(run.family))}
    words = [word for key, value in given.items() for word in (f"--{key}", value)]
    return [str(Path(sys.executable).with_name("hf-finetune")), "train", run.recipe, "--name", run.name, *words]


def fault(run: Run) -> str:
    """What is wrong with a run; an empty string if nothing is."""
    done = subprocess.run(command(run), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"exit code {done.returncode}: {done.stderr.strip()[-2000:]}"
    folder = Path("outputs", run.name)
    if not (folder / "results.json").exists():
        return "no results.json"
    model, report = getattr(transformers, run.auto_class).from_pretrained(folder / "model", output_loading_info=True)
    wrong = {kind: names for kind, names in report.items() if names}
    if wrong:
        return f"{run.auto_class}.from_pretrained reports {wrong}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    inputs = tokenizer("the old cat", return_tensors="pt", return_token_type_ids=False)
    if run.auto_class == "AutoModelForMultipleChoice":
        inputs = {key: value[None] for key, value in inputs.items()}
    if run.auto_class == "AutoModelForSeq2SeqLM":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        outputs = model(**inputs)
    return "" if all(value.isfinite().all() for value in outputs.to_tuple() if torch.is_tensor(value)) else "not finite"


def is_installed_apart() -> bool:
    """Whether the package lies in this environment, and not in a checkout."""
    import hf_finetune

    return Path(hf_finetune.__file__).is_relative_to(sys.prefix)


def main() -> int:
    """Runs every recipe; prints a line for each, and pytest's closing line."""
    transformers.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="RECIPE", help="run this recipe alone")
    only = parser.parse_args().only
    print(f"hf-finetune {importlib.metadata.version('hf-finetune')}, transformers {transformers.__version__}")
    if not is_installed_apart():
        print("error: the package of a checkout is imported, not the wheel's", file=sys.stderr)
        return 2
    import hf_finetune.recipe

    recipes = {path.stem for path in hf_finetune.config.recipes.recipe_path("classify").parent.glob("*.py")}
    unknown = recipes ^ {run.recipe for run in RUNS}
    if unknown:
        print(
            f"error: {', '.join(sorted(unknown))}: in the wheel or in RUNS of {__file__}, not in both", file=sys.stderr
        )
        return 2
    Path("data").mkdir()
    Path("template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    failed = 0
    runs = [run for run in RUNS if only in (None, run.recipe)]
    for run in runs:
        began = time.monotonic()
        problem = fault(run)
        failed += bool(problem)
        print(f"{run.name:<24} {time.monotonic() - began:5.1f} s  {problem or 'ok'}", flush=True)
    print(f"{len(runs) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
