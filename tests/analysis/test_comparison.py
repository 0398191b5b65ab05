"""Comparisons of runs: groups of seeds, paired intervals, and what cannot be compared."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from hf_finetune.analysis.comparison import RunComparison, compare_runs
from hf_finetune.analysis.comparison_formats import format_comparison
from hf_finetune.analysis.run_files import read_runs
from hf_finetune.run.scored import read_scored
from hf_finetune.statistics.calibration import compute_calibration_error, find_confidences
from hf_finetune.system.errors import InputError

CopyRun = Callable[..., Path]


def compare(folders: Sequence[Path], against: str | None = None) -> RunComparison:
    return compare_runs(read_runs(folders), against)


def rewrite_scored(folder: Path, change: Callable[[int, dict[str, Any]], dict[str, Any] | None]) -> None:
    """Changes the lines of scored/test.jsonl; None removes one."""
    path = folder / "scored" / "test.jsonl"
    header, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    kept = [changed for place, line in enumerate(lines) if (changed := change(place, line)) is not None]
    header["examples"] = len(kept)
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *kept)), encoding="utf-8")


def test_seeds_are_one_group_and_means(finished: dict[str, Path]) -> None:
    compared = compare([finished["base"], finished["weak"], finished["seed"]])
    assert [group.label for group in compared.groups] == ["base, seed", "weak"]
    rates = ("train.learning_rate", "train.head_learning_rate")
    assert [group.settings for group in compared.groups] == [dict.fromkeys(rates, 1e-2), dict.fromkeys(rates, 1e-5)]
    results = {name: read_runs([folder])[0].results for name, folder in finished.items()}
    for metric in ("accuracy", "f1_macro", "loss"):
        first, second = compared.values[metric]
        assert first.value == pytest.approx(fmean(results[name]["test"][metric] for name in ("base", "seed")), rel=1e-5)
        assert second.value == pytest.approx(results["weak"]["test"][metric], rel=1e-5)
        assert second.difference is not None
        assert second.difference.value == pytest.approx(second.value - first.value)
    seconds = [results[name]["seconds"]["total"] for name in ("base", "seed")]
    assert compared.groups[0].get_cost("seconds") == pytest.approx(fmean(seconds))
    assert (compared.num_examples, compared.split, compared.notes) == (120, "test", [])


def test_a_paired_interval_is_that_of_the_differences(finished: dict[str, Path]) -> None:
    """Of a mean over examples, it is about the difference plus and minus 1.96 standard errors of the examples' differences."""
    compared = compare([finished["base"], finished["weak"]])
    losses = [read_scored(finished[name] / "scored" / "test.jsonl").scores.losses for name in ("base", "weak")]
    difference = np.asarray(losses[1]) - np.asarray(losses[0])
    error = difference.std(ddof=1) / len(difference) ** 0.5
    found = compared.values["loss"][1].difference
    assert found is not None
    assert found.value == pytest.approx(difference.mean(), rel=1e-5)
    assert found.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.4 * error)
    assert found.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.4 * error)
    assert compared.values["accuracy"][1].verdict == "worse"
    assert compare([finished["weak"], finished["base"]]).values["accuracy"][1].verdict == "better"
    assert any(note.startswith("Each side has one seed") for note in compared.notes)


def test_what_one_run_has_evaluated_is_compared_if_it_follows_from_the_examples(
    finished: dict[str, Path], copy_run: CopyRun
) -> None:
    folder = copy_run("base", "calibrated")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["test"] |= {"ece": 0.5, "brier_score": 0.5, "log_loss": 0.5, "own": 1.0, "calibrated/ece": 0.1}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    compared = compare([folder, finished["weak"]])
    assert {"ece", "brier_score", "log_loss", "accuracy"} <= compared.values.keys()
    assert not {"own", "calibrated/ece"} & compared.values.keys()
    assert "Without intervals, and so left out: own." in compared.notes
    probabilities, classes = [], []
    for path in (folder, finished["weak"]):
        scored = read_scored(path / "scored" / "test.jsonl")
        probabilities.append(np.asarray(scored.scores.probabilities))
        classes.append(scored.scores.label_numbers)
    errors = [compute_calibration_error(*find_confidences(*pair)) for pair in zip(probabilities, classes, strict=True)]
    first, second = compared.values["ece"]
    assert [first.value, second.value] == pytest.approx(errors)
    for name in ("brier_score", "log_loss"):
        found = compared.values[name][1]
        assert found.difference is not None
        assert found.difference.low > 0
        assert found.verdict == "worse"  # a larger one is worse
    assert second.difference is not None
    assert second.difference.low < errors[1] - errors[0] < second.difference.high


def test_equal_models_are_not_told_apart(finished: dict[str, Path], copy_run: CopyRun) -> None:
    folder = copy_run("base", "copy")
    config = folder / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("epochs: 6", "epochs: 7"), encoding="utf-8")
    compared = compare([finished["base"], folder])
    for values in compared.values.values():
        assert values[1].difference is not None
        assert (values[1].difference.low, values[1].difference.high) == (0, 0)
        assert values[1].verdict == "not to be told apart"


def test_examples_are_paired_by_digest_not_by_place(finished: dict[str, Path], copy_run: CopyRun) -> None:
    folder = copy_run("weak", "turned")
    lines = (folder / "scored" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "scored" / "test.jsonl").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n", encoding="utf-8")
    turned = compare([finished["base"], folder]).values["accuracy"][1].difference
    straight = compare([finished["base"], finished["weak"]]).values["accuracy"][1].difference
    assert turned is not None
    assert straight is not None
    # equal rows are paired in the order of the file, which is another one here
    assert turned.value == pytest.approx(straight.value)
    assert turned.low == pytest.approx(straight.low, abs=0.03)


def test_the_common_examples_are_compared_if_the_tests_differ(finished: dict[str, Path], copy_run: CopyRun) -> None:
    folder = copy_run("weak", "fewer")
    rewrite_scored(folder, lambda place, line: line if place < 50 else None)
    compared = compare([finished["base"], folder])
    assert compared.num_examples == 50
    assert "The test examples differ (base 120, fewer 50): the 50 that all have are compared." in compared.notes
    base = read_scored(finished["base"] / "scored" / "test.jsonl")
    is_right = [
        one == other for one, other in zip(base.scores.labels or (), base.scores.predictions or (), strict=True)
    ]
    rows = [base.digests.index(digest) for digest in base.digests[:50]]
    assert len(set(base.digests[:50])) < 50 or rows == list(range(50))
    assert compared.values["accuracy"][0].value == pytest.approx(np.mean(is_right[:50]), abs=1e-9)


def test_no_common_examples_and_no_scored_files_are_said(finished: dict[str, Path], copy_run: CopyRun) -> None:
    folder = copy_run("weak", "others")
    rewrite_scored(folder, lambda place, line: {**line, "digest": f"{place:016x}"})
    compared = compare([finished["base"], folder])
    assert (compared.num_examples, compared.values) == (0, {})
    assert "they have none in common" in compared.notes[0]
    compared = compare([finished["base"], copy_run("weak", "older", ("scored",))])
    assert compared.values == {}
    assert "No metrics are compared: without scored examples" in compared.notes[0]
    assert compared.groups[1].get_cost("seconds") is not None


def test_validation_takes_the_place_of_a_missing_test_split(finished: dict[str, Path], copy_run: CopyRun) -> None:
    folder = copy_run("weak", "untested")
    (folder / "scored" / "test.jsonl").unlink()
    compared = compare([finished["base"], folder])
    assert (compared.split, compared.num_examples) == ("validation", 40)
    assert "those of validation" in compared.notes[0]


def test_other_tasks_and_running_runs_have_no_metrics(finished: dict[str, Path], copy_run: CopyRun) -> None:
    folder = copy_run("weak", "other")
    config = folder / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("kind: classify", "kind: rerank"), encoding="utf-8")
    compared = compare([finished["base"], folder])
    assert compared.values == {}
    assert "different tasks (classify, rerank)" in compared.notes[0]
    compared = compare([finished["base"], copy_run("weak", "running", ("results.json", "scored"))])
    assert compared.notes[0] == "running: The run was interrupted, or failed: final scores are written when it ends."
    assert compared.groups[1].get_cost("seconds") is None


def test_the_run_to_compare_with_can_be_chosen(finished: dict[str, Path]) -> None:
    folders = [*finished.values()]
    assert [group.label for group in compare(folders, "weak").groups] == ["weak", "base, seed"]
    assert compare(folders, f"{finished['seed']}/").groups[0].label == "base, seed"
    with pytest.raises(InputError, match=r"--against \(low\): must be one of the runs: base, seed, weak"):
        compare(folders, "low")
    with pytest.raises(InputError, match="two runs or more"):
        compare(folders[:1])


# --- formats --------------------------------------------------------------------------------------------------------


def test_the_formats_have_the_same_numbers(finished: dict[str, Path]) -> None:
    compared = compare([*finished.values()])
    content = json.loads(format_comparison(compared, "json"))
    rows = list(csv.DictReader(io.StringIO(format_comparison(compared, "csv"))))
    table = format_comparison(compared, "table")
    assert content["examples"] == 120
    assert [len(group["runs"]) for group in content["groups"]] == [2, 1]
    for name, values in compared.values.items():
        for group, row, value in zip(content["groups"], rows, values, strict=True):
            assert group["metrics"][name]["value"] == float(row[name]) == value.value
        found = values[1].difference
        assert found is not None
        assert content["groups"][1]["metrics"][name]["interval"] == [found.low, found.high]
        assert rows[1][f"{name} verdict"] == values[1].verdict
        assert f"{found.value:+.4f}  [{found.low:+.4f}, {found.high:+.4f}]" in table
    assert rows[0]["train.learning_rate"] == "0.01"
    assert "A  base, seed (2 seeds, means)" in table
    assert "on 120 test examples" in table


def test_runs_of_one_seed_are_not_called_several(copy_run: CopyRun, finished: dict[str, Path]) -> None:
    runs = read_runs([finished["base"], copy_run("base", "again")])
    line, *_ = format_comparison(compare_runs(runs), "table").splitlines()
    assert line == "A  base, again (2 runs of 1 seed, means: those of one seed are one run twice)"
