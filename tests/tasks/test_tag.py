"""Tagging: each part alone, labels, loss, metrics and predictions against independent code, every error, files, a run."""

import dataclasses
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqeval.metrics
import torch
import transformers
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from support import tagged, tiny
from support.tagging import encode, make_config, make_rows, make_table, make_task, read

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import IGNORED, Batch, Padding, collate, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.data.splits import load_splits
from hf_finetune.export.predict import Predictor
from hf_finetune.forward.plan import FULL_FORWARD
from hf_finetune.run.folder import open_run
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, evaluate_split, make_runner
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.tag import (
    Settings,
    Tagging,
    TaggingColumns,
    TaggingEncoding,
    TaggingObjective,
    TaggingScoring,
)
from hf_finetune.tasks.text.tag_reader import TagReader
from hf_finetune.train import finetune


def make_model(task: Tagging, tokenizer: Any, seed: int = 0) -> Any:
    """Returns a small random tagger in eval mode."""
    torch.manual_seed(seed)
    config = tiny.make_config(
        "bert", **(dict(task.head.config_entries) | {"vocab_size": len(tokenizer), "initializer_range": 0.5})
    )
    return transformers.AutoModelForTokenClassification.from_config(config).eval()


MADE = make_table(tagged.make_rows(24, longest=16))
SMALL = make_table(make_rows("the cat dog|O B-animals I-animals", "saw here|B-tools O"))


# --- what is learned from the data --------------------------------------------------------------------------------------


def test_the_labels_are_all_tags_of_the_scheme_in_a_fixed_order() -> None:
    """Training lacks I-tools; a validation split may have it."""
    task = make_task(SMALL)
    assert task.label_names == ("B-animals", "B-tools", "I-animals", "I-tools", "O")
    assert (task.scheme, task.problem, task.default_tag) == ("IOB2", "entities", "O")
    again = Tagging.from_state(make_config(), json.loads(json.dumps(task.state_dict())))
    reason = task.encoding.reason
    assert dataclasses.replace(again, encoding=dataclasses.replace(again.encoding, reason=reason)) == task


def test_other_tags_stand_for_themselves() -> None:
    task = make_task(make_table(make_rows("the cat|10 9", "saw|9")))
    assert (task.scheme, task.problem, task.label_names, task.default_tag) == ("none", "tags", ("9", "10"), "9")
    assert task.scoring.metric_names == ("accuracy", "f1_macro")
    assert make_task(SMALL, **{"task.tag_scheme": "none"}).label_names == ("B-animals", "B-tools", "I-animals", "O")


def test_the_numbers_of_a_hub_data_set_get_their_names() -> None:
    names = ("O", "B-animals", "I-animals", "B-tools", "I-tools")
    table = make_table([{"tokens": ["the", "cat", "saw"], "tags": [0, 1, 3]}], class_names=names)
    task = make_task(table)
    assert task.label_names == names  # in the data set's own order
    assert task.encoding.reader.read_tag_numbers(table, 0, dict(zip(names, range(5), strict=True))) == [0, 1, 3]


def test_class_weights_count_words() -> None:
    """They do not count pieces, and do not depend on windows."""
    task = make_task(MADE, **{"task.class_weights": ["balanced"]})
    all_tags = [tag for tags in MADE.columns["tags"] for tag in tags]
    names = [name for name in task.label_names if name in all_tags]
    expected = dict(zip(names, compute_class_weight("balanced", classes=np.array(names), y=all_tags), strict=True))
    assert task.class_weights == pytest.approx([expected.get(name, 1.0) for name in task.label_names])
    named = make_task(MADE, **{"task.class_weights": ["O=0.25"]})
    assert named.class_weights[named.label_names.index("O")] == 0.25
    outputs, features = torch.randn(2, 20, len(task.label_names)), encode(task, MADE)
    batch = collate(features, np.array([0, 1]), Padding(0))
    outputs = outputs[:, : batch.inputs["input_ids"].shape[1]]
    total, count = task.objective.loss(outputs, batch)
    reference = torch.nn.CrossEntropyLoss(weight=torch.tensor(task.class_weights))
    torch.testing.assert_close(total / count, reference(outputs.flatten(0, 1), batch.labels.flatten()))


def test_the_training_data_are_described() -> None:
    """By windows, words that the model does not see, tags of words, repaired tags, and entities."""
    table = make_table([*make_rows("the cats|O I-animals"), {"tokens": ["\u200b", "saw"], "tags": ["O", "B-tools"]},
                      *make_rows("this cats here saw that one|O B-animals O B-tools O O")])  # fmt: skip
    task = make_task(table, **{"task.tag_faults": "repair", "task.class_weights": ["O=2"]})
    lines = task.encoding.describe(encode(task, table, 7), table, 7)
    assert lines == [
        ("input", "at most 7 tokens; 1 longer training texts in overlapping windows"),
        ("", "1 words have no token: they are always predicted as O"),
        ("tags", "IOB2, entities begin with B: O (6), B-animals (2), B-tools (2)"),
        ("", "1 tags broke the scheme and were repaired"),
        ("entities", "animals (2), tools (2)"),
        ("weights", "B-animals 1, B-tools 1, I-animals 1, I-tools 1, O 2"),
    ]
    long = make_table(make_rows(f"the {'q' * 30}|O B-x"))
    task = make_task(long)
    assert "1 texts have a word that is longer" in str(task.encoding.describe(encode(task, long, 9), long, 9))


# --- the parts alone ------------------------------------------------------------------------------------------------

READER = TagReader(text_column="tokens", label_column="tags", scheme="IOB2")


def test_columns_alone() -> None:
    columns = TaggingColumns(text="tokens", label="tags")
    assert (columns.spec.inputs, columns.spec.labels, columns.spec.together) == (("tokens",), ("tags",), ("tokens",))
    assert columns.make_row(["a cat"]) == {"tokens": ["a", "cat"]}


def test_encoding_alone() -> None:
    encoding = TaggingEncoding(reader=READER, label_names=("B-x", "I-x", "O"), default_tag="O")
    table = make_table(make_rows("the cat|O B-x"))
    arrays = encoding.tokenize(table, tagged.word_piece(), 8)
    assert arrays["word_indices"].tolist() == [-1, 0, 1, -1]
    assert encoding.labels(table, arrays).values.tolist() == [IGNORED, 2, 0, IGNORED]
    assert encoding.encoded_columns() == ("tokens",)
    assert [encoding.find_inside_tag(number) for number in range(3)] == [1, 1, 2]


def test_objective_alone() -> None:
    logits, labels = torch.randn(2, 3, 4), torch.tensor([[0, 1, IGNORED], [IGNORED, 3, 2]])
    indices = np.arange(2)
    batch = Batch(
        feature_indices=indices, sequence_indices=indices, sequence_counts=np.ones(2), inputs={}, labels=labels
    )
    loss, count = TaggingObjective(label_smoothing=0.1).loss(logits, batch)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    assert count == 4
    torch.testing.assert_close(loss / count, expected)


def test_scoring_alone() -> None:
    scoring = TaggingScoring(reader=READER, label_names=("B-x", "I-x", "O"), default_tag="O")
    table = make_table(make_rows("the cat|O B-x"))
    arrays = {
        "input_ids": np.arange(4),
        "offsets": np.array([0, 4]),
        "examples": np.array([0]),
        "truncated": np.array(0),
        "word_indices": np.array([-1, 0, 1, -1]),
        "is_first_piece": np.array([False, True, True, False]),
    }
    features = make_features(arrays, None)
    values = scoring.compute_metrics("f1", [np.array([0, 2, 0, 0])], features, table, np.array([0]))
    assert values == {
        "f1": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "accuracy": 1.0,
        "f1/x": 1.0,
        "precision/x": 1.0,
        "recall/x": 1.0,
    }
    (prediction,) = scoring.make_predictions([np.array([0, 2, 2, 0])], features, table)
    assert prediction == {"tokens": ["the", "cat"], "tags": ["O", "O"], "entities": []}


def test_the_task_has_the_four_parts() -> None:
    task = make_task(SMALL)
    assert (task.head.auto_class, task.pipeline_tag) == ("AutoModelForTokenClassification", "token-classification")
    assert task.head.has_labels
    assert task.head.config_entries["label2id"] == {name: number for number, name in enumerate(task.label_names)}
    assert task.describe_for_card() == "finding entities (IOB2).\n2 types: animals, tools"
    plain = make_task(SMALL, **{"task.tag_scheme": "none"})
    assert plain.describe_for_card() == "tagging words.\n4 tags: B-animals, B-tools, I-animals, O"


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match=r"task.window_overlap \(-1\): must be 0 or more"):
        Settings(kind="tag", window_overlap=-1)
    with pytest.raises(InputError, match=r"task.focal_gamma \(inf\): must be 0 or more"):
        Settings(kind="tag", focal_gamma=float("inf"))


# --- labels and loss ------------------------------------------------------------------------------------------------


def test_labels_are_at_first_pieces() -> None:
    table = make_table(make_rows("the cats qs|O B-animals I-animals"))
    task = make_task(table)  # B-animals, I-animals, O
    assert encode(task, table).get_labels(np.array([0])).tolist() == [[IGNORED, 2, 0, IGNORED, 1, IGNORED, IGNORED]]
    every = make_task(table, **{"task.label_all_pieces": True})
    assert encode(every, table).get_labels(np.array([0])).tolist() == [[IGNORED, 2, 0, 1, 1, 1, IGNORED]]
    settings = {"task.label_all_pieces": True, "task.tag_scheme": "none"}
    plain = make_task(table, **settings)
    assert encode(plain, table).get_labels(np.array([0])).tolist() == [[IGNORED, 2, 0, 0, 1, 1, IGNORED]]


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_models_own(seed: int) -> None:
    task = make_task(MADE)
    tokenizer = tagged.word_piece()
    model, features = make_model(task, tokenizer, seed), encode(task, MADE)
    batch = collate(features, np.arange(8), Padding(0))
    with torch.no_grad():
        output = model(**batch.inputs, labels=batch.labels)
        total, count = task.objective.loss(output.logits, batch)
    torch.testing.assert_close(total / count, output.loss)
    assert count == sum(len(tags) for tags in MADE.columns["tags"][:8])


@pytest.mark.parametrize("max_length", [6, 10, 60])
def test_every_word_counts_once_with_windows(max_length: int) -> None:
    """It counts once in the loss, with its own tag, and once in the predictions."""
    task = make_task(MADE)
    features = encode(task, MADE, max_length)
    labels: Any = features.labels
    counted = labels.values[labels.values != IGNORED]
    expected = Counter(tag for tags in MADE.columns["tags"] for tag in tags)
    assert Counter(task.scoring.name_tags(counted.tolist())) == expected
    right = [np.where(row == IGNORED, 0, row) for row in map(labels.get, range(len(features)))]
    rows = list(task.scoring.make_predictions(right, features, MADE))
    assert [row["tags"] for row in rows] == MADE.columns["tags"]
    assert [row["tokens"] for row in rows] == MADE.columns["tokens"]
    assert (len(features) > len(MADE)) == (max_length < 60)


def test_a_word_has_the_tag_of_the_window_with_the_most_context() -> None:
    """Of six words in two windows of four that share two, each window decides for three."""
    table = make_table(make_rows("the cat saw one rope nail|O B-x I-x O B-x O"))
    task = make_task(table, **{"task.window_overlap": 2})
    features = encode(task, table, 6)
    assert len(features) == 2
    outputs = [np.full(6, 0), np.full(6, 1)]  # all B-x, all I-x
    (row,) = task.scoring.make_predictions(outputs, features, table)
    assert row["tags"] == ["B-x"] * 3 + ["I-x"] * 3


# --- metrics and predictions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_seqevals(seed: int) -> None:
    """For random tags in windows: overall, by type, and the accuracy over words."""
    task = make_task(MADE)
    features, generator = encode(task, MADE, 10), np.random.default_rng(seed)
    labels: Any = features.labels
    outputs = []
    for row in map(labels.get, range(len(features))):
        wrong = generator.random(len(row)) < 0.2
        outputs.append(np.where(wrong | (row == IGNORED), generator.integers(0, len(task.label_names), len(row)), row))
    rows = np.arange(len(features))
    values = task.scoring.compute_metrics("f1", outputs, features, MADE, rows)
    predicted = [row["tags"] for row in task.scoring.make_predictions(outputs, features, MADE)]
    report = seqeval.metrics.classification_report(MADE.columns["tags"], predicted, output_dict=True, zero_division=0)
    assert tuple(values)[:4] == task.scoring.metric_names
    assert values["accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(MADE.columns["tags"], predicted))
    for name, key in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
        assert values[name] == pytest.approx(report["micro avg"][key])
        for kind in tiny.CLASSES:
            assert values[f"{name}/{kind}"] == pytest.approx(report[kind][key])
    assert 0.3 < values["f1"] < 0.99
    order = generator.permutation(len(features))  # the order of the features does not matter
    assert task.scoring.compute_metrics("f1", [outputs[row] for row in order], features, MADE, order) == pytest.approx(
        values
    )


def test_metrics_without_a_scheme_are_scikit_learns() -> None:
    task = make_task(MADE, **{"task.tag_scheme": "none"})
    features, generator = encode(task, MADE), np.random.default_rng(0)
    outputs = [generator.integers(0, len(task.label_names), length) for length in features.sequence_lengths]
    values = task.scoring.compute_metrics("accuracy", outputs, features, MADE, np.arange(len(features)))
    predicted = [tag for row in task.scoring.make_predictions(outputs, features, MADE) for tag in row["tags"]]
    references = [tag for tags in MADE.columns["tags"] for tag in tags]
    assert values["f1_macro"] == pytest.approx(f1_score(references, predicted, average="macro", zero_division=0))
    assert values["accuracy"] == pytest.approx(np.mean(np.array(references) == np.array(predicted)))
    assert "entities" not in next(task.scoring.make_predictions(outputs, features, MADE))


def test_words_without_a_piece_count_and_are_predicted() -> None:
    """The tokenizer drops the second word, an entity: it counts as missed."""
    table = make_table([{"tokens": ["cat", "\u200b", "saw"], "tags": ["B-x", "B-x", "O"]}])
    task = make_task(table)
    features = encode(task, table)
    outputs = [np.array([0, 0, 2, 0])]  # [CLS] cat saw [SEP]: B-x, O
    values = task.scoring.compute_metrics("f1", outputs, features, table, np.array([0]))
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert (values["precision"], values["recall"]) == (1.0, 0.5)
    assert next(task.scoring.make_predictions(outputs, features, table))["tags"] == ["B-x", "O", "O"]


def test_predictions_name_the_entities() -> None:
    table = make_table(make_rows("the cat dog saw|O O O O", "bird|O"))
    task = Tagging.from_state(make_config(), {"labels": ["B-x", "I-x", "O"], "scheme": "IOB2", "default": "O"})
    features = encode(task, table)
    rows = list(task.scoring.make_predictions([np.array([2, 2, 0, 1, 1, 2]), np.array([2, 1, 2])], features, table))
    assert rows == [
        {"tokens": ["the", "cat", "dog", "saw"], "tags": ["O", "B-x", "I-x", "I-x"],
         "entities": [{"type": "x", "text": "cat dog saw", "begin": 1, "end": 4}]},
        {"tokens": ["bird"], "tags": ["I-x"], "entities": [{"type": "x", "text": "bird", "begin": 0, "end": 1}]},
    ]  # fmt: skip


def test_the_metric_may_be_a_score_of_one_type() -> None:
    task = make_task(SMALL)
    assert task.scoring.default_metric == "f1"
    assert task.scoring.check_metric("recall/tools") == "recall/tools"
    for name in ("recall/nails", "accuracy/tools", "pearson"):
        with pytest.raises(
            InputError, match=r"evaluation.metric \(.*\): must be one of loss, f1, precision, recall, accuracy"
        ):
            task.scoring.check_metric(name)


# --- what users can do wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (make_rows("a b|O B-x", "c d|O I-x"), {"task.tag_scheme": "IOB2"},
         r"rows.jsonl:2: the tag of word 2 \(d\), I-x, breaks IOB2, which has B-x there; correct it, or set task.tag_faults"),
        (make_rows("a b|O B-x"), {"task.tag_scheme": "IOB1"}, r"rows.jsonl:1: .* \(b\), B-x, breaks IOB1, which has I-x there"),
        (make_rows("a b|O E-x"), {"task.tag_scheme": "IOB2", "task.tag_faults": "repair"},
         r"rows.jsonl:1: the tag of word 2 \(b\), E-x, is not a tag of IOB2, which has O, B-\.\.\., I-\.\.\."),
        (make_rows("a b|O O"), {}, r"data.label_column \(tags\): training has only the tag 'O'"),
        (make_rows("a b|O"), {}, r"rows.jsonl:1: 1 tags for 2 tokens"),
        ([{"tokens": [], "tags": []}], {}, r"rows.jsonl:1: tokens is empty"),
        ([{"tokens": None, "tags": []}], {}, r"rows.jsonl:1: tokens is null"),
        ([{"tokens": "a b", "tags": ["O", "O"]}], {}, r"rows.jsonl:1: tokens is a str, not a list of words"),
        ([{"tokens": ["a", 3], "tags": ["O", "O"]}], {}, r"rows.jsonl:1: word 2 of tokens \(3\) is not a string"),
        ([{"tokens": ["a"], "tags": None}], {}, r"rows.jsonl:1: tags is null; add its tags, or remove the row"),
        ([{"tokens": ["a"], "tags": "O"}], {}, r"rows.jsonl:1: tags is a str, not a list of tags"),
        ([{"tokens": ["a"], "tags": [" "]}], {}, r"rows.jsonl:1: the tag of word 1 \(a\), ' ', is not the name of a tag"),
        ([{"tokens": ["a"], "tags": [True]}], {}, r"rows.jsonl:1: the tag of word 1 \(a\), True, is not the name of a tag"),
        ([{"tokens": ["a", "b"], "tags": ["O", None]}], {}, r"rows.jsonl:1: .* \(b\), null, is not .*; task.ignore_labels null"),
        ([{"tokens": ["a", "b"], "tags": [1, -100]}], {}, r"rows.jsonl:1: .* \(b\), -100, means .*; set task.ignore_labels -100"),
        ([{"tokens": ["a"], "tags": [None]}], {"task.ignore_labels": ["null"]}, r"data.label_column .*: training has no tag"),
        ([{"tokens": ["a"], "tags": [2]}], {"task.label_names": ["O", "B-x"]},
         r"rows.jsonl:1: .* \(a\), 2, is not among the 2 classes of task.label_names"),
        ([{"tokens": ["a"], "tags": ["x"]}], {"task.label_names": ["O", "B-x"]},
         r"rows.jsonl:1: .* \(a\), x, is not among the 2 classes of task.label_names"),
        (make_rows("a b|O B-x"), {"task.label_names": ["O", "O"]}, r"task.label_names .*: must differ from each other"),
        (make_rows("a b|O B-x"), {"data.text_columns": ["tokens", "other"]}, r"data.text_columns .*: must be one column"),
        (make_rows("a b|O B-x"), {"data.label_column": None}, r"data.label_column \(None\): tagging needs the column"),
        (make_rows("a b|O B-x"), {"task.num_beams": 2}, r"task.num_beams"),
        (make_rows("a b|O B-x"), {"task.class_weights": ["B-y=2"]}, r"task.class_weights \(B-y=2\): the label must be one of B"),
    ],
)  # fmt: skip
def test_errors_name_file_line_and_word(rows: list[dict[str, Any]], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task(make_table(rows), **settings)


def test_numbers_beyond_the_classes_are_an_error() -> None:
    table = make_table([{"tokens": ["a", "b"], "tags": [0, 2]}], class_names=("O", "B-x"))
    with pytest.raises(
        InputError, match=r"rows.jsonl:1: the tag of word 2 \(b\), 2, is not among the 2 classes of the data set"
    ):
        make_task(table)


def test_a_tag_that_training_lacks_is_an_error() -> None:
    task, other = make_task(SMALL), make_table(make_rows("here bread|O B-food"))
    with pytest.raises(InputError, match=r"rows.jsonl:1: the tag of word 2 \(bread\), B-food, is not among the 5 .*B-"):
        encode(task, other)


def test_the_text_of_the_command_line_is_split_into_words() -> None:
    task = make_task(SMALL)
    assert task.columns.make_row(["The cat, here."]) == {"tokens": ["The", "cat", ",", "here", "."]}
    with pytest.raises(InputError, match=r"--text: takes one text, not 2"):
        task.columns.make_row(["a", "b"])
    assert task.encoding.reader.read_words(make_table([{"tokens": "The cat, here.", "tags": None}]), 0) == [
        "The",
        "cat",
        ",",
        "here",
        ".",
    ]


# --- CoNLL files ----------------------------------------------------------------------------------------------------

CONLL = "-DOCSTART- -X- -X- O\n\nthe DT B-NP O\ncat NN I-NP B-animals\n\n\nsaw VB B-VP B-tools\n# NN B-NP O\n"
CONLLU = """# sent_id = 1
# text = don't saw
1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tdo\tdo\tAUX\tVBP\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
2.1\tghost\tghost\tX\tX\t_\t_\t_\t_\t_
3\tsaw wood\tsaw\tVERB\tVB\t_\t0\troot\t_\t_

# sent_id = 2
1\t#\t#\tSYM\t#\t_\t0\troot\t_\t_
"""


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.bio", "a.iob"])
def test_conll(tmp_path: Path, name: str) -> None:
    """The tag is in the last column. Lines between documents are skipped, # is a word, and words keep their lines."""
    table = read(tmp_path / name, CONLL)
    assert table.columns == {"tokens": [["the", "cat"], ["saw", "#"]], "tags": [["O", "B-animals"], ["B-tools", "O"]]}
    assert table.lines == [3, 7]
    assert table.word_lines == [[3, 4], [7, 8]]
    assert table.take([1]).word_lines == [[7, 8]]


@pytest.mark.parametrize(("column", "tags"), [("2", ["DT", "NN"]), ("3", ["B-NP", "I-NP"]), ("4", ["O", "B-animals"])])
def test_conll_column_by_number(tmp_path: Path, column: str, tags: list[str]) -> None:
    table = read(tmp_path / "a.conll", CONLL, **{"data.label_column": column})
    assert table.columns[column][0] == tags
    assert Tagging.from_table(make_config(**{"data.label_column": column}), table).columns.label == column


@pytest.mark.parametrize("column", ["1", "5", "0"])
def test_conll_without_the_column(tmp_path: Path, column: str) -> None:
    with pytest.raises(
        InputError,
        match=rf"data.label_column \({column}\): the file has 4 columns, and words are in column 1; data.text",
    ):
        read(tmp_path / "a.conll", CONLL, **{"data.label_column": column})


@pytest.mark.parametrize(("name", "setting"), [("a.conll", "NUMBER"), ("a.conllu", "NAME")])
def test_an_error_about_the_only_tag_names_the_column(tmp_path: Path, name: str, setting: str) -> None:
    table = read(tmp_path / name, "".join(f"{line}\t{'w' * line}\t_\tO\t_\t_\t_\t_\t_\tO\n" for line in (1, 2)))
    columns = f"words are read from column 2, tags from column {4 if setting == 'NAME' else 10} of 10"
    with pytest.raises(
        InputError, match=f"only the tag 'O'; .*; .*{name}: {columns}; data.label_column {setting} names"
    ):
        Tagging.from_table(make_config(), table)


def test_conll_gzipped_with_tabs_and_windows_lines(tmp_path: Path) -> None:
    text = "New York\tB-x\r\nsaw\tO\r\n\r\ncat\tO\r\n"
    table = read(tmp_path / "a.conll.gz", gzip.compress(text.encode()))
    assert table.columns["tokens"] == [["New York", "saw"], ["cat"]]  # with tabs a word may have a space
    assert table.columns["tags"] == [["B-x", "O"], ["O"]]


def test_conll_ragged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.conll:4: 3 columns, expected 2"):
        read(tmp_path / "a.conll", "a O\nb O\n\nc d O\n")


def test_conll_errors_name_the_words_own_line(tmp_path: Path) -> None:
    table = read(tmp_path / "a.conll", "the O\ncat B-x\n\nsaw O\ndog I-x\n")
    with pytest.raises(InputError, match=r"a.conll:5: the tag of word 2 \(dog\), I-x, breaks IOB2"):
        Tagging.from_table(make_config(**{"task.tag_scheme": "IOB2"}), table)


def test_conll_of_words_alone(tmp_path: Path) -> None:
    """Words alone can be predicted, but not trained on."""
    with pytest.raises(InputError, match=r"a.conll:1: no column 'tags' \(columns: tokens\); see data.label_column"):
        read(tmp_path / "a.conll", "the\ncat\n\nsaw\n")
    config = make_config()
    table = read_table(
        [str(tmp_path / "a.conll")], config.data, "--data", Tagging.make_columns(config).spec, needs_labels=False
    )
    assert table.columns["tokens"] == [["the", "cat"], ["saw"]]


@pytest.mark.parametrize(
    ("column", "expected"),
    [("tags", ["AUX", "PART", "VERB"]), ("upos", ["AUX", "PART", "VERB"]), ("XPOS", ["VBP", "RB", "VB"]),
     ("deprel", ["aux", "advmod", "root"])],
)  # fmt: skip
def test_conllu(tmp_path: Path, column: str, expected: list[str]) -> None:
    """Comments, ranges of words and empty nodes are left out; a column may be given by its name."""
    table = read(tmp_path / "a.conllu", CONLLU, **{"data.label_column": column})
    assert table.columns["tokens"] == [["do", "n't", "saw wood"], ["#"]]
    assert table.columns[column][0] == expected
    assert table.word_lines == [[4, 5, 7], [10]]


def test_conllu_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.label_column \(pos\): for a CoNLL-U file must be one of id, form"):
        read(tmp_path / "a.conllu", CONLLU, **{"data.label_column": "pos"})
    with pytest.raises(InputError, match=r"a.conllu:1: 2 columns, expected 10"):
        read(tmp_path / "a.conllu", "1\tcat\n")


def test_equal_sentences_stay_in_one_split(tmp_path: Path) -> None:
    rows = make_rows(*["the cat|O B-x"] * 10, *[f"saw {'here ' * number}|O {'O ' * number}" for number in range(1, 11)])
    path = tiny.write_jsonl(tmp_path / "a.jsonl", rows)
    config = make_config(**{"data.train": [str(path)], "data.validation_fraction": 0.3, "data.test_fraction": 0.3})
    splits = load_splits(config.data, 0, Tagging.make_columns(config).spec)
    holding = [name for name, table in splits.tables().items() if ["the", "cat"] in table.columns["tokens"]]
    assert len(holding) == 1


# --- a complete run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Any]]:
    """A run on words of several pieces. Returns config and results."""
    folder = tmp_path_factory.mktemp("tagging")
    backbone, tokenizer = folder / "backbone", tagged.word_piece()
    tiny.make_backbone(backbone, "bert", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(backbone)
    config = make_config(**tagged.write_splits(folder, (160, 16, 24), longest=18), **{
        "model.backbone": str(backbone), "output_dir": str(folder), "data.max_length": 14, "train.epochs": 5,
        "train.batch_size": 8, "train.learning_rate": 5e-3, "train.precision": "fp32", "tracking.trackers": [],
    })  # fmt: skip
    return config, finetune(config).results


@pytest.fixture(scope="module")
def predictor(run: tuple[RunConfig, dict[str, Any]]) -> Predictor:
    """The predictor of the exported model."""
    return Predictor.from_pretrained(str(run[0].run_dir))


@pytest.mark.slow
def test_a_run_learns_and_seqeval_agrees(run: tuple[RunConfig, dict[str, Any]], predictor: Predictor) -> None:
    """Its test metrics are those of seqeval for the exported model's predictions. So are those of evaluate."""
    config, results = run
    table = predictor.read(config.data.test[0], needs_labels=True)
    predicted = [row["tags"] for row in predictor.predict(table)]
    report = seqeval.metrics.classification_report(table.columns["tags"], predicted, output_dict=True)
    assert results["test"]["f1"] == pytest.approx(report["micro avg"]["f1-score"])
    assert results["test"]["recall/tools"] == pytest.approx(report["tools"]["recall"])
    assert results["examples"] == {"train": 160, "validation": 16, "test": 24}  # sentences, not windows
    assert 0.2 < results["test"]["f1"] < 1  # some are right, some wrong
    assert predictor.evaluate(table) == pytest.approx(results["test"], abs=1e-6)
    assert predictor.evaluate(table, metric="f1/food") == pytest.approx(results["test"], abs=1e-6)


def test_the_pipeline_of_transformers_predicts_the_same(
    run: tuple[RunConfig, dict[str, Any]], predictor: Predictor
) -> None:
    """The tag of a word is that of its first piece; entities are the groups of the strategy "first". Sentences fit one window."""
    pipe = transformers.pipeline("token-classification", model=str(run[0].run_dir / "model"), ignore_labels=[])
    num_pieces = 0
    for row in tagged.make_rows(12, seed=9, longest=4):
        tokens = [f"{token}s" if number % 3 == 2 else token for number, token in enumerate(row["tokens"])]
        (ours,) = predictor.predict([{"tokens": tokens}])
        starts = np.cumsum([0, *[len(token) + 1 for token in tokens]])[:-1].tolist()
        (pieces,) = pipe([tokens], is_split_into_words=True)
        by_start = {piece["start"]: piece["entity"] for piece in pieces}
        num_pieces += len(pieces)
        assert [by_start[start] for start in starts] == ours["tags"]
        groups = pipe(" ".join(tokens), aggregation_strategy="first", ignore_labels=["O"])
        theirs = [(group["entity_group"], group["start"], group["end"]) for group in groups]
        ends = [start + len(token) for start, token in zip(starts, tokens, strict=True)]
        assert theirs == [
            (entity["type"], starts[entity["begin"]], ends[entity["end"] - 1]) for entity in ours["entities"]
        ]
    assert num_pieces > 50


def test_a_long_sentence_keeps_all_its_words(predictor: Predictor) -> None:
    tokens = [word for row in tagged.make_rows(9, seed=3) for word in row["tokens"]]
    (row,) = predictor.predict([{"tokens": tokens}])
    assert row["tokens"] == tokens
    assert len(row["tags"]) == len(tokens) > 60
    assert len({entity["type"] for entity in row["entities"]}) == 3


def test_the_scores_by_type_have_their_own_table(
    run: tuple[RunConfig, dict[str, Any]], predictor: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    from hf_finetune.run.results import format_metrics, make_type_table

    assert "/" not in format_metrics(run[1]["test"])
    assert make_type_table({"f1": 1.0, "f1/x": 0.5, "recall/x": 0.25, "f1/y": 1.0, "recall/y": 0.0}) == [
        ("", "f1", "recall"), ("x", "0.5000", "0.2500"), ("y", "1.0000", "0.0000"),
    ]  # fmt: skip
    assert make_type_table({"f1": 1.0}) == []
    assert "finding entities (IOB2).\n3 types: animals, food, tools" in (run[0].run_dir / "model/README.md").read_text()


def test_a_model_made_elsewhere(run: tuple[RunConfig, dict[str, Any]], tmp_path: Path) -> None:
    """Labels and scheme are read from the model's config if the export's own entry is missing."""
    model = transformers.AutoModelForTokenClassification.from_pretrained(run[0].run_dir / "model")
    del model.config.hf_finetune
    model.save_pretrained(tmp_path)
    tagged.word_piece().save_pretrained(tmp_path)
    task = Predictor.from_pretrained(str(tmp_path), text_columns=("tokens",), label_column="tags").task
    assert isinstance(task, Tagging)
    assert (task.scheme, task.default_tag, len(task.label_names)) == ("IOB2", "O", 7)


def test_the_metrics_of_validation_need_only_the_labelled_words(
    run: tuple[RunConfig, dict[str, Any]], tmp_path: Path
) -> None:
    """With windows, and a third of the words without a label: the numbers are those of the outputs of all tokens."""
    rows = tagged.make_rows(48, longest=16)
    for row in rows:
        row["tags"] = [tag if position % 3 else None for position, tag in enumerate(row["tags"])]
    path = str(tiny.write_jsonl(tmp_path / "rows.jsonl", rows))
    settings = {
        "data.train": [path],
        "data.max_length": 14,
        "freeze.layers": 1,
        "model.backbone": run[0].model.backbone,
        "output_dir": str(tmp_path),
        "task.ignore_labels": [None],
        "train.precision": "fp32",
    }
    with open_run(make_config(**settings)) as runtime:
        trained = set_up(make_config(**settings), runtime, Clock())
        cuts = trained.train_state.forward_plan.token_cuts
        assert cuts is not None
        assert cuts.in_block
        values, indices = evaluate_split(trained, "validation"), np.arange(len(trained.features["validation"]))
        outputs = make_runner(trained, "validation", batch_size=8).compute_outputs(indices).outputs
        state = dataclasses.replace(trained.train_state, forward_plan=FULL_FORWARD)
        full = dataclasses.replace(trained, stage=dataclasses.replace(trained.stage, train_state=state))
        full_outputs = make_runner(full, "validation", batch_size=8).compute_outputs(indices).outputs
        assert values == pytest.approx(evaluate_split(full, "validation"), abs=1e-6)
    ours, theirs = np.concatenate(outputs), np.concatenate(full_outputs)
    labels: Any = trained.features["validation"].labels
    is_read = labels.values != IGNORED
    assert 0.1 < is_read.mean() < 0.5
    np.testing.assert_array_equal(ours, np.where(is_read, theirs, IGNORED))


def test_numbers_do_not_depend_on_micro_batches_or_the_cache(
    run: tuple[RunConfig, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with dropout, windows, focal loss, class weights and labels on all pieces."""
    config = run[0]
    losses = []
    for number, changes in enumerate(
        ({}, {"train.micro_batch_size": 3}, {"cache.activations": "on", "cache.precision": "fp32"})
    ):
        one = make_config(
            **{
                "data.train": list(config.data.train),
                "data.validation": list(config.data.validation),
                "data.test": list(config.data.test),
                "data.max_length": 14,
                "model.backbone": config.model.backbone,
                "model.dropout": 0.1,
                "output_dir": config.output_dir,
                "name": f"n{number}",
                "freeze.embeddings": True,
                "freeze.layers": 1,
                "cache.activations": "off",
                "task.focal_gamma": 1.5,
                "task.class_weights": ["balanced"],
                "task.label_all_pieces": True,
                "train.batch_size": 8,
                "train.dropout_masks": "stateless",
                "train.label_smoothing": 0.1,
                "train.learning_rate": 2e-3,
                "train.max_updates": 6,
                "train.precision": "fp32",
                "tracking.log_every": 1,
                "tracking.trackers": [],
            }
            | changes
        )
        finetune(one)
        rows = [json.loads(line) for line in (one.run_dir / "metrics.jsonl").read_text().splitlines()]
        losses.append([row[key] for row in rows for key in ("train/loss", "validation/loss") if key in row])
    printed = capsys.readouterr().out
    assert printed.count("examples    160 train, 16 validation, 24 test\n") == 3
    assert printed.count(" windows of the 160 training examples; batches count windows\n") == 3
    assert len(losses[0]) >= 7
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)
