"""finetune() from Python: the same run as on the command line, what it returns, and what a second call does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import polars
import pytest
from support import tiny
from support.runs import assert_same_tensors, load_exported_weights
from support.script_server import ScriptServer

import hf_finetune
from hf_finetune import InputError, cli, finetune
from hf_finetune.export.predict import Predictor
from hf_finetune.export.trained_run import Run
from hf_finetune.system.errors import StoppedError
from hf_finetune.tasks.text.label_errors import LEAVE_OUT

ROWS = {split: tiny.make_rows(count, seed=seed) for seed, (split, count) in enumerate(
    {"train": 60, "validation": 24, "test": 24}.items()
)}  # fmt: skip
SMALL: dict[str, Any] = {
    "train.epochs": 2,
    "train.batch_size": 8,
    "tracking.trackers": [],
    "train.precision": "fp32",
    "tracking.log_every": 2,
    "evaluation.every": 4,
    "data.max_length": 32,
}


@pytest.fixture
def settings(tmp_path: Path, backbones: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a small run; its folder is outputs/NAME of the current folder."""
    monkeypatch.chdir(tmp_path)
    return {**SMALL, "model.backbone": str(backbones("bert"))}


def read_dir(name: str) -> dict[str, Any]:
    """The results.json of a run without what depends on the clock."""
    results = json.loads(Path("outputs", name, "results.json").read_text(encoding="utf-8"))
    return {key: results[key] for key in ("best", "validation", "test", "examples", "parameters", "history", "labels")}


# --- the same run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [("train", "validation", "test"), ("train",)])
def test_a_frame_a_file_and_the_command_give_the_same_weights(settings: dict[str, Any], given: tuple[str, ...]) -> None:
    """With the recipe's defaults, which freeze layers, and with the splits given, or taken from training."""
    rows = {split: ROWS[split] for split in given}
    forms: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
        "pandas": pandas.DataFrame,
        "polars": polars.DataFrame,
        "dataset": datasets.Dataset.from_list,
        "rows": list,
        "columns": lambda part: {name: [row[name] for row in part] for name in part[0]},
        "generator": iter,
    }
    for name, make in forms.items():
        parts = {split: make(part) for split, part in rows.items()}
        run = finetune("classify", **parts, settings={**settings, "name": name})
        assert run.results["parameters"]["trainable"] < run.results["parameters"]["total"]
    files = {split: str(tiny.write_jsonl(Path(f"{split}.jsonl"), part)) for split, part in rows.items()}
    finetune("classify", **files, settings={**settings, "name": "file"})
    words = [word for key, value in settings.items() for word in (f"--{key}", "[]" if value == [] else str(value))]
    words += [word for split, path in files.items() for word in (f"--data.{split}", path)]
    assert cli.main(["train", "classify", "--name", "command", *words]) == 0
    expected, weights = read_dir("command"), load_exported_weights(Path("outputs/command"))
    for name in (*forms, "file"):
        assert read_dir(name) == expected, name
        assert_same_tensors(load_exported_weights(Path("outputs", name)), weights, name)


def test_a_dict_of_a_data_sets_splits_gives_all_of_them(settings: dict[str, Any]) -> None:
    splits = datasets.DatasetDict({
        name: datasets.Dataset.from_list(ROWS[split])
        for name, split in (("train", "train"), ("dev", "validation"), ("test", "test"))
    })  # fmt: skip
    run = finetune("classify", train=splits, settings=settings)
    assert run.results["examples"] == {"train": 60, "validation": 24, "test": 24}
    with pytest.raises(InputError, match=r"^test: is given, and the DatasetDict has it too"):
        finetune("classify", train=splits, test=ROWS["test"], settings=settings)
    with pytest.raises(InputError, match=r"^train: the DatasetDict has no split train \(it has dev\)"):
        finetune("classify", train=datasets.DatasetDict({"dev": splits["dev"]}), settings=settings)


TAGGED = [{"words": ["the", word, "saw"], "kinds": ["O", "B-animal", "O"]} for word in tiny.VOCABULARY[5:27]]
FRAMES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "tag": (TAGGED, {"data.text_columns": ["words"], "data.label_column": "kinds"}, "bert"),
    "choose": (tiny.make_choices(20), {"data.text_columns": ["stem"]}, "bert"),
    "answer": (tiny.make_questions(20), {}, "bert"),
    "embed": ([{"anchor": row["text"], "positive": row["label"]} for row in ROWS["train"]], {}, "bert"),
    "model_language": ([{"text": row["text"]} for row in ROWS["train"]], {}, "bert"),
    "summarize": ([{"document": row["text"], "summary": row["label"]} for row in ROWS["train"]], {}, "t5"),
    "instruct": (tiny.make_conversations(20), {"task.chat_template": "template.jinja"}, "llama"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FRAMES)
def test_every_task_trains_on_a_frame_as_on_its_file(
    settings: dict[str, Any], backbones: Callable[..., Path], kind: str
) -> None:
    rows, own, family = FRAMES[kind]
    Path("template.jinja").write_text(tiny.CHAT_TEMPLATE, encoding="utf-8")
    settings = {**settings, "model.backbone": str(backbones(family)), "train.max_updates": 4, **own}
    if kind != "classify":
        settings["freeze.layers"] = 0
    made = [
        finetune(kind, train=train, settings={**settings, "name": name})
        for name, train in (
            ("file", str(tiny.write_jsonl(Path("rows.jsonl"), rows))),
            ("pandas", pandas.DataFrame(rows)),
            ("dataset", datasets.Dataset.from_list(rows)),
        )
    ]
    assert made[0].results["history"] == made[1].results["history"] == made[2].results["history"]
    inputs = rows[:2]
    if kind != "model_language":  # which predicts masks
        assert made[1].predict(pandas.DataFrame(inputs)) == made[0].predict(inputs)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "settings", "message"),
    [
        ([*ROWS["train"], {"text": "cat", "label": None}], {}, f"train[60]: label is null; {LEAVE_OUT}"),
        ([*ROWS["train"], {"text": "", "label": "food"}], {}, "train[60]: text is empty"),
        (ROWS["train"], {"data.text_columns": ["x"]}, "train[0]: no column 'x' (columns: text, label); see data.text_columns"),
        (ROWS["train"], {"train.epoch": 3}, "train.epoch (3): there is no such setting; did you mean train.epochs?"),
        (ROWS["train"], {"data.train": ["x"]}, "settings: data.train is an argument of finetune() too; give it once"),
        (ROWS["train"], {"data.dataset": "x"}, "data.dataset (x): goes with the names of its splits, not with rows"),
    ],
)  # fmt: skip
def test_what_the_user_can_get_wrong_shows_before_torch_is_imported(
    train: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    code = f"""
import sys
from hf_finetune import finetune, InputError
try:
    finetune("classify", train={train!r}, settings={settings!r})
except InputError as error:
    print(error)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [message, "False"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": ["x"]}, r"^settings: is a list; give a dict of settings by their dotted keys$"),
        ({"loss": 3}, r"^loss: is an int; give a function$"),
        (
            {"optimizer": "a:b"},
            r"^optimizer: is a str; give a function; an import path is the setting train.optimizer$",
        ),
        ({"metrics": len}, r"^metrics: is a builtin_function_or_method; give a list of functions, or a dict"),
        ({"metrics": [len, len]}, r"^metrics: two of the functions have one name"),
    ],
)
def test_an_argument_of_another_type_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        finetune("classify", train=ROWS["train"], **options)


def test_a_task_of_ones_own_must_be_importable() -> None:
    class Local:
        pass

    with pytest.raises(InputError, match=r"^task \(test\S+<locals>\S+\): must be a class at the top level"):
        finetune(Local, train=ROWS["train"])


def test_a_run_config_has_all_settings() -> None:
    config = hf_finetune.RunConfig.from_settings({"task.kind": "classify", "model.backbone": "x", "data.train": ["y"]})
    with pytest.raises(InputError, match=r"^finetune\(\): a RunConfig has all settings"):
        finetune(config, train=ROWS["train"])


def test_the_public_names_are_seen_and_nothing_heavy_is_imported() -> None:
    code = """
import sys, time
began = time.process_time()
import numpy
of_numpy = time.process_time() - began
import hf_finetune
from hf_finetune import RunConfig, Task, finetune
print((time.process_time() - began) / of_numpy)
print([name for name in ("torch", "transformers", "datasets", "pandas") if name in sys.modules])
print(sorted(set(hf_finetune.__all__) - set(dir(hf_finetune))))
"""
    ratios = []
    for _ in range(4):  # on a busy machine, some take longer
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        ratio, heavy, missing = done.stdout.splitlines()
        assert (heavy, missing) == ("[]", "[]")
        ratios.append(float(ratio))
    assert min(ratios) < 6  # about 3; torch alone would make it 30


# --- what comes back ------------------------------------------------------------------------------------------------


def test_a_run_has_a_history_a_plot_and_a_model(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    run = finetune("classify", train=pandas.DataFrame(ROWS["train"]), test=ROWS["test"], settings=settings)
    history = run.history
    assert list(history["update"]) == [row["update"] for row in run.results["history"]]
    assert list(history["validation/accuracy"]) == [row["accuracy"] for row in run.results["history"]]
    logged = {row["update"]: row["train/loss"] for row in run.read_metrics() if "train/loss" in row}
    assert history["train/loss"][0] == pytest.approx((logged[1] + logged[2] + logged[4]) / 3)
    assert list(history.columns[:3]) == ["epoch", "update", "train/loss"]
    losses, metric = run.plot()
    assert [len(line.get_xdata()) for line in losses.get_lines()] == [len(logged), len(history)]
    assert metric.get_ylabel() == "accuracy, validation"
    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.export.trained_run.find_spec", lambda name: None)
        with pytest.raises(
            InputError, match=r"^Run.plot\(\) draws with matplotlib, which is not installed: pip install"
        ):
            run.plot()
    assert run.evaluate(pandas.DataFrame(ROWS["test"])) == run.results["test"]
    assert run.predictor is run.predictor
    assert run.predict("the old cat") == Predictor.from_pretrained(run.run_dir).predict("the old cat")
    assert run.predict(pandas.DataFrame({"text": ["cat", "saw"]}), top_k=1) == run.predict(["cat", "saw"], top_k=1)
    value = run.results["test"]["accuracy"]
    assert repr(run).endswith(f" on validation, accuracy {value:.4f} on test)")
    assert repr(run).startswith("Run('outputs/classify', accuracy ")


def test_the_table_of_a_run_escapes_names(tmp_path: Path) -> None:
    results: dict[str, Any] = {
        "task": "classify",
        "metric": "<b>",
        "validation": {"loss": 0.5, "<b>": 0.25},
        "test": {},
    }
    results["best"] = {"value": 0.25, "epoch": 2, "update": 8}
    config: Any = None
    table = Run(config=config, run_dir=Path("a<i>"), model_dir=tmp_path, results=results)._repr_html_()
    assert "<b>" not in table
    assert "<i>" not in table
    assert "<th>&lt;b&gt;</th>" in table
    assert "<td>0.2500</td>" in table


def share(inputs: Any) -> float:
    """A metric of one's own."""
    return float((inputs.predictions == inputs.references).mean())


def test_a_run_evaluates_with_the_functions_that_it_was_given(settings: dict[str, Any]) -> None:
    run = finetune("classify", train=ROWS["train"], test=ROWS["test"], metrics=[share], settings=settings)
    assert run.evaluate(ROWS["test"]) == run.results["test"]
    assert run.results["test"]["share"] == run.results["test"]["accuracy"]


# --- a second call --------------------------------------------------------------------------------------------------


def make_look(seen: list[int], limit: int) -> Callable[..., None]:
    """A function after each update whose code is the same, and whose value `limit` may differ."""

    def look(update: Any, model: Any) -> None:
        if update.number <= limit:
            seen.append(update.number)

    return look


def test_a_call_with_other_settings_data_or_functions_makes_a_run_beside(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    short = {**settings, "train.max_updates": 2}

    def call(rows: list[dict[str, Any]] = ROWS["train"], **others: Any) -> tuple[str, str]:
        changed = {key.removeprefix("settings."): others.pop(key) for key in list(others) if "." in key}
        run = finetune("classify", train=rows, **others, settings={**short, **changed})
        return run.run_dir.name, capsys.readouterr().out

    assert call()[0] == "classify"
    name, output = call(**{"train.learning_rate": 0.5})
    assert name == "classify-2"
    assert (
        "outputs/classify holds another run (train.learning_rate was 0.0002, now 0.5); this call's run is outputs/classify-2"
        in output
    )
    name, output = call(**{"freeze.layers": 1})
    assert (name, "freeze.layers was 2/3, now 1" in output) == ("classify-3", True)
    name, output = call(rows=ROWS["train"][:50])
    assert (name, "data.train: had 60 rows, has 50 now" in output) == ("classify-4", True)
    name, output = call(on_update=make_look([], 1))
    assert name == "classify-5"
    name, output = call(on_update=make_look([], 2))
    assert (name, "train.on_update" in output) == ("classify-6", True)
    name, output = call(**{"train.max_updates": 1})
    assert (name, "train.max_updates was 2, now 1" in output) == ("classify-7", True)
    assert (
        call(**{"train.max_updates": 3})[0] == "classify-8"
    )  # a longer run is another run, so that order does not matter

    for rows, changed, expected in (
        (ROWS["train"], {}, "classify"),
        (ROWS["train"], {"cache.activations": "off", "tracking.log_every": 1}, "classify"),
        (ROWS["train"], {"train.learning_rate": 0.5}, "classify-2"),
        (ROWS["train"][:50], {}, "classify-4"),
    ):
        name, output = call(rows=rows, **changed)
        assert (name, "is finished" in output) == (expected, True)
    assert call(on_update=make_look([], 2))[0] == "classify-6"
    with pytest.raises(InputError, match=r"^name \(classify\): .*train.learning_rate \(was 0.0002, now 0.3\)"):
        call(**{"train.learning_rate": 0.3, "settings.name": "classify"})


def test_a_named_run_that_is_finished_says_if_its_frame_has_changed(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    named = {**settings, "name": "reviews", "train.max_updates": 2}
    finetune("classify", train=pandas.DataFrame(ROWS["train"]), settings=named)
    capsys.readouterr()
    finetune("classify", train=pandas.DataFrame(ROWS["train"]), settings=named)
    assert "changed since" not in capsys.readouterr().out
    finetune("classify", train=pandas.DataFrame(ROWS["train"][:50]), settings=named)
    output = capsys.readouterr().out
    assert "has changed since" in output
    assert "data.train: had 60 rows, has 50 now" in output


def test_a_named_run_that_was_trained_on_is_another_run(settings: dict[str, Any]) -> None:
    named = {**settings, "name": "reviews"}
    first = finetune("classify", train=ROWS["train"], settings={**named, "train.epochs": 1})
    second = finetune("classify", train=ROWS["train"], settings=named)
    assert (first.run_dir, first.results["updates"], second.results["updates"]) == (second.run_dir, 6, 12)
    with pytest.raises(InputError, match=r"reviews: a later call has trained it on, so its model is another one"):
        first.predict("a red cat")
    assert second.predict("a red cat")["label"]


def test_an_interrupted_call_continues_under_the_name_that_it_had(settings: dict[str, Any]) -> None:
    def interrupt(update: Any, model: Any) -> None:
        if update.number == 3 and interrupts:
            interrupts.clear()
            os.kill(os.getpid(), 2)

    interrupts = [True]
    finetune("classify", train=ROWS["train"], settings={**settings, "train.max_updates": 2})
    with pytest.raises(
        StoppedError, match=r"saved up to outputs/classify-2/checkpoints/\S+update000003\S+\.pt; run the same"
    ):
        finetune("classify", train=ROWS["train"], on_update=interrupt, settings=settings)
    run = finetune("classify", train=ROWS["train"], on_update=interrupt, settings=settings)
    assert run.run_dir.name == "classify-2"
    assert run.results["updates"] > 3


def test_an_interrupt_while_python_imports_says_that_nothing_had_to_be_saved(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_finetune.run.naming.name_run", lambda *_: os.kill(os.getpid(), 2))
    with pytest.raises(
        StoppedError, match=r"^SIGINT: there was nothing to save yet; run the same command, program or notebook"
    ):
        finetune("classify", train=ROWS["train"], settings=settings)


@pytest.mark.slow
@pytest.mark.processes
def test_all_processes_choose_the_same_name(
    settings: dict[str, Any], tmp_path: Path, script_server: ScriptServer
) -> None:
    code = f"""
import os
from hf_finetune import finetune
from support import tiny
for rate in (0.1, 0.2, 0.1):
    settings = {{**{settings!r}, "train.learning_rate": rate, "train.max_updates": 2}}
    run = finetune("classify", train=tiny.make_rows(40), settings=settings)
    os.write(1, f"RUN {{rate}} {{run.run_dir.name}}\\n".encode())
"""
    Path("program.py").write_text(code, encoding="utf-8")
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    started = script_server.start(Path("program.py").resolve(), [], tmp_path, environment, ranks=2)
    assert started.wait(120) == 0, started.read("stderr")
    lines = sorted(line for line in started.read().splitlines() if line.startswith("RUN"))
    assert lines == sorted(["RUN 0.1 classify"] * 4 + ["RUN 0.2 classify-2"] * 2)


def test_a_metric_that_is_nan_decides_nothing_and_ends_nothing(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**settings, "evaluation.metric": "nothing"}
    for _ in range(2):  # the second call reads it from results.json, which has null
        run = finetune(
            "classify", train=ROWS["train"], metrics={"nothing": lambda inputs: float("nan")}, settings=settings
        )
        assert "nothing nan on validation" in repr(run)
        assert "<td>nan</td>" in run._repr_html_()
        assert run.history["validation/nothing"].isna().all()
    assert "warning: nothing is nan and cannot choose the best checkpoint" in capsys.readouterr().out
    text = (run.run_dir / "results.json").read_text(encoding="utf-8")
    assert "NaN" not in text  # which JSON does not have
    assert json.loads(text)["history"][0]["nothing"] is None


def test_settings_take_paths_and_the_numbers_of_numpy(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"model.backbone": Path(settings["model.backbone"]), "output_dir": tmp_path / "elsewhere"}
    settings |= {"train.max_updates": numpy.int64(2), "train.learning_rate": numpy.float32(0.5)}
    run = finetune("classify", train=ROWS["train"], settings=settings)
    assert run.run_dir == tmp_path / "elsewhere" / "classify"
    assert (run.config.train.max_updates, run.config.train.learning_rate) == (2, 0.5)
    assert finetune("classify", train=ROWS["train"], settings=settings).run_dir == run.run_dir
    further = finetune("classify", train=ROWS["train"], settings={**settings, "start_from": run})
    assert further.config.start_from == str(run.run_dir)
