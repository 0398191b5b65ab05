"""Multiple choice: rows, labels, loss, predictions, use."""

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
from hf_finetune.data.features import Features, collate, make_features
from hf_finetune.data.table import Table
from hf_finetune.export.predict import Predictor, evaluate_file, predict_file, predict_texts
from hf_finetune.model import heads
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import form_of
from hf_finetune.tasks.choose import Choice
from hf_finetune.train import finetune

LIST = ("choices",)
TWO = ("a", "b")
THREE = ("a", "b", "c")


def make_config(
    choices: tuple[str, ...] = LIST, stems: tuple[str, ...] = ("stem",), smoothing: float = 0.0
) -> RunConfig:
    data = DataConfig(train=("-",), text_columns=stems, choice_columns=choices, label_column="label")
    return RunConfig(model=ModelConfig(backbone="-"), data=data, train=TrainConfig(label_smoothing=smoothing))


def make_table(rows: list[dict[str, Any]]) -> Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(columns={name: [row.get(name) for row in rows] for name in names}, files=["a.jsonl"] * len(rows),
                 lines=list(range(1, len(rows) + 1)))  # fmt: skip


def one(label: Any, choices: Any = ("cat", "dog", "bird"), **more: Any) -> dict[str, Any]:
    return {"stem": "the", "choices": list(choices) if isinstance(choices, tuple) else choices, "label": label, **more}


def make_task(rows: list[dict[str, Any]], **options: Any) -> Choice:
    return Choice.from_table(make_config(**options), make_table(rows))


def encode(task: Choice, table: Table) -> Features:
    arrays = task.tokenize(table, tiny.make_tokenizer(), 48)
    return make_features(arrays, task.labels(table, arrays))


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "reading", "right"),
    [
        ([one(0), one(2), one(1.0)], "index", [0, 2, 1]),
        ([one("0"), one(" 2 ")], "index", [0, 2]),
        ([one("A"), one("c")], "letter", [0, 2]),
        ([one("dog"), one(" cat ")], "text", [1, 0]),
        ([one("b", ("b", "a")), one("a", ("b", "a"))], "text", [0, 1]),
        ([one("3", ("3", "4", "5")), one("5", ("3", "4", "5"))], "text", [0, 2]),
        ([one("0", ("3", "4", "2")), one("2", ("3", "4", "2"))], "index", [0, 2]),
        ([one("2", {"text": ["cat", "dog"], "label": ["1", "2"]}), one("1", {"text": ["cat", "dog"], "label": [1, 2]})],
         "name", [1, 0]),
        ([one("B", {"text": ["A", "B"], "label": ["B", "A"]})], "name", [0]),
        ([one("B", {"text": ["cat", "dog"]})], "letter", [1]),
    ],
)  # fmt: skip
def test_labels_are_read_as_all_training_rows_say(rows: list[Any], reading: str, right: list[int]) -> None:
    task, table = make_task(rows), make_table(rows)
    assert task.reading == reading
    assert [task.right_choice(table, row) for row in range(len(rows))] == right
    again = Choice.from_facts(make_config(), task.facts())
    assert again.labels(table, {}).tolist() == right


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (one(3), r"a.jsonl:3: label \(3\) names none of the 3 choices, or several; labels are indices, from 0"),
        (one(-1), r"label \(-1\) names none"),
        (one(0.5), r"label \(0.5\) names none"),
        (one(True), r"label \(True\) names none"),
        (one(None), r"label \(None\) names none"),
        (one("two"), r"label \(two\) names none"),
        (one([0]), r"label \(\[0\]\) names none"),
        (one(0, "cat or dog"), r"choices \(cat or dog\) is no list of choices; see task.choice_columns"),
        (one(0, None), r"choices \(None\) is no list of choices"),
        (one(0, ("cat",)), "a.jsonl:3: choices: two or more choices are needed, it has 1"),
        (one(0, ("cat", " ")), r"choices: choice 1 \(' '\) is no text"),
        (one(0, ("cat", 5)), r"choices: choice 1 \(5\) is no text"),
        (one(0, {"text": ["cat", "dog"], "label": ["A"]}), "choices: 1 labels for 2 choices"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task([one(0), one(1), row])


def test_labels_that_fit_nowhere_or_twice_are_refused() -> None:
    with pytest.raises(InputError, match=r"a.jsonl:1: label \(yes\) names none .* labels are indices, from 0"):
        make_task([one("yes"), one("no")])
    twice = one("cat", ("cat", "dog", "cat"))
    with pytest.raises(
        InputError, match=r"a.jsonl:2: label \(cat\) names none .*, or several; labels are the choices' texts"
    ):
        make_task([one("dog"), twice])


def test_choices_in_columns_of_their_own_may_end_early() -> None:
    rows = [{"stem": "the", "a": "cat", "b": "dog", "c": last, "label": 1} for last in ("bird", "", None)]
    task, table = make_task(rows, choices=THREE), make_table(rows)
    assert [len(task.choices(table, row).texts) for row in range(3)] == [3, 2, 2]
    with pytest.raises(InputError, match=r"a.jsonl:1: a, b, c: choice 1 \(''\) is no text"):
        make_task([{**rows[0], "b": ""}], choices=THREE)
    form = form_of("choice", make_config(THREE, ("stem", "other")))
    assert form.inputs == ("stem", "other", "a", "b")
    assert form.optional == ("c",)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"task.choice_columns \(\[\]\): names the column of lists of choices, or"):
        form_of("choice", make_config(()))
    data = DataConfig(train=("-",), text_columns=("stem",), choice_columns=LIST, label_column=None)
    with pytest.raises(InputError, match=r"data.label_column \(None\): names the column of the right choice"):
        form_of("choice", RunConfig(model=ModelConfig(backbone="-"), data=data))


def test_a_sequence_is_the_stem_and_a_choice() -> None:
    rows = [{"stem": "the", "other": "red one", "a": "cat", "b": "big dog", "label": 1}]
    table = make_table(rows)
    two, three = (make_task(rows, choices=TWO, stems=stems) for stems in (("stem", "other"), ("stem",)))
    arrays = two.tokenize(table, tiny.make_tokenizer(), 48)
    texts = [tiny.make_tokenizer().decode(ids) for ids in np.split(arrays["input_ids"], arrays["offsets"][1:-1])]
    assert texts == ["[CLS] the red one [SEP] cat [SEP]", "[CLS] the red one [SEP] big dog [SEP]"]
    assert arrays["rows"].tolist() == [0, 2]
    assert two.encoding_settings() != three.encoding_settings()  # the same columns, put together otherwise


def test_what_is_said_of_the_training_data() -> None:
    rows = [one(0), one(2), one(1, ("cat", "big " * 60))]
    table, task = make_table(rows), make_task(rows)
    assert task.describe(encode(task, table), table, 48) == [
        ("input", "at most 48 tokens; 1 stems with a choice are longer and were cut"),
        (
            "choices",
            "2 in 1 rows, 3 in 2 rows; labels are indices, from 0; the right one is 1 times 0, 1 times 1, 1 times 2",
        ),
    ]


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
    batch = collate(features, np.arange(len(rows)), 0)
    inputs = {name: tensor.view(len(rows), 3, -1) for name, tensor in batch.inputs.items()}
    with torch.no_grad():
        outputs = heads.run_model(model, batch.inputs)
        theirs = model(**inputs, labels=batch.labels)
    assert outputs.shape == (3 * len(rows), 1)
    total, count = task.loss(outputs, batch)
    assert float(total) / count == pytest.approx(float(theirs.loss), abs=1e-6)
    assert np.stack(task.keep(outputs, batch)) == pytest.approx(theirs.logits.numpy(), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_of_any_counts_is_the_mean_of_each_row_alone_and_so_is_its_gradient(smoothing: float) -> None:
    model = make_model(0)
    rows = tiny.make_choices(20)
    task, table = make_task(rows, smoothing=smoothing), make_table(rows)
    features = encode(task, table)
    assert set(features.count_sequences(np.arange(20)).tolist()) == {2, 3, 4}

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters() if parameter.grad is not None])

    batch = collate(features, np.arange(20), 0)
    total, count = task.loss(heads.run_model(model, batch.inputs), batch)
    assert count == 20
    together = gradient(total)
    terms = []
    for row in range(20):
        each = collate(features, np.array([row]), 0)
        assert each.labels is not None
        logits = model(**{name: tensor[None] for name, tensor in each.inputs.items()}).logits
        terms.append(F.cross_entropy(logits, each.labels, label_smoothing=smoothing))
    alone = torch.stack(terms).sum()
    assert float(total.detach()) == pytest.approx(float(alone.detach()), abs=1e-4)
    torch.testing.assert_close(together, gradient(alone), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(together).all()


def test_accuracy_is_counted_by_row() -> None:
    rows = tiny.make_choices(30)
    task, table = make_task(rows), make_table(rows)
    features = encode(task, table)
    kept = [np.eye(len(row["choices"]), dtype=np.float32)[row["label"]] for row in rows]
    assert task.metrics("accuracy", kept, features, table, np.arange(30)) == {"accuracy": 1.0}
    kept[:3] = [logits[::-1] for logits in kept[:3]]
    wrong = sum(int(kept[row].argmax()) != rows[row]["label"] for row in range(3))
    assert wrong > 0
    some = np.array([0, 1, 2, 9])
    found = task.metrics("accuracy", [kept[row] for row in some], features, table, some)
    assert found == {"accuracy": 1 - wrong / 4}


# --- a run, and its use ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, whose data are beside it; labels are texts."""
    folder = tmp_path_factory.mktemp("choice")
    files = {}
    for seed, (split, count) in enumerate((("train", 96), ("validation", 24), ("test", 24))):
        rows = [{**row, "label": row["choices"][row["label"]]} for row in tiny.make_choices(count, seed=seed)]
        files[f"data.{split}"] = [str(tiny.write_jsonl(folder / f"{split}.jsonl", rows))]
    config = load_config(
        {"model.backbone": str(tiny.make_backbone(folder / "backbone", initializer_range=0.1)), "output_dir": str(folder),
         "data.text_columns": ["stem"], "task.choice_columns": ["choices"], "data.max_length": 48, "train.epochs": 2,
         "train.batch_size": 8, "train.learning_rate": 1e-2, "train.precision": "fp32", "tracking.trackers": [], **files}, []
    )  # fmt: skip
    assert config is not None
    return finetune(config, task_name="choice").run_dir


def test_a_run_learns_and_evaluate_gives_its_numbers(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["test"]["accuracy"] > 0.8
    found = evaluate_file(Predictor.from_pretrained(str(trained)), str(trained.parent / "test.jsonl"))
    assert found == results["test"]


def test_the_exported_folder_chooses_with_plain_transformers(trained: Path, tmp_path: Path) -> None:
    """transformers has no pipeline for multiple choice; so by hand."""
    model = transformers.AutoModelForMultipleChoice.from_pretrained(trained / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "model")
    predictor = Predictor.from_pretrained(str(trained))
    rows = tiny.make_choices(15, seed=9)
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"stem": row["stem"], "choices": row["choices"]} for row in rows])
    found = predict_file(predictor, str(path), str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == found
    for row, each in zip(rows, found, strict=True):
        count = len(row["choices"])
        encoded = tokenizer([row["stem"]] * count, row["choices"], return_tensors="pt", padding=True)
        with torch.no_grad():
            expected = model(**{name: tensor[None] for name, tensor in encoded.items()}).logits[0].softmax(-1)
        assert each["probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert each["choice"] == int(expected.argmax())
        assert each["text"] == row["choices"][each["choice"]]


def test_texts_on_the_command_line_are_stem_and_choices(trained: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    found = predict_texts(predictor, ["this", "the bread", "the saw", "cat", "big saw", "one bread"])
    assert (found["choice"], found["text"], len(found["probabilities"])) == (2, "cat", 5)
    with pytest.raises(InputError, match="takes the stem and then two or more choices, not 2 texts"):
        predict_texts(predictor, ["this", "the bread"])
    rows: list[Mapping[str, Any]] = [{"stem": "this", "choices": ["cat"]}]
    with pytest.raises(InputError, match="row 1: choices: two or more choices are needed, it has 1"):
        list(predictor.predict(rows))
    columns = Choice.from_facts(make_config(THREE, ("stem", "other")), {})
    assert columns.row_of_texts(["s", "o", "x", "y"]) == {"stem": "s", "other": "o", "a": "x", "b": "y", "c": None}
    with pytest.raises(
        InputError, match=r"the 2 texts of the stem \(stem, other\) and then two to 3 choices, not 6 texts"
    ):
        columns.row_of_texts(["s", "o", "x", "y", "z", "w"])


def test_evaluation_does_not_depend_on_what_rows_are_batched_with(trained: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    table = predictor.read(str(trained.parent / "test.jsonl"), needs_labels=True)
    features = predictor.encode(table, has_labels=True)
    few, many = (predictor.run_model(features, batch_size=size) for size in (3, 64))
    assert few.loss == pytest.approx(many.loss, abs=1e-6)
    for one_, other in zip(few.outputs, many.outputs, strict=True):
        assert one_ == pytest.approx(other, abs=1e-5)


def test_a_limit_of_tokens_counts_all_choices() -> None:
    rows = tiny.make_choices(60)
    task, table = make_task(rows), make_table(rows)
    features = encode(task, table)
    counts = features.count_sequences(np.arange(60))
    found = []
    for seed in range(3):
        chosen = np.random.default_rng(seed).permutation(60)[:32]
        limit = MicroBatchLimit(num_examples=16, num_tokens=150)
        pieces = share_batch(chosen, features.lengths, limit, 0, 1, counts)
        assert sorted(np.concatenate(pieces).tolist()) == sorted(chosen.tolist())
        found += [collate(features, piece, 0).inputs["input_ids"].numel() for piece in pieces]
    assert 100 < max(found) <= 150
    assert [
        len(piece)
        for piece in MicroBatchLimit(num_examples=2, num_tokens=1).split(np.arange(3), features.lengths, counts)
    ] == [1] * 3
