"""Makes the pictures and the printed outputs of docs/tour.md: `python docs/make_tour.py DATA [WORK]`.

DATA is a folder with train.jsonl, validation.jsonl and test.jsonl, with the columns text and label; their first rows are taken.
WORK keeps the runs, so that the script continues where it was stopped; a temporary folder if it is not given.

The commands of the page run one after the other in WORK. A comment before a block of output names the lines that it shows of the
last command: `<!-- shown: TEXT, N lines -->`, from the line that has TEXT on.
"""

import os
import pty
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGE, PICTURES = DOCS / "tour.md", DOCS / "tour"
ROWS = {"train": 2000, "validation": 400, "test": 600}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"<!-- shown: (.*?), (\d+) lines -->\n```text\n.*?^```$", flags=re.MULTILINE | re.DOTALL)
COLOR = re.compile(r"\x1b\[[\d;]*m")
COLUMNS, LINES = 100, 40  # of the terminal
LIVE = "live.txt"  # what the terminal shows in the middle of the first run
COLORS = 64  # of a picture


def main() -> None:
    """Runs the commands, and writes the page and the pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(sys.argv[2] if len(sys.argv) > 2 else temporary).resolve()
        work.mkdir(parents=True, exist_ok=True)
        write_files(Path(sys.argv[1]), work)
        page, outputs = PAGE.read_text(encoding="utf-8"), {}
        for command in list_commands(page):
            outputs[command] = run_command(command, work)
        PAGE.write_text(show_outputs(page, outputs), encoding="utf-8")
        draw_pictures(work)


def write_files(data: Path, work: Path) -> None:
    """Writes the first rows of the data, and the files that the page has."""
    (work / "films").mkdir(exist_ok=True)
    for split, count in ROWS.items():
        with (data / f"{split}.jsonl").open(encoding="utf-8") as lines:
            rows = [line for _, line in zip(range(count), lines, strict=False)]
        (work / "films" / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")
    for name, text in list_files(PAGE.read_text(encoding="utf-8")).items():
        (work / name).write_text(text, encoding="utf-8")


def list_files(page: str) -> dict[str, str]:
    """Returns the YAML files of the page by their names, which stand in the line before the block."""
    found = re.findall(r"`(\w+\.yaml)`[^\n]*\n\n```yaml\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    return dict(found)


def list_commands(page: str) -> list[str]:
    """Returns the commands of the page that end by themselves and need no network."""
    lines = [line for kind, text in BLOCK.findall(page) if not kind for line in text.splitlines()]
    return [line for line in lines if line.startswith("hf-finetune ")]


def run_command(command: str, work: Path) -> str:
    """Returns what a command prints on a terminal; what an earlier start of this script printed if it has run already."""
    kept = work / "printed" / re.sub(r"[^\w.-]+", "-", command)[:150]
    if not kept.exists():
        print(f"$ {command}", flush=True)
        kept.parent.mkdir(exist_ok=True)
        output, live = watch_terminal([sys.executable, "-m", "hf_finetune", *shlex.split(command)[1:]], work)
        if live and not (work / LIVE).exists():
            (work / LIVE).write_text(live, encoding="utf-8")
        kept.write_text(output, encoding="utf-8")
    return kept.read_text(encoding="utf-8")


# --- the terminal ---------------------------------------------------------------------------------------------------


def watch_terminal(words: list[str], work: Path) -> tuple[str, str]:
    """Returns the lines that a command leaves on a terminal, without colours, and those that it had in the middle of training,
    with them; "" if it did not train."""
    child, descriptor = pty.fork()
    if child == 0:
        os.chdir(work)
        size = {"COLUMNS": str(COLUMNS), "LINES": str(LINES)}
        os.execvpe(words[0], words, os.environ | size | {"TERM": "xterm-256color", "PYTHONPATH": str(DOCS.parent)})
    received, live, home = b"", "", str(Path.home())
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # the command has ended
            break
        if not part:
            break
        received += part
        text = COLOR.sub("", received[-3000:].decode(errors="replace"))
        if not live and re.search(r"epoch 1\.[3-9].*accuracy 0.*tokens/s", text, flags=re.DOTALL):
            screen = read_screen(received.decode(errors="replace"))[-LINES // 2 :]
            live = "\n".join(screen) if " MB" in screen[-1] else ""  # else it is being drawn
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit(received.decode(errors="replace"))
    lines = read_screen(received.decode(errors="replace"))
    text = "\n".join(COLOR.sub("", line).rstrip() for line in lines)
    return text.replace(home, "~"), live.replace(home, "~")


def read_screen(output: str) -> list[str]:
    """Returns the lines that are on a terminal after this output, down to the cursor.

    A new line, a carriage return, a line that is cleared, and the cursor that goes up are all that a run writes besides text and
    colours.
    """
    lines, row = [""], 0
    for part in re.split(r"(\r|\n|\x1b\[2K|\x1b\[1A|\x1b\[\?\d+[hl])", output):
        if part == "\n":
            row += 1
            lines += [""] * (row >= len(lines))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part and part != "\r" and not part.startswith("\x1b[?"):
            lines[row] += part
    return lines[: row + 1]


def show_outputs(page: str, outputs: dict[str, str]) -> str:
    """Returns the page with the lines of the outputs in its blocks."""

    def replace(match: re.Match[str]) -> str:
        command = list_commands(page[: match.start()])[-1]
        lines = outputs[command].splitlines()
        begin = next(number for number, line in enumerate(lines) if match[1] in line)
        some = "\n".join(lines[begin : begin + int(match[2])])
        return f"<!-- shown: {match[1]}, {match[2]} lines -->\n```text\n{some}\n```"

    return SHOWN.sub(replace, page)


# --- pictures -------------------------------------------------------------------------------------------------------


def draw_pictures(work: Path) -> None:
    """Draws the terminal, TensorBoard and the page about a run in a headless Chromium, and copies the picture of the advice."""
    from playwright.sync_api import sync_playwright

    (PICTURES / "depths.svg").write_bytes((work / "depths.svg").read_bytes())
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        draw_terminal(browser, (work / LIVE).read_text(encoding="utf-8"))
        draw_report(browser, work / "outputs" / "films-sure" / "report.html")
        with open_tensorboard(work, "outputs/films") as address:
            draw_tensorboard(browser, address)
        browser.close()


def draw_terminal(browser: Any, live: str) -> None:
    """Draws the lines of a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text.from_ansi(live))
    drawn = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="hf-finetune train"), flags=re.DOTALL)
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    page.set_content(f"<body style='margin:0'>{drawn}</body>")
    page.locator("svg").first.screenshot(path=PICTURES / "terminal.png")
    shrink(PICTURES / "terminal.png")


def draw_report(browser: Any, path: Path) -> None:
    """Draws the beginning of the page about a run, and two parts of it on a phone, one next to the other."""
    from PIL import Image

    page = browser.new_page(viewport={"width": 1100, "height": 1500})
    page.goto(path.as_uri())
    page.screenshot(path=PICTURES / "report.png")
    phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    phone.goto(path.as_uri())
    parts = []
    for name in ("summary", "mistakes"):
        if name != "summary":
            phone.locator(f"#{name}").evaluate("part => part.scrollIntoView()")
        phone.screenshot(path=PICTURES / "phone.png")
        parts.append(Image.open(PICTURES / "phone.png").convert("RGB"))
    both = Image.new("RGB", (800, 844), "white")
    for number, part in enumerate(parts):
        both.paste(part, (410 * number, 0))
    both.save(PICTURES / "phone.png")
    for name in ("report", "phone"):
        shrink(PICTURES / f"{name}.png")


@contextmanager
def open_tensorboard(work: Path, folder: str) -> Iterator[str]:
    """Runs TensorBoard on a folder in `work`, and gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--port", str(port)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([*words, "--load_fast=false"], cwd=work, **quiet)
    try:
        for _ in range(240):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def draw_tensorboard(browser: Any, address: str) -> None:
    """Draws the losses and the metric."""
    page = browser.new_page(viewport={"width": 1280, "height": 840})
    page.goto(f"{address}/#custom_scalars")
    page.wait_for_timeout(8000)
    page.screenshot(path=PICTURES / "tensorboard.png")
    shrink(PICTURES / "tensorboard.png")


def shrink(path: Path) -> None:
    """Writes a picture with a palette of few colours."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


if __name__ == "__main__":
    main()
