"""Fixtures of all tests. Nothing here needs a network or any file outside the repository."""

import compileall
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.configs import make_small_config
from support.script_server import ScriptServer
from support.shell import Shell

import hf_finetune
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.folder import open_run
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.train import finetune

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Processes that tests start have one thread, as this one below, or threads that sleep while they wait: beside another worker,
# those that are awake made the demo five times as slow
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
# A shell starts what it runs in the background with some of these ignored, nohup with another; so would be all processes of tests
DEFAULTS = {"SIGINT": signal.default_int_handler, "SIGQUIT": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
for name, handler in DEFAULTS.items():
    if (number := getattr(signal, name, None)) is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
torch.set_num_threads(1)  # two workers on two cores; and one thread is the same everywhere
os.fsync = os.fstat  # no test cuts the power, and the disk takes a sixth of the time of a small run


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what `-m` does not name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks whole folders and files by their place; a file that is slow, or a test, carries its mark itself."""
    for item in items:
        if item.path.parent.name == "recipes":
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.processes)
        if item.path.parent.name == "docs" or item.path.stem.startswith("test_docs"):
            item.add_marker(pytest.mark.docs)


def pytest_configure() -> None:
    """Compiles the package and the tests once, also where PYTHONDONTWRITEBYTECODE is set: compiling them again takes seconds in
    each process that imports them."""
    compileall.compile_dir(Path(hf_finetune.__file__).parent, quiet=2)
    sys.dont_write_bytecode = False


def pytest_collection_finish() -> None:
    """Modules that tests write are compiled each time: they change within the second that a compiled file remembers."""
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("HF_FINETUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`backbones("bert", layers=2)`: the folder of a small random backbone, made once a session."""
    made: dict[str, Path] = {}

    def make(family: str = "bert", **options: Any) -> Path:
        key = f"{family}-{sorted(options.items())}"
        if key not in made:
            made[key] = tiny.make_backbone(tmp_path_factory.mktemp(family), family, **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def script_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptServer]:
    """A process that runs scripts in forks of itself, so that they need not import torch and others first."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path_factory.mktemp("datasets"))}
    server = ScriptServer({**os.environ, **offline, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"})
    yield server
    server.close()


@pytest.fixture(scope="module")
def shell(
    script_server: ScriptServer, tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]
) -> Shell:
    """A folder with a finished run, `plain`."""
    made = Shell(script_server, tmp_path_factory.mktemp("shell"), backbones("bert"))
    assert made.train("", "plain")[0] == 0
    return made


@pytest.fixture
def make_config(tmp_path: Path, backbones: Callable[..., Path]) -> Callable[..., RunConfig]:
    """`make_config(**{"train.epochs": 1})`: the config of a small run under tmp_path (support.configs.make_small_config)."""

    def make(problem: str = "single_label", pair: bool = False, **settings: Any) -> RunConfig:
        backbone = settings.get("model.backbone") or backbones("bert")
        return make_small_config(tmp_path, backbone, problem, pair, **settings)

    return make


@pytest.fixture(scope="module")
def make_finished(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Callable[..., RunConfig]:
    """`make_finished(**settings)`: the config of a finished run with these settings of make_config, which has a cache of its own.
    Tests of a file that ask for the same settings get the same run, and only read it."""
    folder = tmp_path_factory.mktemp("finished")
    made: dict[str, RunConfig] = {}

    def make(**settings: Any) -> RunConfig:
        key = json.dumps(settings, sort_keys=True)
        if key not in made:
            own = {"name": f"finished-{len(made)}", "cache.dir": str(folder / f"cache-{len(made)}")}
            made[key] = make_small_config(folder, backbones("bert"), **settings, **own)
            finetune(made[key])
        return made[key]

    return make


@pytest.fixture
def make_run(make_config: Callable[..., RunConfig]) -> Callable[..., TrainingRun]:
    """`make_run("multi_label", **settings)`: a small run that is ready for update 0."""

    def make(*arguments: Any, **settings: Any) -> TrainingRun:
        config = make_config(*arguments, **settings)
        with open_run(config) as runtime:
            return set_up(config, runtime, Clock())

    return make
