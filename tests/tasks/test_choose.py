"""Multiple choice: each part alone, rows, labels, loss, predictions, a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny
from torch.nn import functional as F

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig, TrainConfig
from hf_finetune.data.batches import MicroBatchLimit, share_batch
from hf_finetune.data.features import Batch, Features, Padding, collate, make_features
from hf_finetune.data.table import Table
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_files import predict_file
from hf_finetune.export.prediction_rows import iterate_predictions
from hf_finetune.export.predictor_calls import evaluate_file, predict_texts
from hf_finetune.model import heads
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.choose import (
    Choice,
    ChoiceColumns,
    ChoiceEncoding,
    ChoiceObjective,
    ChoiceScoring,
    Settings,
)
from hf_finetune.tasks.text.choice_reader import ChoiceReader, Choices
from hf_finetune.train import finetune

LIST = ("choices",)
TWO = ("a", "b")
THREE = ("a", "b", "c")


def make_config(
    choices: tuple[str, ...] = LIST,
    prompts: tuple[str, ...] = ("stem",),
    label: str | None = "label",
    smoothing: float = 0.0,
) -> RunConfig:
    """Returns a config that is never run."""
    return RunConfig(
        model=ModelConfig(backbone="-"),
        data=DataConfig(train=("-",), text_columns=prompts, label_column=label),
        task=Settings(kind="choose", choice_columns=choices),
        train=TrainConfig(label_smoothing=smoothing),
    )


def make_table(rows: list[dict[str, Any]]) -> Table:
    """Returns a table of rows from lines 1, 2, ... of a.jsonl."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Table(columns=columns, files=["a.jsonl"] * len(rows), lines=list(range(1, len(rows) + 1)))


def make_row(label: Any, choices: Any = ("cat", "dog", "bird")) -> dict[str, Any]:
    """Returns a row with this label."""
    return {"stem": "the", "choices": list(choices) if isinstance(choices, tuple) else choices, "label": label}


def make_task(rows: list[dict[str, Any]], **options: Any) -> Choice:
    """Returns the task that these training rows give."""
    return Choice.from_table(make_config(**options), make_table(rows))


def encode(task: Choice, table: Table) -> Features:
    """Returns features with labels."""
    arrays = task.encoding.tokenize(table, tiny.make_tokenizer(), 48)
    return make_features(arrays, task.encoding.labels(table, arrays))


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "reading", "right"),
    [
        ([make_row(0), make_row(2), make_row(1.0)], "index", [0, 2, 1]),
        ([make_row("0"), make_row(" 2 ")], "index", [0, 2]),
        ([make_row("A"), make_row("c")], "letter", [0, 2]),
        ([make_row("dog"), make_row(" cat ")], "text", [1, 0]),
        ([make_row("b", ("b", "a")), make_row("a", ("b", "a"))], "text", [0, 1]),
        ([make_row("3", ("3", "4", "5")), make_row("5", ("3", "4", "5"))], "text", [0, 2]),
        ([make_row("0", ("3", "4", "2")), make_row("2", ("3", "4", "2"))], "index", [0, 2]),
        ([make_row("2", {"text": ["cat", "dog"], "label": ["1", "2"]}), make_row("1", {"text": ["cat", "dog"], "label": [1, 2]})],
         "name", [1, 0]),
        ([make_row("B", {"text": ["A", "B"], "label": ["B", "A"]})], "name", [0]),
        ([make_row("B", {"text": ["cat", "dog"]})], "letter", [1]),
    ],
)  # fmt: skip
def test_labels_are_read_in_the_way_that_fits_most_training_rows(
    rows: list[Any], reading: str, right: list[int]
) -> None:
    task, table = make_task(rows), make_table(rows)
    assert task.reading == reading
    assert [task.encoding.reader.read_label(table, row) for row in range(len(rows))] == right
    again = Choice.from_state(make_config(), task.state_dict())
    assert again == task
    assert again.encoding.labels(table, {}).tolist() == right


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (make_row(3), r"a.jsonl:3: label \(3\) names none of the 3 choices, or several; labels are indices, from 0"),
        (make_row(-1), r"label \(-1\) names none"),
        (make_row(0.5), r"label \(0.5\) names none"),
        (make_row(True), r"label \(True\) names none"),
        (make_row(None), "label is missing"),
        (make_row("two"), r"label \(two\) names none"),
        (make_row([0]), r"label \(\[0\]\) names none"),
        (make_row(0, "cat or dog"), r"choices \(cat or dog\) is not a list of choices; see task.choice_columns"),
        (make_row(0, None), r"choices is missing, and no other columns of choices"),
        (make_row(0, ("cat",)), "a.jsonl:3: choices: needs at least two choices, has 1"),
        (make_row(0, ("cat", " ")), r"choices: choice 1 \(' '\) is not a text"),
        (make_row(0, ("cat", 5)), r"choices: choice 1 \(5\) is not a text"),
        (make_row(0, {"text": ["cat", "dog"], "label": ["A"]}), "choices: 1 labels for 2 choices"),
    ],
)
def test_errors_of_rows(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task([make_row(0), make_row(1), row])


def test_labels_that_name_no_choice_or_two_are_an_error() -> None:
    with pytest.raises(InputError, match=r"a.jsonl:1: label \(yes\) names none .* labels are indices, from 0"):
        make_task([make_row("yes"), make_row("no")])
    twice = make_row("cat", ("cat", "dog", "cat"))
    with pytest.raises(
        InputError, match=r"a.jsonl:2: label \(cat\) names none .*, or several; labels are the choices' texts"
    ):
        make_task([make_row("dog"), twice])


def test_choices_in_columns_of_their_own_may_end_early() -> None:
    rows = [{"stem": "the", "a": "cat", "b": "dog", "c": last, "label": 1} for last in ("bird", "", None)]
    task, table = make_task(rows, choices=THREE), make_table(rows)
    assert [len(task.encoding.reader.read_choices(table, row).texts) for row in range(3)] == [3, 2, 2]
    with pytest.raises(InputError, match=r"a.jsonl:1: a, b, c: choice 1 \(''\) is not a text"):
        make_task([{**rows[0], "b": ""}], choices=THREE)
    spec = Choice.make_columns(make_config(THREE, ("stem", "other"))).spec
    assert spec.inputs == ("stem", "other", "a", "b")
    assert spec.optional == ("c",)


def test_errors_of_settings() -> None:
    with pytest.raises(InputError, match=r"task.choice_columns \(\[\]\): must be a column of lists of choices, or"):
        Choice.make_columns(make_config(()))
    with pytest.raises(InputError, match=r"data.label_column \(None\): multiple choice needs the column of the right"):
        Choice.make_columns(make_config(label=None))
    for choices in (("a", "a"), ("stem", "b"), ("a", "label")):
        with pytest.raises(
            InputError, match=r"task.choice_columns \(\[.*\]\): must differ from each other, from data.text"
        ):
            Choice.make_columns(make_config(choices))


def test_a_sequence_is_the_prompt_and_a_choice() -> None:
    rows = [{"stem": "the", "other": "red one", "a": "cat", "b": "big dog", "label": 1}]
    table = make_table(rows)
    long, short = (make_task(rows, choices=TWO, prompts=prompts) for prompts in (("stem", "other"), ("stem",)))
    arrays = long.encoding.tokenize(table, tiny.make_tokenizer(), 48)
    texts = [tiny.make_tokenizer().decode(ids) for ids in np.split(arrays["input_ids"], arrays["offsets"][1:-1])]
    assert texts == ["[CLS] the red one [SEP] cat [SEP]", "[CLS] the red one [SEP] big dog [SEP]"]
    assert arrays["rows"].tolist() == [0, 2]
    assert long.encoding.encoding_settings() != short.encoding.encoding_settings()


def test_the_training_data_are_described() -> None:
    rows = [make_row(0), make_row(2), make_row(1, ("cat", "big " * 60))]
    table, task = make_table(rows), make_task(rows)
    assert task.encoding.describe(encode(task, table), table, 48) == [
        ("input", "at most 48 tokens; 1 prompts with a choice are longer and were cut"),
        (
            "choices",
            "2 in 1 rows, 3 in 2 rows; labels are indices, from 0; the right one is 0 in 1 rows, 1 in 1 rows, 2 in 1 rows",
        ),
    ]


# --- the parts alone ------------------------------------------------------------------------------------------------

READER = ChoiceReader(choice_columns=LIST, label_column="label")


def test_columns_alone() -> None:
    columns = ChoiceColumns(prompts=("stem",), choices=TWO, label="label")
    assert columns.spec.own_columns == ("stem", "a", "b", "label")
    assert (columns.spec.texts, columns.spec.together) == (("stem",), ("stem",))
    assert columns.make_row(["the", "x", "y"]) == {"stem": "the", "a": "x", "b": "y"}
    assert columns.num_example_texts == 3
    assert ChoiceColumns(prompts=("stem", "more"), choices=("choices",), label="label").num_example_texts == 4
    with pytest.raises(InputError, match=r"--text: takes the prompt and then two choices, not 4 texts"):
        columns.make_row(["the", "x", "y", "z"])


def test_the_reader_alone() -> None:
    table = make_table([make_row(1), make_row("b", {"text": ["cat", "dog"], "label": ["a", "b"]})])
    assert READER.read_choices(table, 0) == Choices(texts=("cat", "dog", "bird"))
    assert READER.read_choices(table, 1) == Choices(texts=("cat", "dog"), names=("a", "b"))
    assert READER.read_label(table, 0) == 1
    assert READER.fit(table.take([1])).reading == "name"
    with pytest.raises(InputError, match=r"label \(none\) names none of the 3 choices, or several; labels are indices"):
        READER.fit(make_table([make_row("none")]))


def test_encoding_alone() -> None:
    encoding = ChoiceEncoding(prompts=("stem",), reader=READER)
    table = make_table([make_row(2), make_row(0, ("cat", "dog"))])
    arrays = encoding.tokenize(table, tiny.make_tokenizer(), 16)
    assert arrays["rows"].tolist() == [0, 3, 5]
    assert len(arrays["offsets"]) == 6
    assert encoding.labels(table, arrays).tolist() == [2, 0]
    assert encoding.encoded_columns() == ("stem", "choices")


def test_objective_and_scoring_alone() -> None:
    indices, counts = np.arange(2), np.array([3, 2])
    batch = Batch(
        feature_indices=indices,
        sequence_indices=np.arange(5),
        sequence_counts=counts,
        inputs={},
        labels=torch.tensor([2, 0]),
    )
    logits = torch.tensor([[0.0], [1.0], [2.0], [3.0], [0.5]])
    loss, count = ChoiceObjective().loss(logits, batch)
    expected = -(logits[:3, 0].log_softmax(0)[2] + logits[3:, 0].log_softmax(0)[0])
    torch.testing.assert_close(loss, expected)
    assert count == 2
    scoring, table = ChoiceScoring(reader=READER), make_table([make_row(2), make_row(0, ("cat", "dog"))])
    outputs = scoring.reduce(logits, batch)
    assert [array.tolist() for array in outputs] == [[0.0, 1.0, 2.0], [3.0, 0.5]]
    encoding = ChoiceEncoding(prompts=("stem",), reader=READER)
    arrays = encoding.tokenize(table, tiny.make_tokenizer(), 16)
    features = make_features(arrays, encoding.labels(table, arrays))
    assert scoring.compute_metrics("accuracy", outputs, features, table, indices) == {"accuracy": 1.0}
    assert [row["text"] for row in scoring.make_predictions(outputs, features, table)] == ["bird", "cat"]


def test_the_task_has_the_four_parts() -> None:
    task = make_task([make_row("a"), make_row("b")], smoothing=0.1)
    assert (task.head.auto_class, task.pipeline_tag) == ("AutoModelForMultipleChoice", "multiple-choice")
    assert (task.problem, task.scoring.metric_names, task.head.has_labels) == ("multiple_choice", ("accuracy",), False)
    assert task.objective == ChoiceObjective(label_smoothing=0.1)
    assert task.describe_for_card() == "multiple choice: which of two or more texts is right for a prompt."


# --- loss -----------------------------------------------------------------------------------------------------------


def make_model(seed: int) -> Any:
    torch.manual_seed(seed)
    return transformers.AutoModelForMultipleChoice.from_config(tiny.make_config(initializer_range=0.5)).eval()


@pytest.mark.parametrize("seed", range(3))
def test_loss_is_the_models_own_for_equal_counts(seed: int) -> None:
    model = make_model(seed)
    rows = [row for row in tiny.make_choices(60, seed=seed) if len(row["choices"]) == 3]
    task, table = make_task(rows), make_table(rows)
    features = encode(task, table)
    batch = collate(features, np.arange(len(rows)), Padding(0))
    inputs = {name: tensor.view(len(rows), 3, -1) for name, tensor in batch.inputs.items()}
    with torch.no_grad():
        outputs = heads.run_model(model, batch.inputs)
        theirs = model(**inputs, labels=batch.labels)
    assert outputs.shape == (3 * len(rows), 1)
    total, count = task.objective.loss(outputs, batch)
    assert float(total) / count == pytest.approx(float(theirs.loss), abs=1e-6)
    assert np.stack(task.scoring.reduce(outputs, batch)) == pytest.approx(theirs.logits.numpy(), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_of_different_counts_are_those_of_each_row_alone(smoothing: float) -> None:
    model = make_model(0)
    rows = tiny.make_choices(20)
    task, table = make_task(rows, smoothing=smoothing), make_table(rows)
    features = encode(task, table)
    assert set(features.count_sequences(np.arange(20)).tolist()) == {2, 3, 4}

    def compute_gradient(loss: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters() if parameter.grad is not None])

    batch = collate(features, np.arange(20), Padding(0))
    total, count = task.objective.loss(heads.run_model(model, batch.inputs), batch)
    assert count == 20
    together = compute_gradient(total)
    terms = []
    for row in range(20):
        single = collate(features, np.array([row]), Padding(0))
        assert single.labels is not None
        logits = model(**{name: tensor[None] for name, tensor in single.inputs.items()}).logits
        terms.append(F.cross_entropy(logits, single.labels, label_smoothing=smoothing))
    alone = torch.stack(terms).sum()
    assert float(total.detach()) == pytest.approx(float(alone.detach()), abs=1e-4)
    torch.testing.assert_close(together, compute_gradient(alone), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(together).all()


def test_accuracy_is_counted_by_row() -> None:
    rows = tiny.make_choices(30)
    task, table = make_task(rows), make_table(rows)
    features = encode(task, table)
    outputs = [np.eye(len(row["choices"]), dtype=np.float32)[row["label"]] for row in rows]
    assert task.scoring.compute_metrics("accuracy", outputs, features, table, np.arange(30)) == {"accuracy": 1.0}
    outputs[:3] = [logits[::-1] for logits in outputs[:3]]
    wrong = sum(int(outputs[row].argmax()) != rows[row]["label"] for row in range(3))
    assert wrong > 0
    indices = np.array([0, 1, 2, 9])
    values = task.scoring.compute_metrics("accuracy", [outputs[index] for index in indices], features, table, indices)
    assert values == {"accuracy": 1 - wrong / 4}


# --- a run and its predictions ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a finished run. Its data are next to it, and its labels are texts."""
    folder = tmp_path_factory.mktemp("choice")
    files = {}
    for seed, (split, count) in enumerate((("train", 96), ("validation", 24), ("test", 24))):
        rows = [{**row, "label": row["choices"][row["label"]]} for row in tiny.make_choices(count, seed=seed)]
        files[f"data.{split}"] = [str(tiny.write_jsonl(folder / f"{split}.jsonl", rows))]
    settings = {
        "task.kind": "choose",
        "task.choice_columns": ["choices"],
        "model.backbone": str(tiny.make_backbone(folder / "backbone", initializer_range=0.1)),
        "output_dir": str(folder),
        "data.text_columns": ["stem"],
        "data.max_length": 48,
        "train.epochs": 2,
        "train.batch_size": 8,
        "train.learning_rate": 1e-2,
        "train.precision": "fp32",
        "tracking.trackers": [],
    }
    return finetune(load_config(settings | files)).run_dir


def test_rows_in_other_columns_are_predicted_and_evaluated_the_same(trained: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    rows = [{**row, "label": row["choices"][row["label"]]} for row in tiny.make_choices(12, seed=7)]
    others = [{"question": row["stem"], "options": row["choices"], "answer": row["label"]} for row in rows]
    assert predictor.predict(others) == predictor.predict(rows)
    assert predictor.evaluate(others) == predictor.evaluate(rows)
    path = tiny.write_jsonl(tmp_path / "others.jsonl", others)
    assert evaluate_file(predictor, str(path)) == predictor.evaluate(rows)
    assert list(iterate_predictions(predictor, str(path), batch_size=4)) == predictor.predict(rows, batch_size=4)
    with pytest.raises(
        InputError, match=r"others.jsonl:1: no column 'title' \(columns: question, options, answer\); see --keep"
    ):
        list(iterate_predictions(predictor, str(path), keep=("title",)))
    unlabelled = [{name: row[name] for name in ("question", "options")} for row in others]
    assert predictor.predict(unlabelled) == predictor.predict(rows)


def test_a_run_learns_and_evaluate_repeats_its_metrics(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["test"]["accuracy"] > 0.8
    values = evaluate_file(Predictor.from_pretrained(str(trained)), str(trained.parent / "test.jsonl"))
    assert values == results["test"]


def test_the_exported_folder_chooses_with_plain_transformers(trained: Path, tmp_path: Path) -> None:
    """transformers has no pipeline for multiple choice, so the test calls the model."""
    model = transformers.AutoModelForMultipleChoice.from_pretrained(trained / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "model")
    predictor = Predictor.from_pretrained(str(trained))
    rows = tiny.make_choices(15, seed=9)
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"stem": row["stem"], "choices": row["choices"]} for row in rows])
    assert predict_file(predictor, str(path), str(tmp_path / "out.json")) == 15
    predictions = predictor.predict(rows)
    assert json.loads((tmp_path / "out.json").read_text()) == predictions
    for row, prediction in zip(rows, predictions, strict=True):
        count = len(row["choices"])
        encoded = tokenizer([row["stem"]] * count, row["choices"], return_tensors="pt", padding=True)
        with torch.no_grad():
            expected = model(**{name: tensor[None] for name, tensor in encoded.items()}).logits[0].softmax(-1)
        assert prediction["probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert prediction["choice"] == int(expected.argmax())
        assert prediction["text"] == row["choices"][prediction["choice"]]


def test_texts_on_the_command_line_are_prompt_and_choices(trained: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    prediction = predict_texts(predictor, ["this", "the bread", "the saw", "cat", "big saw", "one bread"])
    assert (prediction["choice"], prediction["text"], len(prediction["probabilities"])) == (2, "cat", 5)
    with pytest.raises(InputError, match="takes the prompt and then two or more choices, not 2 texts"):
        predict_texts(predictor, ["this", "the bread"])
    rows: list[Mapping[str, Any]] = [{"stem": "this", "choices": ["cat"]}]
    with pytest.raises(InputError, match=r"rows\[0\]: choices: needs at least two choices, has 1"):
        list(predictor.predict(rows))
    columns = Choice.make_columns(make_config(THREE, ("stem", "other")))
    assert columns.make_row(["s", "o", "x", "y"]) == {"stem": "s", "other": "o", "a": "x", "b": "y", "c": None}
    with pytest.raises(
        InputError, match=r"the 2 texts of the prompt \(stem, other\) and then two to 3 choices, not 6 texts"
    ):
        columns.make_row(["s", "o", "x", "y", "z", "w"])


def test_evaluation_does_not_depend_on_the_batch_size(trained: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    table = predictor.read(str(trained.parent / "test.jsonl"), needs_labels=True)
    features = predictor.encode(table, has_labels=True)
    indices = np.arange(len(features))
    small, large = (predictor.make_runner(features, size).compute_outputs(indices) for size in (3, 64))
    assert small.loss == pytest.approx(large.loss, abs=1e-6)
    for logits, expected in zip(small.outputs, large.outputs, strict=True):
        assert logits == pytest.approx(expected, abs=1e-5)


def test_a_limit_of_tokens_counts_all_choices() -> None:
    rows = tiny.make_choices(60)
    task, table = make_task(rows), make_table(rows)
    features = encode(task, table)
    counts = features.count_sequences(np.arange(60))
    sizes = []
    for seed in range(3):
        chosen = np.random.default_rng(seed).permutation(60)[:32]
        limit = MicroBatchLimit(num_examples=16, num_tokens=150)
        pieces = share_batch(chosen, features.lengths, limit, 0, 1, counts)
        assert sorted(np.concatenate(pieces).tolist()) == sorted(chosen.tolist())
        sizes += [collate(features, piece, Padding(0)).inputs["input_ids"].numel() for piece in pieces]
    assert 100 < max(sizes) <= 150
    assert [
        len(piece)
        for piece in MicroBatchLimit(num_examples=2, num_tokens=1).split(np.arange(3), features.lengths, counts)
    ] == [1] * 3
