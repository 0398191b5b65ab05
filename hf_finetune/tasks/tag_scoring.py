"""How tagging scores what a model returns: tags of words, and entities.

B features of a batch, N features of a split, T tokens, C tags.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hf_finetune.data.features import IGNORED, Array, Batch, Features
from hf_finetune.data.table import Table
from hf_finetune.tasks import metrics
from hf_finetune.tasks.base import Outputs, Scoring
from hf_finetune.tasks.example_scores import ExampleScores, count_targets, group_by_row, sum_by_row
from hf_finetune.tasks.own_functions import MetricInputs
from hf_finetune.tasks.scoring import KeptOutputs
from hf_finetune.tasks.tag_examples import describe_tags
from hf_finetune.tasks.text.tag_reader import TagReader
from hf_finetune.tasks.text.tags import IGNORED_TAG, describe_entities, list_kinds, number_names, score_entities

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class TaggingScoring(Scoring):
    """Tags of tokens to tags of words, entities and their scores.

    Args:
        reader: Reads words and tags.
        label_names: The C tags.
        default_tag: The tag of words that the tokenizer drops.
        keeps_examples: As keep_examples().
    """

    reader: TagReader
    label_names: tuple[str, ...]
    default_tag: str
    keeps_examples: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types of entities, in the labels' order."""
        return list_kinds(self.label_names)

    @property
    def reads_some_tokens(self) -> bool:
        return True

    @property
    def metric_names(self) -> tuple[str, ...]:
        if self.reader.scheme == "none":
            return ("accuracy", "f1_macro")
        return ("f1", "precision", "recall", "accuracy")

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        """Also takes a score of one type of entities, such as f1/person."""
        score, _, kind = name.partition("/")
        if self.reader.scheme != "none" and score in ("f1", "precision", "recall") and kind in self.kinds:
            return name
        return super().check_metric(name, key)

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """The number of the most likely tag of each token, without padding [T]; IGNORED for those that are not read. With
        `keeps_examples` also its probability and the loss of the token [T, 3]."""
        best = outputs.argmax(-1).int()
        if self.keeps_examples:
            best = self.add_losses(outputs, best, batch)
        if batch.reading is not None:
            best = batch.reading.scatter(best[0], IGNORED)
        lengths = batch.inputs["attention_mask"].sum(-1).tolist()
        return [tags[:length].copy() for tags, length in zip(best.cpu().numpy(), lengths, strict=True)]

    def add_losses(self, outputs: "torch.Tensor", best: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Returns the most likely tags [B, T] with their probabilities and the losses of the tokens [B, T, 3]."""
        import torch

        targets = batch.labels if batch.reading is None else batch.reading.targets
        assert targets is not None
        logs = outputs.float().log_softmax(-1)
        losses = -logs.gather(-1, targets.clamp(min=0)[..., None].long())[..., 0].masked_fill(targets == IGNORED, 0.0)
        return torch.stack([best.float(), logs.max(-1).values.exp(), losses], -1)

    def keep_examples(self) -> Self:
        return replace(self, keeps_examples=True)

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """F1, precision and recall over all entities, word accuracy, then F1, precision and recall for each entity type. Without
        a scheme: accuracy and macro F1 over tags. Every labelled word counts once."""
        predicted, references = self.compare_word_tags(outputs, features, table, indices)
        pairs = [
            (number, right)
            for numbers, rights in zip(predicted, references, strict=True)
            for number, right in zip(numbers, rights, strict=True)
            if right != IGNORED
        ]
        all_predicted, all_references = [number for number, _ in pairs], [right for _, right in pairs]
        if self.reader.scheme == "none":
            return metrics.compute_all(
                self.metric_names, predictions=all_predicted, scores=None, references=all_references
            )
        scores = score_entities(map(self.name_tags, references), map(self.name_tags, predicted), self.kinds)
        overall = {name: value for name, value in scores.items() if "/" not in name}
        by_kind = {name: value for name, value in scores.items() if "/" in name}
        return {**overall, "accuracy": metrics.accuracy(all_predicted, all_references), **by_kind}

    def compare_word_tags(
        self, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Returns the numbers of the words' tags, predicted and right, for each row that the features at `indices` were made of.

        Both are IGNORED for a word that is not labelled.
        """
        index = number_names(self.label_names)
        predicted, references = [], []
        for row, numbers in self.choose_word_tags(outputs, features, table, indices).items():
            rights = self.reader.read_tag_numbers(table, row, index)
            predicted.append([IGNORED if right == IGNORED else own for own, right in zip(numbers, rights, strict=True)])
            references.append(rights)
        return predicted, references

    def name_tags(self, numbers: Iterable[int]) -> list[str]:
        """Returns the names of tags, IGNORED_TAG for IGNORED."""
        return [IGNORED_TAG if number == IGNORED else self.label_names[number] for number in numbers]

    def choose_word_tags(
        self, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[int, list[int]]:
        """Returns the numbers of the words' tags, for each row of the table that the features at `indices` were made of.

        A word has the tag of its first piece, in the window that it belongs to; the default tag if it has no piece.
        """
        default = self.label_names.index(self.default_tag)
        tags: dict[int, list[int]] = {}
        for feature, kept in zip(indices.tolist(), outputs, strict=True):
            numbers = kept[:, 0].astype(int) if kept.ndim > 1 else kept
            row = features.get_example(feature)
            if row not in tags:
                tags[row] = [default] * len(self.reader.read_words(table, row))
            tokens = slice(features.offsets[feature], features.offsets[feature + 1])
            is_first_piece = features.extras["is_first_piece"][tokens]
            words = features.extras["word_indices"][tokens][is_first_piece]
            for word, number in zip(words.tolist(), numbers[is_first_piece].tolist(), strict=True):
                tags[row][word] = number
        return tags

    def describe_examples(
        self, kept: KeptOutputs, features: Features, table: Table, names: Sequence[str]
    ) -> ExampleScores:
        predicted, references = self.compare_word_tags(kept.outputs, features, table, kept.indices)
        rows, places = group_by_row(features, kept.indices)
        sums = [float(part[part[:, 0] != IGNORED, 2].sum(dtype=np.float64)) for part in kept.outputs]
        counts = count_targets(features, kept.indices, IGNORED)
        return describe_tags(
            self.label_names,
            self.kinds if self.reader.scheme != "none" else None,
            rows=rows,
            predicted=[self.name_tags(row) for row in predicted],
            references=[self.name_tags(row) for row in references],
            losses=sum_by_row(np.stack([sums, counts], 1), places, len(rows)),
        )

    def make_metric_inputs(self, outputs: Outputs, features: Features, table: Table, indices: Array) -> MetricInputs:
        """The names of the labelled words' tags, a list for each row. There are no scores: only the most likely tags are kept."""
        predicted, references = self.compare_word_tags(outputs, features, table, indices)
        return MetricInputs(
            predictions=[self.name_tags(number for number in row if number != IGNORED) for row in predicted],
            references=[self.name_tags(number for number in row if number != IGNORED) for row in references],
            label_names=self.label_names,
        )

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """For each sentence its tokens and their tags. If the tags mark entities, also the entities: type, text, and the words
        from `begin` up to, not including, `end`."""
        tags_of_rows = self.choose_word_tags(outputs, features, table, np.arange(len(features)))
        for row in range(len(table)):
            words, tags = self.reader.read_words(table, row), self.name_tags(tags_of_rows[row])
            prediction: dict[str, Any] = {"tokens": words, "tags": tags}
            if self.reader.scheme != "none":
                prediction["entities"] = describe_entities(words, tags)
            yield prediction
