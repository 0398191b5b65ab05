"""JSON values that a row can be made of: objects without repeated names, strings without half a surrogate pair."""

import json
from typing import Any


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text. ValueError if it is broken, if an object has two values with one name, or if a string has
    half a surrogate pair."""
    value = DECODER.decode(text)
    check_unicode(text, value)
    return value


def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object. ValueError if two of its values have one name, of which only one would be read."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has two values that are called {repeated!r}")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=make_object)


def check_unicode(text: str, value: Any) -> None:
    """Raises UnicodeEncodeError if the JSON `text` of `value` has half a surrogate pair, as in \\uD800."""
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()


def describe_json_error(error: Exception) -> str:
    """Returns the error's text with the column, and without the position in the text, which is not that in the file."""
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair"
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
