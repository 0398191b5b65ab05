"""Lists and objects that a table holds as text: JSON, or what Python and pandas print."""

import ast
import io
import json
import re
import tokenize
from typing import Any

LONGEST_LITERAL = 1_000_000  # characters; a longer text is not tried


GAP = re.compile(r"""['"\w.]\s+['"\w]""")  # perhaps between two values of an array, which numpy prints without commas
VALUES = (tokenize.STRING, tokenize.NUMBER, tokenize.NAME)
NUMPY = re.compile(r"array|np\.(array|str_|bool_?|u?int\d+|float\d+)")  # what is written before numpy's values


class NumpyValues(ast.NodeTransformer):
    """Replaces numpy's values, array([...], dtype=...) and np.int64(3), with the list or the number, and a set with the list of
    its values in the order in which they are written."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if NUMPY.fullmatch(ast.unparse(node.func)) and len(node.args) == 1:
            return self.visit(node.args[0])
        return node

    def visit_Set(self, node: ast.Set) -> ast.AST:
        self.generic_visit(node)
        return ast.copy_location(ast.List(elts=node.elts, ctx=ast.Load()), node)


def read_literal(text: str) -> list[Any] | dict[Any, Any] | None:
    """Returns the list or the object that a text holds, or None if the text is nothing of the kind.

    Nothing is evaluated: takes JSON, and Python's literals, such as "['a', 'b']" and "{'text': array(['a'], dtype=object)}". A
    set, "{'a', 'b'}" or "set()", becomes a list.
    """
    text = text.strip()
    if text == "set()":
        return []
    if (text[:1], text[-1:]) not in (("[", "]"), ("{", "}")) or len(text) > LONGEST_LITERAL:
        return None
    value: Any = None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            text = separate_values(text) if GAP.search(text) else text
            value = ast.literal_eval(NumpyValues().visit(ast.parse(text, mode="eval")))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
            return None
    return value if isinstance(value, (list, dict)) else None


def separate_values(text: str) -> str:
    """Returns a list that numpy has printed, ['a' 'b'] or [1 0], with commas. Python would join 'a' 'b' to one string."""
    parts: list[str] = []
    last: tokenize.TokenInfo | None = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if last and last.type in VALUES and token.type in VALUES and last.end != token.start:
            parts.append(",")
        if token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER):
            parts.append(token.string)
            last = token
    return "".join(parts)
