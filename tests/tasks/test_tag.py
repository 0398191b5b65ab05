"""Tagging: labels, loss, metrics and predictions against independent computations, every error, files, the exported folder."""

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

from hf_finetune import tasks
from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import IGNORED, Features, collate, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import Table
from hf_finetune.export.predict import Predictor
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.tag import Tagging
from hf_finetune.train import finetune


def settings_of(**settings: Any) -> RunConfig:
    """A config of tagging that is never run."""
    defaults = {
        "model.backbone": "-",
        "data.train": ["-"],
        "data.text_columns": ["tokens"],
        "data.label_column": "tags",
    }
    config = load_config(defaults | settings, [])
    assert config is not None
    return config


def table_of(rows: list[dict[str, Any]], **more: Any) -> Table:
    """A table of rows that stand in rows.jsonl."""
    columns = {name: [row.get(name) for row in rows] for name in ("tokens", "tags")}
    return Table(columns=columns, files=["rows.jsonl"] * len(rows), lines=list(range(1, len(rows) + 1)), **more)


def rows_of(*pairs: str) -> list[dict[str, Any]]:
    """Rows of "the cat|O B-animals"."""
    return [dict(zip(("tokens", "tags"), (side.split() for side in pair.split("|")), strict=True)) for pair in pairs]


def task_of(table: Table, **settings: Any) -> Tagging:
    """The task that a table gives."""
    config = settings_of(**settings)
    tasks.form_of("tagging", config)
    return Tagging.from_table(config, table)


def encoded(task: Tagging, table: Table, max_length: int = 60, tokenizer: Any = None) -> Features:
    """Features with labels."""
    arrays = task.tokenize(table, tokenizer or tagged.word_piece(), max_length)
    return make_features(arrays, task.labels(table, arrays))


def model_of(task: Tagging, tokenizer: Any, seed: int = 0) -> Any:
    """A small random tagger in eval mode."""
    torch.manual_seed(seed)
    config = tiny.make_config(
        "bert", **(task.model_settings() | {"vocab_size": len(tokenizer), "initializer_range": 0.5})
    )
    return transformers.AutoModelForTokenClassification.from_config(config).eval()


MADE = table_of(tagged.make_rows(24, longest=16))
SMALL = table_of(rows_of("the cat dog|O B-animals I-animals", "saw here|B-tools O"))


# --- what is learned from data --------------------------------------------------------------------------------------


def test_tags_are_those_of_the_scheme_in_a_fixed_order() -> None:
    """I-tools is never seen; a validation split may have it."""
    task = task_of(SMALL)
    assert task.label_names == ("B-animals", "B-tools", "I-animals", "I-tools", "O")
    assert (task.scheme, task.problem, task.default_tag) == ("IOB2", "entities", "O")
    again = Tagging.from_facts(settings_of(), json.loads(json.dumps(task.facts())))
    assert dataclasses.replace(again, reason=task.reason) == task


def test_other_tags_stand_for_themselves() -> None:
    task = task_of(table_of(rows_of("the cat|10 9", "saw|9")))
    assert (task.scheme, task.problem, task.label_names, task.default_tag) == ("none", "tags", ("9", "10"), "9")
    assert task.metric_names == ("accuracy", "f1_macro")
    assert task_of(SMALL, **{"task.tag_scheme": "none"}).label_names == ("B-animals", "B-tools", "I-animals", "O")


def test_numbers_of_a_hub_data_set_are_named() -> None:
    names = ("O", "B-animals", "I-animals", "B-tools", "I-tools")
    table = table_of([{"tokens": ["the", "cat", "saw"], "tags": [0, 1, 3]}], class_names=names)
    task = task_of(table)
    assert task.label_names == names  # in the data set's own order
    assert task.numbers_of(table, 0) == [0, 1, 3]


def test_class_weights_are_of_word_tags() -> None:
    """Not of pieces, and whatever the windows."""
    task = task_of(MADE, **{"task.class_weights": ["balanced"]})
    seen = [tag for tags in MADE.columns["tags"] for tag in tags]
    names = [name for name in task.label_names if name in seen]
    expected = dict(zip(names, compute_class_weight("balanced", classes=np.array(names), y=seen), strict=True))
    assert task.class_weights == pytest.approx([expected.get(name, 1.0) for name in task.label_names])
    named = task_of(MADE, **{"task.class_weights": ["O=0.25"]})
    assert named.class_weights[named.label_names.index("O")] == 0.25
    outputs, features = torch.randn(2, 20, len(task.label_names)), encoded(task, MADE)
    batch = collate(features, np.array([0, 1]), 0)
    outputs = outputs[:, : batch.inputs["input_ids"].shape[1]]
    total, count = task.loss(outputs, batch)
    reference = torch.nn.CrossEntropyLoss(weight=torch.tensor(task.class_weights))
    torch.testing.assert_close(total / count, reference(outputs.flatten(0, 1), batch.labels.flatten()))


def test_the_distribution_is_shown() -> None:
    """Tags of words, entities, windows, what was repaired, what the model never sees."""
    table = table_of([*rows_of("the cats|O I-animals"), {"tokens": ["\u200b", "saw"], "tags": ["O", "B-tools"]},
                      *rows_of("this cats here saw that one|O B-animals O B-tools O O")])  # fmt: skip
    task = task_of(table, **{"task.tag_faults": "repair", "task.class_weights": ["O=2"]})
    lines = task.describe(encoded(task, table, 7), table, 7)
    assert lines == [
        ("input", "at most 7 tokens; 1 longer training texts in overlapping windows"),
        ("", "1 words that the tokenizer drops: O without the model"),
        ("tags", "IOB2, entities begin with B: O 6, B-animals 2, B-tools 2"),
        ("", "1 tags broke the scheme and were repaired"),
        ("entities", "animals 2, tools 2"),
        ("weights", "B-animals 1, B-tools 1, I-animals 1, I-tools 1, O 2"),
    ]
    long = table_of(rows_of(f"the {'q' * 30}|O B-x"))
    assert "1 texts have a word that is longer" in str(task_of(long).describe(encoded(task_of(long), long, 9), long, 9))


# --- labels and loss ------------------------------------------------------------------------------------------------


def test_labels_stand_at_first_pieces() -> None:
    table = table_of(rows_of("the cats qs|O B-animals I-animals"))
    task = task_of(table)  # B-animals, I-animals, O
    assert encoded(task, table).get_labels(np.array([0])).tolist() == [[IGNORED, 2, 0, IGNORED, 1, IGNORED, IGNORED]]
    every = dataclasses.replace(task, label_all_pieces=True)
    assert encoded(every, table).get_labels(np.array([0])).tolist() == [[IGNORED, 2, 0, 1, 1, 1, IGNORED]]
    plain = dataclasses.replace(task, label_all_pieces=True, scheme="none")
    assert encoded(plain, table).get_labels(np.array([0])).tolist() == [[IGNORED, 2, 0, 0, 1, 1, IGNORED]]


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_models_own(seed: int) -> None:
    task = task_of(MADE)
    tokenizer = tagged.word_piece()
    model, features = model_of(task, tokenizer, seed), encoded(task, MADE)
    batch = collate(features, np.arange(8), 0)
    with torch.no_grad():
        output = model(**batch.inputs, labels=batch.labels)
        total, count = task.loss(output.logits, batch)
    torch.testing.assert_close(total / count, output.loss)
    assert count == sum(len(tags) for tags in MADE.columns["tags"][:8])


@pytest.mark.parametrize("max_length", [6, 10, 60])
def test_windows_count_every_word_once(max_length: int) -> None:
    """In the loss, with its own tag; and in what is predicted."""
    task = task_of(MADE)
    features = encoded(task, MADE, max_length)
    labels: Any = features.labels
    counted = labels.values[labels.values != IGNORED]
    seen = Counter(tag for tags in MADE.columns["tags"] for tag in tags)
    assert Counter(task.named(counted.tolist())) == seen
    right = [np.where(row == IGNORED, 0, row) for row in map(labels.row, range(len(features)))]
    rows = list(task.predictions(right, features, MADE))
    assert [row["tags"] for row in rows] == MADE.columns["tags"]
    assert [row["tokens"] for row in rows] == MADE.columns["tokens"]
    assert (len(features) > len(MADE)) == (max_length < 60)


def test_a_words_tag_is_of_the_window_with_the_most_context() -> None:
    """Six words in windows of four that share two: the first window answers for three, the second for three."""
    table = table_of(rows_of("the cat saw one rope nail|O B-x I-x O B-x O"))
    task = task_of(table, **{"task.window_overlap": 2})
    features = encoded(task, table, 6)
    assert len(features) == 2
    kept = [np.full(6, 0), np.full(6, 1)]  # all B-x, all I-x
    (row,) = task.predictions(kept, features, table)
    assert row["tags"] == ["B-x"] * 3 + ["I-x"] * 3


# --- metrics and predictions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_seqevals(seed: int) -> None:
    """On random tags in windows; by type, too; token accuracy as seqeval counts it."""
    task = task_of(MADE)
    features, generator = encoded(task, MADE, 10), np.random.default_rng(seed)
    labels: Any = features.labels
    kept = []
    for row in map(labels.row, range(len(features))):
        wrong = generator.random(len(row)) < 0.2
        kept.append(np.where(wrong | (row == IGNORED), generator.integers(0, len(task.label_names), len(row)), row))
    rows = np.arange(len(features))
    values = task.metrics("f1", kept, features, MADE, rows)
    predicted = [row["tags"] for row in task.predictions(kept, features, MADE)]
    report = seqeval.metrics.classification_report(MADE.columns["tags"], predicted, output_dict=True, zero_division=0)
    assert tuple(values)[:4] == task.metric_names
    assert values["accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(MADE.columns["tags"], predicted))
    for name, key in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
        assert values[name] == pytest.approx(report["micro avg"][key])
        for kind in tiny.CLASSES:
            assert values[f"{name}/{kind}"] == pytest.approx(report[kind][key])
    assert 0.3 < values["f1"] < 0.99
    order = generator.permutation(len(features))  # whatever the order of the rows
    assert task.metrics("f1", [kept[row] for row in order], features, MADE, order) == pytest.approx(values)


def test_metrics_without_a_scheme_are_scikit_learns() -> None:
    task = task_of(MADE, **{"task.tag_scheme": "none"})
    features, generator = encoded(task, MADE), np.random.default_rng(0)
    kept = [generator.integers(0, len(task.label_names), length) for length in features.sequence_lengths]
    values = task.metrics("accuracy", kept, features, MADE, np.arange(len(features)))
    given = [tag for row in task.predictions(kept, features, MADE) for tag in row["tags"]]
    asked = [tag for tags in MADE.columns["tags"] for tag in tags]
    assert values["f1_macro"] == pytest.approx(f1_score(asked, given, average="macro", zero_division=0))
    assert values["accuracy"] == pytest.approx(np.mean(np.array(asked) == np.array(given)))
    assert "entities" not in next(task.predictions(kept, features, MADE))


def test_words_without_a_piece_are_counted_and_predicted() -> None:
    """The tokenizer drops the second word, an entity: it counts as missed."""
    table = table_of([{"tokens": ["cat", "\u200b", "saw"], "tags": ["B-x", "B-x", "O"]}])
    task = task_of(table)
    features = encoded(task, table)
    kept = [np.array([0, 0, 2, 0])]  # [CLS] cat saw [SEP]: B-x, O
    values = task.metrics("f1", kept, features, table, np.array([0]))
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert (values["precision"], values["recall"]) == (1.0, 0.5)
    assert next(task.predictions(kept, features, table))["tags"] == ["B-x", "O", "O"]


def test_predictions_name_the_entities() -> None:
    table = table_of(rows_of("the cat dog saw|O O O O", "bird|O"))
    task = Tagging.from_facts(settings_of(), {"labels": ["B-x", "I-x", "O"], "scheme": "IOB2", "default": "O"})
    features = encoded(task, table)
    rows = list(task.predictions([np.array([2, 2, 0, 1, 1, 2]), np.array([2, 1, 2])], features, table))
    assert rows == [
        {"tokens": ["the", "cat", "dog", "saw"], "tags": ["O", "B-x", "I-x", "I-x"],
         "entities": [{"type": "x", "text": "cat dog saw", "begin": 1, "end": 4}]},
        {"tokens": ["bird"], "tags": ["I-x"], "entities": [{"type": "x", "text": "bird", "begin": 0, "end": 1}]},
    ]  # fmt: skip


def test_metrics_of_one_type_can_be_asked_for() -> None:
    task = task_of(SMALL)
    assert task.default_metric == "f1"
    assert task.check_metric("recall/tools") == "recall/tools"
    for name in ("recall/nails", "accuracy/tools", "pearson"):
        with pytest.raises(
            InputError, match=r"evaluation.metric \(.*\): tagging has loss, f1, precision, recall, accuracy"
        ):
            task.check_metric(name)


# --- what users can do wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (rows_of("a b|O B-x", "c d|O I-x"), {"task.tag_scheme": "IOB2"},
         r"rows.jsonl:2: the tag of word 2 \(d\), I-x, breaks IOB2, which has B-x there; mend it, or set task.tag_faults repair"),
        (rows_of("a b|O B-x"), {"task.tag_scheme": "IOB1"}, r"rows.jsonl:1: .* \(b\), B-x, breaks IOB1, which has I-x there"),
        (rows_of("a b|O E-x"), {"task.tag_scheme": "IOB2", "task.tag_faults": "repair"},
         r"rows.jsonl:1: the tag of word 2 \(b\), E-x, is not of IOB2, which has O, B-\.\.\., I-\.\.\."),
        (rows_of("a b|O O"), {}, r"data.label_column \(tags\): training has only the tag 'O'"),
        (rows_of("a b|O"), {}, r"rows.jsonl:1: 1 tags for 2 tokens"),
        ([{"tokens": [], "tags": []}], {}, r"rows.jsonl:1: tokens has no words"),
        ([{"tokens": None, "tags": []}], {}, r"rows.jsonl:1: tokens is null, not a list of words"),
        ([{"tokens": "a b", "tags": ["O", "O"]}], {}, r"rows.jsonl:1: tokens is a str, not a list of words"),
        ([{"tokens": ["a", 3], "tags": ["O", "O"]}], {}, r"rows.jsonl:1: word 2 of tokens \(3\) is no string"),
        ([{"tokens": ["a"], "tags": None}], {}, r"rows.jsonl:1: tags is null, not a list of tags"),
        ([{"tokens": ["a"], "tags": "O"}], {}, r"rows.jsonl:1: tags is a str, not a list of tags"),
        ([{"tokens": ["a"], "tags": [" "]}], {}, r"rows.jsonl:1: the tag of word 1 \(a\), ' ', is no name"),
        ([{"tokens": ["a"], "tags": [True]}], {}, r"rows.jsonl:1: the tag of word 1 \(a\), True, is no name"),
        (rows_of("a b|U-x O"), {}, r"task.tag_scheme \(auto\): the tags look like BILOU"),
        (rows_of("a b|O B-x"), {"data.text_columns": ["tokens", "other"]}, r"data.text_columns .* takes one column"),
        (rows_of("a b|O B-x"), {"data.label_column": None}, r"data.label_column \(None\): tagging needs the column"),
        (rows_of("a b|O B-x"), {"task.num_beams": 2}, r"task.num_beams \(2\): tagging has no such setting"),
        (rows_of("a b|O B-x"), {"task.class_weights": ["B-y=2"]}, r"task.class_weights \(B-y=2\): training has the labels"),
    ],
)  # fmt: skip
def test_errors_name_the_place(rows: list[dict[str, Any]], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        task_of(table_of(rows), **settings)


def test_numbers_beyond_the_classes_are_refused() -> None:
    table = table_of([{"tokens": ["a", "b"], "tags": [0, 2]}], class_names=("O", "B-x"))
    with pytest.raises(
        InputError, match=r"rows.jsonl:1: the tag of word 2 \(b\), 2, is not among the data set's classes"
    ):
        task_of(table)


def test_a_tag_that_training_lacks() -> None:
    task, other = task_of(SMALL), table_of(rows_of("here bread|O B-food"))
    with pytest.raises(InputError, match=r"rows.jsonl:1: the tag of word 2 \(bread\), B-food, is not among the 5"):
        encoded(task, other)


def test_text_for_predict() -> None:
    task = task_of(SMALL)
    assert task.row_of_texts(["The cat, here."]) == {"tokens": ["The", "cat", ",", "here", "."]}
    with pytest.raises(InputError, match=r"--text: takes one text, not 2"):
        task.row_of_texts(["a", "b"])
    assert task.words_of(table_of([{"tokens": "The cat, here.", "tags": None}]), 0) == ["The", "cat", ",", "here", "."]


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


def read(path: Path, text: str | bytes, **settings: Any) -> Table:
    """The table of a file with this text."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    config = settings_of(**{"data.train": [str(path)], **settings})
    return read_table(config.data.train, config.data, "data.train", Tagging.form(config))


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.bio", "a.iob"])
def test_conll(tmp_path: Path, name: str) -> None:
    """The last column; documents' lines left out, # is a word as any other; lines of words are kept."""
    table = read(tmp_path / name, CONLL)
    assert table.columns == {"tokens": [["the", "cat"], ["saw", "#"]], "tags": [["O", "B-animals"], ["B-tools", "O"]]}
    assert table.lines == [3, 7]
    assert table.word_lines == [[3, 4], [7, 8]]
    assert table.take([1]).word_lines == [[7, 8]]


@pytest.mark.parametrize(("column", "tags"), [("2", ["DT", "NN"]), ("3", ["B-NP", "I-NP"]), ("4", ["O", "B-animals"])])
def test_conll_column_by_number(tmp_path: Path, column: str, tags: list[str]) -> None:
    table = read(tmp_path / "a.conll", CONLL, **{"data.label_column": column})
    assert table.columns[column][0] == tags
    assert Tagging.from_table(settings_of(**{"data.label_column": column}), table).label_column == column


@pytest.mark.parametrize("column", ["1", "5", "0"])
def test_conll_column_that_is_not_there(tmp_path: Path, column: str) -> None:
    with pytest.raises(InputError, match=rf"data.label_column \({column}\): the file has 4 columns, the first"):
        read(tmp_path / "a.conll", CONLL, **{"data.label_column": column})


def test_conll_gzipped_with_tabs_and_windows_lines(tmp_path: Path) -> None:
    text = "New York\tB-x\r\nsaw\tO\r\n\r\ncat\tO\r\n"
    table = read(tmp_path / "a.conll.gz", gzip.compress(text.encode()))
    assert table.columns["tokens"] == [["New York", "saw"], ["cat"]]  # with tabs a word may have a space
    assert table.columns["tags"] == [["B-x", "O"], ["O"]]


def test_conll_ragged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.conll:4: 3 columns where there should be 2"):
        read(tmp_path / "a.conll", "a O\nb O\n\nc d O\n")


def test_conll_errors_name_the_words_own_line(tmp_path: Path) -> None:
    table = read(tmp_path / "a.conll", "the O\ncat B-x\n\nsaw O\ndog I-x\n")
    with pytest.raises(InputError, match=r"a.conll:5: the tag of word 2 \(dog\), I-x, breaks IOB2"):
        Tagging.from_table(settings_of(**{"task.tag_scheme": "IOB2"}), table)


def test_conll_of_words_alone(tmp_path: Path) -> None:
    """To be predicted; not to be trained on."""
    with pytest.raises(InputError, match=r"a.conll:1: no column 'tags' \(columns: tokens\); see data.label_column"):
        read(tmp_path / "a.conll", "the\ncat\n\nsaw\n")
    config = settings_of()
    table = read_table([str(tmp_path / "a.conll")], config.data, "--data", Tagging.form(config), needs_labels=False)
    assert table.columns["tokens"] == [["the", "cat"], ["saw"]]


@pytest.mark.parametrize(
    ("column", "expected"),
    [("tags", ["AUX", "PART", "VERB"]), ("upos", ["AUX", "PART", "VERB"]), ("XPOS", ["VBP", "RB", "VB"]),
     ("deprel", ["aux", "advmod", "root"])],
)  # fmt: skip
def test_conllu(tmp_path: Path, column: str, expected: list[str]) -> None:
    """Comments, ranges of words and ellipsis are no words; a column by its name."""
    table = read(tmp_path / "a.conllu", CONLLU, **{"data.label_column": column})
    assert table.columns["tokens"] == [["do", "n't", "saw wood"], ["#"]]
    assert table.columns[column][0] == expected
    assert table.word_lines == [[4, 5, 7], [10]]


def test_conllu_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.label_column \(pos\): of a CoNLL-U file one of id, form"):
        read(tmp_path / "a.conllu", CONLLU, **{"data.label_column": "pos"})
    with pytest.raises(InputError, match=r"a.conllu:1: 2 columns where there should be 10"):
        read(tmp_path / "a.conllu", "1\tcat\n")


def test_equal_sentences_stay_in_one_split(tmp_path: Path) -> None:
    rows = rows_of(*["the cat|O B-x"] * 10, *[f"saw {'here ' * number}|O {'O ' * number}" for number in range(1, 11)])
    path = tiny.write_jsonl(tmp_path / "a.jsonl", rows)
    config = settings_of(**{"data.train": [str(path)], "data.validation_fraction": 0.3, "data.test_fraction": 0.3})
    splits = load_splits(config.data, 0, Tagging.form(config))
    holding = [name for name, table in splits.tables().items() if ["the", "cat"] in table.columns["tokens"]]
    assert len(holding) == 1


# --- a whole run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Any]]:
    """A run on words of several pieces: config and results."""
    folder = tmp_path_factory.mktemp("tagging")
    backbone, tokenizer = folder / "backbone", tagged.word_piece()
    tiny.make_backbone(backbone, "bert", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(backbone)
    config = settings_of(**tagged.write_splits(folder, (160, 16, 24), longest=18), **{
        "model.backbone": str(backbone), "output_dir": str(folder), "data.max_length": 14, "train.epochs": 5,
        "train.batch_size": 8, "train.learning_rate": 5e-3, "train.precision": "fp32", "tracking.trackers": [],
    })  # fmt: skip
    return config, finetune(config, task_name="tagging").results


@pytest.fixture(scope="module")
def predictor(run: tuple[RunConfig, dict[str, Any]]) -> Predictor:
    """What the run exported."""
    return Predictor.from_pretrained(str(run[0].run_dir))


def test_a_run_learns_and_seqeval_agrees(run: tuple[RunConfig, dict[str, Any]], predictor: Predictor) -> None:
    """Its test metrics are seqeval's of what the exported model predicts of the file; so are those of evaluate."""
    config, results = run
    table = predictor.read(config.data.test[0], needs_labels=True)
    predicted = [row["tags"] for row in predictor.predict(table)]
    report = seqeval.metrics.classification_report(table.columns["tags"], predicted, output_dict=True)
    assert results["test"]["f1"] == pytest.approx(report["micro avg"]["f1-score"])
    assert results["test"]["recall/tools"] == pytest.approx(report["tools"]["recall"])
    assert results["examples"] == {"train": 160, "validation": 16, "test": 24}  # not their windows
    assert 0.2 < results["test"]["f1"] < 1  # right and wrong ones
    assert predictor.evaluate(table) == pytest.approx(results["test"], abs=1e-6)
    assert predictor.evaluate(table, metric="f1/food") == pytest.approx(results["test"], abs=1e-6)


def test_the_pipeline_says_the_same(run: tuple[RunConfig, dict[str, Any]], predictor: Predictor) -> None:
    """Of words as they are, the first piece's tag; of entities the "first" strategy's groups. Sentences of one window."""
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
        found = [(group["entity_group"], group["start"], group["end"]) for group in groups]
        ends = [start + len(token) for start, token in zip(starts, tokens, strict=True)]
        assert found == [(each["type"], starts[each["begin"]], ends[each["end"] - 1]) for each in ours["entities"]]
    assert num_pieces > 50


def test_a_long_sentence_comes_back_whole(predictor: Predictor) -> None:
    tokens = [word for row in tagged.make_rows(9, seed=3) for word in row["tokens"]]
    (row,) = predictor.predict([{"tokens": tokens}])
    assert row["tokens"] == tokens
    assert len(row["tags"]) == len(tokens) > 60
    assert len({entity["type"] for entity in row["entities"]}) == 3


def test_the_kinds_stand_in_a_table_of_their_own(
    run: tuple[RunConfig, dict[str, Any]], predictor: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    from hf_finetune.run import report

    assert "/" not in report.format_metrics(run[1]["test"])
    assert report.make_type_table({"f1": 1.0, "f1/x": 0.5, "recall/x": 0.25, "f1/y": 1.0, "recall/y": 0.0}) == [
        ("", "f1", "recall"), ("x", "0.5000", "0.2500"), ("y", "1.0000", "0.0000"),
    ]  # fmt: skip
    assert report.make_type_table({"f1": 1.0}) == []
    assert "finding entities (IOB2).\n3 types: animals, food, tools" in (run[0].run_dir / "model/README.md").read_text()


def test_a_model_of_unknown_origin(run: tuple[RunConfig, dict[str, Any]], tmp_path: Path) -> None:
    """Without the export's notes: labels and scheme by the model's config."""
    model = transformers.AutoModelForTokenClassification.from_pretrained(run[0].run_dir / "model")
    del model.config.hf_finetune
    model.save_pretrained(tmp_path)
    tagged.word_piece().save_pretrained(tmp_path)
    found = Predictor.from_pretrained(str(tmp_path), text_columns=("tokens",), label_column="tags").task
    assert isinstance(found, Tagging)
    assert (found.scheme, found.default_tag, len(found.label_names)) == ("IOB2", "O", 7)


def test_numbers_do_not_depend_on_micro_batches_or_the_cache(
    run: tuple[RunConfig, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """With dropout, windows, focal loss, weights and labels on all pieces."""
    config = run[0]
    losses = []
    for number, changes in enumerate(
        ({}, {"train.micro_batch_size": 3}, {"cache.activations": "on", "cache.precision": "fp32"})
    ):
        settings = {"cache.activations": "off", "model.dropout": 0.1, "train.dropout_masks": "stateless", "freeze.embeddings": True,
                    "freeze.layers": 1, "task.focal_gamma": 1.5, "task.class_weights": ["balanced"],
                    "task.label_all_pieces": True, "train.label_smoothing": 0.1, "train.max_updates": 6,
                    "tracking.log_every": 1, "train.learning_rate": 2e-3} | changes  # fmt: skip
        one = settings_of(**{"data.train": list(config.data.train), "data.validation": list(config.data.validation),
                             "data.test": list(config.data.test), "data.max_length": 14, "train.batch_size": 8,
                             "model.backbone": config.model.backbone, "output_dir": config.output_dir, "name": f"n{number}",
                             "train.precision": "fp32", "tracking.trackers": []}, **settings)  # fmt: skip
        finetune(one, task_name="tagging")
        rows = [json.loads(line) for line in (one.run_dir / "metrics.jsonl").read_text().splitlines()]
        losses.append([row[key] for row in rows for key in ("train/loss", "validation/loss") if key in row])
    said = capsys.readouterr().out
    assert (
        said.count("examples    160 train, 16 validation, 24 test\n")
        == said.count(" windows of the 160 to train on\n")
        == 3
    )
    assert len(losses[0]) >= 7
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)
