"""The geometry of charts."""

import math

import pytest

from hf_finetune.analysis.charts import MARGIN, MOST_POINTS, Chart, Line, find_step, make_axis, merge_equal, thin_out


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.12, 1.81, ["0", "0.5", "1.0", "1.5", "2.0"]),
        (0.903, 0.928, ["0.900", "0.905", "0.910", "0.915", "0.920", "0.925", "0.930"]),
        (0, 2e-4, ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]),
        (900, 11200, ["0", "2,500", "5,000", "7,500", "10,000", "12,500"]),
        (3, 3, ["2.6", "2.8", "3.0", "3.2", "3.4"]),
        (0, 9_000_000, ["0", "2M", "4M", "6M", "8M", "10M"]),
    ],
)
def test_ticks_are_round_and_around_the_values(low: float, high: float, labels: list[str]) -> None:
    axis = make_axis(low, high, num_ticks=5)
    assert [label for _, label in axis.ticks] == labels
    assert axis.low <= low <= high <= axis.high
    assert len(set(labels)) == len(labels)


def test_an_axis_of_counts_has_whole_ticks_and_ends_at_the_values() -> None:
    axis = make_axis(0, 308, num_ticks=5, is_count=True)
    assert (axis.low, axis.high, [label for _, label in axis.ticks]) == (0, 308, ["0", "100", "200", "300"])
    assert [label for _, label in make_axis(0, 12, num_ticks=5, is_count=True).ticks] == ["0", "5", "10"]
    assert [label for _, label in make_axis(0, 1, num_ticks=5, is_count=True).ticks] == ["0", "1"]
    assert [label for _, label in make_axis(0, 0, num_ticks=2).ticks] == ["0", "0.5", "1.0"]


def test_steps_are_round() -> None:
    assert [find_step(rough) for rough in (1, 1.1, 2.4, 3, 6, 0.07)] == [1, 2, 2.5, 5, 10, pytest.approx(0.1)]


def test_long_lines_are_averaged() -> None:
    points = [(update, float(update % 2)) for update in range(1, 1001)]
    thin = thin_out(points)
    assert len(thin) <= MOST_POINTS
    assert thin[-1][0] == 1000
    assert math.isclose(sum(y for _, y in thin[:-1]) / len(thin[:-1]), 0.5, abs_tol=0.01)
    assert thin_out(points[:10]) == points[:10]


def test_a_chart_places_its_points() -> None:
    line = Line(label="a", color=0, points=[(0, 0.0), (5, 2.0), (10, 1.0)], best=5)
    drawn = Chart(name="c", title="C", lines=[line], height=100).draw()
    (made,) = drawn["lines"]
    assert made["path"] == f"M0.0,{100 - MARGIN}.0 L50.0,{MARGIN}.0 L100.0,50.0"
    assert made["rings"] == [(50.0, MARGIN)]
    assert made["points"] == [[0, 0.0], [5, 2.0], [10, 1.0]]
    assert drawn["y_ticks"][0] == (100 - MARGIN, "0")


def test_equal_lines_are_one() -> None:
    one, other = [(1, 0.5)], [(1, 0.7)]
    assert merge_equal([("a", one), ("b", other), ("c", [(1, 0.5)])]) == [(["a", "c"], one), (["b"], other)]
