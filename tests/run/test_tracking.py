"""metrics.jsonl, TensorBoard and W&B read back with their own readers, also after a run was interrupted and resumed."""

import html
import io
import json
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker
from PIL import Image
from support.configs import make_small_config
from support.runs import read_metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_finetune.config.changes import list_choices
from hf_finetune.config.sections import RunConfig
from hf_finetune.run import trackers, tracking
from hf_finetune.run.figures import draw_confusion
from hf_finetune.run.scored import read_scored
from hf_finetune.system.errors import InputError
from hf_finetune.system.processes import Runtime
from hf_finetune.train import finetune
from hf_finetune.training.loop import Update

GROUPS = ("backbone", "backbone_no_decay", "head", "head_no_decay")
PARTS = ("embeddings", "block_0", "block_1", "pooler", "head")
TRAINING = {
    "train/loss", "train/gradient_norm", "train/update_ratio", "train/examples_per_second", "train/tokens_per_second",
    "train/padding_share", "train/peak_memory_mb", *(f"train/learning_rate/{group}" for group in GROUPS),
    *(f"train/{name}/{part}" for name in ("gradient_norm", "update_ratio") for part in PARTS),
}  # fmt: skip
# The charts of TensorBoard in their order there, and the folders whose curves they have
CHARTS = {
    "loss": {"", "validation"},
    "metric/accuracy": {"validation"},
    "metrics/f1_macro": {"validation"},
    **{f"optimizer/{name}": {""} for name in ("gradient_norm", "learning_rate", "update_ratio")},
    **{f"speed/{name}": {""} for name in ("padding_share", "peak_memory_mb", "tokens_per_second")},
    **{f"weights/{name}/{part}": {""} for name in ("gradient_norm", "update_ratio") for part in PARTS},
}
MEASURED = ("loss", "accuracy", "f1_macro")
SETTINGS = {"tracking.trackers": ["tensorboard"], "tracking.log_every": 3}
SPEEDS = {"time", "train/examples_per_second", "train/tokens_per_second", "train/peak_memory_mb"}  # differ between runs


class KilledError(Exception):
    """Stands for the death of the process."""


def read_scalars(run_dir: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Every scalar by tag and subfolder as TensorBoard shows it, without those that a restart purged."""
    found = {}
    for folder in ("", "validation") if (run_dir / "validation").exists() else ("",):
        accumulator = EventAccumulator(str(run_dir / folder), size_guidance={"scalars": 0}).Reload()
        for tag in accumulator.Tags()["scalars"]:
            found[tag, folder] = [(event.step, event.value) for event in accumulator.Scalars(tag)]
    return found


def list_values(rows: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
    """(name, update, value) of all rows, without the speeds."""
    return [
        (name, row["update"], value)
        for row in rows
        for name, value in row.items()
        if name not in {"update", "epoch", *SPEEDS}
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Iterator[tuple[RunConfig, Path]]:
    """A finished run with TensorBoard, every third update logged."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))
        config = make_small_config(folder, backbones("bert"), **SETTINGS)
        yield config, finetune(config).run_dir


# --- metrics.jsonl and TensorBoard ----------------------------------------------------------------------------------


def test_the_row_of_the_test_split_is_there_once_wherever_the_end_of_a_run_is_killed(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise KilledError

    config = make_config(**{"train.max_updates": 2})
    # before and after results.json, with which the run is finished
    for place in ("hf_finetune.train.finish_run", "hf_finetune.run.tracking.Tracking.finish"):
        with monkeypatch.context() as patch:
            patch.setattr(place, die)
            with pytest.raises(KilledError):
                finetune(config)
    finetune(config)
    assert [row["update"] for row in read_metrics(config.run_dir) if "test/loss" in row] == [2]


def test_metrics_jsonl_has_every_number_at_every_third_update(run: Any) -> None:
    rows = read_metrics(run[1])
    training = [row for row in rows if "train/loss" in row]
    assert [row["update"] for row in training] == [1, 3, 6, 9, 12, 15, 16]
    assert [row["epoch"] for row in training] == [1, 1, 1, 2, 2, 2, 2]
    assert all(set(row) == {"update", "epoch", "time"} | TRAINING for row in training)
    measured = {
        split: [
            row for row in rows if set(row) == {"update", "epoch", "time", *(f"{split}/{name}" for name in MEASURED)}
        ]
        for split in ("validation", "test")
    }
    assert [row["update"] for row in measured["validation"]] == [8, 16]
    assert [row["update"] for row in measured["test"]] == [16]
    assert len(rows) == len(training) + 3
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)


def test_the_test_row_has_the_numbers_of_results_json(run: Any) -> None:
    results = json.loads((run[1] / "results.json").read_text(encoding="utf-8"))
    (row,) = [row for row in read_metrics(run[1]) if "test/loss" in row]
    assert results["test"] == {name: row[f"test/{name}"] for name in MEASURED}


def test_tensorboard_has_training_and_validation_in_one_chart_and_no_curve_twice(run: Any) -> None:
    scalars = read_scalars(run[1])
    folders: dict[str, set[str]] = {}
    for tag, folder in scalars:
        folders.setdefault(tag, set()).add(folder)
    assert folders == CHARTS  # and no curve of one point, such as those of the test split
    assert all(len(points) > 1 for points in scalars.values())
    rows = read_metrics(run[1])
    names = {
        ("loss", ""): "train/loss",
        ("loss", "validation"): "validation/loss",
        ("metric/accuracy", "validation"): "validation/accuracy",
        ("optimizer/learning_rate", ""): "train/learning_rate/head",
        ("optimizer/update_ratio", ""): "train/update_ratio",
        ("weights/update_ratio/head", ""): "train/update_ratio/head",
        ("weights/gradient_norm/block_1", ""): "train/gradient_norm/block_1",
        ("speed/tokens_per_second", ""): "train/tokens_per_second",
    }
    for place, name in names.items():
        assert scalars[place] == [(row["update"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]


def test_the_hparams_tab_has_what_was_chosen_and_the_final_metric(run: Any) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    config, run_dir = run
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    accumulator = EventAccumulator(str(run_dir)).Reload()
    content = accumulator.PluginTagToContent("hparams")
    assert set(content) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}

    started = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
    shown = {name: getattr(value, value.WhichOneof("kind")) for name, value in started.hparams.items()}
    splits = ("validation", "test")
    assert {name: shown.pop(f"{name}/accuracy") for name in splits} == {
        name: results[name]["accuracy"] for name in splits
    }
    assert shown == {key: tracking.make_plain(value) for key, value in list_choices(config).items()}
    assert shown["train.learning_rate"] == 2e-3
    assert "train.schedule" not in shown
    (text,) = accumulator.Tensors("results/text_summary")
    table = html.unescape(text.tensor_proto.string_val[0].decode())
    for split in splits:
        for name in MEASURED:
            assert f"| {split}/{name} | {results[split][name]:.4f} |" in table


def read_images(run_dir: Path) -> dict[str, Any]:
    """Every image by its tag, decoded. Fails if there are several of a tag."""
    accumulator = EventAccumulator(str(run_dir), size_guidance={"images": 0}).Reload()
    images = {}
    for tag in accumulator.Tags()["images"]:
        (event,) = accumulator.Images(tag)
        assert event.step == 16
        images[tag] = Image.open(io.BytesIO(event.encoded_image_string))
        assert images[tag].size == (event.width, event.height)
    return images


def test_the_images_tab_has_charts_of_both_splits(run: Any) -> None:
    images = read_images(run[1])
    kinds = ("confusion", "f1", "length", "precision_recall", "reliability")
    assert sorted(images) == [f"results/{split}/{kind}" for split in ("test", "validation") for kind in kinds]
    for split in ("test", "validation"):
        scores = read_scored(run[1] / "scored" / f"{split}.jsonl").scores
        drawn = draw_confusion(f"{split}, 24 examples", scores, {})
        assert drawn is not None
        assert images[f"results/{split}/confusion"].tobytes() == drawn.image.tobytes()


def test_the_text_tab_has_the_worst_mistakes_with_file_and_line(run: Any) -> None:
    config, run_dir = run
    accumulator = EventAccumulator(str(run_dir)).Reload()
    for split, (path,) in (("validation", config.data.validation), ("test", config.data.test)):
        (text,) = accumulator.Tensors(f"worst mistakes/{split}/text_summary")
        shown = html.unescape(text.tensor_proto.string_val[0].decode())
        scored = read_scored(run_dir / "scored" / f"{split}.jsonl")
        wrong = [
            place for place in range(len(scored)) if scored.scores.labels[place] != scored.scores.predictions[place]
        ]
        if not wrong:
            assert shown.startswith("None of the 24 examples")
            continue
        worst = max(wrong, key=lambda place: scored.scores.losses[place])
        row = json.loads(Path(path).read_text(encoding="utf-8").splitlines()[scored.lines[worst] - 1])
        first = shown.split("\n\n")[1]
        assert first.startswith(f"1. right **{row['label']}**, predicted **{scored.scores.predictions[worst]}**")
        assert first.endswith(f"{path}:{scored.lines[worst]}")
        assert row["text"] in shown.split("\n\n")[2]


def test_the_events_of_a_run_lie_in_its_folder_so_that_its_name_is_the_runs(run: Any) -> None:
    places = {path.parent.relative_to(run[1]).as_posix() for path in run[1].rglob("*tfevents*")}
    assert places == {".", "validation"}


def test_metrics_jsonl_is_written_without_trackers_too(backbones: Callable[..., Path], tmp_path: Path) -> None:
    settings = {"tracking.trackers": [], "train.max_updates": 2, "checkpoint.every": 2}
    run_dir = finetune(make_small_config(tmp_path, backbones("bert"), **SETTINGS | settings)).run_dir
    assert not list(run_dir.rglob("*tfevents*"))
    assert [row["update"] for row in read_metrics(run_dir)] == [1, 2, 2, 2]


# --- a run that was interrupted and started again -------------------------------------------------------------------


def die_at_update(patch: pytest.MonkeyPatch, number: int) -> None:
    real = tracking.make_training_row

    def make_training_row(update: Update, runtime: Runtime) -> dict[str, float]:
        if update.number == number:
            raise KilledError
        return real(update, runtime)

    patch.setattr(tracking, "make_training_row", make_training_row)


def die_in_export(patch: pytest.MonkeyPatch) -> None:
    def finish_run(*_: object) -> None:
        raise KilledError

    patch.setattr("hf_finetune.train.finish_run", finish_run)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Path:
    """The folder of an uninterrupted run, with every update logged."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))
        return finetune(make_small_config(folder, backbones("bert"), **SETTINGS | {"tracking.log_every": 1})).run_dir


DEATHS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "before the first checkpoint": lambda patch: die_at_update(patch, 5),
    "between two checkpoints": lambda patch: die_at_update(patch, 12),
    "just after a checkpoint": lambda patch: die_at_update(patch, 9),
    "in the export": die_in_export,
}


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS)
def test_a_resumed_run_has_every_number_once_and_equal_to_those_of_an_uninterrupted_run(
    backbones: Callable[..., Path], tmp_path: Path, uninterrupted: Path, death: str
) -> None:
    config = make_small_config(tmp_path, backbones("bert"), **SETTINGS | {"tracking.log_every": 1})
    with pytest.MonkeyPatch.context() as patch:
        DEATHS[death](patch)
        with pytest.raises(KilledError):
            finetune(config)
    before = read_scalars(config.run_dir)
    assert len(before["loss", ""]) >= 4  # there are curves that could be doubled
    time.sleep(1 - time.time() % 1)  # TensorBoard orders files by the second in their names
    finetune(config)

    assert sorted(list_values(read_metrics(config.run_dir))) == sorted(list_values(read_metrics(uninterrupted)))
    assert {name: len(points) for name, points in read_scalars(config.run_dir).items()} == {
        name: len(points) for name, points in read_scalars(uninterrupted).items()
    }
    assert {tag: image.tobytes() for tag, image in read_images(config.run_dir).items()} == {
        tag: image.tobytes() for tag, image in read_images(uninterrupted).items()
    }
    twice = {
        tag: counts
        for tag, points in read_scalars(config.run_dir).items()
        if (counts := {step: n for step, n in Counter(step for step, _ in points).items() if n > 1})
    }
    assert twice == {}
    scalars, expected = read_scalars(config.run_dir), read_scalars(uninterrupted)
    assert all(scalars[tag] == expected[tag] for tag in expected if not tag[0].startswith("speed/"))


def test_rows_of_lost_updates_and_a_row_that_was_cut_off_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"update": number, "epoch": 1, "train/loss": 0.5}) for number in (1, 2, 3, 4)]
    path.write_text("\n".join([*lines, '{"update": 3, "ep']), encoding="utf-8")
    tracking.drop_rows_after(path, 3)
    assert path.read_text(encoding="utf-8").splitlines() == lines[:3]
    assert path.read_text(encoding="utf-8").endswith("\n")
    tracking.drop_rows_after(path, 0)
    assert path.read_bytes() == b""
    path.write_text("\n".join(["[1]", '{"note": "by hand"}', lines[3]]), encoding="utf-8")
    tracking.drop_rows_after(path, 3)
    assert path.read_text(encoding="utf-8").splitlines() == ["[1]", '{"note": "by hand"}']
    tracking.drop_rows_after(tmp_path / "none.jsonl", 0)
    assert not (tmp_path / "none.jsonl").exists()


# --- W&B ------------------------------------------------------------------------------------------------------------


def read_wandb(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a 7-byte header, then LevelDB's log format in blocks of 32 KiB
    (https://github.com/google/leveldb/blob/main/doc/log_format.md), a protocol buffer in each."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a complete record, or its last part
            yield Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_wandb_gets_the_config_and_the_numbers_of_metrics_jsonl(
    backbones: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "DIR": "", "RUN_ID": ""}.items():
        monkeypatch.setenv(f"WANDB_{name}", value) if value else monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    settings = {"tracking.trackers": ["wandb", "tensorboard"], "name": "by-wandb", "tracking.log_every": 2}
    config = make_small_config(tmp_path, backbones("bert"), **SETTINGS | settings)
    try:
        finetune(config)
    finally:
        wandb.teardown()

    (path,) = (config.run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    records = list(read_wandb(path))
    kinds = Counter(record.WhichOneof("record_type") for record in records)
    assert kinds["exit"] == 1
    (begun,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (begun.display_name, begun.project) == ("by-wandb", "hf-finetune")
    assert begun.run_id == (config.run_dir / "wandb-id").read_text(encoding="utf-8")

    settings_of_run: dict[str, Any] = {}
    for record in records:
        settings_of_run |= {item.key: json.loads(item.value_json) for item in record.config.update}
    expected = {key: tracking.make_plain(value) for key, value in list_choices(config).items()}
    assert {key: value for key, value in settings_of_run.items() if key != "_wandb"} == expected

    history = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    found = {
        (name, step.step.num): json.loads(item.value_json)
        for step in history
        for item in step.item
        if not (name := "/".join(item.nested_key) or item.key).startswith("_")
    }
    rows = read_metrics(config.run_dir)
    logged = {
        (name, row["update"]): value
        for row in rows
        for name, value in tracking.drop_twins(row).items()
        if name not in ("update", "epoch", "time")
    }
    assert found == logged
    assert {name for name, _ in found} >= {"train/loss", "train/learning_rate", "validation/accuracy", "test/accuracy"}
    assert list(config.run_dir.glob("*tfevents*"))


# --- a tracker that fails --------------------------------------------------------------------------------------------


class Failing(GeneralTracker):
    """A tracker of one's own that fails in one of its calls."""

    name = "failing"
    requires_logging_directory = False
    fails_in = ""

    def __init__(self, project: str) -> None:
        super().__init__()
        self.num_logged = 0

    def check(self, call: str) -> None:
        if self.fails_in == call:
            raise RuntimeError("the server is gone")

    def start(self) -> None:
        self.check("start")

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.check("store")

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.num_logged += 1
        if self.num_logged == 3:
            self.check("log")

    def finish(self) -> None:
        self.check("finish")


@pytest.mark.parametrize("call", ["start", "store", "log", "finish"])
def test_a_tracker_that_fails_is_one_warning_and_the_run_and_other_trackers_go_on(
    backbones: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, call: str
) -> None:
    monkeypatch.setattr(Failing, "fails_in", call)
    monkeypatch.setitem(trackers.accelerate_tracking.LOGGER_TYPE_TO_CLASS, "failing", Failing)
    settings = {"tracking.trackers": ["failing", "tensorboard"], "tracking.log_every": 1, "train.max_updates": 4}
    run_dir = finetune(make_small_config(tmp_path, backbones("bert"), **SETTINGS | settings)).run_dir
    output = capfd.readouterr()
    assert (output.out + output.err).count(
        "warning: the tracker failing failed (RuntimeError: the server is gone)"
    ) == 1
    assert [step for step, _ in read_scalars(run_dir)["loss", ""]] == [1, 2, 3, 4]
    assert (run_dir / "results.json").exists()


# --- before training ------------------------------------------------------------------------------------------------


def test_an_unknown_tracker_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"^tracking\.trackers \(tensorbord\): must be one of .*tensorboard.*wandb"):
        trackers.check_trackers(("tensorboard", "tensorbord"))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("wandb", r"pip install 'hf-finetune\[wandb\]'"),
        ("comet_ml", "pip install 'comet-ml'"),
        ("mlflow", r"pip install 'hf-finetune\[mlflow\]'"),
        ("trackio", r"pip install 'hf-finetune\[trackio\]'"),
    ],
)
def test_a_tracker_that_is_not_installed_is_an_error_with_the_pip_command(
    monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda module: None if module == name else object())
    trackers.check_trackers(("tensorboard",))
    with pytest.raises(InputError, match=rf"^tracking\.trackers \({name}\): is not installed; {command}$"):
        trackers.check_trackers(("tensorboard", name))


def test_trackers_are_checked_before_anything_is_read_or_written(
    backbones: Callable[..., Path], tmp_path: Path
) -> None:
    config = make_small_config(tmp_path, backbones("bert"), **SETTINGS | {"tracking.trackers": ["tensorbord"]})
    (tmp_path / "train-single_label.jsonl").unlink()
    with pytest.raises(InputError, match=r"tracking\.trackers \(tensorbord\)"):
        finetune(config)
    assert not config.run_dir.exists() or list(config.run_dir.iterdir()) == []
