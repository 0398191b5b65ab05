"""Tagging data of annotation tools and a word a row, from files and from Python, to labels and predictions."""

import io
import json
from pathlib import Path
from typing import Any

import pandas
import polars
import pytest
from support import tagged, tiny
from support.tagging import encode, make_config, make_rows, make_table, make_task, read

from hf_finetune.data.memory import read_memory
from hf_finetune.data.table import Table
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_rows import iterate_predictions
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.tag import Tagging
from hf_finetune.train import finetune

MADE = tagged.make_rows(24, longest=9)


def write_spans(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of words and tags as a text with spans, as doccano writes it."""
    text, spans = " ".join(row["tokens"]), []
    for number, tag in enumerate(row["tags"]):
        begin = len(" ".join(row["tokens"][:number])) + (number > 0)
        end = begin + len(row["tokens"][number])
        if tag[0] == "B":
            spans.append([begin, end, tag[2:]])
        elif tag[0] == "I":
            spans[-1][1] = end
    return {"id": 7, "text": text, "label": spans}


def write_words(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the words of rows, a row each, with the number of the sentence in its first row, as on Kaggle."""
    return [
        {"Sentence #": f"Sentence: {number}" if place == 0 else None, "Word": word, "POS": "X", "Tag": tag}
        for number, row in enumerate(rows, 1)
        for place, (word, tag) in enumerate(zip(row["tokens"], row["tags"], strict=True))
    ]


def read_rows(value: Any, name: str = "train", *, needs_labels: bool = True, **settings: Any) -> Table:
    """Returns the table of rows from Python."""
    config = make_config(**settings)
    return read_memory(value, name, config.data, Tagging.make_columns(config).spec, needs_labels=needs_labels)


@pytest.mark.parametrize("kind", ["spans.jsonl", "spans.json", "words.csv", "words.tsv", "lists.csv"])
def test_all_files_give_the_same_labels(tmp_path: Path, kind: str) -> None:
    """The recipe's settings find the columns. Texts and labels are those of lists of words and of tags."""
    rows = [write_spans(row) for row in MADE] if "spans" in kind else write_words(MADE) if "words" in kind else MADE
    if kind.endswith(".json"):
        text = json.dumps(rows)
    elif kind.endswith(".jsonl"):
        text = "\n".join(map(json.dumps, rows))
    else:
        text = pandas.DataFrame(rows).to_csv(index=False, sep="\t" if kind.endswith(".tsv") else ",")
    table, expected = read(tmp_path / kind, text), make_table(MADE)
    assert list(table.columns["tokens"]) == expected.columns["tokens"]
    assert list(table.columns["tags"]) == expected.columns["tags"]
    assert len(table.notes) >= 1
    task = make_task(table)
    assert task.state_dict() == make_task(expected).state_dict()
    assert encode(task, table).labels.values.tolist() == encode(task, expected).labels.values.tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda: [write_spans(row) for row in MADE],
        lambda: iter(write_words(MADE)),
        lambda: pandas.DataFrame(write_words(MADE)),
        lambda: polars.DataFrame(write_words(MADE)),
        lambda: pandas.DataFrame([write_spans(row) for row in MADE]),
        lambda: {"sentence_id": [0, 0], "words": ["a", "b"], "labels": ["B-x", "O"]},
        lambda: tiny_dataset([write_spans(row) for row in MADE]),
    ],
)
def test_rows_from_python_are_read_in_all_forms(make: Any) -> None:
    table = read_rows(make())
    first = ["a", "b"] if len(table) == 1 else MADE[0]["tokens"]
    assert table.columns["tokens"][0] == first
    assert make_task(table).scheme == "IOB2"
    assert table.where(0) == "train[0]"
    assert table.notes[0].startswith("train: ")


def tiny_dataset(rows: list[dict[str, Any]]) -> Any:
    """Returns a data set of the datasets library, whose spans are objects: its lists cannot hold numbers and texts."""
    import datasets

    as_objects = [
        {"text": row["text"], "entities": [{"start": b, "end": e, "label": k} for b, e, k in row["label"]]}
        for row in rows
    ]
    return datasets.Dataset.from_list(as_objects)


def test_rows_of_a_frame_keep_their_index() -> None:
    table = read_rows(
        pandas.DataFrame(write_words(MADE), index=[f"w{number}" for number in range(len(write_words(MADE)))])
    )
    first = len(MADE[0]["tokens"])
    assert table.where(1) == f"train[{first}] (index w{first})"


def test_warnings_about_the_rows_of_a_program_are_kept_apart_from_notes() -> None:
    rows = [{"text": "Tom lives", "label": [[0, 2, "PER"]]}] * 5
    table = read_rows(rows, **{"task.tag_faults": "repair"})
    (warning,) = table.warnings
    assert warning.startswith("train: 5 of 5 entities cut words: their offsets look shifted")
    assert warning not in table.notes


def test_errors_name_the_row_and_the_word(tmp_path: Path) -> None:
    rows = [json.dumps(row) for row in ({"text": "Tom", "label": []}, {"text": "Tom lives", "label": [[1, 3, "PER"]]})]
    with pytest.raises(InputError, match=r"a.jsonl:2: the entity 1-3 \(PER, 'om'\) cuts the word 'Tom'"):
        read(tmp_path / "a.jsonl", "\n".join(rows))
    table = read(tmp_path / "a.jsonl", "\n".join(rows), **{"task.tag_faults": "repair"})
    assert list(table.columns["tags"]) == [["O"], ["B-PER", "O"]]
    assert any("1 entities cut a word and were widened" in note for note in table.notes)
    words = read(tmp_path / "b.csv", "sentence_id,word,tag\n1,a,O\n1,b,I-x\n2,c,B-x\n")
    with pytest.raises(InputError, match=r"b.csv:3: the tag of word 2 \(b\), I-x, breaks IOB2"):
        make_task(words, **{"task.tag_scheme": "IOB2"})
    with pytest.raises(InputError, match=r"train\[1\]: the entity"):
        read_rows([{"text": "Tom", "label": []}, {"text": "Tom", "label": [[1, 3, "PER"]]}])
    with pytest.raises(
        InputError, match=r"c.csv:2: no column 'tokens' \(columns: text, stars\); see data.text_columns"
    ):
        read(tmp_path / "c.csv", "text,stars\na film,5\n")


def test_other_rows_are_read_as_before() -> None:
    """Also if they have columns that other forms have."""
    rows = [{**row, "text": "a text", "label": "x", "entities": []} for row in make_rows("the cat|O B-x", "saw|O")]
    table = read_rows(rows)
    assert list(table.columns["tokens"]) == [["the", "cat"], ["saw"]]
    assert table.notes == ()
    assert list(read_rows([{"tokens": "a plain text"}], needs_labels=False).columns["tokens"]) == ["a plain text"]
    assert list(read_rows([{"text": "a plain text"}], needs_labels=False).columns["tokens"]) == ["a plain text"]


def test_a_run_on_spans_predicts_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are those of the same sentences as lists. The model predicts texts, and evaluates all forms."""
    tokenizer, results, folders = tagged.word_piece(), [], []
    tiny.make_backbone(tmp_path / "backbone", "bert", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "backbone")
    for name, write in (("lists", dict), ("spans", write_spans)):
        rows = [tagged.make_rows(count, seed=seed) for seed, count in enumerate((24, 8, 8))]
        config = make_config(**{
            f"data.{split}": [str(tiny.write_jsonl(tmp_path / f"{name}-{split}.jsonl", list(map(write, part))))]
            for split, part in zip(("train", "validation", "test"), rows, strict=True)
        }, **{
            "model.backbone": str(tmp_path / "backbone"), "output_dir": str(tmp_path / name), "train.epochs": 1,
            "train.batch_size": 8, "train.precision": "fp32", "tracking.trackers": [], "name": name,
        })  # fmt: skip
        results.append(finetune(config).results["test"])
        folders.append(str(config.run_dir))
    assert results[0] == results[1]
    predictor = Predictor.from_pretrained(folders[1])
    for name in ("lists", "spans"):
        table = predictor.read(str(tmp_path / f"{name}-test.jsonl"), needs_labels=True)
        assert predictor.evaluate(table) == pytest.approx(results[0], abs=1e-6)
    (row,) = predictor.predict([{"text": "the cat, saw"}])
    assert row["tokens"] == ["the", "cat", ",", "saw"]

    words = tmp_path / "words.csv"
    words.write_text("Sentence #,Word\n1,the\n,cat\n2,saw\n")
    kept = list(iterate_predictions(predictor, str(words), keep=("Sentence #",)))
    assert [(row["tokens"], row["input"]) for row in kept if row] == [
        (["the", "cat"], {"Sentence #": "1"}),
        (["saw"], {"Sentence #": "2"}),
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in write_words(MADE))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    joined = list(iterate_predictions(predictor, "-"))  # a word a line
    assert [row["tokens"] for row in joined if row] == [row["tokens"] for row in MADE]
    spans = tiny.write_jsonl(
        tmp_path / "faulty.jsonl", [{"text": "the cat", "label": [[1, 3, "x"]]}, {"text": " ", "label": []}]
    )
    (row, nothing) = iterate_predictions(predictor, str(spans))  # labels are not read, and the empty text is null
    assert row is not None
    assert row["tokens"] == ["the", "cat"]
    assert nothing is None
