"""The pretrained model with a head for the task, and its tokenizer."""

import contextlib
import io
import logging
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hf_finetune.config.sections import AdapterConfig, ModelConfig, require
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.model.heads import find_auto_class, find_backbone_prefix
from hf_finetune.model.structure import find_stack
from hf_finetune.system.errors import InputError
from hf_finetune.system.locations import local_path, model_files

# What damaged or missing files make transformers, tokenizers, safetensors and json raise.
LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError, AttributeError, EOFError, ArithmeticError),
    *(SafetensorError, StrictDataclassError, pickle.UnpicklingError),
)

LONGEST_DEFAULT = 512  # tokens, where neither the tokenizer nor the positions set a limit


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A model with its tokenizer. `new_parameters` were not in the pretrained files: the head; `replaces_head` where these hold
    one for other labels. `adapter_parameters` are those of adapters in the model, which are as `adapter` says."""

    model: Any
    tokenizer: Any
    source: str
    new_parameters: frozenset[str]
    revision: str | None = None
    replaces_head: bool = False
    adapter: AdapterConfig | None = None
    adapter_parameters: frozenset[str] = frozenset()

    @property
    def is_exported_as_adapter(self) -> bool:
        """Whether what is saved of it is an adapter, which needs the pretrained model beside it."""
        return self.adapter is not None and not self.adapter.merge

    @property
    def pad_token_id(self) -> int:
        """The id that pads."""
        return int(self.tokenizer.pad_token_id)


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """transformers' progress bars and load reports off: what matters in them we check and say ourselves."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def load_tokenizer(config: ModelConfig) -> Any:
    """The backbone's tokenizer, with a padding token (the end-of-sequence token where it has none of its own)."""
    source, file = model_files(config.backbone, "model.backbone")
    try:
        with silence_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source, revision=config.revision, trust_remote_code=config.trust_remote_code, **file
            )
    except Exception as error:  # noqa: BLE001  tokenizers raises nothing narrower for a file it cannot read
        raise loading_error(config.backbone, source, "tokenizer", error) from None
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise InputError(
            f"model.backbone ({config.backbone}): its tokenizer knows special tokens only; are the tokenizer's files missing?"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"model.backbone ({config.backbone}): its tokenizer has neither a padding nor an end token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # decoder classifiers read the last token that is no padding
    return tokenizer


def load_backbone(config: ModelConfig, head: HeadSpec, tokenizer: Any) -> Backbone:
    """The model in fp32 with a head for the task's labels. The new head's weights depend on torch's seed alone."""
    source, file = model_files(config.backbone, "model.backbone")
    try:
        with silence_transformers():
            hf_config = transformers.AutoConfig.from_pretrained(
                source,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
                **head.config_entries,
                **file,
            )
            set_dropout(hf_config, config.dropout)
            hf_config.pad_token_id = tokenizer.pad_token_id
            model, report = getattr(transformers, head.auto_class).from_pretrained(
                source,
                config=hf_config,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
                dtype=torch.float32,
                ignore_mismatched_sizes=head.has_labels,  # a head for other labels is made anew
                output_loading_info=True,
                **({"attn_implementation": config.attention} if config.attention else {}),
                **file,
                **make_dtype_options(file),
            )
    except LOADING_ERRORS as error:
        raise loading_error(config.backbone, source, "model", error) from None
    if getattr(model, "hf_quantizer", None) is not None and file:
        model.hf_quantizer.remove_quantization_config(model)  # else save_pretrained refuses the model
    new = frozenset(report["missing_keys"]) | {key[0] for key in report["mismatched_keys"]}
    check_weights(config.backbone, model, new, report["unexpected_keys"])
    if config.dropout is not None:
        wrong = [
            name
            for name, part in model.named_modules()
            if isinstance(part, torch.nn.Dropout) and part.p != config.dropout
        ]
        require(not wrong, "model.dropout", config.dropout, f"this backbone does not take it in {', '.join(wrong[:3])}")
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        source=config.backbone,
        new_parameters=new,
        revision=config.revision,
        replaces_head=bool(report["mismatched_keys"]),
    )


def make_dtype_options(file: Mapping[str, str]) -> dict[str, Any]:
    """What has from_pretrained convert a GGUF file's tensors to floating point, which alone can be trained. Versions of
    transformers without GgufConfig do nothing else."""
    if not file or not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def model_source(location: str, key: str = "MODEL") -> str:
    """Where the model of a run folder (its model/), model folder, package or Hub repository is."""
    inside = Path(location) / "model"
    return str(inside) if holds_model(inside) else local_path(location, key)


def holds_model(folder: Path) -> bool:
    """Whether a folder holds a model, or an adapter of one."""
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def load_pretrained(location: str) -> Backbone:
    """The model in a run folder, model folder, package or Hub repository, with the head it has or gets, without tokenizer."""
    source, file = model_files(model_source(location), "MODEL")
    try:
        with silence_transformers():
            config = transformers.AutoConfig.from_pretrained(source, **file)
            kind: Any = transformers.AutoModelForCausalLM if file else find_auto_class(config)
            model, report = kind.from_pretrained(source, output_loading_info=True, **file, **make_dtype_options(file))
    except LOADING_ERRORS as error:
        raise loading_error(location, source, "model", error, key="MODEL") from None
    return Backbone(model=model, tokenizer=None, source=location, new_parameters=frozenset(report["missing_keys"]))


def check_ids(backbone: Backbone, largest: int) -> None:
    """Raises InputError where the tokenizer gives ids that the model has no embeddings for."""
    rows = backbone.model.get_input_embeddings().num_embeddings
    if largest >= rows:
        raise InputError(
            f"model.backbone ({backbone.source}): its tokenizer gives the id {largest}, and the model has {rows} embeddings; "
            "are they of one model?"
        )


def loading_error(
    backbone: str, source: str, what: str, error: BaseException, key: str = "model.backbone"
) -> InputError:
    """One line that tells a missing backbone from a damaged one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if os.path.isdir(source):  # false for a name too long for a path, too
        return InputError(f"{key} ({backbone}): the {what} in this folder cannot be loaded: {lines[0]}")
    return InputError(
        f"{key} ({backbone}): there is no such folder, and the Hub gives no such model "
        f"(is the name right, is there a network, is access granted?): {lines[0]}"
    )


def decode_texts(tokenizer: Any, written: Iterable[Any]) -> list[str]:
    """The texts that arrays of token ids stand for, special tokens left out."""
    return list(tokenizer.batch_decode([ids.tolist() for ids in written], skip_special_tokens=True))


def set_dropout(hf_config: Any, probability: float | None) -> None:
    """Sets every dropout probability of a transformers config, nested ones too."""
    if probability is None:
        return
    changed = 0
    for name, value in vars(hf_config).items():
        is_rate = isinstance(value, (int, float)) and not isinstance(value, bool)
        is_dropout = "drop" in name and "layerdrop" not in name  # which leaves out whole blocks
        if is_dropout and (is_rate or (value is None and name == "classifier_dropout")):
            setattr(hf_config, name, probability)
            changed += 1
    require(changed > 0, "model.dropout", probability, f"{type(hf_config).__name__} has no dropout to set")


def check_weights(backbone: str, model: Any, new: frozenset[str], unexpected: Iterable[str]) -> None:
    """Raises InputError where the files lack weights of the backbone or have more blocks, or values are not finite."""
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
            f"model.backbone ({backbone}): its files have {len(extra)} tensors of blocks that its config does not, such as "
            f"{extra[0]}; are they of another model?"
        )
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"model.backbone ({backbone}): {name} holds values that are not finite: the file is damaged"
            )


def resolve_max_length(backbone: Backbone, asked: int | None) -> int:
    """Tokens an input may have: data.max_length, checked against the model's limit, or that limit, up to 512."""
    table = position_limit(backbone.model)
    if asked is not None:
        require(table is None or asked <= table, "data.max_length", asked, f"this backbone takes at most {table} tokens")
        return asked
    return min(limit for limit in (int(backbone.tokenizer.model_max_length), table, LONGEST_DEFAULT) if limit)


def position_limit(model: Any) -> int | None:
    """Tokens that the model has positions for; None where it has no such limit.

    RoBERTa, MPNet and their kin count positions from padding_idx + 1 (their create_position_ids_from_input_ids).
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            return positions - part.padding_idx - 1
    return positions
