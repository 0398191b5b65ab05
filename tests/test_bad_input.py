"""Wrong input ends with exit code 2 and one line that names it, and changes no run. End to end.

Each case is tried twice: without a run, and next to an unfinished run of the same config, which must not change.
"""

import errno
import hashlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.locked import FAST, Holder, held_lock

from hf_finetune import train as train_module
from hf_finetune.config.loading import load_config, to_yaml
from hf_finetune.config.recipes import recipe_path
from hf_finetune.export import model_folder
from hf_finetune.recipe import run_recipe
from hf_finetune.run import checkpoint
from hf_finetune.run.folder import open_run
from hf_finetune.system import locks
from hf_finetune.system.errors import InputError
from hf_finetune.system.locks import Lock

DEFAULTS: dict[str, Any] = {
    "task.kind": "classify",
    "name": "run",
    "output_dir": "outputs",
    "model.backbone": "backbone",
    "data.train": ["train.jsonl"],
    "data.validation": ["validation.jsonl"],
    "data.test": ["test.jsonl"],
    "train.epochs": 2,
    "train.batch_size": 8,
    "tracking.trackers": [],
}
COUNTS = {"train": 24, "validation": 9, "test": 6}
NUMBERS = ["--task.problem", "regression"]
SEVERAL = ["--task.problem", "multi_label"]


def write_data(folder: Path, problem: str = "single_label") -> None:
    """Writes a few correct training, validation and test rows."""
    for seed, (split, count) in enumerate(COUNTS.items()):
        tiny.write_jsonl(folder / f"{split}.jsonl", tiny.make_rows(count, seed=seed, problem=problem))


def run(*words: str, **changes: Any) -> int:
    """Trains in the current folder, and returns the exit code."""
    return run_recipe(DEFAULTS | changes, arguments=list(words))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Path:
    """A folder with a backbone, data, and an unfinished run."""
    folder = tmp_path_factory.mktemp("template")
    shutil.copytree(backbones("bert"), folder / "backbone")
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))
        assert run() == 0
    shutil.rmtree(folder / "outputs" / "run" / "model")
    (folder / "outputs" / "run" / "results.json").unlink()
    assert list((folder / "outputs" / "run" / "checkpoints").glob("*.pt"))
    return folder


@pytest.fixture
def work(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a copy of the template. The run folder is outputs/run."""
    shutil.copytree(template, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def fresh(work: Path) -> Path:
    """The working folder without a run."""
    shutil.rmtree(work / "outputs")
    return work


def digest(folder: Path) -> dict[str, str]:
    """Returns the paths of all files and folders in a folder, with the digests of the files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"  # whose holder writes it again and again
    }


def refusal(capsys: pytest.CaptureFixture[str], *words: str, **changes: Any) -> str:
    """Trains, and returns the one line of the error without `error: `. The exit code must be 2."""
    capsys.readouterr()
    code = run(*words, **changes)
    shown = capsys.readouterr()
    assert code == 2, shown
    lines = shown.err.splitlines()
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in shown.out + shown.err
    return lines[0].removeprefix("error: ")


# --- a case for each kind of wrong input ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """How the folder is spoiled, the words of the command line, the beginning of the message, and a part of it."""

    name: str
    starts: str
    holds: str = ""
    words: tuple[str, ...] = ()
    spoil: Callable[[Path], object] = lambda folder: None
    problem: str = "single_label"


def append(name: str, line: str) -> Callable[[Path], object]:
    """Adds a line to a file."""
    return lambda folder: (folder / name).open("a", encoding="utf-8").write(line + "\n")


def replace(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Replaces a file."""
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(raw)


def remove(*names: str) -> Callable[[Path], object]:
    """Removes files or folders."""
    return lambda folder: [
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink() for name in names
    ]


def row(text: Any = "a cat", label: Any = "animals", **more: Any) -> str:
    """A JSON line."""
    return json.dumps({"text": text, "label": label, **more})


def classes(**texts: list[str]) -> Callable[[Path], object]:
    """Makes the folder `classes` with a subfolder for each class."""

    def make(folder: Path) -> None:
        (folder / "classes").mkdir()
        for label, contents in texts.items():
            (folder / "classes" / label).mkdir()
            for number, content in enumerate(contents):
                (folder / "classes" / label / f"{number}.txt").write_text(content)

    return make


CSV, FOLDER = ("--data.train", "train.csv"), ("--data.train", "classes")
HEADER = "text,label\n"
DATA_CASES = [
    # a missing file
    Case(name="missing training file", spoil=remove("train.jsonl"), starts="data.train (train.jsonl): no such file"),
    Case(name="missing validation", spoil=remove("validation.jsonl"), starts="data.validation (validation.jsonl): no"),
    Case(name="missing test", spoil=remove("test.jsonl"), starts="data.test (test.jsonl): no such file"),
    Case(name="glob without a match", words=("--data.train", "*.none"), starts="data.train (*.none): no such file"),
    Case(name="second file missing", words=("--data.train", "train.jsonl", "b.csv"), starts="data.train (b.csv): no"),
    Case(name="long name", words=("--data.train", "a" * 300), starts="data.train (aaa", holds="no such file"),
    Case(name="package not installed", words=("--data.train", "package://no_such_pkg/x"), starts="data.train (package:",
         holds="pip install no-such-pkg"),
    Case(name="file of an unknown kind", words=("--data.train", "train.text"), spoil=replace("train.text", "a"),
         starts="train.text: the ending must be one of .csv"),
    Case(name="text without labels", words=("--data.train", "train.txt"), spoil=replace("train.txt", "a"),
         starts="train.txt:1: no column 'label'", holds="a line of such a file is __label__NAME and a text"),
    # an empty file
    Case(name="empty file", spoil=replace("train.jsonl", ""), starts="train.jsonl: is empty"),
    Case(name="empty validation", spoil=replace("validation.jsonl", "\n"), starts="validation.jsonl: is empty"),
    Case(name="csv with a header alone", words=CSV, spoil=replace("train.csv", HEADER), starts="train.csv: is empty"),
    Case(name="folder without texts", words=FOLDER, spoil=classes(a=[]), starts="classes: has no subfolders"),
    # a missing column
    Case(name="no text column", spoil=append("train.jsonl", '{"label": "food"}'), starts="train.jsonl:25: no column 't"),
    Case(name="no label column", spoil=append("test.jsonl", '{"text": "a"}'), starts="test.jsonl:7: no column 'label'"),
    Case(name="another label column", words=("--data.label_column", "gold"), starts="train.jsonl:1: no column 'gold'",
         holds="data.label_column"),
    Case(name="no second text", words=("--data.text_columns", "text", "other"), holds="data.text_columns",
         starts="train.jsonl:1: no column 'other' (columns: text, label)"),
    Case(name="pairs in a folder", words=(*FOLDER, "--data.text_columns", "a", "b"), spoil=classes(a=["a"], b=["b"]),
         starts="data.text_columns (['a', 'b']): "),
    # labels that are not in the training data
    Case(name="new label in validation", spoil=append("validation.jsonl", row(label="cars")),
         starts="validation.jsonl:10: the label 'cars' is not one of the 3 labels of the training data"),
    Case(name="new label in test", spoil=append("test.jsonl", row(label="cars")), starts="test.jsonl:7: the label 'cars'"),
    Case(name="new label in a list", problem="multi_label", words=tuple(SEVERAL), starts="test.jsonl:7: the label 'cars'",
         spoil=append("test.jsonl", row(label=["food", "cars"]))),
    # one class only
    Case(name="one class", spoil=replace("train.jsonl", (row() + "\n") * 9), starts="data.label_column (label): training",
         holds="only 'animals'"),
    Case(name="one class folder", words=FOLDER, spoil=classes(a=["x", "y"]), starts="data.label_column (label): training"),
    Case(name="no label in any row", words=tuple(SEVERAL), spoil=replace("train.jsonl", (row(label=[]) + "\n") * 9),
         starts="data.label_column (label): training has no label"),
    # empty or null texts and labels
    Case(name="empty text", spoil=append("train.jsonl", row(text=" ")), starts="train.jsonl:25: text is empty"),
    Case(name="null text", spoil=append("test.jsonl", row(text=None)), starts="test.jsonl:7: text is null"),
    Case(name="text that is a number", spoil=append("train.jsonl", row(text=5)), starts="train.jsonl:25: text is an int"),
    Case(name="empty text in csv", words=CSV, spoil=replace("train.csv", HEADER + "a,x\n,y\n"), starts="train.csv:3: text"),
    Case(name="empty text file", words=FOLDER, spoil=classes(a=["a"], b=[""]), starts="classes/b/0.txt: text is empty"),
    Case(name="null label", spoil=append("train.jsonl", row(label=None)), starts="train.jsonl:25: label is null"),
    Case(name="empty label", spoil=append("validation.jsonl", row(label="")), starts="validation.jsonl:10: label is empty"),
    Case(name="null for labels", problem="multi_label", words=tuple(SEVERAL), spoil=append("test.jsonl", row(label=None)),
         starts="test.jsonl:7: label is null"),
    Case(name="label that is a list", spoil=append("test.jsonl", row(label=["a", "b"])), starts="test.jsonl:7: label (['a'"),
    Case(name="string without a separator", words=tuple(SEVERAL), starts="train.jsonl:1: label (animals) is not a list",
         holds="task.label_separator"),
    # numbers
    Case(name="label that is not a number", problem="regression", words=tuple(NUMBERS),
         spoil=append("validation.jsonl", row(label="high")), starts="validation.jsonl:10: label ('high') is not a number"),
    Case(name="null for a number", problem="regression", words=tuple(NUMBERS), spoil=append("train.jsonl", row(label=None)),
         starts="train.jsonl:25: label is null; to leave out"),
    Case(name="class with fractions", problem="regression", words=("--task.problem", "single_label"),
         starts="train.jsonl:1: label (", holds="set task.problem to regression"),
    # non-finite values
    Case(name="nan label", problem="regression", words=tuple(NUMBERS), spoil=append("test.jsonl", row(label=float("nan"))),
         starts="test.jsonl:7: label is nan; to leave out"),
    Case(name="infinite label", problem="regression", words=tuple(NUMBERS),
         spoil=append("train.jsonl", row(label=float("inf"))), starts="train.jsonl:25: label (inf) is not finite"),
    Case(name="label beyond float32", problem="regression", words=tuple(NUMBERS),
         spoil=append("train.jsonl", row(label=1e300)), starts="train.jsonl:25: label (1e+300) is not finite"),
    Case(name="label beyond all floats", problem="regression", words=tuple(NUMBERS),
         spoil=append("train.jsonl", row(label=10**400)), starts="train.jsonl:25: label (inf) is not finite"),
    Case(name="nan in csv", words=CSV, spoil=replace("train.csv", HEADER + "a,0.5\nb,nan\n"),
         starts="train.csv:3: label is nan; to leave out"),
    Case(name="nan for a class", spoil=append("train.jsonl", row(label=float("nan"))),
         starts="train.jsonl:25: label is nan; to leave out"),
    Case(name="nan for a text", spoil=append("train.jsonl", row(text=float("nan"))), starts="train.jsonl:25: text is a float"),
    # broken files
    Case(name="broken JSON line", spoil=append("train.jsonl", '{"text": "a", '), starts="train.jsonl:25: broken JSON: "),
    Case(name="JSON line that is a list", spoil=append("train.jsonl", "[1]"), starts="train.jsonl:25: must be a JSON object"),
    Case(name="half a character", spoil=append("train.jsonl", '{"text": "\\ud83d", "label": "food"}'),
         starts="train.jsonl:25: broken JSON: half a surrogate pair"),
    Case(name="broken JSON array", words=("--data.train", "train.json"), spoil=replace("train.json", '[\n{"text"}\n]'),
         starts="train.json:2: broken JSON: "),
    Case(name="csv row with a field too many", words=CSV, spoil=replace("train.csv", HEADER + "a,x\na,b,x\n"),
         starts="train.csv:3: 3 fields, but the header has 2"),
    Case(name="csv with an open quote", words=CSV, spoil=replace("train.csv", HEADER + 'a,x\n"b,y\n'),
         starts="train.csv:3: broken row: "),
    Case(name="file that is not gzip", words=("--data.train", "train.csv.gz"), spoil=replace("train.csv.gz", "text,label"),
         starts="train.csv.gz: cannot be read: "),
    Case(name="file that is not parquet", words=("--data.train", "train.parquet"), spoil=replace("train.parquet", "PAR1"),
         starts="train.parquet: not an intact parquet file: "),
    # unreadable encodings
    Case(name="bytes that are not utf-8", words=CSV, spoil=replace("train.csv", HEADER.encode() + b"caf\xe9,x\n"),
         starts="train.csv:2: byte 0xe9 is not utf-8", holds="data.encoding"),
    Case(name="unknown encoding", words=("--data.encoding", "klingon"), starts="data.encoding (klingon): "),
    # splits
    Case(name="nothing to validate on", words=("--data.validation", "[]", "--data.validation_fraction", "0.001"),
         starts="data.validation_fraction (0.001): takes none of the 24 training rows"),
    Case(name="missing data set", words=("--data.dataset", "nobody/nothing", "--data.train", "[]", "--data.validation",
         "[]", "--data.test", "[]"), starts="data.dataset (nobody/nothing): cannot be loaded: "),
]  # fmt: skip

SETTING_CASES = [
    Case(name="path as a name", words=("--name", "../elsewhere"), starts="name (../elsewhere): ", holds="not a path"),
    Case(name="absolute path as a name", words=("--name", "/tmp/x"), starts="name (/tmp/x): ", holds="output_dir"),
    Case(name="name with a line end", words=("--name", "a\nb"), starts="name (a"),
    Case(name="unknown setting", words=("--train.epoch", "3"), starts="train.epoch (3): ", holds="did you mean train.epochs?"),
    Case(name="wrong type", words=("--train.epochs", "many"), starts="train.epochs (many): must be a whole number"),
    Case(name="number that is not finite", words=("--train.learning_rate", ".nan"), starts="train.learning_rate (nan): "),
    Case(name="bad combination", words=("--train.min_delta", "0.1"), starts="train.min_delta (0.1): "),
    Case(name="missing config file", words=("--config", "none.yaml"), starts="--config (none.yaml): "),
    Case(name="broken config file", words=("--config", "broken.yaml"), spoil=replace("broken.yaml", "train: [1\n"),
         starts="broken.yaml:2: not YAML: "),
    Case(name="smoothed numbers", problem="regression", words=(*NUMBERS, "--train.label_smoothing", "0.1"),
         starts="train.label_smoothing (0.1): is for single_label"),
    Case(name="metric that does not fit", words=("--evaluation.metric", "pearson"), starts="evaluation.metric (pearson): "),
    Case(name="fp16 without a GPU", words=("--train.precision", "fp16"), starts="train.precision (fp16): needs a GPU"),
    Case(name="unknown tracker", words=("--tracking.trackers", "abacus"), starts="tracking.trackers (abacus): "),
    Case(name="longer than the backbone takes", words=("--data.max_length", "67"), starts="data.max_length (67): "),
    Case(name="more blocks than there are", words=("--freeze.layers", "3"), starts="freeze.layers (3): "),
    Case(name="pattern without a match", words=("--freeze.patterns", "nothing"), starts="freeze.patterns (nothing): "),
    Case(name="everything frozen", words=("--freeze.patterns", "."), starts="freeze: everything would be frozen"),
    Case(name="unknown attention", words=("--model.attention", "none"), starts="model.", holds="attn"),
    Case(name="missing checkpoint", words=("--checkpoint.resume", "none.pt"),
         starts="checkpoint.resume (none.pt): no such file"),
    Case(name="file that is not a checkpoint", words=("--checkpoint.resume", "none.pt"), spoil=replace("none.pt", "x"),
         starts="none.pt: is not an intact checkpoint"),
]  # fmt: skip


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """Changes the tensors of the backbone's file."""

    def spoil(folder: Path) -> None:
        path = folder / "backbone" / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return spoil


def cut(name: str, keep: float) -> Callable[[Path], object]:
    """Cuts a file of the backbone to a part of its length."""

    def spoil(folder: Path) -> None:
        raw = (folder / "backbone" / name).read_bytes()
        (folder / "backbone" / name).write_bytes(raw[: int(len(raw) * keep)])

    return spoil


def configure(**changes: Any) -> Callable[[Path], object]:
    """Changes the backbone's config.json."""

    def spoil(folder: Path) -> None:
        path = folder / "backbone" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def shift_vocabulary(folder: Path) -> None:
    """Gives the tokenizer ids that the model's embeddings do not have."""
    path = folder / "backbone" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {word: number if number < 5 else number + 1000 for word, number in vocabulary.items()}
    path.write_text(json.dumps(content))


HERE = "model.backbone (backbone): "
BACKBONE_CASES = [
    Case(name="no such folder", spoil=remove("backbone"), starts=HERE, holds="no such folder"),
    Case(name="no such model on the Hub", words=("--model.backbone", "nobody/nothing"), starts="model.backbone (nobody/noth"),
    Case(name="impossible name of a model", words=("--model.backbone", "a/b/c"), starts="model.backbone (a/b/c): "),
    Case(name="long name of a model", words=("--model.backbone", "a" * 300), starts="model.backbone (aaa"),
    Case(name="backbone in a package", words=("--model.backbone", "package://no_such_pkg"), holds="pip install",
         starts="model.backbone (package://no_such_pkg): "),
    Case(name="file instead of a folder", words=("--model.backbone", "train.jsonl"), starts="model.backbone (train.jsonl): "),
    Case(name="empty folder", words=("--model.backbone", "classes"), spoil=classes(), starts="model.backbone (classes): "),
    *(Case(name=f"weights cut to {keep}", spoil=cut("model.safetensors", keep), starts=HERE) for keep in (0.0, 0.001, 0.5, 0.99)),
    Case(name="no weights", spoil=remove("backbone/model.safetensors"), starts=HERE, holds="model.safetensors"),
    Case(name="weights that are text", spoil=replace("backbone/model.safetensors", "not weights"), starts=HERE),
    Case(name="nan in the weights", starts=HERE, holds="LayerNorm.weight holds values that are not finite",
         spoil=weights(lambda tensors: tensors["embeddings.LayerNorm.weight"][3:4].fill_(float("nan")))),
    Case(name="infinity in the weights", starts=HERE, holds="holds values that are not finite",
         spoil=weights(lambda tensors: tensors["encoder.layer.1.output.dense.bias"].fill_(float("inf")))),
    Case(name="weights without a tensor", spoil=weights(lambda t: t.pop("encoder.layer.1.output.dense.weight")), starts=HERE,
         holds="lack 1 of 39 pretrained tensors, such as bert.encoder.layer.1.output.dense.weight"),
    Case(name="weights of another width", spoil=configure(hidden_size=16), starts=HERE, holds="are they of another model?"),
    Case(name="weights of fewer blocks", spoil=configure(num_hidden_layers=3), starts=HERE, holds="another model"),
    Case(name="weights of more blocks", spoil=configure(num_hidden_layers=1), starts=HERE, holds="another model"),
    Case(name="weights of another family", spoil=configure(model_type="gpt2"), starts=HERE, holds="another model"),
    Case(name="unknown family", spoil=configure(model_type="nonsense"), starts=HERE, holds="nonsense"),
    Case(name="config with a wrong type", spoil=configure(hidden_size="wide"), starts=HERE),
    Case(name="config with a wrong number", spoil=configure(num_attention_heads=3), starts=HERE),
    Case(name="config with no heads", spoil=configure(num_attention_heads=0), starts=HERE),
    Case(name="config with an unknown activation", spoil=configure(hidden_act="none"), starts=HERE),
    *(Case(name=f"config cut to {keep}", spoil=cut("config.json", keep), starts=HERE) for keep in (0.0, 0.5)),
    Case(name="config that is a list", spoil=replace("backbone/config.json", "[1]"), starts=HERE),
    Case(name="config that is not text", spoil=replace("backbone/config.json", b"\xff\xfe\x00"), starts=HERE),
    Case(name="no config", spoil=remove("backbone/config.json"), starts=HERE),
    *(Case(name=f"tokenizer cut to {keep}", spoil=cut("tokenizer.json", keep), starts=HERE, holds="tokenizer")
      for keep in (0.0, 0.5)),
    Case(name="empty tokenizer", spoil=replace("backbone/tokenizer.json", "{}"), starts=HERE, holds="tokenizer"),
    Case(name="no tokenizer.json", spoil=remove("backbone/tokenizer.json"), starts=HERE, holds="tokenizer"),
    Case(name="no tokenizer at all", spoil=remove("backbone/tokenizer.json", "backbone/tokenizer_config.json"),
         starts=HERE, holds="tokenizer"),
    Case(name="tokenizer of a larger model", spoil=shift_vocabulary, starts=HERE, holds="tokenizer"),
]  # fmt: skip
CASES = [*DATA_CASES, *SETTING_CASES, *BACKBONE_CASES]


def prepare(case: Case, folder: Path) -> None:
    """Spoils the folder. If there is a run in it, records this case's config as that of the run."""
    if case.problem != "single_label":
        write_data(folder, case.problem)
    recorded = folder / "outputs" / "run" / "config.yaml"
    case.spoil(folder)
    if recorded.exists():
        try:
            config = load_config(DEFAULTS, case.words)
        except InputError:
            return
        assert config is not None
        recorded.write_text(to_yaml(config), encoding="utf-8")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input_is_named_on_one_line_and_leaves_no_files(
    case: Case, fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(case, fresh)
    message = refusal(capsys, *case.words)
    assert message.startswith(case.starts), message
    assert case.holds in message
    left = digest(fresh / "outputs") if (fresh / "outputs").exists() else {}
    assert left == {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input_changes_nothing_in_an_existing_run(
    case: Case, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(case, work)
    before = digest(work / "outputs")
    message = refusal(capsys, *case.words)
    assert message.startswith(case.starts), message
    assert len(before) > 5
    assert digest(work / "outputs") == before


def test_the_names_of_the_cases_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 100


def test_a_folder_that_is_not_spoiled_resumes_its_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    shown = capsys.readouterr()
    assert "resuming after update 6" in shown.out
    assert "error" not in shown.err
    assert json.loads((work / "outputs" / "run" / "results.json").read_text())["status"] == "finished"


# --- runs that block a new one --------------------------------------------------------------------------------------


def test_a_run_made_with_another_config_names_the_keys_that_differ(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(work / "outputs")
    message = refusal(capsys, "--train.weight_decay", "0.5", "--seed", "3", "--train.micro_batch_size", "2")
    assert message.startswith("name (run): outputs/run holds a run made with another config: ")
    assert "seed (was 0, now 3), train.weight_decay (was 0.01, now 0.5)" in message
    assert "micro_batch_size" not in message
    assert "set checkpoint.resume to never" in message
    assert digest(work / "outputs") == before


def test_a_checkpoint_made_with_another_config_names_the_keys_that_differ(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(work / "outputs")
    path = next((work / "outputs" / "run" / "checkpoints").glob("*.pt"))
    message = refusal(capsys, "--name", "other", "--seed", "3", "--checkpoint.resume", str(path))
    assert message.startswith(f"checkpoint.resume ({path}): was made with another config: ")
    assert "seed (was 0, now 3)" in message
    assert digest(work / "outputs") == before


def test_data_that_changed_since_the_checkpoint_is_named(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append("train.jsonl", row(label="food"))(work)
    before = digest(work / "outputs")
    message = refusal(capsys)
    assert message.startswith("checkpoint.resume (outputs/run/checkpoints/ckpt_")
    assert "(train differs)" in message
    assert digest(work / "outputs") == before


def test_a_folder_of_other_files_is_not_written_to(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "outputs" / "run" / "config.yaml").unlink()
    before = digest(work / "outputs")
    message = refusal(capsys)
    assert message.startswith("name (run): outputs/run holds files that do not belong to a run")
    assert digest(work / "outputs") == before


@pytest.mark.parametrize("content", ["train: [1\n", b"\xff", "- list\n"])
def test_a_run_whose_config_cannot_be_read_is_not_written_to(
    work: Path, capsys: pytest.CaptureFixture[str], content: str | bytes
) -> None:
    replace("outputs/run/config.yaml", content)(work)
    before = digest(work / "outputs")
    assert "outputs/run" in refusal(capsys)
    assert digest(work / "outputs") == before


def test_an_output_folder_that_is_a_file_is_named(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fresh / "outputs").write_text("mine")
    assert refusal(capsys).startswith("output_dir (outputs): outputs/run cannot be created or written: ")
    assert (fresh / "outputs").read_text() == "mine"


@pytest.mark.parametrize("spoil", [remove("train.jsonl"), cut("model.safetensors", 0.5)], ids=["data", "backbone"])
def test_starting_again_with_wrong_input_does_not_move_the_earlier_run(
    work: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object]
) -> None:
    spoil(work)
    before = digest(work / "outputs")
    refusal(capsys, "--checkpoint.resume", "never")
    assert digest(work / "outputs") == before


@pytest.fixture(params=["here", "elsewhere"])
def holder(work: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Holder]:
    """Another process, on this machine or on another one, that uses outputs/run."""
    for name, seconds in FAST.items():
        monkeypatch.setattr(locks, name, seconds)
    with held_lock(work / "outputs" / "run" / ".lock", request.param) as process:
        yield process


@pytest.mark.processes
def test_a_second_run_in_a_folder_names_the_first(
    work: Path, holder: Holder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(work / "outputs")
    for words in ([], ["--checkpoint.resume", "never"]):
        message = refusal(capsys, *words)
        assert message.startswith("outputs/run: another run uses this folder (")
        assert f"{socket.gethostname()} process {holder.id}" in message
        assert digest(work / "outputs") == before


@pytest.mark.processes
def test_a_killed_run_does_not_block_the_next(work: Path, holder: Holder) -> None:
    holder.kill()
    assert (work / "outputs" / "run" / ".lock").exists()
    assert run() == 0
    assert not (work / "outputs" / "run" / ".lock").exists()


def test_a_run_that_has_lost_its_folder_saves_nothing_more(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a suspended machine wakes up and another one has continued the run."""
    check, calls = Lock.check, []

    def lose(lock: Lock) -> None:
        calls.append(1)
        lock.is_lost = len(calls) > 1  # the first is before training
        check(lock)

    monkeypatch.setattr(Lock, "check", lose)
    assert refusal(capsys).startswith("outputs/run: another run took this folder over")
    assert len(calls) == 2
    assert not (fresh / "outputs" / "run" / "checkpoints").exists()


# --- full disks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`make_disk("500k")`: a new disk of that size. Skips the test if this process may not mount one."""
    mounted: list[Path] = []

    def make(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this process may not mount a disk")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, *, leave: int = 0) -> None:
    """Fills the disk up to `leave` free bytes."""
    with (disk / "filler").open("wb", buffering=0) as file:
        remaining = shutil.disk_usage(disk).free - leave
        while remaining > 0:
            try:
                remaining -= file.write(b"x" * min(remaining, 4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return


@pytest.mark.parametrize("leave", [0, 4096, 40960, 200_000])
def test_a_full_disk_stops_a_run_before_it_begins(
    fresh: Path, make_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str], leave: int
) -> None:
    disk = make_disk("1m")
    fill(disk, leave=leave)
    message = refusal(capsys, output_dir=str(disk))
    assert str(disk) in message
    assert "disk is full" in message or os.strerror(errno.ENOSPC) in message
    assert set(digest(disk)) == {"filler"}


@pytest.mark.parametrize("leave", [0, 4096, 40960, 200_000])
def test_a_full_disk_changes_nothing_in_an_existing_run(
    work: Path, make_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str], leave: int
) -> None:
    disk = make_disk("2m")
    shutil.copytree(work / "outputs" / "run", disk / "run")
    fill(disk, leave=leave)
    before = digest(disk)
    message = refusal(capsys, output_dir=str(disk))
    assert str(disk) in message
    assert digest(disk) == before


def test_a_disk_that_fills_up_while_training_keeps_the_last_checkpoint_and_the_run_resumes(
    fresh: Path, make_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = make_disk("500k")  # room for the preflight check and one checkpoint
    message = refusal(capsys, output_dir=str(disk))
    assert message.startswith(f"{disk}/run/checkpoints: the disk is full: ")
    assert "resumes from its last checkpoint" in message
    path, skipped = checkpoint.find_newest_intact(disk / "run" / "checkpoints")
    assert path is not None
    assert skipped == []
    assert not [name for name in digest(disk) if name.endswith(".writing")]
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    assert run(output_dir=str(disk)) == 0
    assert "resuming after update 3" in capsys.readouterr().out


@pytest.mark.parametrize("leave", [0, 4096])
@pytest.mark.parametrize("trackers", [[], ["tensorboard"]])
def test_a_disk_that_is_full_when_numbers_are_logged_is_named(
    fresh: Path,
    make_disk: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    leave: int,
    trackers: list[str],
) -> None:
    disk, original = make_disk("2m"), train_module.train

    def train(*arguments: Any) -> Any:
        fill(disk, leave=leave)
        return original(*arguments)

    monkeypatch.setattr(train_module, "train", train)
    message = refusal(capsys, **{"output_dir": str(disk), "tracking.trackers": trackers})
    assert message.startswith(f"{disk}/run")
    assert "full" in message


# Room for nothing, for the config, for the weights, for the tokenizer's config, for the tokenizer
@pytest.mark.parametrize("leave", [0, 8192, 98304, 102_400, 106_496])
def test_a_disk_that_is_full_at_the_export_is_named_and_no_half_model_is_left(
    fresh: Path,
    make_disk: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    leave: int,
) -> None:
    disk, original = make_disk("4m"), model_folder.export_model

    def export_to_full_disk(*arguments: Any) -> Path:
        fill(disk, leave=leave)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model_folder, "export_model", export_to_full_disk)
        message = refusal(capsys, output_dir=str(disk))
    assert message.startswith(f"{disk}/run")
    assert "disk is full" in message
    assert not [name for name in digest(disk) if "model" in name]
    (disk / "filler").unlink()
    assert run(output_dir=str(disk)) == 0
    assert (disk / "run" / "model" / "model.safetensors").exists()


def test_a_file_that_may_not_grow_is_a_full_disk_too(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest(work / "outputs")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        message = refusal(capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith("outputs/run: the disk is full: ")
    assert digest(work / "outputs") == before


def test_a_run_goes_on_if_the_cache_is_full_and_names_the_variable_that_moves_it(
    work: Path, make_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make_disk("64k")
    fill(disk)
    monkeypatch.setenv("HF_FINETUNE_CACHE", str(disk / "cache"))
    capsys.readouterr()
    assert run() == 0
    shown = capsys.readouterr().out
    assert f"warning: the encoded text cannot be written to {disk / 'cache'}" in shown
    assert os.strerror(errno.ENOSPC) in shown
    assert "HF_FINETUNE_CACHE" in shown


# --- numbers that go wrong while training ---------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_update_and_its_examples(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights(lambda tensors: tensors["embeddings.LayerNorm.weight"].fill_(1e38))(fresh)
    message = refusal(capsys)
    assert message.startswith("update 1: the loss (nan) is not finite; the weights were not changed")
    assert ": train.jsonl:" in message
    assert "(rows " in message
    assert message.endswith("nothing has been saved yet")
    assert not list((fresh / "outputs").rglob("*.pt"))


# --- how errors are shown -------------------------------------------------------------------------------------------


def test_debug_shows_where_an_error_comes_from(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remove("train.jsonl")(fresh)
    assert run("--debug") == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.splitlines()[-1].startswith("error: data.train (train.jsonl): ")


def test_only_the_first_process_of_a_machine_prints_the_error(
    fresh: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run("--train.epochs", "0") == 2
    assert capsys.readouterr().err == ""


def run_script(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs `python recipes/classify.py` in the current folder, as a user does."""
    settings = [f"--{key}={json.dumps(value) if isinstance(value, list) else value}" for key, value in DEFAULTS.items()]
    command = [sys.executable, str(recipe_path("classify")), *settings, *words]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_script_ends_with_2_and_one_line_if_a_setting_is_wrong(work: Path) -> None:
    ended = run_script("--train.epochs", "0")
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "error: train.epochs (0): must be at least 1\n")


@pytest.mark.processes
def test_the_script_ends_with_2_and_one_line_if_another_run_uses_the_folder(work: Path) -> None:
    config = load_config(DEFAULTS, ["--freeze.layers", "0"])
    assert config is not None
    before = digest(work / "outputs")
    with open_run(config):
        held = digest(work / "outputs")
        ended = run_script("--freeze.layers", "0")
        assert digest(work / "outputs") == held
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("error: outputs/run: another run uses this folder (")
    assert f"process {os.getpid()}" in ended.stderr
    assert digest(work / "outputs") == before
