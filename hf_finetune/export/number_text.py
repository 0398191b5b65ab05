"""The text of many 32-bit floating-point numbers at once: character for character what JSON and repr() have for each.

A model's scores and vectors are such numbers, and repr() takes most of the time of writing them. N numbers.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hf_finetune.data.features import Array

MANY = 64  # numbers: fewer are written as fast by json
WIDTH = 32  # bytes of a text: sign, 0.000, first digit and point (8), 16 digits, e-45 (8); unused ones are zero bytes
SIGN_AT, FIRST_AT, POINT_AT, REST_AT, END_AT = 0, 6, 7, 8, 24
LOWEST, HIGHEST = -46, 0  # decimal exponents that are computed here; repr() writes the other numbers
SMALLEST_PLAIN = -4  # repr() writes smaller exponents as 1e-05
DOUBT = 2.0**-40  # far more than the rounding errors here; repr() writes numbers that are so near to a limit


def split_power(power: int) -> tuple[float, float, float]:
    """Returns 10**power as the sum of three numbers. The first two have 29 bits or fewer, so that their products with a 32-bit
    number are exact."""
    parts, rest = [], 10**power
    for _ in range(2):
        shift = max(0, rest.bit_length() - 29)
        parts.append(float(rest >> shift << shift))
        rest -= rest >> shift << shift
    return parts[0], parts[1], float(rest)


EXPONENTS = range(LOWEST, HIGHEST + 1)
POWERS = np.array([split_power(16 - exponent) for exponent in EXPONENTS]).T
BEGINNINGS = np.array(  # before and between the first two digits, for each exponent
    [
        int.from_bytes((b"\0" + zeros).ljust(POINT_AT, b"\0") + point, "little")
        for exponent in EXPONENTS
        for zeros in [b"0." + b"0" * (-1 - exponent) if SMALLEST_PLAIN <= exponent < 0 else b""]
        for point in [b"\0" if zeros else b"."]
    ]
)
ENDS = np.array(  # after the last digit, for each exponent
    [
        int.from_bytes(f"e-{-exponent:02}".encode() if exponent < SMALLEST_PLAIN else b"", "little")
        for exponent in EXPONENTS
    ]
)
FOUR_DIGITS = np.frombuffer(b"".join(b"%04d" % number for number in range(10_000)), "<u4")


def format_numbers(value: Any) -> str | None:
    """Returns a long dict or list of 32-bit numbers as JSON, as json.dumps() does. None for all else."""
    if type(value) not in (dict, list) or len(value) < MANY:
        return None
    items = value.values() if type(value) is dict else value
    if set(map(type, items)) != {float}:
        return None
    numbers = np.fromiter(items, np.float64, len(value))
    with np.errstate(over="ignore"):
        short = numbers.astype(np.float32)
    form = make_form(tuple(value) if type(value) is dict else len(value))
    if form is None or not np.isfinite(short).all() or not (short == numbers).all():
        return None
    return form.fill(short)


@dataclass(frozen=True, kw_only=True)
class Form:
    """The text of a dict or a list with free places for its numbers.

    Attributes:
        words: The text with zero bytes in the places, four bytes a word.
        places: The words of each number [N, WIDTH / 4].
    """

    words: Array
    places: Array

    def fill(self, numbers: Array) -> str:
        """Returns the text with these numbers."""
        words = self.words.copy()
        words[self.places] = write_numbers(numbers).view("<u4")
        return words.tobytes().translate(None, b"\0").decode()


@lru_cache(maxsize=8)
def make_form(keys: "tuple[Any, ...] | int") -> Form | None:
    """Returns the form of a dict with these keys, or of a list of this number of numbers. None if a key is not a string."""
    if isinstance(keys, int):
        before, brackets = ["", *[", "] * (keys - 1)], "[]"
    elif all(isinstance(key, str) for key in keys):
        names = [f"{json.dumps(key, ensure_ascii=False)}: " for key in keys]
        before, brackets = [names[0], *(f", {name}" for name in names[1:])], "{}"
    else:
        return None
    parts = [pad_words(text) for text in (brackets[0] + before[0], *before[1:])]
    ends = np.cumsum([len(part) + WIDTH for part in parts])
    free = bytes(WIDTH)
    text = b"".join(part + free for part in parts) + pad_words(brackets[1])
    return Form(words=np.frombuffer(text, "<u4"), places=(ends[:, None] - WIDTH) // 4 + np.arange(WIDTH // 4))


def pad_words(text: str) -> bytes:
    """Returns a text in UTF-8 with zero bytes up to a whole number of words. JSON has no zero bytes of its own."""
    content = text.encode()
    return content + bytes(-len(content) % 4)


# --- the digits ------------------------------------------------------------------------------------------------------


def write_numbers(numbers: Array) -> Array:
    """Returns the texts [N, WIDTH] of float32 numbers, as bytes of ASCII; a text is a row without its zero bytes.

    repr() alone writes those from 10 on and the few that find_digits() is not certain of.
    """
    with np.errstate(invalid="ignore"):  # nan
        size = np.abs(numbers.astype(np.float64))
    texts = np.zeros((len(numbers), WIDTH), np.uint8)
    is_in_range = (size < 10.0) & (size > 0.0)
    size[~is_in_range] = 1.0
    exponents = np.floor(np.log10(size)).astype(np.int64)
    digits, is_sure = find_digits(size, exponents)
    place_digits(texts, digits, exponents)
    texts[numbers < 0, SIGN_AT] = ord("-")
    for row in np.flatnonzero(~(is_in_range & is_sure)):
        text = repr(float(numbers[row])).encode()
        texts[row] = np.frombuffer(text.ljust(WIDTH, b"\0"), np.uint8)
    return texts


def find_digits(numbers: Array, exponents: Array) -> tuple[Array, Array]:
    """Returns the digits [N] of the shortest decimal numbers that are read as `numbers`, as integers of 17 digits, and whether
    they are certain [N].

    A number is scaled by a power of ten to 17 digits before the point, of which `integers` and `fraction` are computed. All
    that is nearer to it than half the distance to the next float64, `reach`, is read as the same number. That is at least 0.55
    and at most 11.2 here, so that at most one multiple of 100 is in reach, which is the shortest then; else the nearest multiple
    of 10, if it is in reach; else the nearest whole number, which always is.
    """
    high, middle, low = (part[exponents - LOWEST] for part in POWERS)
    second = numbers * middle
    below = np.floor(second)
    fraction = (second - below) + numbers * low
    carry = np.floor(fraction)
    fraction -= carry
    integers = (numbers * high).astype(np.int64) + (below + carry).astype(np.int64)
    reach = np.spacing(numbers) * 0.5 * (high + middle)
    hundreds = integers // 100
    above_hundred = (integers - hundreds * 100) + fraction
    tens = integers // 10
    above_ten = (integers - tens * 10) + fraction
    to_hundred = np.minimum(above_hundred, 100 - above_hundred)
    to_ten = np.minimum(above_ten, 10 - above_ten)
    digits = np.where(to_ten < reach, (tens + (above_ten > 5)) * 10, integers + (fraction > 0.5))
    digits = np.where(to_hundred < reach, (hundreds + (above_hundred > 50)) * 100, digits)
    is_doubtful = np.abs(fraction - 0.5) < DOUBT  # which of two is the nearest
    is_doubtful |= np.abs(above_ten - 5) < DOUBT
    is_doubtful |= np.abs(to_ten - reach) < DOUBT  # whether it is in reach
    is_doubtful |= np.abs(to_hundred - reach) < DOUBT
    is_power_of_two = np.frexp(numbers)[0] == 0.5  # numbers below are nearer than those above
    has_17_digits = (integers >= 10**16) & (digits < 10**17)
    return digits, has_17_digits & ~is_doubtful & ~is_power_of_two


def place_digits(texts: Array, digits: Array, exponents: Array) -> None:
    """Writes digits, zeros, point and exponent to their places in the texts."""
    first = digits // 10**16
    rest = digits - first * 10**16
    left = rest // 10**8
    eights = texts.view("<i8")
    eights[:, 0] = BEGINNINGS[exponents - LOWEST] + (first + ord("0") << 8 * FIRST_AT)
    eights[:, END_AT // 8] = ENDS[exponents - LOWEST]
    fours = texts.view("<u4")[:, REST_AT // 4 : END_AT // 4]
    for column, eight in ((0, left), (2, rest - left * 10**8)):
        four = eight // 10**4
        fours[:, column] = FOUR_DIGITS[four]
        fours[:, column + 1] = FOUR_DIGITS[eight - four * 10**4]
    rows, position = np.flatnonzero(texts[:, END_AT - 1] == ord("0")), END_AT - 1
    while len(rows) and position > REST_AT:  # zeros at the end
        texts[rows, position] = 0
        position -= 1
        rows = rows[texts[rows, position] == ord("0")]
    texts[rows[exponents[rows] < 0], REST_AT] = 0  # repr() writes 1.0, but 0.1 and 1e-05
    texts[rows[exponents[rows] < SMALLEST_PLAIN], POINT_AT] = 0
