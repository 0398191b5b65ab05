"""The board of silent faults in docs/reliability.md, and that none of them is silent here."""

import re
from types import ModuleType

import pytest

from silent_faults import board
from silent_faults.parts import Finding


def read_table() -> dict[str, list[str]]:
    """The verdicts of the page, by the fault's description."""
    table = board.PAGE.read_text(encoding="utf-8").partition(board.BEGIN)[2].partition(board.END)[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {fault: [re.match(r"\**([a-z ]+)", cell)[1] for cell in cells] for fault, *cells in rows}  # type: ignore[index]


def test_the_page_has_a_row_for_each_fault() -> None:
    assert list(read_table()) == [board.describe(fault) for fault in board.list_faults()]
    assert len(read_table()) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("fault", board.list_faults(), ids=lambda fault: fault.__name__.rpartition(".")[2])
def test_no_fault_is_silent_here(fault: ModuleType) -> None:
    finding = board.run_fault(fault, "ours")
    assert finding.verdict in ("right", "stops"), finding.detail
    assert read_table()[board.describe(fault)][2] == finding.verdict


def test_the_search_finds_a_silent_fault() -> None:
    from silent_faults import mean_of_means, not_finite, resume

    assert mean_of_means.find([0.5, 0.6]).verdict == "silently wrong"
    assert resume.find(1e-3).verdict == "silently wrong"
    assert board.run_fault(not_finite, "trainer") != Finding(verdict="stops")
