"""The files of a converted GGUF file (model/conversions.py), without torch: for the commands of the caches."""

import json
from pathlib import Path

from hf_finetune.system.files import hash_unchanged

FOLDER, DIGESTS = "converted", "digests.json"


def find_damage(folder: Path) -> str | None:
    """Returns what is wrong with a converted model, or None if every byte is as it was written."""
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        names = {path.name for path in folder.iterdir()} - {DIGESTS}
        if names != digests.keys():
            return "has other files than were written"
        wrong = [name for name in sorted(names) if hash_unchanged(folder / name) != digests[name]]
    except (OSError, ValueError, AttributeError):
        return "has no readable list of digests"
    return f"is damaged in {wrong[0]}" if wrong else None
