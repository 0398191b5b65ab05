"""LoRA through peft: small matrices next to the linear layers of the upper blocks train, the pretrained weights do not.

The model stays the same object. peft replaces each linear layer in place by a layer of its own, and wraps neither the model nor
its head. So the code that trains, caches, saves and resumes models does not know adapters. The `weight` of such a linear layer is
called `base_layer.weight`, and `lora_A.default.weight` and `lora_B.default.weight` are next to it.
"""

import contextlib
import copy
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from hf_finetune.model import backbone, freezing, heads, loading, structure
from hf_finetune.model.backbone import Backbone
from hf_finetune.model.conversions import open_source
from hf_finetune.system.errors import InputError
from hf_finetune.system.locations import install_hint, local_path

WEIGHTS = "adapter_model.safetensors"

# Subfolder of an adapter's folder for the config of the complete model: transformers would take a config.json next to
# adapter_config.json as a sign of complete weights
MODEL_CONFIG = "config"

LINEAR = (nn.Linear, Conv1D)

NAME = "default"  # peft's name of a model's only adapter

PREFIX = "base_model.model."  # start of the names of the tensors in peft's files


def import_peft(key: str) -> Any:
    """Imports peft. Raises InputError if it is not installed; `key` is the setting that needs it."""
    try:
        import peft
    except ImportError:
        raise InputError(f"{key}: needs the package peft: pip install 'hf-finetune[lora]'") from None
    return peft


def check_quantization(adapter: AdapterConfig) -> None:
    """Raises InputError if adapter.quantization needs a package that is not installed."""
    if adapter.quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"adapter.quantization ({adapter.quantization}): needs the package bitsandbytes: {install_hint('bitsandbytes')}"
        )


# --- into a model ---------------------------------------------------------------------------------------------------


def add_adapters(loaded: Backbone, adapter: AdapterConfig, freeze: FreezeConfig, seed: int) -> Backbone:
    """Puts adapters into the blocks above freeze.layers and into all blocks of a decoder, and returns the backbone with them.

    New adapters change no output; their first values are a function of the seed. Without adapter.kind, the backbone is returned
    as it is. Raises InputError if peft is missing, or if adapter.targets names no linear layer of these blocks.
    """
    if adapter.kind == "none":
        return loaded
    peft, model = import_peft(f"adapter.kind ({adapter.kind})"), loaded.model
    check_quantization(adapter)
    num_frozen = freezing.resolve_num_blocks(freeze, structure.analyze_structure(model))
    layers = find_layers(model, adapter.targets, num_frozen)
    if not layers:
        raise InputError(
            f"freeze.layers ({freeze.layers}): leaves no block for the adapters of adapter.kind "
            f"({adapter.kind}); freeze fewer"
        )
    find_modules_to_save(model, loaded.new_parameters)  # raises its error now rather than after training
    inject_adapters(peft, model, adapter, layers, seed)
    names = frozenset(name for name, _ in model.named_parameters() if is_adapter_parameter(name))
    return replace(loaded, adapter=adapter, adapter_parameters=names)


def inject_adapters(peft: Any, model: Any, adapter: AdapterConfig, layers: Iterable[str], seed: int) -> None:
    """Puts adapters around the named linear layers. All parameters require gradients afterwards, as in a model that was just
    loaded."""
    names = list(layers)
    torch.manual_seed(seed)
    settings = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=names,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in names),
    )
    peft.inject_adapter_in_model(settings, model, NAME)
    model.requires_grad_(True)


def find_layers(model: nn.Module, targets: Sequence[str], num_frozen: int) -> list[str]:
    """Returns the names of the linear layers that `targets` select in the blocks above the lowest `num_frozen`; all of them if
    there are no targets. Raises InputError if a target names none, or a module that is not linear."""
    inside = {
        f"{block}.{name}": module
        for block in find_trainable_blocks(model, num_frozen)
        for name, module in model.get_submodule(block).named_modules()
    }
    linear = [name for name, module in inside.items() if isinstance(module, LINEAR)]
    if not targets or not linear:
        return linear
    last_parts = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    selected: set[str] = set()
    for target in targets:
        matches = [name for name in inside if name == target or name.endswith(f".{target}")]
        message = f"names nothing in the blocks above freeze.layers; their linear layers are called {last_parts}"
        require(bool(matches), "adapter.targets", target, message)
        for name in matches:
            message = f"is a {type(inside[name]).__name__}; LoRA is for linear layers: {last_parts}"
            require(name in linear, "adapter.targets", target, message)
        selected.update(matches)
    return [name for name in linear if name in selected]


def find_trainable_blocks(model: nn.Module, num_frozen: int) -> list[str]:
    """Returns the names of the blocks above the lowest `num_frozen`, and of all blocks of a decoder that has its own."""
    stack_name, stack = structure.find_stack(model)
    names = [f"{stack_name}.{number}" for number in range(num_frozen, len(stack))]
    decoder: Any = None
    if getattr(model.config, "is_encoder_decoder", False):
        decoder = model.get_decoder()  # type: ignore[operator]
    if isinstance(decoder, nn.Module) and not set(stack) & set(decoder.modules()):
        decoder_stack_name, decoder_stack = structure.find_stack(model, decoder)
        names += [f"{decoder_stack_name}.{number}" for number in range(len(decoder_stack))]
    return names


def is_adapter_parameter(name: str) -> bool:
    """True if a parameter of this name belongs to an adapter."""
    return f".lora_A.{NAME}." in name or f".lora_B.{NAME}." in name


def find_modules_to_save(model: nn.Module, new_parameters: Iterable[str]) -> list[str]:
    """Returns the names of the modules that are saved in full with the adapter (peft's modules_to_save).

    These are the topmost modules whose parameters are all new, and the parent of any other new parameter, such as the output
    bias of a masked language model, whose weight is tied to the embeddings. Raises InputError if a new parameter belongs to the
    model itself.
    """
    remaining = set(new_parameters)
    modules: set[str] = set()
    for name, module in model.named_modules():
        parameters = {f"{name}.{parameter_name}" for parameter_name, _ in module.named_parameters()}
        if name and parameters and parameters <= remaining:
            modules.add(name)
            remaining -= parameters
    for name in remaining:
        if "." not in name:
            raise InputError(
                f"adapter.kind (lora): {name} is new and belongs to no module, and an adapter's file holds modules; train "
                "without adapters"
            )
        modules.add(name.rpartition(".")[0])
    return sorted(name for name in modules if not any(name.startswith(f"{other}.") for other in modules))


@contextlib.contextmanager
def with_random_adapters(loaded: Backbone) -> Iterator[None]:
    """Fills the adapters with random values until the block ends. New adapters change no output, so a check on a probe that two
    outputs are equal would show nothing."""
    parameters = dict(loaded.model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    saved = {name: parameters[name].detach().clone() for name in sorted(loaded.adapter_parameters)}
    with torch.no_grad():
        for name, values in saved.items():
            parameters[name].copy_(torch.randn(values.shape, generator=generator) / values.shape[-1] ** 0.5)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, values in saved.items():
                parameters[name].copy_(values)


def describe_adapters(loaded: Backbone) -> list[str]:
    """Returns the lines about the adapters that are printed before the first update: one, or none without adapters."""
    if loaded.adapter is None:
        return []
    layers = [name for name in loaded.adapter_parameters if ".lora_A." in name]
    kinds = sorted({name.partition(".lora_A.")[0].rpartition(".")[2] for name in layers})
    form = "" if loaded.adapter.quantization == "none" else f"; frozen layers there in {loaded.adapter.quantization}"
    share = f"alpha {loaded.adapter.alpha}, dropout {loaded.adapter.dropout:g}"
    return [f"LoRA of rank {loaded.adapter.rank}, {share}, at {len(layers)} linear layers ({', '.join(kinds)}){form}"]


# --- into a folder --------------------------------------------------------------------------------------------------


def save_model(loaded: Backbone, auto_class: str, folder: Path) -> None:
    """Writes a model so that from_pretrained loads it: the complete model, with adapters merged into the weights; or, if
    adapter.merge is false, only the adapter."""
    if loaded.adapter is None:
        loaded.model.save_pretrained(folder)
    elif loaded.adapter.merge:
        loaded.model.save_pretrained(folder, state_dict=merge_adapters(loaded.model))
    else:
        save_adapter(loaded, auto_class, folder)


def merge_adapters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the state_dict of a model without adapters that computes the same."""
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
    """Writes the adapter and the new head as peft does, the config of the complete model in a subfolder, and the generation
    config."""
    model = loaded.model
    modules = find_modules_to_save(model, loaded.new_parameters)
    inside = tuple(f"{module}." for module in modules)
    tensors = {  # cloned, because no two tensors in a file may share memory
        PREFIX + name.replace(f".{NAME}.", "."): tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
        if name in loaded.adapter_parameters or name.startswith(inside)
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    make_peft_settings(loaded, auto_class, modules).save_pretrained(folder)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]  # as save_pretrained does
    if loaded.source.startswith("package://"):  # other machines find it by this name, and check it; not by a path
        config.hf_finetune = {**(getattr(config, "hf_finetune", None) or {}), "backbone": loaded.source}
    config.save_pretrained(folder / MODEL_CONFIG)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def make_peft_settings(loaded: Backbone, auto_class: str, modules: list[str]) -> Any:
    """Returns the LoraConfig that is written to adapter_config.json. `modules` are saved in full with the adapter."""
    model = loaded.model
    settings = copy.copy(model.peft_config[NAME])
    layers = {name.partition(".lora_A.")[0] for name in loaded.adapter_parameters if ".lora_A." in name}
    settings.target_modules = sorted(layers)  # peft's own set has no order, and shortens many names to few
    settings.modules_to_save = modules or None
    settings.base_model_name_or_path = find_base_name(loaded.source)
    settings.revision, settings.inference_mode = loaded.revision, True
    settings.task_type = heads.find_peft_task_type(auto_class)
    if settings.task_type is None:  # AutoPeftModel finds the class by this instead
        settings.auto_mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    return settings


def find_base_name(source: str) -> str:
    """Returns the name by which every program on this machine loads the backbone: its Hub id, or the absolute path of its folder
    or file."""
    path = local_path(source.partition("#sha256=")[0], "model.backbone")
    return os.path.abspath(path) if os.path.exists(path) else path


# --- out of a folder ------------------------------------------------------------------------------------------------


def read_adapter_settings(source: str) -> dict[str, Any] | None:
    """Returns the content of adapter_config.json in a folder or Hub repository that holds an adapter and no complete model, else
    None. Raises InputError if the adapter is not a LoRA."""
    if os.path.isfile(source) or (Path(source) / "config.json").is_file():
        return None
    path = find_adapter_config_file(source)
    if path is None:
        return None
    settings: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError("adapter_config.json is not a mapping")
    if settings.get("peft_type") != "LORA":
        raise InputError(f"{source}: holds an adapter of kind {settings.get('peft_type')}, not LORA")
    return settings


def load_config(source: str, *, trust_code: bool = False) -> Any:
    """Loads the transformers config of the model in a folder or Hub repository. For an adapter it is the config of the complete
    model: the one in the adapter's folder, else that of the pretrained model. trust_code: Run Python code that the files name."""
    settings = read_adapter_settings(source)
    if settings is None:
        return loading.load_config(source, trust_code=trust_code)
    try:
        return loading.load_config(source, trust_code=trust_code, subfolder=MODEL_CONFIG)
    except (OSError, ValueError) as error:  # OSError for the Hub, ValueError for a folder
        if loading.needs_code(error):
            raise
        revision = settings.get("revision")
        base = open_source(settings["base_model_name_or_path"], source, revision=revision)
        return loading.load_config(base, trust_code=trust_code, revision=revision)


def load_model(source: str, auto_class: str, hf_config: Any, *, trust_code: bool = False) -> Any:
    """Loads the model in a folder or Hub repository in fp32. For an adapter it is the pretrained model with the adapter in it, as
    in training. trust_code: Run Python code that the files name. Raises InputError if the adapter does not fit the model."""
    model_class, settings = getattr(transformers, auto_class), read_adapter_settings(source)
    if settings is None:
        return model_class.from_pretrained(source, trust_remote_code=trust_code, config=hf_config, dtype=torch.float32)
    return load_adapter(source, model_class, hf_config, settings, trust_code=trust_code).model


def load_adapter(
    source: str, model_class: Any, hf_config: Any, settings: Mapping[str, Any], *, trust_code: bool = False
) -> Backbone:
    """Loads the pretrained model of an adapter, and puts the adapter into it. trust_code: Run Python code that the files of the
    pretrained model name. Raises InputError if it does not fit."""
    peft, recorded = import_peft(source), getattr(hf_config, "hf_finetune", None) or {}
    name = recorded.get("backbone") or settings["base_model_name_or_path"]
    key, revision = f"{source}: its pretrained model", settings.get("revision")
    base = open_source(name, key, revision=revision)
    try:
        model = model_class.from_pretrained(
            base,
            trust_remote_code=trust_code,
            config=hf_config,
            revision=revision,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
        )
    except loading.LOADING_ERRORS as error:
        raise loading.make_loading_error(name, base, "model", error, key=key) from None
    lora_config = peft.LoraConfig.from_pretrained(source)
    lora_config.modules_to_save, lora_config.inference_mode = None, False
    peft.inject_adapter_in_model(lora_config, model, NAME)
    tensors = read_adapter_tensors(source)
    result = model.load_state_dict(tensors, strict=False)
    missing = [key for key in result.missing_keys if is_adapter_parameter(key)]
    if result.unexpected_keys or missing:
        example = [*result.unexpected_keys, *missing][0]
        raise InputError(f"{source}: its adapter does not fit {name}: only one of them has {example}")
    if model.can_generate():
        with contextlib.suppress(OSError):
            model.generation_config = transformers.GenerationConfig.from_pretrained(source)
    model.requires_grad_(True)
    adapter_parameters = frozenset(key for key, _ in model.named_parameters() if is_adapter_parameter(key))
    return Backbone(
        model=model,
        tokenizer=None,
        source=name,
        place=base,
        new_parameters=frozenset(tensors) - adapter_parameters,
        revision=revision,
        adapter=AdapterConfig(
            kind="lora", rank=lora_config.r, alpha=lora_config.lora_alpha, dropout=lora_config.lora_dropout
        ),
        adapter_parameters=adapter_parameters,
    )


def read_adapter_tensors(source: str) -> dict[str, torch.Tensor]:
    """Reads the tensors of an adapter in a folder or Hub repository, by the names that they have in the model."""
    return {
        re.sub(r"\.lora_([AB])\.weight$", rf".lora_\1.{NAME}.weight", key.removeprefix(PREFIX)): tensor
        for key, tensor in load_file(find_weights(source)).items()
    }


def find_weights(source: str) -> Path:
    """Returns the file of an adapter's tensors, in a folder or from a Hub repository."""
    return Path(source) / WEIGHTS if os.path.isdir(source) else Path(hf_hub_download(source, WEIGHTS))


def load_any_model(location: str, *, trust_code: bool = False) -> Backbone:
    """Loads the model in a run folder, model folder, package or Hub repository, with its adapter if it has one, without its
    tokenizer. trust_code: Run Python code that the files name.

    Raises InputError if files are missing or damaged, or if the adapter does not fit.
    """
    source = backbone.find_model_source(location)
    try:
        with loading.silence_transformers():
            settings = read_adapter_settings(source)
            if settings is None:
                return backbone.load_pretrained(location, trust_code=trust_code)
            hf_config = load_config(source, trust_code=trust_code)
            return load_adapter(source, heads.find_auto_class(hf_config), hf_config, settings, trust_code=trust_code)
    except loading.LOADING_ERRORS as error:
        raise loading.make_loading_error(location, source, "adapter", error, key="MODEL") from None
