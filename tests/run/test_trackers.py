"""MLflow and trackio, each read back with its own reader; skipped where they are not installed."""

import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.configs import make_small_config
from support.runs import read_metrics

from hf_finetune.config.changes import list_choices
from hf_finetune.config.sections import RunConfig
from hf_finetune.run import tracking
from hf_finetune.run.parts import Parts
from hf_finetune.run.trackers import rename_numbers
from hf_finetune.system.processes import Runtime
from hf_finetune.train import finetune
from hf_finetune.training.loop import Update

pytestmark = pytest.mark.slow  # their imports alone take seconds


class KilledError(Exception):
    """Stands for the death of the process."""


def list_logged(run_dir: Path) -> set[tuple[str, int, float]]:
    """Name, update and value of each number of metrics.jsonl that trackers get."""
    return {
        (name, row["update"], value)
        for row in read_metrics(run_dir)
        for name, value in tracking.drop_twins(row).items()
        if name not in ("update", "epoch", "time")
    }


def kill_after(patch: pytest.MonkeyPatch, number: int) -> None:
    """Ends the run in the place of logging an update."""
    real = tracking.make_training_row

    def make_training_row(update: Update, runtime: Runtime) -> dict[str, float]:
        if update.number > number:
            raise KilledError
        return real(update, runtime)

    patch.setattr(tracking, "make_training_row", make_training_row)


def finetune_twice(config: RunConfig) -> None:
    """Fine-tunes; the run is killed after its first evaluation, and resumed."""
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 10)
        with pytest.raises(KilledError):
            finetune(config)
    finetune(config)


@pytest.fixture
def make_tracked(
    backbones: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunConfig]:
    """Makes the config of a run with a tracker, in whose folder the tracker writes."""
    monkeypatch.chdir(tmp_path)

    def make(tracker: str) -> RunConfig:
        settings = {"tracking.trackers": [tracker, "tensorboard"], "tracking.log_every": 4, "name": f"by-{tracker}"}
        return make_small_config(tmp_path, backbones("bert"), **settings)

    return make


# --- MLflow ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow with files of its own in a folder."""
    module = pytest.importorskip("mlflow")
    for name in ("RUN_ID", "EXPERIMENT_NAME", "TAGS", "NESTED_RUN"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions prefer a database
    module.set_tracking_uri((tmp_path / "mlruns").as_uri())
    yield module
    while module.active_run() is not None:
        module.end_run()
    module.set_tracking_uri(None)


def test_mlflow_gets_the_settings_and_the_numbers_of_a_run_that_was_resumed(
    make_tracked: Callable[..., RunConfig], mlflow: Any
) -> None:
    config = make_tracked("mlflow")
    finetune_twice(config)
    longer = replace(
        config, train=replace(config.train, epochs=config.train.epochs + 1)
    )  # other settings of the same run
    finetune(longer)

    client = mlflow.MlflowClient()
    (experiment,) = (one for one in client.search_experiments() if one.name == "hf-finetune")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (config.run_dir / "mlflow-id").read_text(encoding="utf-8")
    assert (run.info.run_name, run.info.status) == ("by-mlflow", "FINISHED")
    choices = {key: str(tracking.make_plain(value)) for key, value in list_choices(config).items()}
    assert run.data.params == {
        key: value for key, value in choices.items() if len(value) <= 500
    }  # more it does not take
    found = {
        (name, metric.step, metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    }
    logged = {
        (new, update, value)
        for name, update, value in list_logged(config.run_dir)
        for new in rename_numbers({name: value}, "mlflow")
    }
    assert found >= logged
    assert {name for name, _, _ in found} >= {"train/gradient_norm", "train/gradient_norm.block_1", "test/accuracy"}


def test_mlflow_takes_the_names_of_all_numbers(mlflow: Any) -> None:
    numbers = {"test/f1": 0.5, "test/f1/größe (cm)": 0.25, "test/ndcg@10": 0.75}
    renamed = rename_numbers(numbers, "mlflow")
    assert list(renamed) == ["test/f1", "test/f1.größe _cm_", "test/ndcg_10"]
    with mlflow.start_run() as run:
        mlflow.log_metrics(renamed, step=1)
    assert mlflow.MlflowClient().get_run(run.info.run_id).data.metrics == renamed
    assert rename_numbers(numbers, "wandb") == numbers


def test_mlflow_that_breaks_while_a_run_trains_is_one_warning(
    make_tracked: Callable[..., RunConfig], mlflow: Any, tmp_path: Path, capfd: Any
) -> None:
    config = make_tracked("mlflow")

    def break_store(update: Update, _: Any) -> None:
        if update.number == 6:
            shutil.rmtree(tmp_path / "mlruns")
            (tmp_path / "mlruns").write_text("a file in its place", encoding="utf-8")

    finetune(config, Parts(on_update=break_store))
    output = capfd.readouterr()
    assert (output.out + output.err).count("warning: the tracker mlflow failed") == 1
    assert (config.run_dir / "results.json").exists()
    assert len(read_metrics(config.run_dir)) == 5 + 3  # updates 1, 4, 8, 12, 16; two evaluations and the test


def test_an_mlflow_server_that_is_away_is_one_warning(
    make_tracked: Callable[..., RunConfig], mlflow: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        mlflow.set_tracking_uri(f"http://127.0.0.1:{closed.getsockname()[1]}")
        config = make_tracked("mlflow")
        finetune(config)
    output = capfd.readouterr()
    assert (output.out + output.err).count("warning: the tracker mlflow failed") == 1
    assert (config.run_dir / "results.json").exists()


# --- trackio --------------------------------------------------------------------------------------------------------


def test_trackio_gets_the_settings_and_the_numbers_of_a_run_that_was_resumed(
    make_tracked: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    config = make_tracked("trackio")
    finetune_twice(config)

    (run,) = trackio.Api().runs("hf-finetune")
    assert run.name == "by-trackio"
    choices = {key: tracking.make_plain(value) for key, value in list_choices(config).items()}
    own = {"allow_val_change"}  # an argument of Accelerate's that trackio takes for a setting
    assert {key: value for key, value in run.config.items() if not key.startswith("_") and key not in own} == choices
    found = {
        (name, row["step"], value)
        for row in SQLiteStorage.get_logs("hf-finetune", run.name)
        for name, value in row.items()
        if name not in ("step", "timestamp")
    }
    assert found >= list_logged(config.run_dir)
    assert {name for name, _, _ in found} >= {
        "train/loss",
        "train/learning_rate",
        "validation/accuracy",
        "test/accuracy",
    }
    assert any((tmp_path / "trackio").iterdir())
