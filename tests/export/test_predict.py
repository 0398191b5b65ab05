"""Predictions of a fine-tuned model for texts and files; `evaluate` gives the numbers of the run."""

import csv
import gzip
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import polars
import pytest
import torch
import transformers
from support import tiny
from support.configs import make_small_config

from hf_finetune.config.sections import RunConfig
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_files import predict_file
from hf_finetune.export.prediction_rows import iterate_predictions
from hf_finetune.export.predictor_calls import evaluate_file
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.answer import Answering
from hf_finetune.train import RunResult, finetune
from hf_finetune.training.evaluation import ModelRunner

LABELS = ["animals", "food", "tools"]
NUM_TEST = 100  # more than the 64 of one evaluation batch
Runs = Callable[..., tuple[RunConfig, RunResult]]


def make_config(folder: Path, backbone: Path, problem: str, pair: bool, **settings: Any) -> RunConfig:
    """Returns the config of a small run with NUM_TEST test rows."""
    rows = tiny.make_rows(NUM_TEST, seed=2, problem=problem, pair=pair)
    test = tiny.write_jsonl(folder / "test.jsonl", rows)
    settings = {"data.test": [str(test)], "train.epochs": 8, "train.learning_rate": 1e-2, **settings}
    return make_small_config(folder, backbone, problem, pair, **settings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Iterator[Runs]:
    """`runs("multi_label", pair=True)`: config and result of a finished run, made once. All runs but the first are short."""
    made: dict[tuple[Any, ...], tuple[RunConfig, RunResult]] = {}
    with pytest.MonkeyPatch.context() as patch:

        def run(problem: str = "single_label", *, pair: bool = False, family: str = "bert") -> Any:
            key = (problem, pair, family)
            if key not in made:
                folder = tmp_path_factory.mktemp("predicted")
                patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))
                short = {} if key == ("single_label", False, "bert") else {"train.max_updates": 6}
                config = make_config(folder, backbones(family), problem, pair, **short)
                made[key] = config, finetune(config)
            return made[key]

        yield run


@pytest.fixture(scope="module")
def classifier(runs: Runs) -> Predictor:
    """The model for one label of one text."""
    return Predictor.from_pretrained(str(runs()[1].run_dir))


def make_rows(*columns: list[str]) -> list[dict[str, str]]:
    """Returns rows with these texts, from one column or two."""
    return [dict(zip(("text", "other"), texts, strict=False)) for texts in zip(*columns, strict=True)]


def compute_logits(predictor: Predictor, *columns: list[str], batch_size: int = 64) -> Any:
    """Returns the logits [N, C] of texts, or of pairs."""
    features = predictor.encode(predictor.make_table(make_rows(*columns)), has_labels=False)
    runner = predictor.make_runner(features, batch_size)
    return np.stack(runner.compute_outputs(np.arange(len(features))).outputs)


def make_texts(count: int, *, seed: int = 5) -> list[str]:
    """Returns texts of all classes."""
    return [row["text"] for row in tiny.make_rows(count, seed=seed)]


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_text_gets_its_label_and_a_probability_for_every_label(classifier: Predictor) -> None:
    rows = list(classifier.predict(make_rows(["the old cat", "a bread", "hammer and nail there"])))
    assert [row["label"] for row in rows] == LABELS
    for row in rows:
        assert list(row) == ["label", "probabilities"]
        assert list(row["probabilities"]) == LABELS
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].__getitem__)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_predictions_are_in_the_order_of_the_texts_whatever_their_lengths(
    classifier: Predictor, batch_size: int
) -> None:
    texts = make_texts(20)
    assert len({len(text.split()) for text in texts}) > 4
    together = compute_logits(classifier, texts, batch_size=batch_size)
    alone = np.concatenate([compute_logits(classifier, [text]) for text in texts])
    assert np.allclose(together, alone, atol=1e-5)
    assert len(np.unique(alone.round(4), axis=0)) == 20  # a prediction at another's position would show


def test_predictions_are_those_of_plain_transformers(classifier: Predictor, runs: Runs) -> None:
    folder = runs()[1].model_dir
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = make_texts(7)
    with torch.inference_mode():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()
    assert np.allclose(compute_logits(classifier, texts), logits, atol=1e-5)


@pytest.mark.parametrize(("problem", "keys"), [("multi_label", ["labels", "probabilities"]), ("regression", ["score"])])
def test_predictions_of_several_labels_and_of_numbers(runs: Runs, problem: str, keys: list[str]) -> None:
    classifier = Predictor.from_pretrained(str(runs(problem)[1].run_dir))
    rows = list(classifier.predict(make_rows(make_texts(9))))
    assert all(list(row) == keys for row in rows)
    if problem == "regression":
        assert all(isinstance(row["score"], float) for row in rows)
    else:
        for row in rows:
            assert row["labels"] == [name for name, probability in row["probabilities"].items() if probability > 0.5]
            assert list(row["probabilities"]) == LABELS


def test_both_texts_of_a_pair_count(runs: Runs) -> None:
    classifier = Predictor.from_pretrained(str(runs(pair=True)[1].run_dir))
    logits = compute_logits(classifier, ["cat", "cat", "bread"], ["dog", "saw", "dog"])
    assert not np.allclose(logits[0], logits[1], atol=1e-6)
    assert not np.allclose(logits[0], logits[2], atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "roberta", "t5"])
def test_padding_does_not_change_predictions_of_other_families(runs: Runs, family: str) -> None:
    classifier = Predictor.from_pretrained(str(runs(family=family)[1].run_dir))
    texts = make_texts(8)
    alone = np.concatenate([compute_logits(classifier, [text]) for text in texts])
    assert np.allclose(compute_logits(classifier, texts), alone, atol=1e-5)
    assert len(np.unique(alone.round(5), axis=0)) > 1


# --- where models come from -----------------------------------------------------------------------------------------


def test_a_run_folder_and_its_model_folder_are_the_same_model(classifier: Predictor, runs: Runs) -> None:
    other = Predictor.from_pretrained(str(runs()[1].model_dir))
    assert np.array_equal(compute_logits(other, make_texts(5)), compute_logits(classifier, make_texts(5)))
    assert other.config == classifier.config
    assert classifier.config.data.text_columns == ("text",)
    assert other.task == classifier.task
    assert not classifier.model.training


def test_a_model_that_this_package_did_not_train_predicts_too(backbones: Callable[..., Path], tmp_path: Path) -> None:
    tiny.make_model("bert", num_labels=2).save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    classifier = Predictor.from_pretrained(str(tmp_path))
    (row,) = classifier.predict([{"text": "a cat"}])
    assert set(row["probabilities"]) == {"LABEL_0", "LABEL_1"}
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"text": "a cat", "label": "LABEL_1"}])
    assert set(evaluate_file(classifier, str(data))) == {"loss", "accuracy", "f1_macro"}

    tiny.make_model("bert", num_labels=1).save_pretrained(tmp_path / "number")
    tiny.make_tokenizer().save_pretrained(tmp_path / "number")
    (row,) = Predictor.from_pretrained(str(tmp_path / "number")).predict([{"text": "a cat"}])
    assert list(row) == ["score"]


@pytest.mark.parametrize(("family", "limit"), [("bert", 66), ("roberta", 65), ("gpt2", 66)])
def test_a_text_longer_than_the_positions_is_cut_even_if_the_tokenizer_has_no_limit(
    tmp_path: Path, family: str, limit: int
) -> None:
    tiny.make_model(family).save_pretrained(tmp_path)
    tokenizer = tiny.make_tokenizer()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(tmp_path)
    classifier = Predictor.from_pretrained(str(tmp_path))
    assert classifier.max_length == limit
    words = ["cat"] * (limit - 2)
    logits = compute_logits(classifier, [" ".join(words), " ".join(words + ["dog"] * 200)])
    assert np.allclose(logits[0], logits[1], atol=1e-7)


def test_the_longest_input_of_a_model_without_positions_is_that_of_training_or_512(tmp_path: Path) -> None:
    tiny.make_model("t5").save_pretrained(tmp_path)
    for saved, limit in ((600, 600), (10**30, 512)):
        tokenizer = tiny.make_tokenizer(ends_only=True)
        tokenizer.model_max_length = saved
        tokenizer.save_pretrained(tmp_path)
        assert Predictor.from_pretrained(str(tmp_path)).max_length == limit


def test_a_location_without_a_model_is_an_error_that_names_it(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no finished run \(model/config\.json\) and no model"):
        Predictor.from_pretrained(str(tmp_path / "empty"))
    with pytest.raises(
        InputError, match=r"^nobody/nothing: is not a run folder, a model folder or a model on the Hub: ."
    ):
        Predictor.from_pretrained("nobody/nothing")
    broken = tmp_path / "run" / "model"
    broken.mkdir(parents=True)
    for path in runs()[1].model_dir.iterdir():
        (broken / path.name).write_bytes(
            path.read_bytes()[:-300] if path.suffix == ".safetensors" else path.read_bytes()
        )
    with pytest.raises(
        InputError, match=r"run: is not a run folder, a model folder or a model on the Hub: ."
    ) as caught:
        Predictor.from_pretrained(str(tmp_path / "run"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "recorded",
    [
        "by hand",
        {"task": "classification", "settings": {"made_up": 1}},
        {"task": {"kind": "classification"}},
        {"task": {"kind": 5}},
        {"task": {"kind": "classify", "made_up": 1}},
        {"task": {"kind": "classify", "problem": "guess"}},
        {"task": {"kind": "classify"}, "task_state": {"labels": ["a", "b"]}},
        {"task": {"kind": "classify"}, "task_state": ["a", "b"]},
        {"task": {"kind": "classify"}, "text_columns": 5},
    ],
    ids=str,
)
def test_training_settings_of_another_version_are_an_error_that_names_the_model(tmp_path: Path, recorded: Any) -> None:
    model = tiny.make_model("bert", num_labels=2)
    model.config.hf_finetune = recorded
    model.save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    message = r"the training settings in its config \(hf_finetune\) were written by another version"
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path))}: {message}: ."):
        Predictor.from_pretrained(str(tmp_path))


def test_the_class_of_a_task_is_imported_only_if_the_user_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model from the Hub must not choose what is imported."""
    (tmp_path / "own_tasks.py").write_text(
        "from hf_finetune.tasks.classify import Classification\nclass OwnTask(Classification):\n    pass\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    kind = "own_tasks:OwnTask"
    model = tiny.make_model("bert", num_labels=2)
    model.config.hf_finetune = {"task": {"kind": kind}, "task_state": {"problem": "single_label", "labels": ["a", "b"]}}
    model.save_pretrained(tmp_path / "model")
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    for named in (None, "own_tasks:Another", "classify"):
        with pytest.raises(
            InputError, match=r"model: its task is the class own_tasks:OwnTask, .* --task own_tasks:OwnTask"
        ):
            Predictor.from_pretrained(str(tmp_path / "model"), task=named)
    assert "own_tasks" not in sys.modules
    predictor = Predictor.from_pretrained(str(tmp_path / "model"), task=kind)
    assert type(predictor.task).__name__ == "OwnTask"
    (row,) = predictor.predict([{"text": "a cat"}])
    assert set(row["probabilities"]) == {"a", "b"}
    of_class = Predictor.from_pretrained(tmp_path / "model", task=type(predictor.task))
    assert of_class.predict([{"text": "a cat"}]) == [row]
    del sys.modules["own_tasks"]


def test_a_question_answering_model_made_elsewhere_needs_its_columns(tmp_path: Path) -> None:
    transformers.AutoModelForQuestionAnswering.from_config(tiny.make_config("bert")).save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"^data\.text_columns \(\['text'\]\): must be two columns"):
        Predictor.from_pretrained(str(tmp_path))
    predictor = Predictor.from_pretrained(str(tmp_path), text_columns=("question", "context"), label_column="answers")
    assert predictor.config.task.kind == "answer"
    assert isinstance(predictor.task, Answering)


# --- files ----------------------------------------------------------------------------------------------------------


def test_the_rows_of_a_file_are_predicted_in_their_order(classifier: Predictor, tmp_path: Path) -> None:
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.make_rows(NUM_TEST, seed=5))
    out = tmp_path / "predictions.jsonl"
    out.write_text("old", encoding="utf-8")
    assert predict_file(classifier, str(data), str(out)) == NUM_TEST
    rows = list(iterate_predictions(classifier, str(data)))
    assert rows == list(classifier.predict(make_rows(make_texts(NUM_TEST))))
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == rows
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "predictions.jsonl"}
    right = [row["label"] == made["label"] for row, made in zip(rows, tiny.make_rows(NUM_TEST, seed=5), strict=True)]
    assert sum(right) > 0.8 * NUM_TEST


def test_a_file_without_labels_or_with_unknown_labels_is_predicted(classifier: Predictor, tmp_path: Path) -> None:
    texts = make_texts(5)
    expected = list(classifier.predict(make_rows(texts)))
    with (tmp_path / "plain.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    with gzip.open(tmp_path / "more.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": 7, "text": text, "label": None}) + "\n" for text in texts)
    unknown = tiny.write_jsonl(tmp_path / "unknown.jsonl", [{"text": text, "label": "plants"} for text in texts])
    for path in (tmp_path / "plain.csv", tmp_path / "more.jsonl.gz", unknown):
        assert list(iterate_predictions(classifier, str(path))) == expected


def test_other_columns_can_be_named(classifier: Predictor, runs: Runs, tmp_path: Path) -> None:
    rows = tiny.make_rows(6, seed=5)
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"body": row["text"], "kind": row["label"]} for row in rows])
    named = Predictor.from_pretrained(str(runs()[1].run_dir), text_columns=("body",), label_column="kind")
    assert list(iterate_predictions(named, str(data))) == list(classifier.predict(make_rows(make_texts(6))))
    values = evaluate_file(named, str(data))
    assert values["accuracy"] > 0.5
    with pytest.raises(InputError, match=r"rows\.jsonl:1: no column 'text' \(columns: body, kind\)"):
        list(iterate_predictions(classifier, str(data)))

    pair = Predictor.from_pretrained(str(runs(pair=True)[1].run_dir))
    two = tiny.write_jsonl(tmp_path / "two.jsonl", [{"text": "cat", "other": "dog"}, {"text": "saw", "other": "cat"}])
    assert list(iterate_predictions(pair, str(two))) == list(pair.predict(make_rows(["cat", "saw"], ["dog", "cat"])))


def test_an_out_file_in_a_missing_folder_is_an_error_before_any_work(classifier: Predictor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--out \(.*predictions\.jsonl\): there is no folder .*nowhere$"):
        predict_file(classifier, str(tmp_path / "no-such-data.csv"), str(tmp_path / "nowhere" / "predictions.jsonl"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": ""}, r"rows\.jsonl:2: text is empty"),
        ({"text": None}, r"rows\.jsonl:2: text is null"),
        ({"words": "x"}, r"rows\.jsonl:2: no column 'text'"),
    ],
)
def test_strict_makes_a_row_without_a_text_an_error_and_an_older_file_stays(
    classifier: Predictor, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"text": "cat"}, row])
    out = tmp_path / "predictions.jsonl"
    out.write_text("old", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        predict_file(classifier, str(data), str(out), is_strict=True)
    assert out.read_text(encoding="utf-8") == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "predictions.jsonl"}


# --- evaluate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "pair"),
    [("single_label", False), ("single_label", True), ("multi_label", False), ("regression", False)],
)
def test_evaluate_gives_exactly_the_test_metrics_of_the_run(runs: Runs, problem: str, pair: bool) -> None:
    config, result = runs(problem, pair=pair)
    values = evaluate_file(Predictor.from_pretrained(str(result.run_dir)), config.data.test[0])
    assert values == result.results["test"]
    assert result.results["examples"]["test"] == NUM_TEST


def test_evaluate_reads_the_text_that_the_run_has_encoded(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    config, result = runs()
    predictor = Predictor.from_pretrained(str(result.run_dir))
    first = evaluate_file(predictor, config.data.test[0])

    def tokenize(*_: object) -> None:
        raise AssertionError("the text was encoded again")

    monkeypatch.setattr("hf_finetune.tasks.classify.tokenize", tokenize)
    assert evaluate_file(predictor, config.data.test[0]) == first == result.results["test"]
    with pytest.raises(AssertionError, match="the text was encoded again"):
        predictor.evaluate(tiny.make_rows(5))


def test_an_additional_metric(classifier: Predictor, runs: Runs) -> None:
    config, result = runs()
    values = evaluate_file(classifier, config.data.test[0], metric="roc_auc")
    assert set(values) == {*result.results["test"], "roc_auc"}
    assert 0.8 < values["roc_auc"] <= 1
    assert evaluate_file(classifier, config.data.test[0], metric="f1") == result.results["test"]
    assert evaluate_file(classifier, config.data.test[0], metric="loss") == result.results["test"]


def test_a_metric_that_does_not_fit_is_an_error_before_any_work(
    classifier: Predictor, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(ModelRunner, "run", work)
    monkeypatch.setattr(Predictor, "encode", work)
    with pytest.raises(InputError, match=r"^--metric \(mse\): cannot be computed for a single_label problem$"):
        evaluate_file(classifier, runs()[0].data.test[0], metric="mse")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "cat", "label": "plants"}, r"rows\.jsonl:2: the label 'plants' is not one of the 3"),
        ({"text": "cat", "label": None}, r"rows\.jsonl:2: label is null"),
        ({"text": "cat"}, r"rows\.jsonl:2: no column 'label'"),
    ],
)
def test_a_label_that_cannot_be_used_is_an_error_that_names_the_line(
    classifier: Predictor, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"text": "cat", "label": "animals"}, row])
    with pytest.raises(InputError, match=message):
        evaluate_file(classifier, str(data))


# --- rows of a program ----------------------------------------------------------------------------------------------


def test_rows_may_have_any_form_and_a_text_gives_one_prediction(classifier: Predictor) -> None:
    texts = make_texts(5)
    expected = classifier.predict(make_rows(texts))
    assert classifier.predict(texts) == expected
    for rows in (
        pandas.Series(texts),
        polars.Series(texts),
        tuple(texts),
        np.array(texts),
        iter(texts),
        pandas.DataFrame({"text": texts, "other": 1}),
        polars.DataFrame({"text": texts}),
        datasets.Dataset.from_dict({"text": texts}),
        {"text": texts},
        (row for row in make_rows(texts)),
    ):
        assert classifier.predict(rows) == expected
    alone = classifier.predict(texts[0])
    assert alone["label"] == expected[0]["label"]
    assert classifier.predict([]) == []
    assert repr(classifier).startswith("Predictor(")
    assert repr(classifier).endswith("task='classify', device='cpu')")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["cat", " "], r"^rows\[1\]: is empty$"),
        (["cat", None], r"^rows\[1\]: is null$"),
        (pandas.Series(["cat", None]), r"^rows\[1\]: is null$"),
        (
            pandas.DataFrame({"text": ["cat"], "label": ["a"]}).iloc[0],
            r"^rows: a series that is one row of a frame; give the row as a frame",
        ),
        (["cat", {"text": "dog"}], r"^rows\[1\]: is a dict, and other rows are texts; give all in one form$"),
        ([{"text": "cat"}, {"text": None}], r"^rows\[1\]: text is null$"),
        ([{"words": "cat"}], r"^rows\[0\]: no column 'text' \(columns: words\)"),
        ({"text": "cat"}, r"^rows: the column text is a str, not a list; give \[row\] for a single row$"),
        (7, r"^rows: is an int; give a pandas or polars frame"),
        (pandas.DataFrame({"text": ["cat", ""]}, index=["a", "b"]), r"^rows\[1\] \(index b\): text is empty$"),
    ],
)
def test_a_row_that_cannot_be_predicted_is_named(classifier: Predictor, rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        classifier.predict(rows)


def test_a_text_is_not_enough_for_a_model_of_pairs(runs: Runs) -> None:
    pair = Predictor.from_pretrained(runs(pair=True)[1].run_dir)
    with pytest.raises(InputError, match=r"^rows\[0\]: one text is not enough .* with the columns text, other$"):
        pair.predict("cat")


def test_options_of_predictions(runs: Runs, classifier: Predictor) -> None:
    texts = make_texts(9)
    best = classifier.predict(texts, top_k=2, batch_size=4)
    for row, all_labels in zip(best, classifier.predict(texts), strict=True):
        assert list(row["probabilities"].values()) == sorted(row["probabilities"].values(), reverse=True)
        assert len(row["probabilities"]) == 2
        assert row["label"] == next(iter(row["probabilities"])) == all_labels["label"]
    several = Predictor.from_pretrained(runs("multi_label")[1].run_dir, device="cpu")
    assert [row["labels"] for row in several.predict(texts, threshold=1.0)] == [[]] * 9
    assert [row["labels"] for row in several.predict(texts, threshold=0.0)] == [LABELS] * 9
    number = Predictor.from_pretrained(runs("regression")[1].run_dir)
    for predictor, options, message in (
        (number, {"top_k": 1}, r"^top_k \(1\): has no effect on a model that predicts a number$"),
        (number, {"threshold": 0.5}, r"^threshold \(0.5\): is for models .* this one predicts a number$"),
        (classifier, {"threshold": 0.5}, r"^threshold \(0.5\): .* predicts the most probable label$"),
        (several, {"threshold": 2.0}, r"^threshold \(2.0\): must be from 0 to 1$"),
        (classifier, {"device": "abacus"}, r"^device \(abacus\): cannot be used here"),
    ):
        with pytest.raises(InputError, match=message):
            predictor.predict(texts, **options)


def test_the_first_predictions_come_before_the_last_row_is_computed(
    classifier: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, computed, run = make_texts(50), [], ModelRunner.run

    def counting(self: ModelRunner, *arguments: Any) -> Any:
        computed.append(len(self.features))
        return run(self, *arguments)

    monkeypatch.setattr(ModelRunner, "run", counting)
    predictions = classifier.predict_table(classifier.make_table(texts), batch_size=2)
    next(predictions)
    assert computed == [2]
    assert len(list(predictions)) == 49
    assert computed == [2, 32, 16]


def test_rows_of_a_program_are_evaluated(runs: Runs, classifier: Predictor) -> None:
    rows = tiny.make_rows(NUM_TEST, seed=2)
    assert classifier.evaluate(pandas.DataFrame(rows)) == classifier.evaluate(rows) == runs()[1].results["test"]
    with pytest.raises(InputError, match=r"^rows: no column 'label' \(columns: text\); see data.label_column$"):
        classifier.evaluate(pandas.DataFrame({"text": ["cat"]}))
    with pytest.raises(InputError, match=r"^metric \(mse\): cannot be computed"):
        classifier.evaluate(rows, metric="mse")


def test_any_sequence_of_texts_is_predicted(runs: Runs) -> None:
    predictor, texts = Predictor.from_pretrained(runs()[1].run_dir), ["a cat", "a saw here"]
    expected = predictor.predict(texts)
    forms = [np.array(texts), np.array(texts, dtype=object), pandas.Index(texts), pandas.array(texts)]
    for form in [*forms, datasets.Dataset.from_dict({"text": texts})["text"]]:
        assert predictor.predict(form) == expected


def test_a_wrong_argument_of_from_pretrained_is_refused(runs: Runs) -> None:
    with pytest.raises(InputError, match=r"text_column \(review\): is not an argument; settings are text_columns, "):
        Predictor.from_pretrained(runs()[1].run_dir, text_column="review")


def test_metrics_may_be_one_import_path(runs: Runs) -> None:
    with pytest.raises(InputError, match=r"metrics \(no_such_metrics:kappa\): cannot be imported"):
        Predictor.from_pretrained(runs()[1].run_dir, metrics="no_such_metrics:kappa")
