"""Finished runs that the tests of reports and comparisons read, and a browser. Tests that change a run copy it first."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.configs import make_small_config

from hf_finetune.train import finetune

EVIL = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 1'>"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> dict[str, Path]:
    """The folders of finished runs on the same data: `base`, `seed` (another seed), `weak` (a learning rate that is too low).
    Texts and a label hold markup."""
    folder = tmp_path_factory.mktemp("finished")
    files = {}
    for number, (split, count) in enumerate({"train": 120, "validation": 40, "test": 120}.items()):
        rows = tiny.make_rows(count, seed=number)
        for place, row in enumerate(rows):
            row["label"] = EVIL if row["label"] == "food" else row["label"]
            row["text"] += f" {EVIL}" if place % 9 == 0 else ""
            if place % 20 == 3:  # nobody can be right on these
                row["label"] = "animals" if row["label"] != "animals" else "tools"
        files[f"data.{split}"] = [str(tiny.write_jsonl(folder / f"{split}.jsonl", rows))]
    runs = {}
    changes: dict[str, dict[str, Any]] = {
        "base": {},
        "seed": {"seed": 1},
        "weak": {"train.learning_rate": 1e-5, "train.head_learning_rate": 1e-5},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))
        for name, settings in changes.items():
            common = {
                "freeze.patterns": [r"layer\.0\."],
                "train.learning_rate": 1e-2,
                "train.head_learning_rate": 1e-2,
                "train.epochs": 6,
            }
            config = make_small_config(folder, backbones("bert"), **files, name=name, **{**common, **settings})
            runs[name] = finetune(config).run_dir
    return runs


@pytest.fixture
def copy_run(finished: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """`copy_run("base", "name", remove=["results.json"])`: a copy of a finished run, without some of its files."""

    def copy(name: str, new: str, remove: tuple[str, ...] = ()) -> Path:
        target = tmp_path / new
        shutil.copytree(finished[name], target, ignore=shutil.ignore_patterns("checkpoints", "model", "tensorboard"))
        for file in remove:
            shutil.rmtree(target / file) if (target / file).is_dir() else (target / file).unlink()
        return target

    return copy


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that is installed on this machine.

    Playwright's event loop runs in this thread until the module's last test is over: no test in between can call asyncio.run.
    """
    pytest.importorskip("playwright", reason="playwright is not installed")
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()
