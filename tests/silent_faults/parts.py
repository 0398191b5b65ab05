"""What the faults share: small data and models, transformers.Trainer, sentence-transformers and hf_finetune on them."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
import transformers
from support import tiny

from hf_finetune import finetune

WORDS = {word for words in tiny.CLASSES.values() for word in words.split()}  # the words that are tagged
LABELS = sorted(tiny.CLASSES)

Verdict = Literal["right", "stops", "warns", "silently wrong", "does not apply"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a package does when it meets a fault. detail: What was measured, in a few words."""

    verdict: Verdict
    detail: str = ""


DOES_NOT_APPLY = Finding(verdict="does not apply")


def make_classifier(seed: int = 0, **changes: Any) -> Any:
    """A small random BERT with a head for three classes."""
    named = {"id2label": dict(enumerate(LABELS)), "label2id": {name: place for place, name in enumerate(LABELS)}}
    return tiny.make_model("bert", seed=seed, **{**named, **changes})


def make_tagger(seed: int = 0) -> Any:
    """A small random BERT that tags each token, without dropout."""
    torch.manual_seed(seed)
    config = tiny.make_config("bert", num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.AutoModelForTokenClassification.from_config(config)


def spoil(model: Any) -> Any:
    """The model with nan as the embedding of one word, which some rows have."""
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny.VOCABULARY.index("nail")] = float("nan")
    return model


def encode_classes(count: int, *, seed: int = 0) -> Any:
    """A datasets.Dataset of texts of three classes, as Trainer takes it."""
    tokenizer = tiny.make_tokenizer()
    rows = tiny.make_rows(count, seed=seed)
    return datasets.Dataset.from_list(
        [{**tokenizer(row["text"]), "labels": LABELS.index(row["label"])} for row in rows]
    )


def make_tags(count: int, *, seed: int = 0) -> list[dict[str, list[str]]]:
    """Rows of words and their tags. The rows have 3 to 14 words."""
    texts = [row["text"].split() for row in tiny.make_rows(count, seed=seed)]
    return [{"tokens": words, "tags": ["N" if word in WORDS else "O" for word in words]} for words in texts]


def encode_tags(count: int, *, seed: int = 0) -> Any:
    """The rows of make_tags() as Trainer takes them: one token a word, special tokens with the label -100."""
    tokenizer = tiny.make_tokenizer()
    rows = [
        {
            **tokenizer(" ".join(row["tokens"])),
            "labels": [-100, *(int(tag == "N") for tag in row["tags"]), -100],
        }
        for row in make_tags(count, seed=seed)
    ]
    return datasets.Dataset.from_list(rows)


def make_trainer(model: Any, train: Any, folder: Path, *, tags: bool = False, **options: Any) -> Any:
    """transformers.Trainer on a CPU that reports to nobody. options: those of TrainingArguments and of Trainer."""
    tokenizer = tiny.make_tokenizer()
    collator = transformers.DataCollatorForTokenClassification if tags else transformers.DataCollatorWithPadding
    names = ("callbacks", "eval_dataset", "compute_loss_func", "compute_metrics")
    others = {name: options.pop(name) for name in names if name in options}
    defaults = {"per_device_train_batch_size": 8, "save_strategy": "no", "report_to": [], "use_cpu": True}
    arguments = transformers.TrainingArguments(str(folder), **{**defaults, "disable_tqdm": True, **options})
    return transformers.Trainer(
        model, arguments, train_dataset=train, data_collator=collator(tokenizer), processing_class=tokenizer, **others
    )


def make_cross_encoder_trainer(folder: Path, **options: Any) -> tuple[Any, Any]:
    """sentence-transformers' CrossEncoder on pairs with a score of 0 or 1, and its trainer.

    options: As of make_trainer(); model_changes and spoils of the model, adapter for its add_adapter(), loss of the model, and
    evaluates, with which the rows are those of the evaluation too.
    """
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    place, changes, spoils = folder / "backbone", options.pop("model_changes", {}), options.pop("spoils", False)
    make_loss, adapter = options.pop("loss", losses.BinaryCrossEntropyLoss), options.pop("adapter", None)
    if not place.is_dir():
        model = tiny.make_model("bert", num_labels=1, **changes)
        (spoil(model) if spoils else model).save_pretrained(place)
        tiny.make_tokenizer().save_pretrained(place)
    model = CrossEncoder(str(place), num_labels=1, device="cpu")
    if adapter is not None:
        model.add_adapter(adapter)
    rows = [
        {"sentence1": row["text"], "sentence2": row["other"], "label": float(number % 2)}
        for number, row in enumerate(tiny.make_rows(24, pair=True))
    ]
    data = datasets.Dataset.from_list(rows)
    others = {name: options.pop(name) for name in ("callbacks",) if name in options}
    others |= {"eval_dataset": data} if options.pop("evaluates", False) else {}
    defaults = {"per_device_train_batch_size": 8, "save_strategy": "no", "report_to": [], "use_cpu": True}
    arguments = CrossEncoderTrainingArguments(str(folder / "out"), **{**defaults, "disable_tqdm": True, **options})
    trainer = CrossEncoderTrainer(model, arguments, train_dataset=data, loss=make_loss(model), **others)
    return model, trainer


class After(transformers.TrainerCallback):
    """Calls look(number of the update, model) after each update of a Trainer."""

    def __init__(self, look: Callable[[int, Any], None]) -> None:
        self.look = look

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by Trainer."""
        self.look(state.global_step, model)


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Yields the list of what transformers, peft and sentence-transformers log within the block, and of warnings."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    names, disabled = ("", "transformers", "sentence_transformers"), logging.root.manager.disable
    logging.disable(logging.NOTSET)
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield lines
        lines.extend(str(warning.message) for warning in caught)
    finally:
        logging.disable(disabled)
        for name in names:
            logging.getLogger(name).removeHandler(handler)


def train_ours(folder: Path, task: Any = "classify", settings: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """hf_finetune's run on the same data. options: Those of finetune()."""
    backbone = folder / "backbone"
    if not backbone.is_dir():
        tiny.make_backbone(backbone, "bert")
    rows: Any = make_tags if task == "tag" else tiny.make_rows
    defaults = {
        "name": "run",
        "output_dir": str(folder / "outputs"),
        "model.backbone": str(backbone),
        "data.max_length": 64,
        "train.batch_size": 8,
        "train.precision": "fp32",
        "tracking.trackers": [],
        "cache.activations": "off",
    }
    data = {"train": rows(24), "validation": rows(24, seed=1), "test": rows(24, seed=2)}
    return finetune(task, settings={**defaults, **(settings or {})}, **{**data, **options})


def copy_weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of a model's weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def measure_difference(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """The largest difference between two sets of weights."""
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)
