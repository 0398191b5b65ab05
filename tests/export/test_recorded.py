"""A model that was trained with parts of one's own: they are used only if the user names them, and never imported otherwise."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from hf_finetune import cli
from hf_finetune.config.sections import RunConfig
from hf_finetune.export.predict import Predictor
from hf_finetune.export.predictor_calls import evaluate_file
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import metrics as task_metrics
from hf_finetune.train import finetune

CODE = """
from torch.nn import functional as F
def double(outputs, batch):
    return 2 * F.cross_entropy(outputs, batch.labels, reduction="sum"), len(batch.labels)
def share(inputs):
    return float((inputs.predictions == inputs.references).mean())
"""
OWN = {"train.loss": "own_parts:double", "evaluation.metrics": ["own_parts:share"], "evaluation.metric": "share"}


@pytest.fixture
def trained(
    tmp_path: Path, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, float]]:
    """The folder of a run with a loss and a metric of one's own, and its test metrics. Their module is not imported any more."""
    (tmp_path / "own_parts.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config(**OWN, **{"train.max_updates": 3})
    test = finetune(config).results["test"]
    monkeypatch.delitem(sys.modules, "own_parts")
    return config.run_dir, test


def test_parts_that_the_user_names_give_the_numbers_of_the_run(
    trained: tuple[Path, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, test = trained
    rows = tiny.make_rows(24, seed=2)
    named = Predictor.from_pretrained(run_dir, loss="own_parts:double", metrics=["own_parts:share"])
    assert named.metric == "share"
    assert named.evaluate(rows) == test
    own: Any = sys.modules["own_parts"]
    for metrics in ([own.share], {"share": own.share}, {"share": "own_parts:share"}, ["share=own_parts:share"]):
        given = Predictor.from_pretrained(run_dir, loss=own.double, metrics=metrics)
        assert given.evaluate(rows) == test
    assert capsys.readouterr().out.count("left out") == 0


def test_parts_that_the_user_does_not_name_are_left_out_and_not_imported(
    trained: tuple[Path, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, test = trained
    values = Predictor.from_pretrained(run_dir).evaluate(tiny.make_rows(24, seed=2))
    assert values == {name: value for name, value in test.items() if name not in ("loss", "share")}
    notes = [line for line in capsys.readouterr().out.splitlines() if "own" in line or "decided" in line]
    assert notes[0].startswith(
        "share: left out, because metrics of your own are imported only if you name them: --metrics share="
    )
    assert notes[1] == "share decided which checkpoint is best; accuracy takes its place here"
    assert notes[2].startswith(
        "loss: left out, because a loss of your own is imported only if you name it: --loss own_parts:double"
    )
    assert "own_parts" not in sys.modules


def test_the_command_names_parts_too(
    trained: tuple[Path, dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, test = trained
    words = ["evaluate", str(run_dir), "--data", str(tmp_path / "test-single_label.jsonl")]
    capsys.readouterr()
    assert cli.main([*words, "--loss", "own_parts:double", "--metrics", "own_parts:share"]) == 0
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.partition("\n\n")[0].splitlines()]
    printed_values = {name: value for name, value, *_ in rows if name in test}
    assert printed_values == {name: f"{value:.4f}" for name, value in test.items()}
    assert printed.err == ""
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.partition("\n\n")[0].splitlines()]
    assert {name for name, *_ in rows if name in test} == test.keys() - {"loss", "share"}
    assert printed.err.count("left out") == 2


def test_metrics_without_an_import_path_or_with_one_name_are_refused(trained: tuple[Path, dict[str, float]]) -> None:
    with pytest.raises(InputError, match=r"^metrics \(share\): must be an import path"):
        Predictor.from_pretrained(trained[0], metrics=["share"])
    with pytest.raises(InputError, match=r"^metrics: two of the functions have one name"):
        Predictor.from_pretrained(trained[0], metrics=[len, len])


def test_a_metric_of_the_hub_is_loaded_only_if_the_user_names_and_trusts_it(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code would come from the Hub, or from a file, that the model alone names."""
    config = make_config(**{"train.max_updates": 2})
    finetune(config)
    write_note(config, {"metric": "somebody/metric"})
    loaded: list[str] = []
    monkeypatch.setattr(task_metrics, "load_code", lambda name, *_: loaded.append(name) or (lambda *_: 0.5))
    monkeypatch.setattr(task_metrics, "LOADED", {})
    rows, predictor = tiny.make_rows(24, seed=2), Predictor.from_pretrained(config.run_dir)
    assert "somebody/metric" not in predictor.evaluate(rows)
    assert "somebody/metric: left out" in capsys.readouterr().out
    with pytest.raises(
        InputError, match=r"^metric \(somebody/metric\): .* only with evaluation\.trust_metric_code true"
    ):
        predictor.evaluate(rows, metric="somebody/metric")
    words = ["evaluate", str(config.run_dir), "--data", str(config.data.test[0]), "--metric", "somebody/metric"]
    assert cli.main(words) == 2
    assert loaded == []
    values = predictor.evaluate(rows, metric="somebody/metric", trust_metric_code=True)
    assert values["somebody/metric"] == 0.5
    assert cli.main([*words, "--evaluation.trust_metric_code"]) == 0
    assert "left out" not in capsys.readouterr().out
    assert loaded == ["somebody/metric"]


def write_note(config: RunConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """Changes what the export recorded in the model of a run, and returns what it recorded."""
    path = config.run_dir / "model" / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    note = dict(settings["hf_finetune"])
    path.write_text(json.dumps({**settings, "hf_finetune": note | changes}), encoding="utf-8")
    return note


def test_a_record_with_any_values_gives_predictions_or_one_line(make_config: Callable[..., RunConfig]) -> None:
    """What a model records may come from anybody."""
    config = make_config(**{"train.max_updates": 1})
    finetune(config)
    note, outcomes = write_note(config, {}), {True: 0, False: 0}
    data = str(config.data.test[0])
    for key in note:
        for value in (1e300, ["a"], {"a": [1]}, [["a"]], "\0", "a\nb", -1, True):
            write_note(config, note | {key: value})
            with contextlib.suppress(InputError):
                predictor = Predictor.from_pretrained(config.run_dir)
                predictor.predict("a cat")
                evaluate_file(predictor, data)
                outcomes[True] += 1
                continue
            outcomes[False] += 1
    assert min(outcomes.values()) > 20


def test_files_are_read_with_the_settings_of_training(tmp_path: Path, make_config: Callable[..., RunConfig]) -> None:
    lines = [f"{row['text']} \xe9;{row['label']}" for row in tiny.make_rows(24, seed=5)]
    (tmp_path / "rows.csv").write_bytes("\n".join(lines).encode("cp1252"))
    path = str(tmp_path / "rows.csv")
    data = {"train": [path], "validation": [path], "test": [path], "text_columns": ["1"], "label_column": "2"}
    reading = {
        "header": False,
        "delimiter": ";",
        "quoting": "none",
        "encoding": ["utf-8", "cp1252"],
        "max_expansion": 7,
    }
    settings = {f"data.{key}": value for key, value in (data | reading).items()}
    config = make_config(**settings, **{"train.max_updates": 1})
    test = finetune(config).results["test"]
    predictor = Predictor.from_pretrained(config.run_dir)
    assert evaluate_file(predictor, path) == test
    recorded = {key: getattr(predictor.config.data, key) for key in reading}
    assert recorded == reading | {"encoding": ("utf-8", "cp1252")}
    other = Predictor.from_pretrained(config.run_dir, delimiter=None, header=True)
    assert (other.config.data.delimiter, other.config.data.header) == (None, True)
