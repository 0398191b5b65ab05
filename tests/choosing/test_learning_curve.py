"""Learning curves: nested shares of the training rows, and the forecast for twice as many."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import curve_fit

from hf_finetune.choosing.learning_curve import fit_power_law, run_learning_curve
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.scored import read_scored
from hf_finetune.system.errors import InputError

MakeConfig = Callable[..., RunConfig]
SIZES = np.array([250.0, 500.0, 1000.0, 2000.0])


def test_a_power_law_is_found_and_continued() -> None:
    errors = np.stack([0.9 * SIZES**-0.2, 3.0 * SIZES**-0.5])
    exponents, doubled = fit_power_law(SIZES, errors)
    assert exponents == pytest.approx([0.2, 0.5])
    assert doubled == pytest.approx([0.9 * 4000**-0.2, 3.0 * 4000**-0.5])


def test_the_fit_is_that_of_scipy() -> None:
    errors = 0.9 * SIZES**-0.2 * np.array([1.03, 0.96, 1.01, 0.99])
    exponents, doubled = fit_power_law(SIZES, errors[None])
    (level, slope), _ = curve_fit(lambda x, level, slope: level + slope * x, np.log(SIZES), np.log(errors))
    assert exponents[0] == pytest.approx(-slope, rel=1e-4)
    assert doubled[0] == pytest.approx(np.exp(level + slope * np.log(4000)), rel=1e-4)


def test_more_rows_do_no_harm_and_no_error_has_a_logarithm() -> None:
    exponents, doubled = fit_power_law(SIZES, np.array([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0]]))
    assert list(map(str, exponents)) == ["0.0", "0.0"]  # not -0.0
    assert doubled[0] == pytest.approx(np.exp(np.log([0.1, 0.2, 0.3, 0.4]).mean()))
    assert doubled[1] < 1e-3


def test_a_curve_of_four_runs(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_config(name="curve", **{"train.epochs": 1, "data.test": [], "data.test_fraction": 0.0})
    curve = run_learning_curve(base)
    assert [point.num_rows for point in curve.points] == [9, 15, 30, 60]
    assert curve.doubled is not None
    assert curve.doubled.low <= curve.doubled.value <= curve.doubled.high
    trials = base.run_dir / "trials"
    scored = {name: read_scored(trials / name / "scored" / "validation.jsonl") for name in ("share-1-1", "share-1-8")}
    assert scored["share-1-8"].compute("accuracy")[0] == pytest.approx(curve.points[0].value)
    assert list(scored["share-1-1"].digests) == list(scored["share-1-8"].digests)
    printed = capsys.readouterr().out
    assert "twice as many rows (120) should give accuracy" in printed
    written = json.loads((base.run_dir / "curve.json").read_text(encoding="utf-8"))
    assert written["doubled"]["value"] == curve.doubled.value
    with pytest.raises(
        InputError, match=r"data\.train_fraction \(0\.5\): is what a learning curve changes; leave it out"
    ):
        run_learning_curve(make_config(**{"data.train_fraction": 0.5}))


def test_numbers_to_predict_have_a_curve_without_a_forecast_by_their_correlation(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"train.epochs": 1, "data.test": [], "data.test_fraction": 0.0, "train.learning_rate": 1e-6}
    curve = run_learning_curve(make_config("regression", name="curve", **settings))
    assert len(curve.points) == 4
    assert curve.metric == "pearson"
    assert curve.doubled is None
    assert "no forecast: pearson is not a share" in capsys.readouterr().out


def test_settings_that_do_not_go_with_shares_are_errors_before_the_first_run(make_config: MakeConfig) -> None:
    base = make_config(name="curve", **{"data.streaming": True, "train.max_updates": 4})
    with pytest.raises(InputError, match=r"data\.train_fraction \(0\.5\): needs data\.streaming off"):
        run_learning_curve(base)
    assert not base.run_dir.exists()
