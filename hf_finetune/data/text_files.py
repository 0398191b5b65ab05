"""Text files, read from start to end: encodings, byte order marks and .gz. No file is held in memory."""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.rows import FileWarning, Say, say_nothing
from hf_finetune.system.errors import InputError

FREE_SIZE = 100_000_000  # bytes that a .gz file may always be unpacked to
CHUNK_SIZE = 1 << 20  # bytes
UNREADABLE = (OSError, EOFError, zlib.error)

# Byte order marks. That of UTF-32 begins as that of UTF-16 does, so it comes first
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8"),
)


class Unpacked(io.RawIOBase):
    """The content of a .gz file. InputError where it passes the limit that data.max_expansion sets."""

    def __init__(self, path: Path, max_expansion: int) -> None:
        self.path, self.max_expansion = path, max_expansion
        self.limit = max(FREE_SIZE, max_expansion * path.stat().st_size)
        self.size = 0
        self.file = gzip.GzipFile(path, "rb")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(buffer)
        self.size += count
        if self.size > self.limit:
            raise InputError(
                f"{self.path}: is unpacked to more than {self.limit:,} bytes, {self.max_expansion} times its own size; if the "
                "file is right, raise data.max_expansion"
            )
        return count


def open_bytes(path: Path, max_expansion: int) -> BinaryIO:
    """Returns the open file. Files named *.gz are unpacked. OSError if it cannot be opened."""
    if path.suffix != ".gz":
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(Unpacked(path, max_expansion)))


def unreadable_error(path: Path, error: BaseException) -> InputError:
    """Returns the error for a file that cannot be read."""
    way_out = "; if it is not compressed, remove .gz from its name" if isinstance(error, gzip.BadGzipFile) else ""
    return InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}{way_out}")


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A text file whose encoding is known.

    Args:
        path: The file.
        encoding: Its encoding, as data.encoding calls it.
        max_expansion: data.max_expansion.
    """

    path: Path
    encoding: str
    max_expansion: int

    @contextmanager
    def open(self, *, newline: str = "\n") -> Iterator[TextIO]:
        """Opens the file. A byte order mark is not part of the text.

        newline: "\\n" if lines end with it alone, "" if they may also end with "\\r"; as in Python's open().

        Raises InputError, also while the file is read, if it is damaged or a byte is not of the encoding.
        """
        try:
            with (
                open_bytes(self.path, self.max_expansion) as raw,
                io.TextIOWrapper(raw, encoding=python_name(self.encoding), newline=newline) as file,
            ):
                yield file
        except UnicodeError as error:
            raise InputError(self.find_fault() or self.describe_fault(error)) from None
        except UNREADABLE as error:
            raise unreadable_error(self.path, error) from None

    def find_fault(self, tried: Sequence[str] = ()) -> str:
        """Returns the sentence that names the first byte that is not of the encoding, with its line; "" if all are.

        tried: The encodings of data.encoding, one of which the sentence does not advise again.

        Raises InputError if the file cannot be read.
        """
        decoder = codecs.getincrementaldecoder(python_name(self.encoding))()
        num_lines = 0
        try:
            with open_bytes(self.path, self.max_expansion) as file:
                while True:
                    chunk = file.read(CHUNK_SIZE)
                    decoder.decode(chunk, final=not chunk)
                    num_lines += chunk.count(b"\n")
                    if not chunk:
                        return ""
        except UnicodeDecodeError as error:
            content = error.object  # without the byte order mark
            line = num_lines + content.count(b"\n", 0, error.start) + 1
            names = {name.lower().replace("_", "-") for name in (self.encoding, *tried)}
            other = "latin-1" if names & {"cp1252", "windows-1252"} else "cp1252"
            return (
                f"{self.path}:{line}: byte 0x{content[error.start]:02x} is not {self.encoding}; name the file's encodings in "
                f"data.encoding, such as [utf-8, {other}]"
            )
        except UnicodeError as error:  # codecs such as utf-16 and punycode do not say at which byte
            return self.describe_fault(error)
        except UNREADABLE as error:
            raise unreadable_error(self.path, error) from None

    def describe_fault(self, error: UnicodeError) -> str:
        """Returns the sentence for an error of a codec that does not name the byte."""
        way_out = "name the file's encodings in data.encoding, such as [utf-8, cp1252]"
        return f"{self.path}: is not {self.encoding}: {error}; {way_out}"


def python_name(encoding: str) -> str:
    """Returns the encoding as Python calls it if a byte order mark is not part of the text. InputError if there is none."""
    try:
        b"a".decode(encoding)
    except UnicodeDecodeError:  # an encoding of several bytes
        pass
    except (LookupError, ValueError):  # ValueError: a few codecs of Python do not decode bytes to text
        raise InputError(f"data.encoding ({encoding}): Python has no such encoding") from None
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def find_text_file(path: Path, config: DataConfig, say: Say = say_nothing) -> TextFile:
    """Returns the file with its encoding: that of its byte order mark, else the first of data.encoding that fits.

    If several are named, the file is decoded once to find out. If only one is, it is not checked before the file is read.

    Raises InputError if the file cannot be read or no encoding fits.
    """
    if path.exists() and not path.is_file():
        raise InputError(
            f"{path}: is not a file that can be read twice, but a pipe or a device; save its content as a file"
        )
    try:
        with open_bytes(path, config.max_expansion) as file:
            head = file.read(256)
    except UNREADABLE as error:
        raise unreadable_error(path, error) from None

    def make(encoding: str) -> TextFile:
        return TextFile(path=path, encoding=encoding, max_expansion=config.max_expansion)

    mark = next((name for mark, name in MARKS if head.startswith(mark)), None)
    if mark in ("utf-16", "utf-32"):
        if not any(encoding.lower().replace("_", "-").startswith(mark) for encoding in config.encoding):
            say(f"{path.name}: the encoding is {mark}, as its first bytes say")
        return make(mark)
    check_is_not_wide(path, head, config.encoding[0])
    names = list(dict.fromkeys([mark, *config.encoding] if mark else config.encoding))
    chosen = choose_encoding(names, make, say)
    warn_of_utf_8(chosen, say)
    return chosen


def warn_of_utf_8(file: TextFile, say: Say) -> None:
    """Says it if a file that is read with one byte a character is UTF-8 with other characters than ASCII."""
    if not has_one_byte_a_character(file.encoding):
        return
    character = find_utf_8(file)
    if character:
        read = character.encode().decode(file.encoding, "replace")
        say(
            FileWarning(
                f"{file.path.name}: is valid utf-8, and data.encoding says {file.encoding}, so that {character} is read as "
                f"{read}; set data.encoding to [utf-8, {file.encoding}]"
            )
        )


def find_utf_8(file: TextFile) -> str:
    """Returns the first character of a file that is not ASCII if all of the file is UTF-8; "" if not, or if all are ASCII.

    InputError if the file cannot be read.
    """
    decoder, first = codecs.getincrementaldecoder("utf-8")(), ""
    try:
        with open_bytes(file.path, file.max_expansion) as opened:
            while chunk := opened.read(CHUNK_SIZE):
                text = decoder.decode(chunk)
                if not first and not text.isascii():
                    first = next(character for character in text if not character.isascii())
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return ""
    except UNREADABLE as error:
        raise unreadable_error(file.path, error) from None
    return first


def has_one_byte_a_character(encoding: str) -> bool:
    """True for encodings such as cp1252 and latin-1. InputError if Python has no such encoding."""
    try:
        return len("ü".encode().decode(python_name(encoding), "replace")) == 2
    except UnicodeError:  # punycode and the like
        return False


def choose_encoding(names: list[str], make: Callable[[str], TextFile], say: Say) -> TextFile:
    """Returns the file that `make` makes of the first encoding that fits it. InputError if none does."""
    if len(names) == 1:
        return make(names[0])
    first_fault = ""
    for name in names:
        file = make(name)
        fault = file.find_fault(names)
        if not fault:
            if name != names[0]:
                say(f"{file.path.name}: the encoding is {name}, not {names[0]}")
            return file
        first_fault = first_fault or fault
    raise InputError(first_fault)


def check_is_not_wide(path: Path, head: bytes, encoding: str) -> None:
    """Raises InputError if every other byte is zero, as in UTF-16 without its mark, and the encoding is not of that kind."""
    if encoding.lower().startswith(("utf-16", "utf_16", "utf-32", "utf_32")) or len(head) < 8:
        return
    for name, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if not any(zeros):
            raise InputError(f"{path}: every other byte is zero; set data.encoding, to {name} for example")


def read_whole(path: Path, config: DataConfig, say: Say = say_nothing) -> str:
    """Returns the text of a small file, as it is. InputError if it cannot be read or no encoding fits."""
    with find_text_file(path, config, say).open() as file:
        return file.read()
