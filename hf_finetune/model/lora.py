"""LoRA through peft: small matrices beside the linear layers of the upper blocks train, the weights themselves do not.

The model stays the object that it is: peft puts a layer of its own around each linear layer, in place, and nothing around the
model or its head. So what trains, replays, saves and resumes models knows no adapters; a linear layer's `weight` is called
`base_layer.weight` then, and `lora_A.default.weight` and `lora_B.default.weight` stand beside it.
"""

import contextlib
import copy
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils.peft_utils import find_adapter_config_file

from hf_finetune.config.sections import AdapterConfig, FreezeConfig, require
from hf_finetune.model import backbone, freezing, heads, structure
from hf_finetune.model.backbone import Backbone
from hf_finetune.system.errors import InputError
from hf_finetune.system.locations import local_path, model_files

WEIGHTS = "adapter_model.safetensors"

# Where the config of the whole model is, below the adapter's folder: beside adapter_config.json, transformers would take it
# for the sign of whole weights
MODEL_CONFIG = "config"

LINEAR = (nn.Linear, Conv1D)

NAME = "default"  # peft's for a model's only adapter

PREFIX = "base_model.model."  # of the names of tensors in peft's files

# What peft calls the classes of transformers
TASK_TYPES = {
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModel": "FEATURE_EXTRACTION",
}


def import_peft(key: str) -> Any:
    """peft. InputError where it is not installed; `key` is what needs it."""
    try:
        import peft
    except ImportError:
        raise InputError(f"{key}: needs the package peft: pip install 'hf-finetune[lora]'") from None
    return peft


# --- into a model ---------------------------------------------------------------------------------------------------


def add_adapters(loaded: Backbone, adapter: AdapterConfig, freeze: FreezeConfig, seed: int) -> Backbone:
    """The backbone with adapters in its blocks above freeze.layers (and in all of a decoder), or as it is with
    adapter.kind none. They add nothing yet; their first values are a function of the seed.

    InputError where peft is missing, or adapter.targets names no linear layer there.
    """
    if adapter.kind == "none":
        return loaded
    peft, model = import_peft(f"adapter.kind ({adapter.kind})"), loaded.model
    num_frozen = freezing.resolve_num_blocks(freeze, structure.analyze_structure(model))
    layers = find_layers(model, adapter.targets, num_frozen)
    if not layers:
        raise InputError(
            f"freeze.layers ({freeze.layers}): leaves no block for the adapters of adapter.kind "
            f"({adapter.kind}); freeze fewer"
        )
    find_modules_to_save(model, loaded.new_parameters)  # an error now rather than after the training
    inject_adapters(peft, model, adapter, layers, seed)
    names = frozenset(name for name, _ in model.named_parameters() if is_adapter_parameter(name))
    return replace(loaded, adapter=adapter, adapter_parameters=names)


def inject_adapters(peft: Any, model: Any, adapter: AdapterConfig, layers: Iterable[str], seed: int) -> None:
    """Puts adapters around the named layers; all parameters require gradients then, as of a model that was just loaded."""
    torch.manual_seed(seed)
    settings = peft.LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=list(layers),
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in layers),
    )  # fmt: skip
    peft.inject_adapter_in_model(settings, model, NAME)
    model.requires_grad_(True)


def find_layers(model: nn.Module, targets: Iterable[str], num_frozen: int) -> list[str]:
    """Names of the linear layers that `targets` (all, where there are none) mean in the blocks above `num_frozen`; none where
    there are no such blocks. InputError where a target means none, or something else."""
    blocks = find_trainable_blocks(model, num_frozen)
    inside = {
        f"{block}.{name}": module for block in blocks for name, module in model.get_submodule(block).named_modules()
    }
    linear = [name for name, module in inside.items() if isinstance(module, LINEAR)]
    listed = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    found: set[str] = set()
    for target in targets if linear else ():
        named = [name for name in inside if name == target or name.endswith(f".{target}")]
        other = next((name for name in named if name not in linear), None)
        require(bool(named), "adapter.targets", target,
              f"names nothing in the blocks above freeze.layers; their linear layers are called {listed}")  # fmt: skip
        require(other is None, "adapter.targets", target,
              f"is a {type(inside.get(str(other))).__name__}; LoRA is for linear layers: {listed}")  # fmt: skip
        found.update(named)
    return [name for name in linear if name in found or not targets]


def find_trainable_blocks(model: nn.Module, num_frozen: int) -> list[str]:
    """Names of the blocks above the lowest `num_frozen`, and of the decoder's where there is one beside the encoder."""
    stack_name, stack = structure.find_stack(model)
    names = [f"{stack_name}.{number}" for number in range(num_frozen, len(stack))]
    decoder: Any = model.get_decoder() if getattr(model.config, "is_encoder_decoder", False) else None  # type: ignore[operator]
    if isinstance(decoder, nn.Module) and not set(stack) & set(decoder.modules()):
        other_name, other = structure.find_stack(model, decoder)
        names += [f"{other_name}.{number}" for number in range(len(other))]
    return names


def is_adapter_parameter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return f".lora_A.{NAME}." in name or f".lora_B.{NAME}." in name


def find_modules_to_save(model: nn.Module, new_parameters: Iterable[str]) -> list[str]:
    """Names of the modules that an adapter's file carries whole, because of their new parameters: the topmost that have no
    others, and for what is new elsewhere (the bias of a masked language model's head, whose weight is the embeddings') the
    module that it belongs to. InputError where that is the model itself."""
    new, found = set(new_parameters), set[str]()
    for name, module in model.named_modules():
        own = {f"{name}.{each}" for each, _ in module.named_parameters()}
        if name and own and own <= new:
            found.add(name)
            new -= own
    for name in new:
        if "." not in name:
            raise InputError(
                f"adapter.kind (lora): {name} is new, and an adapter carries modules; train without adapters"
            )
        found.add(name.rpartition(".")[0])
    return sorted(name for name in found if not any(name.startswith(f"{other}.") for other in found))


@contextlib.contextmanager
def with_random_adapters(loaded: Backbone) -> Iterator[None]:
    """Within the block the adapters add something, as they will once they are trained: what is proven equal on a probe is so
    with them."""
    own = dict(loaded.model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    kept = {name: own[name].detach().clone() for name in sorted(loaded.adapter_parameters)}
    with torch.no_grad():
        for name, values in kept.items():
            own[name].copy_(torch.randn(values.shape, generator=generator) / values.shape[-1] ** 0.5)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, values in kept.items():
                own[name].copy_(values)


def describe_adapters(loaded: Backbone) -> list[str]:
    """What is said of the adapters before update 0: a line, or none."""
    if loaded.adapter is None:
        return []
    layers = [name for name in loaded.adapter_parameters if ".lora_A." in name]
    kinds = sorted({name.partition(".lora_A.")[0].rpartition(".")[2] for name in layers})
    share = f"alpha {loaded.adapter.alpha}, dropout {loaded.adapter.dropout:g}"
    return [f"LoRA of rank {loaded.adapter.rank}, {share}, at {len(layers)} linear layers ({', '.join(kinds)})"]


# --- into a folder --------------------------------------------------------------------------------------------------


def save_model(loaded: Backbone, auto_class: str, folder: Path) -> None:
    """Writes a model as from_pretrained loads it: whole, with adapters merged into the weights; or, with adapter.merge false,
    the adapter alone."""
    if loaded.adapter is None:
        loaded.model.save_pretrained(folder)
    elif loaded.adapter.merge:
        loaded.model.save_pretrained(folder, state_dict=merge_adapters(loaded.model))
    else:
        save_adapter(loaded, auto_class, folder)


def merge_adapters(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state_dict of the model without adapters that computes what this one does."""
    deltas = {
        f"{name}.weight": module.get_delta_weight(NAME)
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    plain = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if not is_adapter_parameter(name)
    }
    with torch.no_grad():
        return plain | {name: plain[name] + delta.to(plain[name].dtype) for name, delta in deltas.items()}


def save_adapter(loaded: Backbone, auto_class: str, folder: Path) -> None:
    """Writes adapter and new head as peft does, the config of the whole model below it, and how it generates."""
    model = loaded.model
    settings = copy.copy(model.peft_config[NAME])
    layers = {name.partition(".lora_A.")[0] for name in loaded.adapter_parameters if ".lora_A." in name}
    settings.target_modules = sorted(layers)  # peft's own set has no order, and shortens many names to few
    holders = find_modules_to_save(model, loaded.new_parameters)
    settings.modules_to_save = holders or None
    settings.base_model_name_or_path = find_base_name(loaded.source)
    settings.revision, settings.inference_mode = loaded.revision, True
    settings.task_type = TASK_TYPES.get(auto_class)
    if settings.task_type is None:  # AutoPeftModel finds the class by this
        settings.auto_mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    within = tuple(f"{holder}." for holder in holders)
    tensors = {  # cloned: in a file no two may share their memory
        PREFIX + name.replace(f".{NAME}.", "."): tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
        if name in loaded.adapter_parameters or name.startswith(within)
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    settings.save_pretrained(folder)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]  # as save_pretrained does
    if loaded.source.startswith("package://"):  # found on other machines, and checked, where a path is not
        config.hf_finetune = {**(getattr(config, "hf_finetune", None) or {}), "backbone": loaded.source}
    config.save_pretrained(folder / MODEL_CONFIG)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def find_base_name(source: str) -> str:
    """What every program here loads the backbone by: its Hub id as given, or the whole path of its folder or file."""
    path = local_path(source.partition("#sha256=")[0], "model.backbone")
    return os.path.abspath(path) if os.path.exists(path) else path


# --- out of a folder ------------------------------------------------------------------------------------------------


def read_adapter_settings(source: str) -> dict[str, Any] | None:
    """adapter_config.json of a folder or Hub repository that holds an adapter and no whole model, else None."""
    if os.path.isfile(source) or (Path(source) / "config.json").is_file():
        return None
    path = find_adapter_config_file(source)
    if path is None:
        return None
    settings: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    if settings.get("peft_type") != "LORA":
        raise InputError(f"{source}: holds an adapter of kind {settings.get('peft_type')}, not LORA")
    return settings


def load_config(source: str) -> Any:
    """The transformers config of the model in a folder or Hub repository, or of the whole model that its adapter makes: the
    pretrained one's where the adapter brings none."""
    settings = read_adapter_settings(source)
    if settings is None:
        return transformers.AutoConfig.from_pretrained(source)
    try:
        return transformers.AutoConfig.from_pretrained(source, subfolder=MODEL_CONFIG)
    except (OSError, ValueError):  # of the Hub, of a folder
        base, file = model_files(settings["base_model_name_or_path"], source)
        return transformers.AutoConfig.from_pretrained(base, revision=settings.get("revision"), **file)


def load_model(source: str, auto_class: str, hf_config: Any) -> Any:
    """The model in a folder or Hub repository, in fp32; where that holds an adapter, the pretrained model with the adapter in
    it, its modules as they are in training. InputError where the adapter is not of this model."""
    kind, settings = getattr(transformers, auto_class), read_adapter_settings(source)
    if settings is None:
        return kind.from_pretrained(source, dtype=torch.float32)
    return load_adapter(source, kind, hf_config, settings).model


def load_adapter(source: str, kind: Any, hf_config: Any, settings: Mapping[str, Any]) -> Backbone:
    """The pretrained model that an adapter is of, with the adapter in it."""
    peft, noted = import_peft(source), getattr(hf_config, "hf_finetune", None) or {}
    name = noted.get("backbone") or settings["base_model_name_or_path"]
    base, file = model_files(name, f"{source}: its pretrained model")
    try:
        model = kind.from_pretrained(
            base, config=hf_config, revision=settings.get("revision"), dtype=torch.float32,
            ignore_mismatched_sizes=True, **file,
        )  # fmt: skip
    except backbone.LOADING_ERRORS as error:
        raise backbone.loading_error(name, base, "model", error, key=f"{source}: its pretrained model") from None
    own = peft.LoraConfig.from_pretrained(source)
    own.modules_to_save, own.inference_mode = None, False
    peft.inject_adapter_in_model(own, model, NAME)
    path = Path(source) / WEIGHTS if os.path.isdir(source) else hf_hub_download(source, WEIGHTS)
    tensors = {
        re.sub(r"\.lora_([AB])\.weight$", rf".lora_\1.{NAME}.weight", key.removeprefix(PREFIX)): tensor
        for key, tensor in load_file(path).items()
    }
    result = model.load_state_dict(tensors, strict=False)
    lacking = [key for key in result.missing_keys if is_adapter_parameter(key)]
    if result.unexpected_keys or lacking:
        raise InputError(
            f"{source}: its adapter is not of {name}: they differ in {[*result.unexpected_keys, *lacking][0]}"
        )
    if model.can_generate():
        with contextlib.suppress(OSError):
            model.generation_config = transformers.GenerationConfig.from_pretrained(source)
    model.requires_grad_(True)
    names = frozenset(key for key, _ in model.named_parameters() if is_adapter_parameter(key))
    return Backbone(
        model=model,
        tokenizer=None,
        source=name,
        new_parameters=frozenset(tensors) - names,
        revision=settings.get("revision"),
        adapter=AdapterConfig(kind="lora", rank=own.r, alpha=own.lora_alpha, dropout=own.lora_dropout),
        adapter_parameters=names,
    )


def load_any_model(location: str) -> Backbone:
    """The model in a run folder, model folder, package or Hub repository, with its adapter where it has one."""
    source = backbone.model_source(location)
    try:
        with backbone.silence_transformers():
            settings = read_adapter_settings(source)
            if settings is None:
                return backbone.load_pretrained(location)
            hf_config = load_config(source)
            return load_adapter(source, heads.find_auto_class(hf_config), hf_config, settings)
    except backbone.LOADING_ERRORS as error:
        raise backbone.loading_error(location, source, "adapter", error, key="MODEL") from None
