"""Tags as data write them: the same features and numbers as with canonical tags, words that are not labelled, and warnings."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tagged, tiny
from support.tagging import encode, make_config, make_rows, make_table, make_task, read

from hf_finetune.data.features import IGNORED
from hf_finetune.export.predict import Predictor
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.run.data_report import report_on_rows
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.tag import Tagging
from hf_finetune.tasks.text.tag_forms import ALPHABETS
from hf_finetune.tasks.text.tags import repair_tags
from hf_finetune.train import finetune

MADE = tagged.make_rows(24, longest=16)
WRITTEN = {
    "lower": lambda tag: tag[0].lower() + tag[1:],
    "suffix": lambda tag: "-".join(reversed(tag.split("-"))),
    "underscore": lambda tag: tag.replace("-", "_"),
    "lower-suffix": lambda tag: "_".join(reversed((tag[0].lower() + tag[1:]).split("-"))),
    "blanks": lambda tag: f" {tag}\t",
}


def rewrite(rows: list[dict[str, Any]], write: Any) -> list[dict[str, Any]]:
    """Returns rows with their tags written in another way."""
    return [{**row, "tags": [write(tag) for tag in row["tags"]]} for row in rows]


def write_bilou(tag: str) -> str:
    """Returns a tag of BIOES in BILOU."""
    letters = {own: other for other, own in ALPHABETS["BILOU"].items()} | {"O": "O"}
    return letters[tag[0]] + tag[1:]


# --- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITTEN)
def test_tags_in_another_form_give_the_same_labels(kind: str) -> None:
    """Also if the test is written in another form than training."""
    task, written = make_task(make_table(MADE)), make_table(rewrite(MADE, WRITTEN[kind]))
    other = make_task(written)
    assert (other.label_names, other.scheme, other.state_dict()) == (task.label_names, "IOB2", task.state_dict())
    expected = encode(task, make_table(MADE)).labels.values.tolist()
    for one, table in ((other, written), (task, written), (other, make_table(MADE))):
        assert encode(one, table).labels.values.tolist() == expected


def test_bilou_is_read_as_bioes() -> None:
    rows = rewrite(MADE, str)
    for row in rows:
        row["tags"] = repair_tags(row["tags"], "BIOES")
    task, written = make_task(make_table(rows)), make_table(rewrite(rows, write_bilou))
    other = make_task(written)
    assert (other.label_names, other.scheme) == (task.label_names, "BIOES")
    assert encode(other, written).labels.values.tolist() == encode(task, make_table(rows)).labels.values.tolist()
    (line,) = [text for name, text in other.encoding.describe(encode(other, written), written, 60) if name == "tags"]
    assert line.startswith("BIOES, written as BILOU; there are tags with E and S: O ")
    assert make_task(written, **{"task.tag_scheme": "BIOES"}).label_names == task.label_names


@pytest.mark.parametrize(("tag", "line"), [("b-PER", "like b-PER"), ("B:PER", "like B:PER"), ("PER_B", "like PER_B")])
def test_a_column_file_in_another_form(tmp_path: Path, tag: str, line: str) -> None:
    table = read(tmp_path / "a.conll", f"Tom\t{tag}\nlives\to\n\nAnna\t{tag}\n")
    task = make_task(table)
    assert task.label_names == ("B-PER", "I-PER", "O")
    assert task.encoding.reason == f"written {line}; entities begin with B"
    assert task.encoding.count_labels(table) == {"PER": 2}


def test_tags_that_stand_for_themselves_keep_their_form() -> None:
    rows = make_rows("the cat|b_x NOUN", "saw|o")
    assert make_task(make_table(rows)).label_names == ("NOUN", "b_x", "o")
    lower = make_rows("the cat|b-x o", "saw|i-x")
    assert make_task(make_table(lower), **{"task.tag_scheme": "none"}).label_names == ("b-x", "i-x", "o")


def test_class_names_in_another_form() -> None:
    """Of a data set on the Hub, and of task.label_names. The order is theirs."""
    rows = [{"tokens": ["the", "cat", "saw"], "tags": [0, 1, 2]}]
    names = ("o", "b-x", "i-x")
    for task in (
        make_task(make_table(rows, class_names=names)),
        make_task(make_table(rows), **{"task.label_names": names}),
    ):
        assert (task.label_names, task.scheme) == (("O", "B-x", "I-x"), "IOB2")
    texts = make_table([{"tokens": ["the", "cat"], "tags": ["0", 1.0]}])  # as a column file has them
    assert make_task(texts, **{"task.label_names": names}).encoding.reader.read_tags(texts, 0) == ["O", "B-x"]


def test_numbers_are_one_label_in_all_types_of_files() -> None:
    task = make_task(make_table([{"tokens": ["a", "b", "c"], "tags": [10, 9.0, "9"]}]))
    assert task.label_names == ("9", "10")
    assert encode(task, make_table([{"tokens": ["a"], "tags": ["10.0"]}])).labels.values.tolist()[1] == 1


def test_values_of_several_types_are_not_mixed_up() -> None:
    """1 and true are one key of a dict. A tag is read as it was the first time, whatever its row."""
    rows = [{"tokens": ["a", "b"], "tags": tags} for tags in ([1, 0], ["1", 1.0], [0, "0"], [1, 1])]
    table = make_table(rows, class_names=("O", "B-x"))
    task = make_task(table)
    names = [task.encoding.reader.read_tags(table, row) for row in (*range(4), *range(4))]
    assert names == [["B-x", "O"], ["B-x", "B-x"], ["O", "O"], ["B-x", "B-x"]] * 2
    with pytest.raises(InputError, match=r"rows.jsonl:1: the tag of word 1 \(a\), True, is not the name of a tag"):
        task.encoding.reader.read_tags(make_table([{"tokens": ["a"], "tags": [True]}], class_names=("O", "B-x")), 0)


def test_the_rows_of_a_head_are_found_in_any_form() -> None:
    from types import SimpleNamespace

    from hf_finetune.model.label_rows import match_labels

    task = make_task(make_table(make_rows("the cat dog|B-PER I-PER O")))
    names = ["o", "i-PER", "b-PER", "b-LOC"]
    old = SimpleNamespace(num_labels=4, id2label=dict(enumerate(names)), architectures=["BertForTokenClassification"])
    new = SimpleNamespace(num_labels=3, id2label=dict(enumerate(task.label_names)))
    match = match_labels(old, new, task.head)
    assert match is not None
    assert match.rows == (2, 1, 0)
    assert match_labels(old, new, HeadSpec(auto_class=task.head.auto_class, has_labels=True)).rows == (None,) * 3  # type: ignore[union-attr]
    state = Tagging.read_state(old)
    assert (state["labels"], state["scheme"]) == (["O", "I-PER", "B-PER", "B-LOC"], "IOB2")


# --- words that are not labelled --------------------------------------------------------------------------------------

UNLABELLED = {"task.ignore_labels": ["-100", "null"]}


def test_words_without_a_label_are_not_learned() -> None:
    table = make_table([{"tokens": ["the", "cats", "saw", "qs"], "tags": ["O", None, "B-x", -100]}])
    task = make_task(table, **UNLABELLED)
    assert task.label_names == ("B-x", "I-x", "O")
    assert encode(task, table).labels.values.tolist() == [IGNORED, 2, IGNORED, IGNORED, 0, IGNORED, IGNORED, IGNORED]
    every = make_task(table, **UNLABELLED, **{"task.label_all_pieces": True})
    assert Counter(encode(every, table).labels.values.tolist()) == {IGNORED: 6, 2: 1, 0: 1}
    lines = dict(task.encoding.describe(encode(task, table), table, 60))
    assert lines[""] == "2 words are not labelled (task.ignore_labels -100 null): neither learned nor scored"
    assert lines["tags"].endswith(": O (1), B-x (1)")


@pytest.mark.parametrize("missing", [None, float("nan"), " ", ""])
def test_all_missing_tags_are_null(missing: Any) -> None:
    table = make_table([{"tokens": ["a", "b", "c"], "tags": ["x", missing, "y"]}])
    task = make_task(table, **{"task.ignore_labels": ["null"]})
    assert task.encoding.reader.read_tag_numbers(table, 0, {"x": 0, "y": 1}) == [0, IGNORED, 1]
    with pytest.raises(InputError, match=r"rows.jsonl:1: the tag of word 2 \(b\), .*; task.ignore_labels null leaves"):
        make_task(table)


def test_minus_one_is_a_tag_unless_it_is_named() -> None:
    table = make_table([{"tokens": ["a", "b", "c"], "tags": [1, -1, 0]}])
    assert make_task(table).label_names == ("-1", "0", "1")
    assert make_task(table, **{"task.ignore_labels": ["-1"]}).label_names == ("0", "1")


def test_words_without_a_label_are_not_scored() -> None:
    """An entity ends before such a word. The scores are those of the other words."""
    table = make_table([{"tokens": ["a", "b", "c", "d"], "tags": ["B-x", -100, "I-x", "O"]}])
    task = make_task(table, **UNLABELLED)
    features = encode(task, table)
    for wrong in range(3):  # whatever is predicted for the word
        outputs = [np.array([0, 0, wrong, 1, 2, 0])]
        values = task.scoring.compute_metrics("f1", outputs, features, table, np.array([0]))
        assert (values["f1"], values["accuracy"]) == (1.0, 1.0)
        inputs = task.scoring.make_metric_inputs(outputs, features, table, np.array([0]))
        assert inputs.predictions == inputs.references == [["B-x", "I-x", "O"]]
    values = task.scoring.compute_metrics("f1", [np.array([0, 0, 0, 2, 2, 0])], features, table, np.array([0]))
    assert (values["precision"], values["recall"], values["accuracy"]) == (1.0, 0.5, pytest.approx(2 / 3))
    plain = make_task(table, **UNLABELLED, **{"task.tag_scheme": "none"})
    values = plain.scoring.compute_metrics("accuracy", [np.array([0, 0, 2, 1, 1, 0])], features, table, np.array([0]))
    assert values["accuracy"] == pytest.approx(2 / 3)


def test_data_without_any_label_are_an_error() -> None:
    task = make_task(make_table(make_rows("the cat|O B-x")), **UNLABELLED)
    with pytest.raises(InputError, match=r"rows.jsonl:1: no word of these data is labelled, see task.ignore_labels"):
        encode(task, make_table([{"tokens": ["a"], "tags": [None]}]))


def test_a_run_with_words_without_a_label(tmp_path: Path) -> None:
    """Numbers with names, -100 in all splits: training, evaluation and the exported model leave the words out."""
    names, generator = ["O", *(f"{letter}-{kind}" for kind in tiny.CLASSES for letter in "BI")], random.Random(0)
    settings: dict[str, Any] = {}
    for seed, split in enumerate(("train", "validation", "test")):
        rows = rewrite(
            tagged.make_rows(140, seed=seed), lambda tag: -100 if generator.random() < 0.2 else names.index(tag)
        )
        settings[f"data.{split}"] = [str(tiny.write_jsonl(tmp_path / f"{split}.jsonl", rows))]
    tokenizer = tagged.word_piece()
    tiny.make_backbone(tmp_path / "backbone", "bert", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "backbone")
    config = make_config(**settings, **{
        "model.backbone": str(tmp_path / "backbone"), "output_dir": str(tmp_path), "train.epochs": 6,
        "train.batch_size": 8, "train.learning_rate": 5e-3, "train.precision": "fp32", "tracking.trackers": [],
        "task.ignore_labels": ["-100"], "task.label_names": names,
    })  # fmt: skip
    results = finetune(config).results
    assert list(json.loads((config.run_dir / "model/config.json").read_text())["id2label"].values()) == names
    assert 0.2 < results["test"]["f1"] <= 1
    predictor = Predictor.from_pretrained(str(config.run_dir))
    assert predictor.evaluate(predictor.read(settings["data.test"][0], needs_labels=True)) == pytest.approx(
        results["test"], abs=1e-6
    )
    (row,) = predictor.predict([{"tokens": ["the", "cat"]}])
    assert len(row["tags"]) == 2


# --- warnings and counts --------------------------------------------------------------------------------------------


def test_tags_that_look_like_entities_and_are_not_read_as_such_are_a_warning() -> None:
    rows = make_rows("Tom lives in new Bonn|b-PER o 0 b-LOC i-LOC")
    task = make_task(make_table(rows))
    (warning,) = task.encoding.find_warnings({"train": make_table(rows)})
    assert warning.startswith("tags such as b-LOC look like those of entities, but 0 is not of their scheme")
    assert make_task(make_table(rows), **{"task.tag_scheme": "none"}).encoding.find_warnings({}) == []
    assert make_task(make_table(make_rows("the cat|DET NOUN"))).encoding.find_warnings({}) == []


def test_numbers_as_tags_are_a_warning() -> None:
    table = make_table([{"tokens": ["Tom", "Miller", "ran", "far"], "tags": [1, 2, 0, 10]}])
    (warning,) = make_task(table).encoding.find_warnings({"train": table})
    assert warning.startswith(
        "all 4 tags are numbers without names, such as 0 and 10: no entities are scored; if they stand"
    )
    named = {"task.label_names": ["O", "B-x", "I-x", *(f"B-{number}" for number in range(8))]}
    for settings in (named, {"task.tag_scheme": "none"}):
        assert make_task(table, **settings).encoding.find_warnings({"train": table}) == []


def test_tags_without_the_beginning_of_an_entity_are_said_not_to_be_scored() -> None:
    for rows, is_said in ((make_rows("Tom ran|PER O"), True), (make_rows("a cat|DET NOUN"), False)):
        task, table = make_task(make_table(rows)), make_table(rows)
        (line,) = [text for name, text in task.encoding.describe(encode(task, table), table, 60) if name == "tags"]
        assert ("do not mark entities; entities are not scored: " in line) == is_said


def test_other_warnings_and_counts() -> None:
    train, test = make_table(make_rows("Tom saw Bonn|B-PER O B-Per", "a cat|O B-LOC")), make_table(make_rows("a b|O O"))
    task = make_task(train)
    assert task.encoding.find_warnings({"train": train, "test": test}) == [
        "types of entities that look alike are different ones: PER and Per"
    ]
    assert [task.encoding.find_row_warnings(table) for table in (train, test)] == [[], ["no word is in an entity"]]
    assert task.encoding.count_labels(train) == {"PER": 1, "Per": 1, "LOC": 1}
    plain = make_task(make_table(make_rows("the cat saw|DET NOUN NOUN")))
    assert plain.encoding.count_labels(make_table(make_rows("a b|NOUN NOUN"))) == {"NOUN": 2}


def test_the_report_compares_tags_in_their_canonical_form() -> None:
    """Of two taggings of a sentence: no conflict if they mean the same, one if they do not."""
    train = make_rows("the cat dog|O B-animals I-animals", "saw here|B-tools O")
    test = make_rows(
        "a cat|O b-animals",
        "a cat|O B_animals",
        "a dog|O I-animals",
        "a dog|O B-animals",
        "a saw|O O",
        "a saw|O B-tools",
    )
    tables = {"train": make_table(train), "test": make_table(test)}
    report = report_on_rows(tables, make_task(tables["train"], **{"task.tag_faults": "repair"}))
    found = {finding.kind: finding for finding in report.findings if finding.split == "test"}
    assert (found["duplicates"].count, found["conflicts"].count) == (2, 1)
    assert "rows.jsonl:6" in found["conflicts"].sentence


def test_tags_that_stand_for_themselves_and_look_alike_are_a_warning() -> None:
    table = make_table(make_rows("the cat|DET noun", "a dog|DET Noun"))
    assert make_task(table, **{"task.tag_scheme": "none"}).encoding.find_warnings({"train": table}) == [
        "tags that look alike are different ones: Noun and noun"
    ]
