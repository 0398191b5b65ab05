"""The texts of examples, read again from every kind of data, also if the data have changed or are gone."""

import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_finetune.analysis.run_files import RunFiles
from hf_finetune.analysis.texts import read_texts
from hf_finetune.config.loading import load_config
from hf_finetune.config.recipes import read_defaults
from hf_finetune.config.sections import flatten, to_dict
from hf_finetune.config.tasks import load_task
from hf_finetune.data.memory import MEMORY
from hf_finetune.data.splits import load_splits
from hf_finetune.run.scored import ScoredExamples, add_origins
from hf_finetune.tasks.example_scores import ExampleScores

TEXTS = ["a fine film", 'dull, and "long"', "it rains | today", "the cup was won"]
LABELS = ["pos", "neg", "neg", "pos"]
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


def score_split(
    kind: str, settings: Mapping[str, Any], split: str = "test", given: Mapping[str, Any] | None = None
) -> tuple[RunFiles, ScoredExamples]:
    """Returns the files of a run as a report reads them, and the scored examples of a split as the run writes them."""
    config = load_config({**read_defaults(kind), "model.backbone": "-", "name": "run", **settings})
    task_class = load_task(kind)
    splits = load_splits(config.data, config.seed, task_class.make_columns(config).spec, given)
    task, table = task_class.from_table(config, splits.train), splits.tables()[split]
    labels = None
    if kind in ("classify", "tag"):
        column = task.columns.spec.labels[0]
        labels = [table.columns[column][row] for row in range(len(table))]
    scores = ExampleScores(rows=np.arange(len(table)), metrics={}, labels=labels)
    scored = add_origins(scores, task, table, {}, kind=kind, metric="loss")
    run = RunFiles(
        folder=Path("run"),
        label="run",
        state="finished",
        settings=dict(flatten(to_dict(config))),
        environment={},
        data_report={},
        results={},
        rows=[],
    )
    return run, scored


def read_all(run: RunFiles, scored: ScoredExamples, split: str = "test") -> tuple[list[str | None], str]:
    """Returns the text of each example in the order of the split, and the note."""
    texts, note = read_texts(run, scored, split, range(len(scored)))
    return [texts.get(place) for place in range(len(scored))], note


def write_data(folder: Path, kind: str) -> Path:
    """Writes ROWS as a file or a folder of this kind."""
    path = folder / f"rows.{kind}"
    if kind in ("csv", "csv.gz", "tsv"):
        mark = "\t" if kind == "tsv" else ","
        quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
        lines = [f"{text}{mark}{label}\n" for text, label in zip(quoted, LABELS, strict=True)]
        content = "".join([f"text{mark}label\n", *lines]).encode()
        path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    elif kind in ("parquet", "arrow"):
        import pyarrow as pa
        import pyarrow.feather
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(ROWS)
        pq.write_table(table, path) if kind == "parquet" else pyarrow.feather.write_feather(table, str(path))
    elif kind == "txt":
        path.write_text("".join(f"__label__{row['label']} {row['text']}\n" for row in ROWS), encoding="utf-8")
    else:
        for number, row in enumerate(ROWS):
            (path / row["label"]).mkdir(parents=True, exist_ok=True)
            (path / row["label"] / f"{number}.txt").write_text(row["text"], encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "json", "jsonl", "parquet", "arrow", "txt", "folder"])
def test_texts_of_every_kind_of_table_are_shown(tmp_path: Path, kind: str) -> None:
    path = str(write_data(tmp_path, kind))
    run, scored = score_split("classify", {"data.train": [path], "data.validation": [path], "data.test": [path]})
    texts, note = read_all(run, scored)
    assert (sorted(map(str, texts)), note) == (sorted(TEXTS), "")


def test_texts_of_other_tasks_are_those_that_the_model_saw(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("New B-place\nYork I-place\nis O\n\nhere O\n", encoding="utf-8")
    squad = {"data": [{"paragraphs": [{"context": "It rains in Rome.", "qas": [
        {"id": "1", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 12}]},
        {"id": "2", "question": "What?", "answers": [{"text": "rains", "answer_start": 3}]},
    ]}]}]}  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps(squad), encoding="utf-8")
    (tmp_path / "c.en").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "c.de").write_text("eins\nzwei\n", encoding="utf-8")
    (tmp_path / "d.csv").write_text("anchor,positive\none,first\ntwo,second\n", encoding="utf-8")
    talk = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    (tmp_path / "e.jsonl").write_text(json.dumps({"messages": talk}) + "\n", encoding="utf-8")
    expected: dict[str, tuple[list[str], list[str]]] = {
        "tag": (["a.conll"], ["New York is", "here"]),
        "answer": (["b.json"], ["Where? | It rains in Rome.", "What? | It rains in Rome."]),
        "translate": (["c.en", "c.de"], ["one | eins", "two | zwei"]),
        "embed": (["d.csv"], ["one | first", "two | second"]),
        "instruct": (["e.jsonl"], ["user: Hello? assistant: Yes."]),
    }
    for kind, (names, texts) in expected.items():
        paths = [str(tmp_path / name) for name in names]
        run, scored = score_split(kind, {f"data.{split}": paths for split in ("train", "validation", "test")})
        assert read_all(run, scored) == (texts, ""), kind


def test_rows_that_were_drawn_from_training_are_found_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"word {n},{'ab'[n % 2]}\n" for n in range(40)), encoding="utf-8")
    run, scored = score_split("classify", {"data.train": [str(path)]}, "validation")
    texts, note = read_all(run, scored, "validation")
    assert texts == [f"word {line - 2}" for line in scored.lines]
    assert (len(texts), note) == (4, "")


def test_data_sets_in_a_folder_are_read_and_those_of_the_hub_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "dataset"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        shutil.copy(write_data(tmp_path, "jsonl"), folder / f"{split}.jsonl")
    run, scored = score_split("classify", {"data.dataset": str(folder)})
    assert read_all(run, scored) == (TEXTS, "")
    (folder / "validation.jsonl").unlink()
    drawn = {"data.dataset": str(folder), "data.validation_fraction": 0.5}
    texts, note = read_all(*score_split("classify", drawn, "validation"), "validation")
    assert (len({*texts} & {*TEXTS}), note) == (2, "")
    texts, note = read_all(replace(run, settings={**run.settings, "data.dataset": "stanfordnlp/sst2"}), scored)
    assert texts == [None] * 4
    assert note == (
        "Texts are not shown: data.dataset (stanfordnlp/sst2) is not a folder, and a report asks nothing of the network."
    )


@pytest.fixture
def csv_run(tmp_path: Path) -> tuple[Path, RunFiles, ScoredExamples]:
    """A file, and a run whose test split it was."""
    path = write_data(tmp_path, "csv")
    run, scored = score_split("classify", {f"data.{split}": [str(path)] for split in ("train", "validation", "test")})
    return path, run, scored


@pytest.mark.parametrize(
    ("change", "shown", "note"),
    [
        (lambda text: text.replace("fine", "poor"), [None, *TEXTS[1:]], "1 of 4 texts are not shown: the data have"),
        (lambda text: text.replace('""",neg', '""",pos'), TEXTS, ""),
        (lambda text: text.replace("label\n", "label\nfirst,pos\n"), [None] * 4, "Texts are not shown: the data have"),
        (lambda text: text + "more,neg\n", TEXTS, ""),
        (lambda text: text.replace("text,label", "words,label"), [None] * 4, "Texts are not shown: "),
        (lambda text: "", [None] * 4, "Texts are not shown: "),
    ],
    ids=["a text", "a label", "moved", "added", "another column", "empty"],
)  # fmt: skip
def test_a_file_that_has_changed_shows_no_other_text(
    csv_run: tuple[Path, RunFiles, ScoredExamples], change: Callable[[str], str], shown: list[str | None], note: str
) -> None:
    path, run, scored = csv_run
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    texts, said = read_all(run, scored)
    assert texts == shown
    assert said.startswith(note) if note else not said


def test_texts_that_cannot_be_read_are_a_sentence(csv_run: tuple[Path, RunFiles, ScoredExamples]) -> None:
    path, run, scored = csv_run
    path.unlink()
    assert read_all(run, scored)[1] == f"Texts are not shown: data.test ({path}): no such file or folder."
    assert read_texts(run, scored, "test", []) == ({}, "")
    own = replace(run, settings={**run.settings, "task.kind": "no_such_module:Task"})
    assert "a class of your own (no_such_module:Task), and a report imports no code" in read_all(own, scored)[1]
    older = replace(run, settings={**run.settings, "prefix.cache": "auto"})
    assert "prefix.cache" in read_all(older, scored)[1]


def test_rows_of_a_program_are_not_kept() -> None:
    given = {"train": ROWS, "validation": ROWS, "test": ROWS}
    run, scored = score_split("classify", {f"data.{name}": [f"{MEMORY}{name}"] for name in given}, given=given)
    assert read_all(run, scored) == (
        [None] * 4,
        "Texts are not shown: a program gave the rows, and a run does not keep them.",
    )
