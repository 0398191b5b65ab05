"""A user's own loss, metrics and functions: how they are found, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import run_until

from hf_finetune.api import finetune as finetune_rows
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.folder import open_run
from hf_finetune.run.parts import Parts, load_parts, own_metrics
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.own_functions import MetricInputs
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
ONE_EPOCH = {"train.epochs": 1, "train.max_updates": 3}


def halve(outputs: torch.Tensor, batch: Any) -> tuple[torch.Tensor, float]:
    """Half of the cross entropy."""
    return 0.5 * torch.nn.functional.cross_entropy(outputs.float(), batch.labels, reduction="sum"), len(batch.labels)


def average(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
    """A mean, as other packages take it."""
    return torch.nn.functional.cross_entropy(outputs.float(), batch.labels)


def count_first(inputs: MetricInputs) -> float:
    """The number of examples for which the first class is predicted."""
    return float((inputs.predictions == 0).sum())


def set_up_with(config: RunConfig, parts: Parts) -> TrainingRun:
    """A run with these parts that is ready for update 0."""
    with open_run(config) as runtime:
        return set_up(config, runtime, Clock(), parts=parts)


# --- where parts come from ------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of parts in it that is on no path."""
    (tmp_path / "parts_of_ada.py").write_text(
        "value = 3\ndef loss(outputs, batch):\n    return outputs.float().pow(2).sum(), len(outputs)\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])
    return tmp_path


def test_a_config_names_a_function_in_the_current_folder(module: Path, make_config: MakeConfig) -> None:
    parts = load_parts(make_config(**{"train.loss": "parts_of_ada:loss"}), Parts())
    assert parts.loss is not None
    assert parts.loss(torch.ones(2, 3), None) == (torch.tensor(6.0), 2)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("parts_of_ada:nothing", "cannot be imported: module 'parts_of_ada' has no attribute 'nothing'"),
        ("no_such_module:loss", "cannot be imported: No module named 'no_such_module'"),
        ("parts_of_ada:value", "cannot be called"),
        ("__main__:no_such_loss", "was defined in a program or a notebook: run that again, or move it to a module"),
    ],
)
def test_a_function_that_cannot_be_used_is_an_error(
    reference: str, message: str, module: Path, make_config: MakeConfig
) -> None:
    with pytest.raises(InputError) as caught:
        load_parts(make_config(**{"train.loss": reference}), Parts())
    assert str(caught.value).startswith(f"train.loss ({reference}): ")
    assert message in str(caught.value)


def test_metrics_have_the_names_of_their_functions_or_those_that_they_are_given() -> None:
    assert own_metrics(("f1", "a.b:kappa", "wrong=a:count", "roc_auc")) == {"kappa": "a.b:kappa", "wrong": "a:count"}
    with pytest.raises(
        InputError, match=r"evaluation.metrics \(b:kappa\): there are two metrics kappa; name one as other=b:kappa"
    ):
        own_metrics(("a:kappa", "b:kappa"))


# --- losses ---------------------------------------------------------------------------------------------------------


def test_an_own_loss_is_the_loss_that_is_logged_and_validated(make_config: MakeConfig) -> None:
    """Half of the loss gives half of the numbers at the first update, and the same decisions of AdamW up to its epsilon."""
    settings = ONE_EPOCH | {"train.max_grad_norm": 0.0}
    ours = finetune(make_config(name="half", **settings, **{"train.loss": "a:b"}), Parts(loss=halve))
    theirs = finetune(make_config(name="whole", **settings))
    assert 2 * ours.results["validation"]["loss"] == pytest.approx(theirs.results["validation"]["loss"], abs=1e-4)


def test_a_mean_is_refused_as_a_loss(make_config: MakeConfig) -> None:
    with pytest.raises(
        InputError, match=r"train.loss: the function must return two values, the loss summed over the targets"
    ):
        finetune(make_config(**ONE_EPOCH), Parts(loss=average))


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"train.label_smoothing": 0.1}, "train.label_smoothing (0.1)"),
        ({"task.focal_gamma": 2.0}, "task.focal_gamma (2.0)"),
        ({"task.class_weights": "balanced"}, "task.class_weights (['balanced'])"),
    ],
)
def test_settings_of_the_tasks_own_loss_are_refused(
    settings: dict[str, Any], shown: str, make_config: MakeConfig
) -> None:
    config = make_config(**settings, **{"train.loss": "a:b"})
    with pytest.raises(InputError) as caught:
        set_up_with(config, Parts(loss=halve))
    assert str(caught.value) == f"{shown}: has no effect on train.loss (a:b); leave one of them out"


# --- metrics --------------------------------------------------------------------------------------------------------


def test_an_own_metric_may_decide_and_less_may_be_better(make_config: MakeConfig) -> None:
    settings = {"evaluation.metrics": ["first=a:b", "roc_auc"], "evaluation.metric": "first", "train.epochs": 3}
    config = make_config(**settings, **{"evaluation.greater_is_better": False})
    result = finetune(config, Parts(metrics={"first": count_first}))
    values = [row["first"] for row in result.results["history"]]
    assert result.results["metric"] == "first"
    assert result.results["best"]["value"] == min(values)
    assert 0 <= result.results["validation"]["roc_auc"] <= 1


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"accuracy": count_first}, r"evaluation.metrics \(accuracy\): is a metric of the task; name yours otherwise"),
        (
            {"first": lambda inputs: inputs.predictions},
            r"evaluation.metrics \(first\): returned a ndarray, not a number",
        ),
        ({"first": lambda inputs: None}, r"evaluation.metrics \(first\): returned null; it must return one number"),
    ],
)
def test_a_metric_that_cannot_be_used_is_an_error(
    metrics: dict[str, Any], message: str, make_config: MakeConfig
) -> None:
    names = [f"{name}=a:b" for name in metrics]
    with pytest.raises(InputError, match=message):
        finetune(make_config(**ONE_EPOCH, **{"evaluation.metrics": names}), Parts(metrics=metrics))


def test_a_name_that_is_no_metric_is_an_error(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"evaluation.metrics \(mse\): cannot be computed for a single_label problem"):
        set_up_with(make_config(**{"evaluation.metrics": "mse"}), Parts())


# --- after each update ----------------------------------------------------------------------------------------------


def test_the_function_is_called_after_each_update_also_of_a_resumed_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    parts = Parts(on_update=lambda update, model: seen.append((update.number, model.config.num_labels)))
    config = make_config(**{"checkpoint.every": 2, "train.max_updates": 5})
    run_until(config, 3, monkeypatch)
    assert seen == []
    finetune(config, parts)
    assert seen == [(3, 3), (4, 3), (5, 3)]  # update 3 came after the last checkpoint


@pytest.mark.parametrize("metrics", [["accuracy", "f1"], {"first": "accuracy"}])
def test_metrics_are_not_names(metrics: Any) -> None:
    with pytest.raises(InputError, match=r"metrics \(accuracy\): must be functions.*evaluation\.metrics"):
        finetune_rows("classify", train=[{"text": "a", "label": "b"}], metrics=metrics)


def test_a_run_that_continues_with_another_function_says_so(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/extending.md promises it: the first updates were trained with other code."""

    def watch(factor: float) -> Parts:
        return Parts(on_update=lambda update, model: factor)

    config = make_config(**{"train.on_update": "my_module:watch", "checkpoint.every": 1})
    run_until(config, 3, monkeypatch, watch(1.0))
    run_until(config, 5, monkeypatch, watch(1.0))
    assert "other code" not in capsys.readouterr().out
    finetune(config, watch(2.0))
    assert "train.on_update: has other code now; the updates so far" in capsys.readouterr().out
