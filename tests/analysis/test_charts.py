"""The geometry of charts."""

import math

from hf_finetune.analysis.charts import MARGIN, MOST_POINTS, Chart, Line, merge_equal, thin_out


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
