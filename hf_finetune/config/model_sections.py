"""The sections of the model: backbone, frozen weights, adapters, caches. Frozen dataclasses that check themselves."""

import dataclasses
import re
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Literal

from hf_finetune.config.checks import require
from hf_finetune.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The pretrained backbone.

    Args:
        backbone: Hub id, folder, or package://NAME/path for a folder in an installed package. With the suffix
            #sha256=HEX, the digest of the weight file is checked before it is loaded.
        revision: Branch, tag or commit of a backbone on the Hub.
        trust_remote_code: Run Python code from the backbone's repository on the Hub.
        attention: Attention implementation, by its name in transformers (eager, sdpa, flash_attention_2). If not given,
            transformers chooses.
        dropout: Probability for every dropout of the model. If not given, the backbone's own.
    """

    backbone: str = ""
    revision: str | None = None
    trust_remote_code: bool = False
    attention: str | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        require(self.dropout is None or 0 <= self.dropout < 1, "model.dropout", self.dropout, "must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class FreezeConfig:
    """The pretrained weights that are not trained.

    Args:
        embeddings: Freeze everything below the first block.
        layers: Number of blocks to freeze, counted from the bottom; a negative number -N to train the N top blocks; a fraction
            such as 2/3; or all.
        patterns: Regular expressions. A parameter is frozen if one of them matches anywhere in its name (re.search).
        unfreeze: Gradual unfreezing, such as [{epoch: 2, layers: 2}, {epoch: 3, layers: 0}]: the number of frozen blocks from
            the start of each of these epochs, counted from 1.
    """

    embeddings: bool = False
    layers: int | str = 0
    patterns: tuple[str, ...] = ()
    unfreeze: tuple[dict[str, int | str], ...] = ()

    def __post_init__(self) -> None:
        check_layers("freeze.layers", self.layers)
        previous = 1
        for stage in self.unfreeze:
            require("encoder_layers" not in stage, "freeze.unfreeze", stage, "encoder_layers is now called layers")
            require(
                stage.keys() == {"epoch", "layers"},
                "freeze.unfreeze",
                stage,
                "must have exactly the keys epoch and layers",
            )
            epoch = stage["epoch"]
            require(
                isinstance(epoch, int) and epoch > previous,
                "freeze.unfreeze",
                stage,
                "must have epochs that are whole numbers above 1, in ascending order",
            )
            check_layers("freeze.unfreeze", stage["layers"])
            previous = int(epoch)
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise InputError(f"freeze.patterns ({pattern}): must be a regular expression: {error}") from None

    def at(self, epoch: int) -> "FreezeConfig":
        """Returns the plan of one epoch (counted from 1), without later stages."""
        layers = [stage["layers"] for stage in self.unfreeze if int(stage["epoch"]) <= epoch]
        return dataclasses.replace(self, layers=[self.layers, *layers][-1], unfreeze=())


def check_layers(key: str, value: Any) -> None:
    """Raises InputError if a value is not a number of blocks to freeze."""
    is_count = isinstance(value, int) and not isinstance(value, bool)
    is_fraction = isinstance(value, str) and parse_fraction(value) is not None
    require(
        is_count or is_fraction or value == "all",
        key,
        value,
        'must be a count, a negative count, a fraction such as "2/3", or "all"',
    )


def parse_fraction(text: str) -> Fraction | None:
    """The fraction in [0, 1] that `text` writes as "a/b", or None."""
    if not re.fullmatch(r"\d{1,9}/[1-9]\d{0,8}", text):
        return None
    value = Fraction(text)
    return value if value <= 1 else None


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Small matrices that are trained instead of the pretrained weights: pip install 'hf-finetune[lora]'.

    Args:
        kind: lora trains LoRA matrices (Hu et al. 2021, arXiv:2106.09685) in the blocks above freeze.layers, and the new
            head. All pretrained weights stay frozen. The best train.learning_rate is up to ten times that of full fine-tuning.
        rank: Rank of the matrices.
        alpha: Scale of the matrices: their output is multiplied by alpha / rank.
        dropout: Dropout probability at the input of the matrices.
        targets: Names of the linear layers that get matrices, such as query and value, or the last parts of dotted names. If
            not given, all linear layers of the blocks.
        merge: Add the matrices to the weights, and export a complete model that loads without peft. If false, model/ holds the
            adapter alone.
        quantization: Form of the frozen linear layers in the blocks with matrices while they train: 8bit, or 4bit (nf4, as in
            QLoRA, Dettmers et al. 2023, arXiv:2305.14314). It needs pip install 'hf-finetune[bitsandbytes]'. Layers below
            freeze.layers, the final evaluation and the exported model have the pretrained weights.
    """

    # Rank and alpha are those of the paper's own RoBERTa scripts (github.com/microsoft/LoRA, NLU/roberta_*.sh, with learning
    # rates of 2e-4 to 5e-4). All linear layers, and some ten times the learning rate of full fine-tuning: Schulman et al. 2025,
    # "LoRA Without Regret"
    kind: Literal["none", "lora"] = "none"
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    merge: bool = False
    quantization: Literal["none", "8bit", "4bit"] = "none"

    def __post_init__(self) -> None:
        for key in ("rank", "alpha"):
            require(getattr(self, key) >= 1, f"adapter.{key}", getattr(self, key), "must be at least 1")
        require(0 <= self.dropout < 1, "adapter.dropout", self.dropout, "must be in [0, 1)")
        require(all(self.targets), "adapter.targets", list(self.targets), "must not have an empty name")
        if self.kind == "none":
            for field in fields(self):
                value = getattr(self, field.name)
                shown = list(value) if isinstance(value, tuple) else value
                require(value == field.default, f"adapter.{field.name}", shown, "must be used with adapter.kind lora")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The caches: encoded text, and activations, which are the outputs of frozen layers.

    Args:
        activations: Compute the frozen layers once, and store their outputs for all epochs and runs. auto: measured at the start,
            and on if it saves time on this machine. The decision is printed, and kept when the run is resumed.
        dir: Folder of all caches, shared by all runs: tables, encoded text and activations lie under it. If not given,
            HF_FINETUNE_CACHE, else ~/.cache/hf_finetune.
        trust_other_users: Use activations that another user of this machine could have written, besides root and the owner of the
            folder.
        precision: Number format of stored activations: 16-bit (fp16, or bf16 if values are too large for it) or fp32.
    """

    activations: Literal["auto", "on", "off"] = "auto"
    dir: str | None = None
    trust_other_users: bool = False
    precision: Literal["16-bit", "fp32"] = "16-bit"

    def __post_init__(self) -> None:
        require(self.dir != "", "cache.dir", "''", "must not be empty")
