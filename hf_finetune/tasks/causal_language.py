"""Encoding and scoring of causal language modelling: each token is predicted from those before it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from hf_finetune.data.features import Array, Features
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Outputs
from hf_finetune.tasks.documents import DocumentEncoding
from hf_finetune.tasks.text import packing
from hf_finetune.tasks.text.packing import TokenSequence
from hf_finetune.tasks.tokens import CausalScoring


@dataclass(frozen=True, kw_only=True)
class CausalEncoding(DocumentEncoding):
    """Texts to blocks or pieces whose tokens are predicted from those before them."""

    def for_inference(self, tokenizer: Any) -> Self:
        return replace(self, is_inference=True, joins_lines=False)

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Blocks, or pieces of each text, which then ends with an end token. For inference each prompt in full."""
        if self.is_inference:
            for row in range(len(table)):
                if not packing.get_text(table, self.text, row).strip():
                    raise InputError(f"{table.where(row)}: {self.text} is empty; the model needs a text to continue")
        before, _ = packing.find_wrapping(tokenizer)
        documents = [
            document.wrap(before, [])
            for document in packing.tokenize_documents(table, self.text, tokenizer, join_lines=self.joins_lines)
        ]
        if self.is_inference:
            return packing.make_arrays(documents, with_words=False)
        pieces = self.make_pieces(documents, tokenizer, max_length)
        if max(map(len, pieces)) < 2:
            raise InputError(f"{table.where(0)}: the text has one token, so there is no next token to predict")
        return packing.make_arrays(pieces, with_words=False)

    def make_pieces(self, documents: Sequence[TokenSequence], tokenizer: Any, max_length: int) -> list[TokenSequence]:
        """Blocks, or pieces of each document."""
        if self.packing == "blocks":
            return packing.cut_into_pieces(packing.pack(documents, tokenizer), max_length)
        end = [packing.get_end_token(tokenizer)]
        return [
            piece for document in documents for piece in packing.cut_into_pieces(document.wrap([], end), max_length)
        ]

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """The input, and the objective with the reason for it."""
        return [*super().describe(features, table, max_length), ("objective", f"causal: {self.reason}")]


@dataclass(frozen=True, kw_only=True)
class ContinuationScoring(CausalScoring):
    """Token metrics; predictions continue a text. text: its column."""

    text: str

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """`{text, continuation}` of each row. A text without tokens has an empty continuation."""
        continuations = {features.get_example(number): generated for number, generated in enumerate(outputs)}
        for row in range(len(table)):
            yield {"text": table.columns[self.text][row], "continuation": continuations.get(row, "")}
