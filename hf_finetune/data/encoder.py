"""What encode() needs of a task's encoding, and the key under which encoded text is stored."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from hf_finetune.data.features import Array, Ragged
from hf_finetune.data.function_digest import digest_function
from hf_finetune.data.table import Table

VERSION = 3  # of the entries on disk: raise it if the same key would give other arrays

# What a tokenizer of transformers does besides its backend in Rust. A task may read its chat template
TOKENIZER_ATTRIBUTES = ("model_input_names", "padding_side", "truncation_side", "split_special_tokens", "chat_template")

NOT_OWN = ("hf_finetune", "builtins", "abc", "typing")  # modules whose code is not the user's


class Encoder(Protocol):
    """The members of a task's encoding (tasks.base.Encoding) that encode() uses."""

    rows_are_independent: ClassVar[bool]

    @property
    def name(self) -> str:
        """A name that no other encoding has."""

    def encoded_columns(self) -> tuple[str, ...]:
        """The columns that tokenize() reads."""

    def encoding_settings(self) -> dict[str, Any]:
        """The plain settings that tokenize() depends on, apart from max_length."""

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Flat arrays as make_features() takes them."""

    def join(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays that are not those of parts of the rows, one after the other."""

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Array | Ragged | None:
        """Targets of the features."""


def rows_are_independent(encoder: Encoder) -> bool:
    """True if the class that has the encoder's tokenize(), or one derived from it, says so.

    What a class says of its tokenize() need not be true of one that a derived class puts in its place.
    """
    for kind in type(encoder).__mro__:
        if "rows_are_independent" in vars(kind):
            return encoder.rows_are_independent
        if "tokenize" in vars(kind):
            return False
    return False


def make_encoding_key(encoder: Encoder, table: Table, tokenizer: Any, max_length: int) -> str:
    """Returns a digest of everything that tokenize() depends on. Writes nothing."""
    import transformers

    digest = hashlib.sha256(f"{VERSION} {encoder.name} {transformers.__version__} {max_length}".encode())
    digest.update(json.dumps(encoder.encoding_settings()).encode())
    digest.update(digest_own_code(type(encoder)).encode())
    digest.update(digest_tokenizer(tokenizer).encode())
    digest.update(table.digest(encoder.encoded_columns()).encode())
    if not rows_are_independent(encoder):  # some tasks join the lines of a text file
        first_row = 0
        for _, num_rows in table.list_files():
            digest.update(f"{num_rows} {table.is_tabular(first_row)} ".encode())
            first_row += num_rows
    return digest.hexdigest()[:32]


def digest_own_code(kind: type) -> str:
    """Returns digests of the classes that an encoder's class is made of and that are the user's own; "" if there are none.

    VERSION stands for the code of the package's own classes.
    """
    own = [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in NOT_OWN]
    return " ".join(digest_function(base) for base in own)


def digest_tokenizer(tokenizer: Any) -> str:
    """Returns a digest of what a tokenizer makes of a text: of its class and settings, and of its backend or its vocabulary
    and its files. What its last call set, such as truncation, does not count: each call sets it."""
    digest = hashlib.sha256()
    described = {
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "settings": {name: value for name, value in tokenizer.init_kwargs.items() if not is_location(name)},
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "added": {str(number): repr(token) for number, token in sorted(tokenizer.added_tokens_decoder.items())},
        **{name: getattr(tokenizer, name, None) for name in TOKENIZER_ATTRIBUTES},
    }
    digest.update(json.dumps(described, sort_keys=True, default=repr).encode())
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
        return digest.hexdigest()
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode("utf-8", "surrogatepass"))
    for name in sorted(tokenizer.vocab_files_names):
        path = getattr(tokenizer, name, None)
        if isinstance(path, str) and Path(path).is_file():
            digest.update(f"{name} ".encode() + Path(path).read_bytes())
    return digest.hexdigest()


def is_location(name: str) -> bool:
    """True if a setting of a tokenizer says where its files lie, which does not change what it makes of a text."""
    return name == "name_or_path" or name.endswith(("_file", "_files"))
