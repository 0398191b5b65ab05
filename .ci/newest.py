"""Prints the lines of constraints.txt for which the package index has a newer version; `--write` writes them into the file.

    python .ci/newest.py [--write] [FILE]

torch is printed and never written: a newer version may come as a CUDA build of several gigabytes (CONTRIBUTING.md).
"""

import re
import subprocess
import sys
from pathlib import Path

PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)$", flags=re.MULTILINE)
BY_HAND = {"torch"}


def newest(name: str) -> str:
    """The newest version of a package on pip's index; pre-releases do not count."""
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", name]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = re.search(r"^Available versions: ([^,\s]+)", done.stdout, flags=re.MULTILINE)
    if found is None:
        sys.exit(f"error: {' '.join(words[1:])}: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")
    return found[1]


def newer_lines(text: str) -> dict[str, str]:
    """`{line: line with the newest version}` for every pinned package that has a newer version."""
    found = {}
    for name, version in PINNED.findall(text):
        available = newest(name)
        if available.split("+")[0] != version:
            found[f"{name}=={version}"] = f"{name}=={available}"
    return found


def main() -> int:
    """Prints, and writes if `--write` is given."""
    words = [word for word in sys.argv[1:] if word != "--write"]
    path = Path(words[0]) if words else Path(__file__).resolve().parent.parent / "constraints.txt"
    text = path.read_text(encoding="utf-8")
    found = newer_lines(text)
    for old, new in found.items():
        by_hand = new.split("==")[0] in BY_HAND
        print(f"{old:<40} {new}{'   (by hand: see CONTRIBUTING.md)' if by_hand else ''}")
        if "--write" in sys.argv and not by_hand:
            text = re.sub(f"^{re.escape(old)}$", new, text, flags=re.MULTILINE)
    if "--write" in sys.argv:
        path.write_text(text, encoding="utf-8")
    print(f"{len(found)} of {len(PINNED.findall(text))} have a newer version")
    return 0


if __name__ == "__main__":
    sys.exit(main())
