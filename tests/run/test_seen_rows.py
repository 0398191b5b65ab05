"""Rows to evaluate that earlier runs of a model were trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.findings import Finding
from hf_finetune.run import seen_rows
from hf_finetune.run.seen_rows import SEEN_ROWS, read_seen_rows
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

SHORT: dict[str, Any] = {"train.epochs": 1, "train.max_updates": 2, "cache.activations": "off"}
OLD, NEW, LATER = (tiny.make_rows(count, seed=seed) for count, seed in ((40, 5), (30, 6), (20, 7)))
UNSEEN = [{"text": f"no run has seen {row['text']}", "label": row["label"]} for row in LATER]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Writes rows, and returns the value of a setting that names them."""
    return [str(tiny.write_jsonl(folder / f"{name}.jsonl", rows))]


def begin(source: Any, **settings: Any) -> dict[str, Any]:
    """Returns the settings of a run that begins from a finished run."""
    return {**SHORT, "start_from": str(source.run_dir), "model.backbone": str(source.model_dir), **settings}


def find(run: TrainingRun) -> dict[str, Finding]:
    """Returns what the report says of rows that were seen, by kind and split."""
    return {
        f"{finding.kind} {finding.split}".strip(): finding
        for finding in run.data_report.findings
        if finding.kind.endswith("seen_rows")
    }


def test_a_run_knows_the_rows_that_all_runs_before_it_were_trained_on(
    make_config: Callable[..., RunConfig],
    make_run: Callable[..., TrainingRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = write(tmp_path, "old", OLD), write(tmp_path, "new", NEW)
    first = finetune(make_config(**SHORT, name="first", **{"data.train": old}))
    second = finetune(make_config(**begin(first, name="second", **{"data.train": new})))
    for run, rows, count in ((first, OLD, 1), (second, OLD + NEW, 2)):
        for place in (run.run_dir, run.model_dir, next((run.run_dir / "checkpoints").glob("*.pt"))):
            kept = read_seen_rows(place)
            assert kept is not None
            assert (len(kept.hashes), kept.num_runs) == (len({row["text"] for row in rows}), count)

    # Of mixed rows those are found that either run has seen, whatever their labels
    mixed = [*UNSEEN[:5], OLD[3] | {"label": "food"}, NEW[8]]
    given = {"data.validation": write(tmp_path, "mixed", mixed), "data.test": write(tmp_path, "unseen", UNSEEN)}
    settings = begin(second, name="third", **given)
    found = find(make_run(**settings))
    assert list(found) == ["seen_rows validation"]
    finding = found["seen_rows validation"]
    assert (finding.count, finding.is_warning) == (2, True)
    assert finding.sentence.startswith(
        "validation: 2 of 7 rows (28.6 %) have the text of a row that an earlier run of this model was trained on, such as "
    )
    assert "mixed.jsonl:6 and " in finding.sentence
    with pytest.raises(InputError, match=r"data.strict: the data have .* warning"):
        make_run(**settings | {"data.strict": True})

    # Drawn rows are known to be unseen, or to be seen
    drawn = {"data.validation": [], "data.test": [], "data.test_fraction": 0.0}
    assert find(make_run(**begin(second, name="third", **drawn, **{"data.train": given["data.test"]}))) == {}
    settings = begin(second, name="third", **drawn, **{"data.train": old})
    assert find(make_run(**settings))["seen_rows validation"].count == 4

    # A file that is damaged, or of a run that began from an unknown one, is no proof that rows are unseen
    path = second.run_dir / SEEN_ROWS
    content = path.read_bytes()
    place = content.index(kept.hashes.tobytes()) + 9  # a byte of the second hash
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    header = content.index(b"{'descr'")
    broken = content[:header] + b"{" + content[header:-1]  # a header that is no Python
    for damaged in (b"", b"text", content[:place], flipped, broken):
        path.write_bytes(damaged)
        assert read_seen_rows(second.run_dir) is None
        assert list(find(make_run(**settings))) == ["perhaps_seen_rows"]
    (first.run_dir / SEEN_ROWS).unlink()
    other = finetune(make_config(**begin(first, name="other", **{"data.train": new})))
    found = find(make_run(**begin(other, name="third", **drawn, **{"data.train": new})))
    assert list(found) == ["seen_rows validation", "perhaps_seen_rows"]
    assert found["seen_rows validation"].count == 3

    # Too many rows are not kept
    monkeypatch.setattr(seen_rows, "MOST_ROWS", len(NEW) - 1)
    large = finetune(make_config(**SHORT, name="large", **{"data.train": new}))
    assert not (large.run_dir / SEEN_ROWS).exists()
