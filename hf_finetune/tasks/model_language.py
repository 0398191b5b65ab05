"""Language modelling on plain text: predict the next token (causal), or hidden tokens from those around them (masked).

The two objectives have their own encoding and scoring, in causal_language.py and masked_language.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.table import Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Scoring, Task
from hf_finetune.tasks.causal_language import CausalEncoding, ContinuationScoring
from hf_finetune.tasks.documents import DocumentColumns, DocumentEncoding
from hf_finetune.tasks.masked_language import FillScoring, MaskedEncoding
from hf_finetune.tasks.tokens import (
    TokenObjective,
    check_columns,
    check_is_causal,
    get_end_ids,
    set_greedy_generation,
)

AUTO_CLASSES = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}
PIPELINE_TAGS = {"causal": "text-generation", "masked": "fill-mask"}


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """Settings of language modelling.

    Args:
        objective: causal or masked; auto chooses by the backbone.
        packing: blocks: concatenate texts and cut blocks of data.max_length tokens. none: each text or line is one example.
        mask_fraction: Share of the tokens to predict; for masked language modelling.
        whole_word_masks: Mask all tokens of a word together; for masked language modelling.
        max_target_length: Most tokens that are generated; for causal language modelling.
    """

    objective: Literal["auto", "causal", "masked"] = "auto"
    packing: Literal["blocks", "none"] = "blocks"
    mask_fraction: float = 0.15
    whole_word_masks: bool = False
    max_target_length: int = 128

    def __post_init__(self) -> None:
        require(0 < self.mask_fraction < 1, "task.mask_fraction", self.mask_fraction, "must be in (0, 1)")
        require(self.max_target_length >= 1, "task.max_target_length", self.max_target_length, "must be at least 1")

    def check_objective(self, objective: str) -> None:
        """Raises InputError if a setting of the other objective is set."""
        others = {"causal": ("mask_fraction", "whole_word_masks"), "masked": ("max_target_length",)}
        default = Settings(kind=self.kind)
        for name in others[objective]:
            value = getattr(self, name)
            require(
                value == getattr(default, name),
                f"task.{name}",
                value,
                f"has no meaning in {objective} language modelling; leave it out, or see task.objective",
            )


@dataclass(frozen=True, kw_only=True)
class LanguageModelling(Task):
    """Causal or masked language modelling; `problem` names which.

    Args:
        max_target_length: Most tokens that a causal model generates.
    """

    Settings = Settings
    needs_backbone = True
    auto_classes = tuple(AUTO_CLASSES.values())

    max_target_length: int

    @classmethod
    def make_columns(cls, config: RunConfig) -> DocumentColumns:
        check_columns(config, task_name="language modelling", most=1, takes="takes one column, of the texts")
        return DocumentColumns(text=config.data.text_columns[0])

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "LanguageModelling":
        """Finds the objective: task.objective, else the one that the backbone was made for. InputError if the backbone cannot
        have it, or if a setting belongs to the other objective."""
        objective, reason = find_objective(config)
        cast(Settings, config.task).check_objective(objective)
        return cls.build(config, objective=objective, mask_seed=config.seed, reason=reason)

    @classmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> "LanguageModelling":
        return cls.build(config, objective=state["objective"], mask_seed=state.get("mask_seed", config.seed))

    @classmethod
    def build(cls, config: RunConfig, *, objective: str, mask_seed: int, reason: str = "") -> "LanguageModelling":
        """Composes the task of the parts of its objective."""
        settings, columns = cast(Settings, config.task), cls.make_columns(config)
        is_causal = objective == "causal"
        shared: dict[str, Any] = {
            "text": columns.text,
            "packing": settings.packing,
            "joins_lines": config.data.dataset is None and settings.packing == "blocks",
            "reason": reason,
        }
        encoding: DocumentEncoding
        scoring: Scoring
        if is_causal:
            encoding = CausalEncoding(**shared)
            scoring = ContinuationScoring(text=columns.text, max_target_length=settings.max_target_length)
        else:
            encoding = MaskedEncoding(
                **shared,
                mask_fraction=settings.mask_fraction,
                whole_word_masks=settings.whole_word_masks,
                mask_seed=mask_seed,
            )
            scoring = FillScoring(text=columns.text)
        return cls(
            problem=objective,
            pipeline_tag=PIPELINE_TAGS[objective],
            head=HeadSpec(auto_class=AUTO_CLASSES[objective]),
            columns=columns,
            encoding=encoding,
            objective=TokenObjective(is_causal=is_causal, label_smoothing=config.train.label_smoothing),
            scoring=scoring,
            max_target_length=settings.max_target_length,
        )

    @classmethod
    def read_state(cls, model_config: Any) -> dict[str, Any]:
        """The objective, by the model's architecture."""
        architecture = (getattr(model_config, "architectures", None) or [""])[0]
        return {"objective": "masked" if architecture.endswith("ForMaskedLM") else "causal"}

    def state_dict(self) -> dict[str, Any]:
        """The objective, and the seed of the masks, so that later evaluations draw the same."""
        if isinstance(self.encoding, MaskedEncoding):
            return {"objective": self.problem, "mask_seed": self.encoding.mask_seed}
        return {"objective": self.problem}

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        """Sets greedy generation for a causal model. InputError if the model is not causal, or if a masked model's tokenizer
        has no mask token or does not give the words that masking of whole words needs."""
        if isinstance(self.encoding, MaskedEncoding):
            name = getattr(model.config, "_name_or_path", "")
            require(tokenizer.mask_token_id is not None, "model.backbone", name, "its tokenizer has no mask token")
            require(
                tokenizer.is_fast or not self.encoding.whole_word_masks,
                "task.whole_word_masks",
                True,
                "needs a backbone with a fast tokenizer; this one's is slow and does not give the words of its tokens",
            )
            return
        end_ids = get_end_ids(model, tokenizer)
        set_greedy_generation(model, tokenizer, end_ids=end_ids, max_new_tokens=self.max_target_length)
        check_is_causal(model)

    def describe_for_card(self) -> str:
        if self.problem == "masked":
            return 'masked language modelling.\nIt fills in the mask token of a text: `pipeline("fill-mask", model)`.'
        return (
            'causal language modelling.\nIt continues a text: `model.generate(**tokenizer(text, return_tensors="pt"))` '
            f"generates at most {self.max_target_length} tokens, greedily. generation_config.json has these settings."
        )


def find_objective(config: RunConfig) -> tuple[str, str]:
    """Returns causal or masked, and why. Raises InputError if the backbone cannot have the objective."""
    from transformers.models.auto import modeling_auto

    name, requested = config.model.backbone, cast(Settings, config.task).objective
    model_config = read_model_config(config)
    if model_config is None:
        return ("masked" if requested == "masked" else "causal"), ""
    family, remote_classes = model_config.model_type, getattr(model_config, "auto_map", None) or {}
    families = {
        "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    possible = [
        objective
        for objective, names in families.items()
        if family in names or AUTO_CLASSES[objective] in remote_classes
    ]
    if getattr(model_config, "is_encoder_decoder", False) or not possible:
        raise InputError(
            f"model.backbone ({name}): must be a causal or a masked language model; {family} models are neither"
        )
    if requested != "auto":
        fix = f"must be {possible[0]} for {family} models, or auto"
        require(requested in possible, "task.objective", requested, fix)
        return requested, "set by task.objective"
    architecture = (getattr(model_config, "architectures", None) or [""])[0]
    names_causal = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    is_causal = names_causal or getattr(model_config, "is_decoder", False)
    objective = "causal" if is_causal and "causal" in possible else possible[0]
    return objective, f"the backbone is a {architecture or family}"


def read_model_config(config: RunConfig) -> Any:
    """Returns the backbone's config, or None if it cannot be read; load_backbone() reports the error."""
    from hf_finetune.model.backbone import open_backbone
    from hf_finetune.model.loading import load_config

    options = config.model
    source = open_backbone(options, config.cache)
    try:
        return load_config(source, trust_code=options.trust_remote_code, revision=options.revision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError):
        return None
