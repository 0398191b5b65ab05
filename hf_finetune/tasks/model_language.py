"""Language modelling on plain text: what comes next (causal), or what stands behind a mask (masked).

B features, T tokens, V entries of the vocabulary, M masks of a text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_finetune.config.sections import RunConfig, check
from hf_finetune.data.features import IGNORED, Batch, Features, Ragged
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.errors import InputError
from hf_finetune.system.locations import model_files
from hf_finetune.tasks.base import Kept
from hf_finetune.tasks.text import packing
from hf_finetune.tasks.text.packing import Stream, text_in
from hf_finetune.tasks.tokens import CausalTask, TokenTask, check_columns

if TYPE_CHECKING:
    import torch

MASKED, RANDOM = (
    0.8,
    0.1,
)  # shares of what is to be predicted; the rest stays as it is (Devlin et al. 2019, section 3.1)

MASK_STREAM = 3  # sets numpy's generator of masks apart from those of splits, examples and their order

NUM_FILLS = 5  # as transformers' fill-mask pipeline gives them


@dataclass(frozen=True, kw_only=True)
class LanguageModelling(TokenTask):
    """What both objectives share. from_table() of this class gives a CausalLanguageModel or a MaskedLanguageModel."""

    text_column: str
    packing: str
    joins_lines: bool
    reason: str = ""  # why this objective

    name = "language_modelling"
    auto_class = "AutoModel"
    settings = frozenset({"objective", "packing", "max_target_length", "mask_fraction", "whole_word_masks"})

    @classmethod
    def form(cls, config: RunConfig) -> ColumnSpec:
        check_columns(config, "language modelling", 1, "takes one column, of the text")
        return ColumnSpec(inputs=config.data.text_columns, text_files="lines", in_order=True)

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "LanguageModelling":
        """The objective that task.objective names, or that the backbone is made for."""
        if cls is not LanguageModelling:
            return cls.from_facts(config, {})
        objective, reason = objective_of(config)
        kind: Any = {"causal": CausalLanguageModel, "masked": MaskedLanguageModel}[objective]
        return replace(kind.from_facts(config, {}), reason=reason)

    @classmethod
    def shared(cls, config: RunConfig) -> dict[str, Any]:
        """The fields that both have."""
        return {
            "text_column": config.data.text_columns[0],
            "packing": config.task.packing,
            "joins_lines": config.data.dataset is None and config.task.packing == "blocks",
            "label_smoothing": config.train.label_smoothing,
        }

    # --- data

    def encoded_columns(self) -> tuple[str, ...]:
        return (self.text_column,)

    def encoding_settings(self) -> dict[str, Any]:
        return {"packing": self.packing, "joins_lines": self.joins_lines}

    @property
    def whole_words(self) -> bool:
        """Whether words must be told apart."""
        return False

    def streams(self, table: Table, tokenizer: Any) -> list[Stream]:
        """The tokens of each document that has any, without special ones. InputError where there is no text."""
        found = [
            packing.encode_document(tokenizer, rows, texts, whole_words=self.whole_words)
            for rows, texts in packing.documents(table, self.text_column, join_lines=self.joins_lines)
        ]
        found = [stream for stream in found if len(stream)]
        if not found:
            raise InputError(f"{table.where(0)}: there is no text in {self.text_column} of all {len(table)} rows")
        return found

    def labels(self, table: Table, arrays: "Mapping[str, np.ndarray[Any, Any]]") -> Ragged:
        """The tokens themselves."""
        return Ragged(values=arrays["input_ids"], offsets=arrays["offsets"])

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        joined = f"blocks of at most {max_length} tokens across texts"
        alone = f"each text by itself, in pieces of at most {max_length} tokens"
        count = f"{int(features.offsets[-1]):,} tokens in {len(features):,} examples, none cut"
        return [("input", f"{joined if self.packing == 'blocks' else alone}; {count}")]

    # --- use

    def row_of_texts(self, texts: Sequence[str]) -> dict[str, Any]:
        if len(texts) != 1:
            raise InputError(f"--text: takes one text, not {len(texts)}")
        return {self.text_column: texts[0]}


@dataclass(frozen=True, kw_only=True)
class CausalLanguageModel(LanguageModelling, CausalTask):
    """Each token is predicted from those before it."""

    name = "causal_language_modelling"
    problem = "causal"
    auto_class = CausalTask.auto_class
    pipeline_tag = CausalTask.pipeline_tag
    settings = frozenset({"objective", "packing", "max_target_length"})

    @classmethod
    def from_facts(cls, config: RunConfig, facts: Mapping[str, Any]) -> "CausalLanguageModel":
        return cls(max_target_length=config.task.max_target_length, **cls.shared(config))

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> "dict[str, np.ndarray[Any, Any]]":
        """Blocks, or pieces of each text, which then ends with an end token; of what is asked the prompts, whole."""
        begin, _ = packing.wrapping(tokenizer)
        if self.asks:
            for row in range(len(table)):
                if not text_in(table, self.text_column, row).strip():
                    raise InputError(f"{table.where(row)}: {self.text_column} is empty; there is nothing to go on from")
            prompts = [
                stream.between(begin, []) for stream in replace(self, joins_lines=False).streams(table, tokenizer)
            ]
            return packing.as_arrays(prompts, with_words=False)
        streams = [stream.between(begin, []) for stream in self.streams(table, tokenizer)]
        if self.packing == "blocks":
            pieces = packing.cut(packing.packed(streams, lambda: packing.end_token(tokenizer)), max_length)
        else:
            end = [packing.end_token(tokenizer)]
            pieces = [piece for stream in streams for piece in packing.cut(stream.between([], end), max_length)]
        if max(map(len, pieces)) < 2:
            raise InputError(f"{table.where(0)}: the text is one token, so that nothing follows anything")
        return packing.as_arrays(pieces, with_words=False)

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        return [*LanguageModelling.describe(self, features, table, max_length), ("objective", f"causal: {self.reason}")]

    def predictions(self, kept: Kept, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """`{text, continuation}` of each row."""
        found = {features.get_example(number): written for number, written in enumerate(kept)}
        for row in range(len(table)):  # a text may have no tokens
            yield {"text": table.columns[self.text_column][row], "continuation": found.get(row, "")}

    def card(self) -> str:
        return (
            "causal language modelling.\nIt goes on from a text: `model.generate(**tokenizer(text, "
            f'return_tensors="pt"))` writes at most {self.max_target_length} tokens, greedily, as generation_config.json says.'
        )


@dataclass(frozen=True, kw_only=True)
class MaskedLanguageModel(LanguageModelling):
    """Some tokens are hidden and predicted from those around them."""

    mask_fraction: float
    whole_word_masks: bool
    mask_seed: int

    name = "masked_language_modelling"
    problem = "masked"
    auto_class = "AutoModelForMaskedLM"
    pipeline_tag = "fill-mask"
    settings = frozenset({"objective", "packing", "mask_fraction", "whole_word_masks"})
    changing_inputs = "the masks are drawn anew in every epoch, so the prefix's output changes"

    @classmethod
    def from_facts(cls, config: RunConfig, facts: Mapping[str, Any]) -> "MaskedLanguageModel":
        return cls(
            mask_fraction=config.task.mask_fraction,
            whole_word_masks=config.task.whole_word_masks,
            mask_seed=facts.get("mask_seed", config.seed),
            **cls.shared(config),
        )

    def facts(self) -> dict[str, Any]:
        """The seed of the masks, so that others measure with the same."""
        return {"mask_seed": self.mask_seed}

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        name = getattr(model.config, "_name_or_path", "")
        check(tokenizer.mask_token_id is not None, "model.backbone", name, "its tokenizer has no mask token")
        check(tokenizer.is_fast or not self.whole_word_masks, "task.whole_word_masks", True,
              "this backbone's tokenizer is not a fast one, and does not tell words apart")  # fmt: skip

    # --- data

    def encoding_settings(self) -> dict[str, Any]:
        return {**LanguageModelling.encoding_settings(self), "whole_word_masks": self.whole_word_masks}

    @property
    def whole_words(self) -> bool:
        return self.whole_word_masks and not self.asks

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> "dict[str, np.ndarray[Any, Any]]":
        """Blocks, or pieces of each text, each between the tokenizer's special tokens. Beside them words [T], mask_token, and
        random_tokens, those that may stand for another."""
        begin, end = packing.wrapping(tokenizer)
        size = max(1, max_length - len(begin) - len(end))
        if self.asks:
            mask = tokenizer.mask_token
            for row in range(len(table)):
                if mask not in text_in(table, self.text_column, row):
                    raise InputError(f"{table.where(row)}: {self.text_column} has no {mask}, where the model fills in")
            streams = replace(self, joins_lines=False).streams(table, tokenizer)
        else:
            streams = self.streams(table, tokenizer)
        if self.packing == "blocks" and not self.asks:
            streams = [packing.packed(streams, lambda: packing.end_token(tokenizer))]
        pieces = [piece.between(begin, end) for stream in streams for piece in packing.cut(stream, size)]
        ordinary = np.setdiff1d(np.arange(len(tokenizer), dtype=np.int32), tokenizer.all_special_ids)
        return {
            **packing.as_arrays(pieces, with_words=True),
            "mask_token": np.array(tokenizer.mask_token_id),
            "random_tokens": ordinary,
        }

    def prepare(self, batch: Batch, features: Features, model: Any, view: int) -> Batch:
        """The batch with masks, a pure function of (seed, view, feature); the labels [B, T] are IGNORED but where one is to be
        predicted. Batches without labels, which are asked, stay as they are."""
        if batch.labels is None:
            return batch
        import torch

        ids = batch.inputs["input_ids"].clone()
        labels = torch.full_like(ids, IGNORED)
        for place, row in enumerate(batch.feature_indices.tolist()):
            start, end = features.offsets[row], features.offsets[row + 1]
            generator = np.random.default_rng([self.mask_seed, MASK_STREAM, view, row])
            chosen, shown = self.draw(generator, features, int(start), int(end))
            at = torch.from_numpy(chosen).to(ids.device)
            labels[place, at] = ids[place, at]
            ids[place, at] = torch.from_numpy(shown).to(ids)
        return replace(batch, inputs={**batch.inputs, "input_ids": ids}, labels=labels)

    def draw(
        self, generator: "np.random.Generator", features: Features, start: int, end: int
    ) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
        """Positions in a feature that are to be predicted, in order, and the ids that stand there instead."""
        chosen = choose(generator, features.extras["words"][start:end], self.mask_fraction, whole=self.whole_word_masks)
        ordinary = features.extras["random_tokens"]
        other = ordinary[generator.integers(len(ordinary), size=len(chosen))]
        kind = generator.random(len(chosen))
        shown = np.where(kind < MASKED + RANDOM, other, features.inputs["input_ids"][start:end][chosen])
        return chosen, np.where(kind < MASKED, features.extras["mask_token"], shown).astype(np.int64)

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        units = "tokens, all pieces of a word together" if self.whole_word_masks else "tokens"
        hidden = f"{self.mask_fraction:.0%} of the {units}, drawn anew in every epoch; on validation always the same"
        lines = LanguageModelling.describe(self, features, table, max_length)
        return [*lines, ("objective", f"masked: {self.reason}"), ("masks", hidden)]

    # --- use

    def keep(self, outputs: "torch.Tensor", batch: Batch) -> "list[np.ndarray[Any, Any]]":
        """Of each feature the sums that metrics() takes; of what is asked [M, 2, NUM_FILLS]: the likeliest tokens of each mask,
        and their probabilities."""
        if not self.asks:
            return TokenTask.keep(self, outputs, batch)
        is_mask = batch.inputs["input_ids"] == self.tokenizer.mask_token_id
        count = min(NUM_FILLS, outputs.shape[-1])
        found = [
            logits[places].float().softmax(-1).topk(count) for logits, places in zip(outputs, is_mask, strict=True)
        ]
        return [np.stack([best.indices.cpu().numpy(), best.values.cpu().numpy()], 1) for best in found]

    def predictions(self, kept: Kept, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """`{text, fills}` of each row: for each of its masks the likeliest tokens and their probabilities."""
        fills: list[list[Any]] = [[] for _ in range(len(table))]
        for feature, masks in enumerate(kept):
            for ids, scores in masks:
                best = [{"token": self.tokenizer.decode([int(number)]), "score": float(score)}
                        for number, score in zip(ids, scores, strict=True)]  # fmt: skip
                fills[features.get_example(feature)].append(best)
        for row, found in enumerate(fills):
            yield {"text": table.columns[self.text_column][row], "fills": found}

    def card(self) -> str:
        return 'masked language modelling.\nIt fills in the mask token of a text: `pipeline("fill-mask", model)`.'


def choose(
    generator: "np.random.Generator", words: "np.ndarray[Any, Any]", fraction: float, *, whole: bool
) -> "np.ndarray[Any, Any]":
    """Positions [..] of about `fraction` of the tokens whose word is not -1, in order; one at least, where there is any.

    Whole words are taken in random order, those left out that would exceed the share, as BERT's create_pretraining_data.py.
    """
    candidates = np.flatnonzero(words >= 0)
    count = max(1, int(fraction * len(candidates) + 0.5)) if len(candidates) else 0
    if not whole:
        return np.sort(generator.permutation(candidates)[:count])
    starts = np.flatnonzero(np.diff(words[candidates], prepend=-1))
    groups = np.split(candidates, starts[1:]) if len(candidates) else []
    taken: list[np.ndarray[Any, Any]] = []
    left = count
    for number in generator.permutation(len(groups)):
        if len(groups[number]) <= left:
            taken.append(groups[number])
            left -= len(groups[number])
        if not left:
            break
    if not taken and groups:  # every word is longer than the share
        taken = [min(groups, key=len)]
    return np.sort(np.concatenate(taken)) if taken else candidates


def objective_of(config: RunConfig) -> tuple[str, str]:
    """causal or masked, and why. InputError where the backbone cannot be trained so."""
    from transformers.models.auto import modeling_auto

    name, asked = config.model.backbone, config.task.objective
    hf_config = read_config(config)
    if hf_config is None:
        return ("masked" if asked == "masked" else "causal"), ""
    kind, remote = hf_config.model_type, getattr(hf_config, "auto_map", None) or {}
    families = {
        "masked": (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, MaskedLanguageModel.auto_class),
        "causal": (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, CausalLanguageModel.auto_class),
    }
    can = [objective for objective, (kinds, auto_class) in families.items() if kind in kinds or auto_class in remote]
    if getattr(hf_config, "is_encoder_decoder", False) or not can:
        raise InputError(
            f"model.backbone ({name}): {kind} models are made for neither causal nor masked language modelling"
        )
    if asked != "auto":
        check(asked in can, "task.objective", asked, f"{kind} models are made for {can[0]} language modelling")
        return asked, "as task.objective says"
    named = (getattr(hf_config, "architectures", None) or [""])[0]
    is_causal = named.endswith(("ForCausalLM", "LMHeadModel")) or getattr(hf_config, "is_decoder", False)
    return ("causal" if is_causal and "causal" in can else can[0]), f"the backbone is a {named or kind}"


def read_config(config: RunConfig) -> Any:
    """The backbone's config; None where it cannot be read, which backbone.load() reports."""
    import transformers

    options = config.model
    source, file = model_files(options.backbone, "model.backbone")
    try:
        return transformers.AutoConfig.from_pretrained(
            source, revision=options.revision, trust_remote_code=options.trust_remote_code, **file
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError):
        return None
