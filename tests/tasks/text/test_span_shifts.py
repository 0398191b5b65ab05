"""Spans that cut words in many rows: shifted offsets and inclusive ends are found; single mistakes are not called so."""

import json
from pathlib import Path

import pytest
from support.tagging import make_task, read

from hf_finetune.run.data_report import report_on_rows
from hf_finetune.system.errors import InputError

TEXTS = [(" Tom Miller lives in Bonn.", [[1, 11, "PER"], [21, 25, "LOC"]]), (" Anna works.", [[1, 5, "PER"]])] * 4
REPAIR = {"task.tag_faults": "repair"}


def write_rows(shift: tuple[int, int], num_shifted: int = len(TEXTS)) -> str:
    """Returns rows, the first of which have offsets that need this shift."""
    rows = []
    for number, (text, spans) in enumerate(TEXTS):
        begin, end = shift if number < num_shifted else (0, 0)
        moved = [[first - begin, last - end, kind] for first, last, kind in spans]
        rows.append(json.dumps({"text": text, "entities": moved}))
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("shift", "found"),
    [
        ((1, 1), ", for +1 at each start and +1 at each end makes all of these fit words"),
        ((-1, -1), ", for -1 at each start and -1 at each end makes all of these fit words"),
        ((0, 1), ", for +0 at each start and +1 at each end makes all of these fit words"),  # inclusive ends
        ((-1, 0), ", for -1 at each start and +0 at each end makes all of these fit words"),
        ((0, 2), ", or counted in another text than this one"),
    ],
)
def test_shifted_offsets_are_an_error_and_a_warning_that_say_so(
    tmp_path: Path, shift: tuple[int, int], found: str
) -> None:
    text, sentence = write_rows(shift), f"12 of 12 entities cut words: their offsets look shifted{found}"
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.jsonl", text)
    assert "a.jsonl:1: the entity" in str(caught.value)
    assert str(caught.value).endswith(f"to widen such entities; {sentence}: correct the offsets")
    table = read(tmp_path / "a.jsonl", text, **REPAIR)
    report = report_on_rows({"train": table, "test": table}, make_task(table, **REPAIR))
    (warning,) = [sentence for sentence in report.warnings if "look shifted" in sentence]
    assert warning.endswith(f"a.jsonl: {sentence}; correct the offsets")


def test_single_mistakes_are_not_called_shifted(tmp_path: Path) -> None:
    text = write_rows((1, 1), num_shifted=2)  # 3 of 12 spans
    with pytest.raises(InputError, match=r"to widen such entities$"):
        read(tmp_path / "a.jsonl", text)
    table = read(tmp_path / "a.jsonl", text, **REPAIR)
    assert table.warnings == ()
