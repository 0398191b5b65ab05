"""The modules that docs/extending.md shows, as a user would have them in files."""

import re
import sys
import types
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")


def read_modules() -> dict[str, str]:
    """The text of each module on the page by its name: of the Python blocks that begin with a file's name."""
    return dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```$", PAGE, flags=re.M | re.S))


def add_modules() -> None:
    """Makes the page's modules importable in this process."""
    for name, text in read_modules().items():
        if name not in sys.modules:
            sys.modules[name] = module = types.ModuleType(name)
            exec(compile(text, f"{name}.py", "exec"), module.__dict__)
