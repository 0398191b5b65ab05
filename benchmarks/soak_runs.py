"""Runs that are killed again and again until they end, and what is checked after every kill and at the end."""

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak_phases import PHASES, Scene, aim, choose_phase, find_hit
from soak_processes import FreshProcesses, Nursery, Started
from soak_table import SECONDS_TO_END
from support import tiny
from support.hub_server import HubServer

from hf_finetune.verify import ProcessResult, compare, count_lost_updates, list_saved_checkpoints, make_command

TOKEN = "hf_adaWritesEverything"
SECONDS_TO_HANG = 180.0  # after which a start that was not killed counts as one that cannot continue
POLL_SECONDS = 0.001

NUM_UPDATES, EVALUATION_EVERY = 24, 6
SETTINGS = {
    "data.max_length": 16, "data.workers": 1, "train.batch_size": 8, "train.max_updates": NUM_UPDATES,
    "train.precision": "fp32", "train.learning_rate": "1e-2", "evaluation.every": EVALUATION_EVERY, "checkpoint.every": 2,
    "tracking.log_every": 1, "tracking.trackers": "[]", "freeze.embeddings": "true", "freeze.layers": 1,
    "model.dropout": 0.1, "cache.activations": "on", "hub.push": "true", "hub.on_failure": "error",
}  # fmt: skip
CLOCK = (
    "seconds",
    "seconds_to_first_update",
    "tokens_per_second",
    "peak_memory_mb",
    "push",
)  # of results.json: what differs between two equal runs


def write_data(folder: Path, num_rows: int) -> dict[str, Any]:
    """Makes a small random backbone and rows for it. Returns the settings that name them.

    A column that is not used makes the file so large that its table is stored. The few different texts are encoded in parts of
    8,192 rows, and captured once.
    """
    texts = tiny.make_rows(120)
    rows = [{**texts[number % len(texts)], "unused": "x" * (4_500_000 // num_rows)} for number in range(num_rows)]
    return {
        "model.backbone": tiny.make_backbone(folder / "backbone", layers=2),
        "data.train": tiny.write_jsonl(folder / "train.jsonl", rows),
        "data.validation": tiny.write_jsonl(folder / "validation.jsonl", tiny.make_rows(48, seed=1)),
        "data.test": tiny.write_jsonl(folder / "test.jsonl", tiny.make_rows(24, seed=2)),
        "output_dir": folder / "outputs",
    }


@dataclass(kw_only=True)
class Soak:
    """What all runs have in common.

    Attributes:
        folder: For everything that is written.
        settings: Those of all runs.
        hub: The Hub.
        nursery: Starts runs as forks.
        chance: Draws all moments.
        fresh_every: One of N kills hits a process that imports everything itself; 0 for none.
        fresh_seconds: How long such a process takes from its start to its end.
        counts: What has been counted.
        aimed, hit: The kills by phase.
        failures: What went wrong.
    """

    folder: Path
    settings: Mapping[str, Any]
    hub: HubServer
    nursery: Nursery
    chance: random.Random
    fresh_every: int
    fresh_seconds: float = 30.0
    counts: Counter[str] = field(default_factory=Counter)
    aimed: Counter[str] = field(default_factory=Counter)
    hit: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    longest_end: float = 0.0  # seconds until the other process had ended

    @property
    def environment(self) -> dict[str, str]:
        """The environment of all processes: their Hub is the one of this soak, and they compute in one thread."""
        home = self.folder / "home"
        return {**self.hub.environment(TOKEN, home), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

    def make_words(self, name: str) -> list[str]:
        """Returns the settings of a run as words of a command line."""
        own = {"name": name, "cache.dir": self.folder / f"cache-{name}", "hub.repo_id": f"ada/{name}"}
        return [word for key, value in {**self.settings, **own}.items() for word in (f"--{key}", str(value))]

    def set_scene(self, name: str) -> Scene:
        """Returns the scene of a new start of a run."""
        return Scene(
            run_dir=self.folder / "outputs" / name,
            cache_dir=self.folder / f"cache-{name}",
            output=self.folder / f"{name}.txt",
            hub=self.hub,
            num_updates=NUM_UPDATES,
            evaluation_every=EVALUATION_EVERY,
        )

    def start(self, name: str, scene: Scene, ranks: int, *, is_fresh: bool, only_pushes: bool = False) -> Started:
        """Starts the command of a run; the one that makes pushes that are pending if it `only_pushes`."""
        words = self.make_words(name)
        if is_fresh:
            return FreshProcesses(make_command("classify", words, 1), scene.output, self.environment, ranks)
        words = ["push", "--pending", str(scene.run_dir)] if only_pushes else ["train", "classify", *words]
        return self.nursery.start(words, scene.output, self.environment, 1 if only_pushes else ranks)

    def fail(self, kind: str, name: str, text: str) -> None:
        """Counts a failure, and keeps what was printed."""
        self.counts[kind] += 1
        self.failures.append(f"{kind}: {name}: {text[-3000:]}")
        print(self.failures[-1], flush=True)


def make_reference(soak: Soak, ranks: int) -> Path:
    """Runs without a kill. Returns the folder of the run."""
    name = f"complete-{ranks}"
    scene = soak.set_scene(name)
    began = time.monotonic()
    started = soak.start(name, scene, ranks, is_fresh=soak.fresh_every > 0)
    if not started.wait_for_end(10 * SECONDS_TO_HANG) or any(started.codes.values()):
        started.kill()
        raise SystemExit(f"a run without a kill has failed:\n{scene.output.read_text()[-3000:]}")
    soak.fresh_seconds = time.monotonic() - began
    check_end(soak, name, scene, scene.run_dir)
    return scene.run_dir


def soak_run(soak: Soak, name: str, ranks: int, reference: Path, most_kills: int) -> None:
    """Starts a run, and kills it, until it ends. Then compares it with the one that was never killed, and removes it."""
    soak.counts["runs"] += 1
    soak.counts[f"runs of {ranks}"] += 1
    kills_before = soak.counts["kills"]
    saved: list[str] = []
    while True:
        scene = soak.set_scene(name)
        may_kill = soak.counts["kills"] - kills_before < most_kills
        # Half of those that only have to be pushed continue without a kill
        if scene.is_finished() and soak.chance.random() < 0.5:
            may_kill = False
        started = attack(soak, name, scene, ranks) if may_kill else let_end(soak, name, scene, ranks)
        lines = scene.read_lines()
        soak.counts["resumes"] += any("resuming after update" in line for line in lines)
        saved += [line for line in lines if line.startswith("saved ckpt_")]
        result = ProcessResult(lines=tuple(saved), returncode=0, was_killed=True)
        if lost := count_lost_updates(scene.run_dir, result):
            soak.counts["saved updates lost"] += lost - 1  # fail() counts one
            soak.fail("saved updates lost", name, f"{lost}; {saved[-3:]}")
        if not any(started.codes.values()):
            break
        if not started.was_killed():
            soak.fail("runs that could not continue", name, scene.output.read_text(errors="replace"))
            return
    soak.counts["checkpoints"] += len(list_saved_checkpoints(result))
    if check_end(soak, name, scene, reference):
        shutil.rmtree(scene.run_dir)
        shutil.rmtree(scene.cache_dir)
        del soak.hub.repos[f"models/ada/{name}"]


def attack(soak: Soak, name: str, scene: Scene, ranks: int) -> Started:
    """Starts a run, and kills it in a phase; or one of its processes, and the other has to end by itself."""
    chance, number = soak.chance, soak.counts["kills"]
    is_fresh = soak.fresh_every > 0 and number % soak.fresh_every == soak.fresh_every - 1
    phase = "load" if is_fresh else choose_phase(scene, soak.aimed, chance)
    only_pushes = phase == "push" and scene.is_finished() and not is_fresh and chance.random() < 0.5
    is_reached, seconds = aim(phase, scene, chance), chance.uniform(0.0, PHASES[phase].seconds)
    rank = chance.choice([None, 0, 1]) if ranks > 1 and not only_pushes else None
    started = soak.start(name, scene, ranks, is_fresh=is_fresh, only_pushes=only_pushes)
    end = time.monotonic() + SECONDS_TO_HANG
    while started.is_running and time.monotonic() < end and not is_reached():
        started.wait(POLL_SECONDS)
    if time.monotonic() > end:
        started.kill()
        soak.fail("starts that hang", name, scene.output.read_text(errors="replace"))
    started.wait_for_end(chance.uniform(0.0, soak.fresh_seconds) if is_fresh else seconds)
    if started.is_running:
        started.kill(rank)
        killed_at = time.monotonic()
        if not started.wait_for_end(SECONDS_TO_END):
            soak.counts["others killed"] += 1
            started.kill()
            started.wait_for_end(SECONDS_TO_HANG)  # a killed process ends once the disk has answered it
        elif rank is not None:
            soak.longest_end = max(soak.longest_end, time.monotonic() - killed_at)
    if started.was_killed():
        soak.counts["kills"] += 1
        soak.counts[f"kills of {ranks}"] += 1
        soak.counts["kills of one of two"] += rank is not None
        soak.counts["kills of fresh processes"] += is_fresh
        soak.counts["kills of push --pending"] += only_pushes
        soak.aimed[phase] += 1
        soak.hit[find_hit(scene)] += 1
    return started


def let_end(soak: Soak, name: str, scene: Scene, ranks: int) -> Started:
    """Starts a run, and waits for its end; or, for half of those that only have to be pushed, makes the push."""
    only_pushes = scene.is_finished() and soak.chance.random() < 0.5
    started = soak.start(name, scene, ranks, is_fresh=False, only_pushes=only_pushes)
    if not started.wait_for_end(SECONDS_TO_HANG):
        started.kill()
        started.wait_for_end(SECONDS_TO_END)
        soak.fail("starts that hang", name, scene.output.read_text(errors="replace"))
    return started


# --- the end of a run -----------------------------------------------------------------------------------------------


def check_end(soak: Soak, name: str, scene: Scene, reference: Path) -> bool:
    """Compares a run that has ended with one that was never killed, and with what was pushed. True if all is equal."""
    comparison = compare(scene.run_dir, reference)
    soak.counts["tensors compared"] += comparison.num_tensors
    before = len(soak.failures)
    if comparison.num_different:
        soak.counts["differing tensors"] += comparison.num_different - 1  # fail() counts one
        soak.fail("differing tensors", name, f"{comparison.num_different} of {comparison.num_tensors}")
    for kind, read in (
        ("differing results.json", read_results),
        ("differing metrics.jsonl", read_rows),
        ("differing lists of files", list_files),
    ):
        ours, theirs = read(scene.run_dir), read(reference)
        if ours != theirs:
            soak.fail(
                kind, name, f"{[one for one in ours if one not in theirs]} {[one for one in theirs if one not in ours]}"
            )
    soak.counts["pushes"] += 1
    repo = soak.hub.repos.get(f"models/ada/{name}")
    if repo is None:
        soak.fail("differing pushed files", name, "it was not pushed")
        return False
    expected = {
        path.name: path.read_bytes() for path in (scene.run_dir / "model").iterdir() if path.name != "README.md"
    }
    pushed = {path: content for path, content in repo.files.items() if path not in (".gitattributes", "README.md")}
    if (
        json.loads(pushed.pop("results.json")).items()
        > json.loads((scene.run_dir / "results.json").read_text()).items()
    ):
        soak.fail("differing pushed files", name, "results.json")
    if pushed != expected or "README.md" not in repo.files:
        soak.fail("differing pushed files", name, f"{sorted(pushed)}, not {sorted(expected)}")
    if len(repo.commits) != 2:  # a repository begins with one
        soak.fail("pushes of several commits", name, str([commit.title for commit in repo.commits]))
    return len(soak.failures) == before


def read_results(run_dir: Path) -> list[Any]:
    """Returns the items of results.json that do not depend on the clock."""
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    return [item for item in results.items() if item[0] not in CLOCK]


def read_rows(run_dir: Path) -> list[Any]:
    """Returns the rows of metrics.jsonl, without the values that depend on the clock."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = (
        "_per_second",
        "_mb",
        "padding_share",
    )  # which depend on the machine, or on how many processes share a batch
    return [{key: row[key] for key in row if key != "time" and not key.endswith(measured)} for row in rows]


def list_files(run_dir: Path) -> list[Any]:
    """Returns the names of all files of a run, in its folders. Locks that a killed process has left are held by nobody."""
    return sorted(
        path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if not path.name.endswith(".lock")
    )
