"""The cells of docs/python.md run as a notebook, in a kernel without a network; one of them is interrupted and run again."""

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.script_server import ScriptServer

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
SECONDS = 300  # that a cell may take, on a busy machine

pytestmark = [pytest.mark.pretrained, pytest.mark.slow, pytest.mark.processes, pytest.mark.timeout(3 * SECONDS)]

# Runs when the kernel starts: a connection to another machine fails
NO_NETWORK = """
import socket

connect = socket.socket.connect

def refuse(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"the network is blocked: {address}")
    return connect(self, address)

socket.socket.connect = refuse
"""


def blocks(language: str) -> list[str]:
    """The page's code blocks of a language ("" for plain ones)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [text.rstrip("\n") for kind, text in found if kind == language]


def cells() -> list[str]:
    """The cells of the notebook: all Python blocks but the program's."""
    return [text for text in blocks("python") if not text.startswith("# program.py")]


def write_reviews(folder: Path) -> None:
    """Reviews with one to five stars, which are easy to tell apart."""
    words = ("awful", "dull", "fair", "good", "wonderful")
    lines = [f"{words[number % 5]} film number {number},{number % 5 + 1}" for number in range(300)]
    (folder / "reviews.csv").write_text("\n".join(["review,stars", *lines]) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the page's data, in which the kernel and the program run, without a network."""
    folder = tmp_path_factory.mktemp("python-page")
    write_reviews(folder)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "site"), str(ROOT)]))
        patch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


class Notebook:
    """A notebook of the page's cells, and its kernel."""

    def __init__(self, sources: list[str], folder: Path) -> None:
        made = [nbformat.v4.new_code_cell(source) for source in sources]
        self.notebook = nbformat.v4.new_notebook(cells=made)
        resources = {"metadata": {"path": str(folder)}}
        self.client = nbclient.NotebookClient(
            self.notebook, timeout=SECONDS, kernel_name="python3", resources=resources, allow_errors=True
        )

    async def run(self, number: int) -> Any:
        """Runs a cell, and returns it with its outputs."""
        return await self.client.async_execute_cell(self.notebook.cells[number], number)

    async def interrupt(self, number: int, folder: Path) -> Any:
        """Runs a cell, sends a SIGINT to the kernel when the run in this folder has logged an update, and returns the cell."""
        running = asyncio.create_task(self.run(number))
        metrics = folder / "metrics.jsonl"
        while not running.done() and not (metrics.exists() and metrics.read_text(encoding="utf-8")):
            await asyncio.sleep(0.02)
        assert not running.done(), get_text(running.result())
        await self.client.km.interrupt_kernel()
        return await running


def get_text(cell: Any) -> str:
    """Everything that a cell printed, returned or raised, as text."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif output.output_type == "error":
            parts.append("\n".join(output.traceback))
        else:
            parts.append(output.data.get("text/plain", ""))
    return "\n".join(parts)


def find_cell(beginning: str) -> int:
    """The number of the cell with this text in it."""
    (number,) = [number for number, source in enumerate(cells()) if beginning in source]
    return number


@pytest.fixture(scope="module")
def executed(desk: Path) -> dict[str, Any]:
    """All cells after they ran in order, the interrupted one twice; and both outputs of that one."""
    return asyncio.run(execute(desk))


async def execute(desk: Path) -> dict[str, Any]:
    """Runs the notebook."""
    notebook, interrupted = Notebook(cells(), desk), find_cell("longer = finetune(")
    texts = {}
    async with notebook.client.async_setup_kernel():
        for number in range(len(cells())):
            if number == interrupted:
                stopped = await notebook.interrupt(number, desk / "outputs" / "classify-3")
                texts["stopped"], texts["stopped outputs"] = get_text(stopped), list(stopped.outputs)
            texts[number] = get_text(await notebook.run(number))
    nbformat.write(notebook.notebook, desk / "page.ipynb")
    return {"texts": texts, "cells": notebook.notebook.cells}


def test_every_cell_runs(executed: dict[str, Any]) -> None:
    failed = [cell.source for cell in executed["cells"] if any(part.output_type == "error" for part in cell.outputs)]
    assert failed == []
    assert len(executed["cells"]) > 12


def test_the_cells_show_what_the_page_says(executed: dict[str, Any]) -> None:
    def text(beginning: str) -> str:
        return str(executed["texts"][find_cell(beginning)])

    assert "Run('outputs/classify', accuracy " in text("reviews = pandas.read_csv(")
    first = executed["cells"][find_cell("reviews = pandas.read_csv(")]
    kinds = [kind for part in first.outputs if part.output_type != "stream" for kind in part.data]
    assert "application/vnd.jupyter.widget-view+json" in kinds  # the progress bar
    assert "<table><caption>outputs/classify: classify, best accuracy" in first.outputs[-1].data["text/html"]
    assert "there is no such setting; did you mean train.epochs?" in text('"train.epoch": 2')
    assert "validation/accuracy" in text("run.history")
    assert any("image/png" in part.get("data", {}) for part in executed["cells"][find_cell("run.plot()")].outputs)
    assert "'accuracy': " in text("run.evaluate(held_out)")
    again = text("settings=settings)\nrun.run_dir")
    assert "is finished, there is nothing to train" in again
    assert "outputs/classify')" in again
    faster = text("faster = finetune(")
    assert (
        "holds another run (train.learning_rate was 0.0002, now 0.0005); this call's run is outputs/classify-2"
        in faster
    )
    assert "update " not in executed["texts"][len(executed["cells"]) - 1]


def test_an_interrupted_cell_shows_one_line_and_continues(executed: dict[str, Any]) -> None:
    (error,) = [part for part in executed["texts"]["stopped outputs"] if part.output_type == "error"]
    assert error.ename == "StoppedError"
    (line,) = error.traceback
    saved = re.fullmatch(
        r"Stopped: SIGINT: the run is saved up to outputs/classify-3/checkpoints/\S+_update(\d+)_\S+\.pt; run the same command, "
        r"program or notebook cell again to continue from it",
        line,
    )
    assert saved is not None, line
    assert "SIGINT: saving, then stopping" in executed["texts"]["stopped"]
    again = executed["texts"][find_cell("longer = finetune(")]
    assert f"resuming after update {int(saved[1])} from " in again


def test_an_error_is_one_line_and_the_kernel_lives_on(desk: Path) -> None:
    async def run() -> list[Any]:
        notebook = Notebook(
            ['import hf_finetune\nhf_finetune.finetune("classify", train=[{"text": "", "label": 1}])', "1 + 1"],
            desk,
        )
        async with notebook.client.async_setup_kernel():
            return [await notebook.run(0), await notebook.run(1)]

    wrong, right = asyncio.run(run())
    (error,) = wrong.outputs
    assert error.traceback == ["InputError: train[0]: text is empty"]
    assert get_text(right) == "2"


def test_an_interrupt_while_modules_are_imported_leaves_a_kernel_that_can_train(desk: Path) -> None:
    rows = [{"text": f"{word} {number}", "label": word} for number in range(20) for word in ("good", "bad")]
    code = f"""
from hf_finetune import finetune
print("began", flush=True)
run = finetune("classify", train={rows!r}, settings={{"name": "after-import", "train.max_updates": 2}})
run
"""

    async def run() -> tuple[Any, str]:
        notebook = Notebook([code], desk)
        async with notebook.client.async_setup_kernel():
            running = asyncio.create_task(notebook.run(0))
            while "began" not in get_text(notebook.notebook.cells[0]):
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)  # torch is being imported
            await notebook.client.km.interrupt_kernel()
            stopped = list((await running).outputs)
            return stopped, get_text(await notebook.run(0))

    stopped, again = asyncio.run(run())
    (line,) = stopped[-1].traceback
    assert line.startswith(
        "Stopped: SIGINT: there was nothing to save yet; run the same command, program or notebook cell again"
    )
    assert "Run('outputs/after-import', accuracy " in again


def test_the_program_runs_on_one_process_and_on_two(desk: Path, script_server: ScriptServer) -> None:
    (program,) = [text for text in blocks("python") if text.startswith("# program.py")]
    (desk / "program.py").write_text(program, encoding="utf-8")
    commands = [line for text in blocks("") for line in text.splitlines() if not line.startswith("pip ")]
    assert commands == ["python program.py", "torchrun --nproc_per_node 2 program.py"]
    for ranks in (1, 2):
        started = script_server.start(desk / "program.py", [], desk, dict(os.environ), ranks)
        assert started.wait(SECONDS) == 0, started.read("stderr")
        assert started.read().count("Run('outputs/two', accuracy ") == ranks
