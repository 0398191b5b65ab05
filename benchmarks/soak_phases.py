"""The phases of a run that are attacked: how the moment of a kill is aimed at one, and which one it has hit.

A run shows where it is by the lines that it prints, by the files that it is writing, and by its requests to the Hub. Each phase
has a sign that it has begun, and the most seconds from there to the kill.
"""

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support.hub_server import HubServer

from hf_finetune.run.checkpoint import find_last
from hf_finetune.verify import parse_update

MOST_REQUESTS = 10  # more than a run makes: one before training, the others in its push
MOST_PARTS = 1000  # of an encoded text


@dataclass(kw_only=True)
class Scene:
    """A start of a run, as it looks from outside.

    Attributes:
        run_dir: The folder of the run.
        cache_dir: Its cache, which no other run uses.
        output: The file that has what the processes of this start print.
        hub: The Hub that the run is pushed to.
        num_updates: The updates of the run.
        evaluation_every: The number of updates between two evaluations.
        began: time.time() of the start.
        num_requests: The requests that the Hub had received before.
    """

    run_dir: Path
    cache_dir: Path
    output: Path
    hub: HubServer
    num_updates: int
    evaluation_every: int
    began: float = field(default_factory=time.time)
    num_requests: int = 0
    text: str = ""

    def __post_init__(self) -> None:
        self.output.write_bytes(b"")
        self.num_requests = len(self.hub.requests)

    def read_lines(self) -> list[str]:
        """Returns the complete lines that were printed up to now."""
        if self.output.stat().st_size > len(self.text):
            self.text = self.output.read_bytes().decode("utf-8", errors="replace")
        return self.text.split("\n")[:-1]

    def find_last_update(self) -> int:
        """Returns the number of the last update that was printed, 0 if none was."""
        updates = re.findall(r"^update (\d+)/", "\n".join(self.read_lines()), flags=re.MULTILINE)
        return int(updates[-1]) if updates else 0

    def count_requests(self) -> int:
        """Returns how many requests the Hub has received since the start."""
        return len(self.hub.requests) - self.num_requests

    def is_new(self, path: Path) -> bool:
        """True if a file or folder was changed since the start. What another process has removed is not."""
        try:
            return path.stat().st_mtime >= self.began - 0.01  # file systems round times down
        except OSError:
            return False

    def holds_new(self, folder: Path, pattern: str) -> bool:
        """True if a file or folder of this pattern was changed since the start."""
        return any(self.is_new(path) for path in folder.glob(pattern))

    # --- what is done -----------------------------------------------------------------------------------------------

    def has_table(self) -> bool:
        """True if the table of the training data is complete."""
        return any((self.cache_dir / "tables").glob("[!.]*/meta.json"))

    def has_encoded(self) -> bool:
        """True if the encoded text of all three splits is complete: the lists of their parts name how many there are."""
        lists = [path.read_text(encoding="utf-8").splitlines() for path in self.cache_dir.glob("encoded/*/parts.jsonl")]
        return len(lists) == 3 and all(
            lines and int(lines[-1].partition('"of": ')[2].partition(",")[0] or MOST_PARTS) <= len(lines)
            for lines in lists
        )

    def has_activations(self) -> bool:
        """True if all activations are captured."""
        return any((self.cache_dir / "activations").glob("*[!l]/manifest.json"))

    def is_finished(self) -> bool:
        """True if only the push is left."""
        return (self.run_dir / "results.json").exists()


@dataclass(frozen=True, kw_only=True)
class Phase:
    """seconds: the most from its first sign to the kill. is_over: True if it does not happen in later starts."""

    seconds: float
    is_over: Callable[[Scene], bool] = Scene.is_finished


PHASES: Mapping[str, Phase] = {
    "load": Phase(seconds=1.5),
    "read": Phase(seconds=0.03, is_over=Scene.has_table),
    "encode": Phase(seconds=0.06, is_over=Scene.has_encoded),
    "capture": Phase(seconds=0.06, is_over=Scene.has_activations),
    "train": Phase(seconds=0.04),
    "evaluate": Phase(seconds=0.03),
    "save": Phase(seconds=0.015),
    "export": Phase(seconds=0.25),
    "push": Phase(seconds=0.01, is_over=lambda scene: False),
}


def aim(phase: str, scene: Scene, chance: random.Random) -> Callable[[], bool]:
    """Returns a function that is true once a phase has begun in this start of the run."""
    last = find_last(scene.run_dir / "checkpoints")
    first = (parse_update(last) if last else 0) + 1
    update = chance.randint(min(first, scene.num_updates), scene.num_updates)
    evaluated = chance.choice(range(scene.evaluation_every, scene.num_updates + 1, scene.evaluation_every))
    request = chance.randint(2 - scene.is_finished(), MOST_REQUESTS)
    signs: dict[str, Callable[[], bool]] = {
        "load": lambda: True,
        "read": lambda: any(scene.cache_dir.glob("tables/.writing-*")),
        "encode": lambda: scene.holds_new(scene.cache_dir, "encoded/*/*.bin"),
        "capture": lambda: scene.holds_new(scene.cache_dir, "activations/*.partial"),
        "train": lambda: scene.find_last_update() >= update,
        "evaluate": lambda: scene.find_last_update() >= max(first, evaluated),
        "save": lambda: scene.find_last_update() >= update and scene.holds_new(scene.run_dir, "checkpoints/.*.writing"),
        "export": lambda: scene.holds_new(scene.run_dir, ".model.writing"),
        "push": lambda: scene.count_requests() >= request,
    }
    return signs[phase]


def choose_phase(scene: Scene, counts: Mapping[str, int], chance: random.Random) -> str:
    """Returns a phase that is not over: one that comes earlier, or that was aimed at less often, is more likely."""
    ahead = [phase for phase, properties in PHASES.items() if not properties.is_over(scene)]
    fewest = min(counts.get(phase, 0) for phase in ahead)
    weights = [2.0 ** (fewest - counts.get(phase, 0) - place) for place, phase in enumerate(ahead)]
    return chance.choices(ahead, weights)[0]


def find_hit(scene: Scene) -> str:
    """Returns the phase in which a run was killed, by what it has printed and by what it has left half written."""
    lines = scene.read_lines()
    checkpoints = scene.run_dir / "checkpoints"
    last = next((line for line in reversed(lines) if line.startswith(("update ", "epoch ", "saved ckpt_"))), "")
    if scene.is_finished():
        return "push" if scene.count_requests() or scene.holds_new(scene.run_dir, "pending_pushes") else "load"
    if scene.holds_new(scene.run_dir, ".model.writing") or scene.is_new(scene.run_dir / "model"):
        return "export"
    if last.startswith("epoch ") or (last and scene.holds_new(checkpoints, ".*.writing")):
        return "save"
    if last.startswith("update "):
        return "evaluate" if scene.find_last_update() % scene.evaluation_every == 0 else "train"
    if last:
        is_last = f"_update{scene.num_updates:06d}_" in last
        return "evaluate" if is_last else "train"
    if any(line.startswith("cache  ") for line in lines):  # announced
        return "capture" if scene.holds_new(scene.cache_dir, "activations/*.partial") else "train"
    if scene.holds_new(scene.cache_dir, "encoded/*/*.bin"):
        return "encode" if not scene.has_encoded() else "load"
    return "read" if scene.holds_new(scene.cache_dir, "tables/.writing-*") else "load"
