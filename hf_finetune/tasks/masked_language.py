"""Encoding and scoring of masked language modelling: hidden tokens are predicted from those around them.

B features, T tokens, M masks of a text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hf_finetune.config.sections import require
from hf_finetune.data.features import IGNORED, Array, Batch, Features
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Outputs, Scoring
from hf_finetune.tasks.documents import DocumentEncoding
from hf_finetune.tasks.example_scores import ExampleScores
from hf_finetune.tasks.scoring import KeptOutputs
from hf_finetune.tasks.text import masking, packing
from hf_finetune.tasks.tokens import METRIC_NAMES, compute_token_metrics, describe_token_scores, score_batch

if TYPE_CHECKING:
    import torch

MASK_STREAM = 3  # part of the seed; the generators of splits, examples and their order have other numbers

NUM_FILLS = 5  # the default of transformers' fill-mask pipeline


@dataclass(frozen=True, kw_only=True)
class MaskedEncoding(DocumentEncoding):
    """Texts to blocks or pieces, some of whose tokens are hidden and predicted.

    Args:
        mask_fraction: Share of the tokens to predict.
        whole_word_masks: Hide all tokens of a word together.
        mask_seed: Seed of the masks.
    """

    mask_fraction: float
    whole_word_masks: bool
    mask_seed: int

    @property
    def why_inputs_change(self) -> str:
        return "the masks are drawn again in every epoch, so the output of the frozen layers changes"

    def encoding_settings(self) -> dict[str, Any]:
        return {**super().encoding_settings(), "whole_word_masks": self.whole_word_masks}

    def for_inference(self, tokenizer: Any) -> Self:
        return replace(self, is_inference=True, joins_lines=False, packing="none", whole_word_masks=False)

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Blocks, or pieces of each text, each between the tokenizer's special tokens. Three more arrays: word_indices [T],
        mask_token_id, and replacement_ids, the tokens that may replace another."""
        if self.is_inference:
            for row in range(len(table)):
                if tokenizer.mask_token not in packing.get_text(table, self.text, row):
                    raise InputError(
                        f"{table.where(row)}: {self.text} has no {tokenizer.mask_token}, the mask token to fill in"
                    )
        before, after = packing.find_wrapping(tokenizer)
        documents = packing.tokenize_documents(
            table, self.text, tokenizer, join_lines=self.joins_lines, whole_words=self.whole_word_masks
        )
        if self.packing == "blocks":
            documents = [packing.pack(documents, tokenizer)]
        length = max(1, max_length - len(before) - len(after))
        pieces = [
            piece.wrap(before, after) for document in documents for piece in packing.cut_into_pieces(document, length)
        ]
        return {
            **packing.make_arrays(pieces, with_words=True),
            "mask_token_id": np.array(tokenizer.mask_token_id),
            "replacement_ids": np.setdiff1d(np.arange(len(tokenizer), dtype=np.int32), tokenizer.all_special_ids),
        }

    def prepare(self, batch: Batch, features: Features, model: Any, epoch: int) -> Batch:
        """The batch with masks. The labels [B, T] are IGNORED except at the tokens to predict.

        The masks are a pure function of (seed, epoch, feature). Batches without labels, as in inference, are unchanged.
        """
        if batch.labels is None:
            return batch
        import torch

        ids = batch.inputs["input_ids"].clone()
        labels = torch.full_like(ids, IGNORED)
        for position, feature in enumerate(batch.feature_indices.tolist()):
            generator = np.random.default_rng([self.mask_seed, MASK_STREAM, epoch, feature])
            chosen, shown = self.draw_masks(generator, features, feature)
            columns = torch.from_numpy(chosen).to(ids.device)
            labels[position, columns] = ids[position, columns]
            ids[position, columns] = torch.from_numpy(shown).to(ids)
        return replace(batch, inputs={**batch.inputs, "input_ids": ids}, labels=labels)

    def draw_masks(self, generator: np.random.Generator, features: Features, feature: int) -> tuple[Array, Array]:
        """Positions of the tokens of a feature to predict, in order, and the ids that the model sees there."""
        tokens = slice(int(features.offsets[feature]), int(features.offsets[feature + 1]))
        extras = features.extras
        chosen = masking.choose_masked_tokens(
            generator, extras["word_indices"][tokens], self.mask_fraction, whole_words=self.whole_word_masks
        )
        targets = features.inputs["input_ids"][tokens][chosen]
        mask_token_id = int(extras["mask_token_id"])
        return chosen, masking.draw_shown_tokens(generator, targets, mask_token_id, extras["replacement_ids"])

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """The input, the objective with the reason for it, and the masks."""
        units = "tokens, all tokens of a word together" if self.whole_word_masks else "tokens"
        masks = f"{self.mask_fraction:.0%} of the {units}; drawn again in every epoch, always the same in validation"
        lines = super().describe(features, table, max_length)
        return [*lines, ("objective", f"masked: {self.reason}"), ("masks", masks)]


@dataclass(frozen=True, kw_only=True)
class FillScoring(Scoring):
    """Token metrics; predictions fill in the mask tokens of a text.

    Args:
        text: The column of the texts.
        tokenizer: Set by for_inference() alone.
        num_fills: The number of tokens that a prediction lists for each mask.
    """

    text: str
    tokenizer: Any = None
    num_fills: int = NUM_FILLS

    @property
    def reads_some_tokens(self) -> bool:
        return self.tokenizer is None

    def with_options(self, *, top_k: int | None = None, threshold: float | None = None) -> Self:
        scoring = super().with_options(threshold=threshold)
        if top_k is None:
            return scoring
        require(top_k >= 1, "top_k", top_k, "must be 1 or more")
        return replace(scoring, num_fills=top_k)

    @property
    def metric_names(self) -> tuple[str, ...]:
        return METRIC_NAMES

    def for_inference(self, tokenizer: Any) -> Self:
        return replace(self, tokenizer=tokenizer)

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Sums over the targets of a feature [3]. For inference the most probable tokens of each mask and their probabilities
        [M, 2, num_fills]."""
        if self.tokenizer is None:
            return score_batch(outputs, batch, is_causal=False)
        is_mask = batch.inputs["input_ids"] == self.tokenizer.mask_token_id
        count = min(self.num_fills, outputs.shape[-1])
        fills = []
        for logits, positions in zip(outputs, is_mask, strict=True):
            best = logits[positions].float().softmax(-1).topk(count)
            fills.append(np.stack([best.indices.cpu().numpy(), best.values.cpu().numpy()], 1))
        return fills

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        return compute_token_metrics(outputs)

    def describe_examples(
        self, kept: KeptOutputs, features: Features, table: Table, names: Sequence[str]
    ) -> ExampleScores:
        return describe_token_scores(kept.outputs, features, kept.indices)

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """`{text, fills}` of each row. fills: for each mask the most probable tokens, `{token, score}`."""
        fills: list[list[Any]] = [[] for _ in range(len(table))]
        for feature, masks in enumerate(outputs):
            for ids, scores in masks:
                best = [
                    {"token": self.tokenizer.decode([int(number)]), "score": float(score)}
                    for number, score in zip(ids, scores, strict=True)
                ]
                fills[features.get_example(feature)].append(best)
        for row in range(len(table)):
            yield {"text": table.columns[self.text][row], "fills": fills[row]}
