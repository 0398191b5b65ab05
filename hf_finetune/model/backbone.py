"""The pretrained model with a head for the task, and its tokenizer."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_finetune.config.model_sections import AdapterConfig, CacheConfig, ModelConfig
from hf_finetune.config.sections import require
from hf_finetune.model import label_rows
from hf_finetune.model.conversions import OPTIONS, open_source
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.model.heads import find_auto_class, find_backbone_prefix
from hf_finetune.model.lineage import UNKNOWN, Lineage, read_lineage
from hf_finetune.model.loading import LOADING_ERRORS, load_config, make_loading_error, silence_transformers
from hf_finetune.model.structure import find_stack
from hf_finetune.system.errors import InputError
from hf_finetune.system.locations import check_location, local_path

LONGEST_DEFAULT = 512  # tokens; the limit of an input if neither data.max_length nor the model sets a lower one


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained model with a head, and its tokenizer.

    Args:
        model: The transformers model, in fp32.
        tokenizer: Its tokenizer; None if the model was loaded without one.
        source: model.backbone, or the location that the model was loaded from.
        place: The folder or Hub id that from_pretrained loads for it.
        new_parameters: Names of the parameters that the pretrained files do not hold: those of the head. A head of which any row
            is new, dropped or moved counts as new.
        revision: Branch, tag or commit of a model on the Hub.
        replaces_head: The files hold a head for another number of labels, which the new one replaces.
        lineage: The pretrained model at the beginning, and the runs that trained it.
        head_line: Which labels of a pretrained head are reused, to print before training; "" if there was no such head.
        adapter: Settings of the adapters in the model, if it has any.
        adapter_parameters: Names of the adapters' parameters.
    """

    model: Any
    tokenizer: Any
    source: str
    place: str
    new_parameters: frozenset[str]
    revision: str | None = None
    replaces_head: bool = False
    head_line: str = ""
    lineage: Lineage = UNKNOWN
    adapter: AdapterConfig | None = None
    adapter_parameters: frozenset[str] = frozenset()

    @property
    def is_exported_as_adapter(self) -> bool:
        """True if an adapter is exported, which needs the pretrained model to run; not a complete model."""
        return self.adapter is not None and not self.adapter.merge

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return int(self.tokenizer.pad_token_id)


def open_backbone(config: ModelConfig, cache: CacheConfig) -> str:
    """Returns the folder or Hub id that from_pretrained loads for model.backbone."""
    return open_source(config.backbone, "model.backbone", revision=config.revision, cache=cache)


def load_tokenizer(config: ModelConfig, cache: CacheConfig = OPTIONS) -> Any:
    """Returns the backbone's tokenizer, which pads on the right. cache: Where a converted GGUF file lies.

    If it has no padding token, the end-of-sequence token pads. Raises InputError if it has neither, if its files are missing or
    damaged, or if it knows special tokens only.
    """
    source = open_backbone(config, cache)
    try:
        with silence_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source, trust_remote_code=config.trust_remote_code, revision=config.revision
            )
    except Exception as error:  # noqa: BLE001  tokenizers raises Exception for a damaged file
        raise make_loading_error(config.backbone, source, "tokenizer", error) from None
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise InputError(
            f"model.backbone ({config.backbone}): its tokenizer knows special tokens only; are files of the tokenizer missing?"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"model.backbone ({config.backbone}): its tokenizer has neither a padding nor an end token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # classifiers on decoders read the last token before the padding
    return tokenizer


def load_backbone(config: ModelConfig, head: HeadSpec, tokenizer: Any, cache: CacheConfig = OPTIONS) -> Backbone:
    """Loads the model in fp32 with a head for the task. A pretrained head of the same kind gives its rows to the labels that have
    the same names. The weights of new rows, and of a new head, depend on torch's seed and the number of runs before. cache: Where
    a converted GGUF file lies.

    Raises InputError if files are missing or damaged, or if model.dropout cannot be set everywhere.
    """
    source = open_backbone(config, cache)
    trust, revision = config.trust_remote_code, config.revision

    def load(hf_config: Any) -> tuple[Any, dict[str, Any]]:
        """Returns the model, and what from_pretrained reports about its files."""
        model, report = getattr(transformers, head.auto_class).from_pretrained(
            source,
            trust_remote_code=trust,
            config=hf_config,
            dtype=torch.float32,
            ignore_mismatched_sizes=head.has_labels,  # a head for another number of labels is replaced
            output_loading_info=True,
            revision=revision,
            **({"attn_implementation": config.attention} if config.attention else {}),
        )
        return model, report

    try:
        with silence_transformers():
            pretrained_config = load_config(source, trust_code=trust, revision=revision)
            entries = {"problem_type": None, **head.config_entries}  # that of the backbone is of its own task
            hf_config = load_config(source, trust_code=trust, revision=revision, **entries)
            set_dropout(hf_config, config.dropout)
            set_pad_token(hf_config, tokenizer.pad_token_id)
            lineage = read_lineage(pretrained_config, config.backbone)
            with lineage.other_random_numbers():
                model, report = load(hf_config)
                match = label_rows.match_labels(pretrained_config, hf_config, head)
                new = frozenset(report["missing_keys"]) | {key[0] for key in report["mismatched_keys"]}
                rows = label_rows.find_label_parameters(model) if match else []
                if set(rows) & report["missing_keys"]:  # the config promises a head that the files do not hold
                    match = None
                if match is not None and not match.keeps_all:
                    label_rows.fill_rows(model, rows, match, lambda other: load(other)[0])
                    new |= frozenset(rows)
    except LOADING_ERRORS as error:
        raise make_loading_error(config.backbone, source, "model", error) from None
    check_weights(config.backbone, model, new, report["unexpected_keys"])
    check_dropout(model, config.dropout)
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        source=config.backbone,
        place=source,
        new_parameters=new,
        revision=config.revision,
        replaces_head=bool(report["mismatched_keys"]),
        head_line=match.line if match else "",
        lineage=lineage,
    )


def find_model_source(location: str, key: str = "MODEL") -> str:
    """Returns the folder or Hub id of the model at a location: a run folder (its model/), model folder, package or Hub
    repository. Raises InputError that names `key` if a package does not hold it, or if it is a path at which there is nothing."""
    check_location(location, key)
    inside = Path(location) / "model"
    return str(inside) if holds_model(inside) else local_path(location, key)


def holds_model(folder: Path) -> bool:
    """True if a folder holds a model, or an adapter for one."""
    # Path.is_file() raises OSError for a name that is too long
    return any(os.path.isfile(folder / name) for name in ("config.json", "adapter_config.json"))


def load_pretrained(location: str, *, trust_code: bool = False) -> Backbone:
    """Loads the model in a run folder, model folder, package or Hub repository, without its tokenizer.

    The head is the one that its config names, else a new classifier. trust_code: Run Python code that the model's files name.
    Raises InputError if files are missing or damaged.
    """
    source = open_source(find_model_source(location), "MODEL")
    try:
        with silence_transformers():
            config = load_config(source, trust_code=trust_code)
            model, report = find_auto_class(config).from_pretrained(
                source,
                trust_remote_code=trust_code,
                config=config,
                output_loading_info=True,
            )
    except LOADING_ERRORS as error:
        raise make_loading_error(location, source, "model", error, key="MODEL") from None
    new = frozenset(report["missing_keys"])
    return Backbone(model=model, tokenizer=None, source=location, place=source, new_parameters=new)


# --- checks ---------------------------------------------------------------------------------------------------------


def check_ids(backbone: Backbone, largest: int) -> None:
    """Raises InputError if the tokenizer gives an id that the model has no embedding for."""
    num_embeddings = backbone.model.get_input_embeddings().num_embeddings
    if largest >= num_embeddings:
        raise InputError(
            f"model.backbone ({backbone.source}): its tokenizer gives the id {largest}, and the model has {num_embeddings} "
            "embeddings; are they of one model?"
        )


def check_dropout(model: Any, probability: float | None) -> None:
    """Raises InputError if a dropout layer has another probability than model.dropout, if that is given."""
    if probability is None:
        return
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Dropout)}
    wrong = [name for name, layer in layers.items() if layer.p != probability]
    require(not wrong, "model.dropout", probability, f"this backbone does not take it in {', '.join(wrong[:3])}")


def check_weights(backbone: str, model: Any, new: frozenset[str], unexpected: Iterable[str]) -> None:
    """Raises InputError if the files lack weights of the backbone, hold more blocks than it has, or hold values that are not
    finite.

    Args:
        backbone: The location as the user gave it.
        model: The loaded model.
        new: Names of the parameters that the files do not hold.
        unexpected: Names of the tensors in the files that the model does not have.
    """
    prefix = find_backbone_prefix(model)
    output = model.get_output_embeddings()
    heads = {name for name, part in model.named_modules() if part is output and output is not None}
    lacking = sorted(
        name
        for name in new
        if name.startswith(prefix) and "pooler" not in name and name.rpartition(".")[0] not in heads
    )
    total = sum(name.startswith(prefix) for name, _ in model.named_parameters())
    if lacking:
        raise InputError(
            f"model.backbone ({backbone}): its files lack {len(lacking)} of {total} pretrained tensors, "
            f"such as {lacking[0]}; are they of another model?"
        )
    stack = find_stack(model)[0].removeprefix(prefix)
    extra = sorted(name for name in unexpected if name.removeprefix(prefix).startswith(f"{stack}."))
    if extra:
        raise InputError(
            f"model.backbone ({backbone}): its files have {len(extra)} tensors of blocks that its config does not have, such as "
            f"{extra[0]}; are they of another model?"
        )
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"model.backbone ({backbone}): {name} holds values that are not finite: the file is damaged"
            )


# --- settings of the model ------------------------------------------------------------------------------------------


def set_pad_token(hf_config: Any, pad_token_id: int) -> None:
    """Sets the token that pads, also in the config of a text model that is a part of a larger one: its classifier reads that."""
    hf_config.pad_token_id = pad_token_id
    with contextlib.suppress(ValueError):  # several text models
        hf_config.get_text_config().pad_token_id = pad_token_id


def set_dropout(hf_config: Any, probability: float | None) -> None:
    """Sets every dropout probability of a transformers config, if one is given. Raises InputError if it has none."""
    if probability is None:
        return
    num_changed = 0
    for name, value in vars(hf_config).items():
        is_rate = isinstance(value, (int, float)) and not isinstance(value, bool)
        is_dropout = "drop" in name and "layerdrop" not in name  # layerdrop leaves out entire blocks
        if is_dropout and (is_rate or (value is None and name == "classifier_dropout")):
            setattr(hf_config, name, probability)
            num_changed += 1
    require(num_changed > 0, "model.dropout", probability, f"{type(hf_config).__name__} has no dropout to set")


def resolve_max_length(backbone: Backbone, max_length: int | None) -> int:
    """Returns the most tokens that an input may have: data.max_length if it is given, else the limit of model and tokenizer, at
    most 512. Raises InputError if data.max_length is above the model's limit."""
    limit = find_position_limit(backbone.model)
    if max_length is not None:
        message = f"this backbone takes at most {limit} tokens"
        require(limit is None or max_length <= limit, "data.max_length", max_length, message)
        return max_length
    limits = (backbone.lineage.token_limit or int(backbone.tokenizer.model_max_length), limit, LONGEST_DEFAULT)
    return min(tokens for tokens in limits if tokens)


def find_position_limit(model: Any) -> int | None:
    """Returns the number of tokens that the model has position embeddings for; None if it has no such limit.

    RoBERTa, MPNet and their relatives count positions from padding_idx + 1 (create_position_ids_from_input_ids in transformers).
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            return positions - part.padding_idx - 1
    return positions


def decode_texts(tokenizer: Any, sequences: Iterable[Any]) -> list[str]:
    """Returns the texts of arrays of token ids, without special tokens."""
    return list(tokenizer.batch_decode([ids.tolist() for ids in sequences], skip_special_tokens=True))
