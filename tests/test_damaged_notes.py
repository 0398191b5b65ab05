"""Damaged fields in a model's note, manifests, cards and results: the commands work or say in one line what is wrong.

`make soak` makes many more: DAMAGED_NOTES is their number for each file.
"""

import copy
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from hf_finetune import cli, finetune

NUM_DAMAGES = int(os.environ.get("DAMAGED_NOTES", "12"))
ODD: list[Any] = [
    None, True, -1, 0, 10**400, 1e308, float("nan"), "", "x", "\u0000", "\U0001f600", "../..", "a" * 5000, [], [[]], {}, {"a": 1},
]  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three updates, and a file of rows next to it."""
    folder = tmp_path_factory.mktemp("notes")
    tiny.write_jsonl(folder / "rows.jsonl", tiny.make_rows(3, seed=3))
    settings: dict[str, Any] = {
        "name": "run",
        "output_dir": str(folder),
        "train.max_updates": 3,
        "tracking.trackers": [],
    }
    settings |= {
        "model.backbone": str(tiny.make_backbone(folder / "backbone")),
        "cache.activations": "off",
        "data.max_length": 16,
    }
    finetune("classify", train=tiny.make_rows(12), test=tiny.make_rows(3, seed=1), settings=settings)
    return folder / "run"


def list_places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the keys that lead to each value inside lists and dicts, the outermost value first."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from list_places(value, (*path, key))


def damage(content: Any, draw: random.Random, under: tuple[Any, ...] = ()) -> Any:
    """A copy in which one value, at a random place, is another one or missing. under: the place inside which it lies."""
    inside = content
    for key in under:
        inside = inside[key]
    place = (*under, *draw.choice(list(list_places(inside))))
    if not place:
        return draw.choice(ODD)
    damaged = copy.deepcopy(content)
    holder = damaged
    for key in place[:-1]:
        holder = holder[key]
    if draw.random() < 0.2:
        del holder[place[-1]]
    else:
        holder[place[-1]] = draw.choice(ODD)
    return damaged


NOTE = ("hf_finetune",)
FILES = {
    "note": ("model/config.json", NOTE, ["predict", "evaluate", "inspect", "push"]),
    "manifest": ("checkpoints/ckpt_*.json", (), ["checkpoints", "verify", "materialize"]),
    "references": ("checkpoints/references.json", (), ["checkpoints", "verify"]),
    "results": ("results.json", (), ["push"]),
}


def make_words(command: str, run: Path, rows: Path, out: Path) -> list[str]:
    """The command line of a command."""
    checkpoint = next((run / "checkpoints").glob("*.pt"))
    return {
        "predict": ["predict", str(run), "--text", "a cat"],
        "evaluate": ["evaluate", str(run), "--data", str(rows)],
        "inspect": ["inspect", str(run)],
        "push": ["push", str(run), "--repo-id", "me/it", "--dry-run"],
        "checkpoints": ["checkpoints", str(run)],
        "verify": ["checkpoints", str(run), "--verify"],
        "materialize": ["materialize", str(checkpoint), "--out", str(out)],
    }[command]


@pytest.mark.timeout(60 + 10 * NUM_DAMAGES)
@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_value_gives_a_result_or_one_line(
    run_dir: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern, under, commands = FILES[kind]
    place = next(run_dir.glob(pattern)).relative_to(run_dir)
    good, codes = json.loads((run_dir / place).read_bytes()), set()
    shutil.copytree(run_dir, run := tmp_path / "run")
    for number in range(NUM_DAMAGES):
        damaged = damage(good, random.Random(f"{kind} {number}"), under)
        (run / place).write_text(json.dumps(damaged), encoding="utf-8")
        for command in commands:
            shutil.rmtree(out := tmp_path / "out", ignore_errors=True)
            before = f"{number}, {command}: {json.dumps(damaged)[:2000]}"
            try:
                code = cli.main(make_words(command, run, run_dir.parent / "rows.jsonl", out))
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error}; {before}") from error
            errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert (code, len(errors)) in ((0, 0), (2, 1)), before
            codes.add(code)
    assert 0 in codes


CARDS: dict[str, bytes] = {
    "empty": b"",
    "not UTF-8": b"---\nlicense: mit\n---\n\xff\xfe card",
    "no end of the front matter": b"---\nlicense: mit\n",
    "broken YAML": b"---\nlicense: [mit\n---\ntext",
    "YAML that is a list": b"---\n- mit\n---\ntext",
    "YAML with an object": b"---\nlicense: !!python/object/apply:os.system [exit 3]\n---\ntext",
    "YAML that unfolds": b"---\na: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n---\ntext",
    "odd values": b"---\nlicense: {a: 1}\ntags: 3\nmodel-index: [null, {results: x}]\n---\ntext",
    "NUL": b"---\nlicense: mit\n---\n\0\0",
    "long": b"---\nlicense: mit\n---\n" + b"x" * 3_000_000,
}


@pytest.mark.parametrize("card", CARDS)
def test_a_damaged_card_is_pushed_as_it_is_or_gives_one_line(
    run_dir: Path, tmp_path: Path, card: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_dir, run := tmp_path / "run")
    (run / "model" / "README.md").write_bytes(CARDS[card])
    for command in ("push", "inspect", "predict"):
        code = cli.main(make_words(command, run, run_dir.parent / "rows.jsonl", tmp_path / "out"))
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) in ((0, 0), (2, 1)), command
        assert code == 0 or command == "push"
