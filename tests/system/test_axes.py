"""Axes with round ticks."""

import pytest

from hf_finetune.system.axes import find_step, make_axis


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
