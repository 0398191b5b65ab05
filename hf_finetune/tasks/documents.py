"""The common parts of causal and masked language modelling: the columns, and the base of both encodings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_finetune.data.features import Array, Features, Ragged
from hf_finetune.data.formats import LINES
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Columns, Encoding


@dataclass(frozen=True, kw_only=True)
class DocumentColumns(Columns):
    """One column of texts, or the lines of text files."""

    text: str

    @property
    def spec(self) -> ColumnSpec:
        return ColumnSpec(inputs=(self.text,), text_files=LINES, in_order=True)

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        if len(texts) != 1:
            raise InputError(f"--text: takes one text, not {len(texts)}")
        return {self.text: texts[0]}


@dataclass(frozen=True, kw_only=True)
class DocumentEncoding(Encoding):
    """The common part of causal and masked encoding.

    Args:
        text: The column of the texts.
        packing: As Settings.packing.
        joins_lines: The lines of a text file are one document.
        reason: Why the run has this objective.
        is_inference: The texts are prompts, or have mask tokens to fill.
    """

    text: str
    packing: str
    joins_lines: bool
    reason: str = ""
    is_inference: bool = False

    def encoded_columns(self) -> tuple[str, ...]:
        return (self.text,)

    def encoding_settings(self) -> dict[str, Any]:
        return {"packing": self.packing, "joins_lines": self.joins_lines}

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Ragged:
        """The tokens themselves."""
        return Ragged(values=arrays["input_ids"], offsets=arrays["offsets"])

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """The length of the examples and their number."""
        if self.packing == "blocks":
            layout = f"blocks of at most {max_length} tokens across texts"
        else:
            layout = f"each text by itself, in pieces of at most {max_length} tokens"
        return [("input", f"{layout}; {int(features.offsets[-1]):,} tokens in {len(features):,} examples, none cut")]
