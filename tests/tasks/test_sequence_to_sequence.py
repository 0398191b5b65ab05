"""Summarization and translation: each part alone, against the model's own loss, Trainer's label smoothing, rouge-score, the
command line of sacrebleu and plain generate()."""

import dataclasses
import importlib
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
import transformers
from support import tiny
from support.text_pairs import SETTINGS, make_summaries, make_translations
from transformers.trainer_pt_utils import LabelSmoother

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig, TrainConfig
from hf_finetune.data.features import IGNORED, Batch, Features, Padding, collate, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_rows import iterate_predictions
from hf_finetune.export.predictor_calls import evaluate_file, predict_texts
from hf_finetune.model import heads
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import EvaluationOutput
from hf_finetune.tasks.sequence_to_sequence import SequenceToSequence, SequenceToSequenceScoring, Settings
from hf_finetune.tasks.summarize import Summarization, compute_rouge
from hf_finetune.tasks.text.references import TextMetrics
from hf_finetune.tasks.translate import Translation, compute_bleu_and_chrf
from hf_finetune.train import RunResult, finetune

FAMILIES = ("t5", "bart")
TOKENIZER = tiny.make_tokenizer(ends_only=True)
PAD = 0  # id of the tokenizer's [PAD]


def make_config(data: DataConfig | None = None, **settings: Any) -> RunConfig:
    """Returns a config of columns `document` and `summary` that is never run."""
    train = TrainConfig(label_smoothing=settings.pop("label_smoothing", 0.0))
    columns = DataConfig(train=("-",), text_columns=("document",), label_column="summary")
    task = Settings(kind="summarize", **settings)
    return RunConfig(model=ModelConfig(backbone="-"), data=data or columns, task=task, train=train)


def make_task(task_class: type[SequenceToSequence] = Summarization, **settings: Any) -> SequenceToSequence:
    """Returns a task with these settings."""
    return task_class.from_state(make_config(**settings), {})


def make_table(rows: list[tuple[str, Any]]) -> Table:
    """Returns a table of documents and summaries, with lines counted from 1."""
    documents, summaries = [list(side) for side in zip(*rows, strict=True)]
    columns = {"document": documents, "summary": summaries}
    return Table(columns=columns, files=["data.jsonl"] * len(rows), lines=list(range(1, len(rows) + 1)))


def make_random_rows(seed: int, count: int = 7) -> list[tuple[str, Any]]:
    """Returns documents of 1 to 12 words and summaries of 1 to 7."""
    generator = random.Random(seed)
    words = tiny.VOCABULARY[len(tiny.SPECIAL) :]
    return [
        tuple(" ".join(generator.choices(words, k=generator.randint(1, longest))) for longest in (12, 7))
        for _ in range(count)
    ]  # type: ignore[misc]


def encode(task: SequenceToSequence, table: Table, max_length: int = 32) -> Features:
    """Returns the features of a table."""
    arrays = task.encoding.tokenize(table, TOKENIZER, max_length)
    return make_features(arrays, task.encoding.labels(table, arrays))


def prepare_batch(task: SequenceToSequence, features: Features, model: Any) -> Batch:
    """Returns the batch of all features as the model takes it."""
    return task.encoding.prepare(collate(features, np.arange(len(features)), Padding(PAD)), features, model, 1)


def make_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """Returns a small random encoder-decoder in eval mode."""
    torch.manual_seed(seed)
    config = tiny.make_config(family, **changes)
    return transformers.AutoModelForSeq2SeqLM.from_config(config).eval()


def get_scoring(task: SequenceToSequence) -> SequenceToSequenceScoring:
    """Returns the scoring of a task, with its type."""
    assert isinstance(task.scoring, SequenceToSequenceScoring)
    return task.scoring


# --- encoding and loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_models_own_over_all_target_tokens(family: str, seed: int) -> None:
    task, model = make_task(), make_model(family, seed)
    features = encode(task, make_table(make_random_rows(seed)))
    batch = prepare_batch(task, features, model)
    with torch.no_grad():
        outputs = heads.run_model(model, batch.inputs)
        total, count = task.objective.loss(outputs, batch)  # type: ignore[attr-defined]
        mask = batch.inputs["attention_mask"]
        expected = model(input_ids=batch.inputs["input_ids"], attention_mask=mask, labels=batch.labels).loss
        reduced = task.scoring.reduce(outputs, batch)
    assert count == len(features.labels.values) == int((batch.labels != IGNORED).sum())
    assert float(total) / count == pytest.approx(float(expected), rel=1e-5)
    assert -sum(float(log_probability[0]) for log_probability in reduced) == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_label_smoothing_is_that_of_trainer(family: str, smoothing: float) -> None:
    task, model = make_task(label_smoothing=smoothing), make_model(family)
    features = encode(task, make_table(make_random_rows(1)))
    batch = prepare_batch(task, features, model)
    with torch.no_grad():
        outputs = heads.run_model(model, batch.inputs)
        total, count = task.objective.loss(outputs, batch)  # type: ignore[attr-defined]
        expected = LabelSmoother(epsilon=smoothing)({"logits": outputs}, batch.labels)
    assert float(total) / count == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_reads_the_labels_shifted_by_the_model_which_does_not_get_the_labels(family: str) -> None:
    task, model = make_task(), make_model(family)
    features = encode(task, make_table([("the big cat", "cat here"), ("a", "bread")]))
    batch = prepare_batch(task, features, model)
    cat, here, bread, end = (TOKENIZER.convert_tokens_to_ids(word) for word in ("cat", "here", "bread", "[SEP]"))
    start = model.config.decoder_start_token_id
    assert batch.labels.tolist() == [[cat, here, end], [bread, end, IGNORED]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[start, cat, here], [start, bread, end]]
    assert "labels" not in batch.inputs
    unlabeled = collate(dataclasses.replace(features, labels=None), np.arange(2), Padding(PAD))
    assert task.encoding.prepare(unlabeled, features, model, 0) is unlabeled


def test_targets_are_tokenized_and_cut_and_those_that_were_cut_are_counted() -> None:
    task = make_task(max_target_length=4, input_prefix="the new ")
    rows = [("cat", "one two three"), ("dog", "this that here there now"), ("fish", None)]
    arrays = task.encoding.tokenize(make_table(rows), TOKENIZER, 5)
    ids, offsets = arrays["target_ids"], arrays["target_offsets"]
    targets = [ids[begin:end].tolist() for begin, end in itertools.pairwise(offsets)]
    texts = ("one two three", "this that here there now", "")
    assert targets == [TOKENIZER(text_target=text, truncation=True, max_length=4)["input_ids"] for text in texts]
    assert [len(target) for target in targets] == [4, 4, 1]
    assert int(arrays["targets_cut"]) == 1
    assert arrays["input_ids"][: arrays["offsets"][1]].tolist() == TOKENIZER("the new cat")["input_ids"]
    features = make_features(arrays, None)
    lines = dict(task.encoding.describe(features, make_table(rows), 5))
    assert lines["targets"] == "at most 4 tokens; 1 training targets are longer and were cut"
    assert lines["generation"] == "4 beams, length penalty 1; at most 200 examples of validation and of the test"
    assert dict(make_task(generate_examples=0).encoding.describe(features, make_table(rows), 5))["generation"] == (
        "none: task.generate_examples is 0"
    )


def test_targets_are_tokenized_with_text_target() -> None:
    """Some tokenizers treat targets differently, for another language for example."""

    class TwoLanguages:
        def __call__(self, *texts: Any, text_target: Any = None, **options: Any) -> Any:
            return TOKENIZER(*([[f"red {text}" for text in text_target]] if text_target else texts), **options)

    arrays = make_task().encoding.tokenize(make_table([("cat", "dog")]), TwoLanguages(), 16)
    assert arrays["input_ids"].tolist() == TOKENIZER("cat")["input_ids"]
    assert arrays["target_ids"].tolist() == TOKENIZER("red dog")["input_ids"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"data.jsonl:2: summary is null"),
        ("", r"data.jsonl:2: summary is empty"),
        (" \t", r"data.jsonl:2: summary is empty"),
        ([], r"data.jsonl:2: summary is empty"),
        (3, r"data.jsonl:2: summary is an int, not a text or a list of texts"),
        (["cat", ""], r"data.jsonl:2: summary has an item that is empty"),
        (["cat", 3], r"data.jsonl:2: summary has an item that is an int, not a string"),
        ({"en": "cat"}, r"data.jsonl:2: summary is a dict, not a text or a list of texts"),
    ],
)
def test_a_value_that_is_not_a_target_is_an_error_with_its_line(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode(make_task(), make_table([("a", "cat"), ("b", value)]))


def test_the_first_of_several_references_is_trained_on_and_the_best_is_scored() -> None:
    task = make_task()
    features = encode(task, make_table([("a", ["cat here", "dog"]), ("b", "fish")]))
    assert features.labels.get(0).tolist() == TOKENIZER("cat here")["input_ids"]
    table = make_table([("a", ["cat here", "dog"]), ("b", "fish")])
    scores = get_scoring(task).score_texts([" dog ", "fish"], table, np.arange(2))
    assert scores["rouge1"] == 1.0


def test_targets_of_csv_files_that_are_lists_as_text_may_be_texts_or_references(tmp_path: Path) -> None:
    """In jsonl, a string is a text and a list holds references."""

    def warn(name: str, targets: list[str]) -> list[str]:
        tiny_rows = [{"document": "a", "summary": target} for target in targets]
        path = tmp_path / name
        if name.endswith(".csv"):
            pandas.DataFrame(tiny_rows).to_csv(path, index=False)
        else:
            tiny.write_jsonl(path, tiny_rows)
        config = make_config()
        table = read_table((str(path),), config.data, "data.train", Summarization.make_columns(config).spec)
        return Summarization.from_table(config, table).encoding.find_row_warnings(table)

    lists = ["['a cat', 'a dog']", '["fish"]']
    with pytest.raises(
        InputError, match=r"a.csv:2: summary is a list that is written as text, as all others: it may be a"
    ):
        warn("a.csv", lists)
    assert warn("a.jsonl", lists) == []
    (warning,) = warn("b.csv", ["a text", *lists])
    assert warning.endswith(
        "b.csv:3: summary is a list that is written as text, and so are 2 of 3: each is read as one text"
    )
    assert warn("c.csv", ["a text", "[1]"]) == []
    drawn = Table(columns={"summary": lists[:1]}, files=["d.csv"], lines=[2])  # one row may be all of a split
    (warning,) = make_task().encoding.find_row_warnings(drawn)
    assert warning.startswith("d.csv:2: summary is a list that is written as text, and so are 1 of 1")


# --- files ----------------------------------------------------------------------------------------------------------


def read_pairs(folder: Path, *sides: str, needs_labels: bool = True) -> Table:
    """Returns the table of text files with these contents."""
    paths = []
    for number, text in enumerate(sides):
        paths.append(folder / f"{number}.txt")
        paths[-1].write_text(text, encoding="utf-8")
    config, names = make_config(), tuple(map(str, paths))
    return read_table(names, config.data, "data.train", get_spec(config), needs_labels=needs_labels)


def get_spec(config: RunConfig) -> ColumnSpec:
    """Returns the columns of translation."""
    return Translation.make_columns(config).spec


def test_two_text_files_are_pairs_of_lines(tmp_path: Path) -> None:
    table = read_pairs(tmp_path, "one cat\r\n\n two \nthree\n", "eins\n\nzwei\r\ndrei", "x\u2028y\n", "z\n")
    assert table.columns["document"] == ["one cat", "two", "three", "x\u2028y"]
    assert table.columns["summary"] == ["eins", "zwei", "drei", "z"]
    locations = ["1.txt:1", "1.txt:3", "1.txt:4", "3.txt:1"]
    assert [table.where(row) for row in range(4)] == [f"{tmp_path}/{location}" for location in locations]


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (("a\nb\n", "c\n"), r"1.txt: has 1 lines, but .*0.txt has 2; each line must be the target of the same line"),
        (("a\nb\n", "c\n\n"), r"1.txt:2: is empty, but line 2 of .*0.txt is not"),
        (("a\n \nb\n", "c\nd\ne\n"), r"0.txt:2: is empty, but line 2 of .*1.txt is not"),
        (("a\n",), r"data.train \(.*0.txt\): text files must come in pairs, each source followed by its target"),
        (("a\n", "b\n", "c\n"), r"data.train \(.*\): text files must come in pairs"),
        (("\n", "\n"), r"1.txt: is empty"),
    ],
)
def test_text_files_that_do_not_match_are_an_error(tmp_path: Path, sides: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path, *sides)


def test_sources_without_targets_are_enough_to_predict(tmp_path: Path) -> None:
    table = read_pairs(tmp_path, "one\ntwo\n", needs_labels=False)
    assert table.columns == {"document": ["one", "two"], "summary": [None, None]}


def test_a_text_file_next_to_a_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n", encoding="utf-8")
    tiny.write_jsonl(tmp_path / "b.jsonl", [{"document": "a", "summary": "b"}])
    names = tuple(str(tmp_path / name) for name in ("a.txt", "b.jsonl"))
    with pytest.raises(InputError, match="text files must come in pairs"):
        read_table(names, make_config().data, "data.train", get_spec(make_config()))


@pytest.mark.parametrize("is_dataset", [False, True])
def test_nested_columns_as_data_sets_of_translations_have_them(tmp_path: Path, is_dataset: bool) -> None:
    rows = [
        {"id": str(number), "translation": {"en": f"cat {number}", "de": f"Katze {number}"}} for number in range(20)
    ]
    options: dict[str, Any] = {"train": (str(tiny.write_jsonl(tmp_path / "train.jsonl", rows)),)}
    if is_dataset:
        features = datasets.Features(
            {"id": datasets.Value("string"), "translation": datasets.Translation(languages=["en", "de"])}
        )
        datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")
        options = {"dataset": str(tmp_path / "set")}
    data = DataConfig(text_columns=("translation.en",), label_column="translation.de", **options)
    splits = load_splits(data, 0, get_spec(make_config(data)))
    pairs = zip(splits.train.columns["translation.en"], splits.train.columns["translation.de"], strict=True)
    assert sorted(pairs)[0] in [(f"cat {number}", f"Katze {number}") for number in range(20)]
    assert len(splits.train) == 16
    wrong = dataclasses.replace(data, label_column="translation.fr")
    with pytest.raises(InputError, match=r"translation\.fr"):
        load_splits(wrong, 0, get_spec(make_config(wrong)))


def test_a_nested_column_of_strings_is_an_error(tmp_path: Path) -> None:
    path = tiny.write_jsonl(tmp_path / "a.jsonl", [{"translation": "x"}])
    data = DataConfig(train=(str(path),), text_columns=("translation.en",), label_column="translation.de")
    with pytest.raises(InputError, match=r"a.jsonl:1: no column 'translation.en' \(columns: translation\)"):
        read_table((str(path),), data, "data.train", get_spec(make_config(data)))


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_columns": ("a", "b")}, r"data.text_columns \(\['a', 'b'\]\): must be one column, of the source texts"),
        ({"label_column": None}, r"data.label_column \(None\): must be the column of the target texts"),
    ],
)
def test_columns_that_do_not_fit_are_an_error(changes: dict[str, Any], message: str) -> None:
    config = make_config(dataclasses.replace(make_config().data, **changes))
    with pytest.raises(InputError, match=message):
        Summarization.make_columns(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, r"task.num_beams \(0\): must be at least 1"),
        ({"max_target_length": 0}, r"task.max_target_length \(0\): must be at least 1"),
        ({"generate_examples": -1}, r"task.generate_examples \(-1\): must be 0 or more"),
        ({"length_penalty": float("inf")}, r"task.length_penalty \(inf\): must be finite"),
        ({"num_beams": 1, "length_penalty": 2.0}, r"task.length_penalty \(2.0\): has no effect without beams"),
    ],
)
def test_settings_out_of_range_are_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(kind="translate", **settings)


def test_metrics_are_checked_by_name() -> None:
    summaries, translations = get_scoring(make_task()), get_scoring(make_task(Translation))
    without = get_scoring(make_task(Translation, generate_examples=0))
    assert (summaries.default_metric, translations.default_metric, without.default_metric) == ("rougeL", "bleu", "loss")
    assert translations.check_metric("chrf") == "chrf"
    with pytest.raises(InputError, match=r"evaluation.metric \(bleu\): must be one of loss, rougeL, rouge1"):
        summaries.check_metric("bleu")
    with pytest.raises(InputError, match=r"--metric \(bleu\): needs generated texts, and task.generate_examples is 0"):
        without.check_metric("bleu", "--metric")
    with pytest.raises(InputError, match=r"--metric \(f1\): must be one of loss$"):
        without.check_metric("f1", "--metric")


@pytest.mark.parametrize(("task_class", "module"), [(Summarization, "rouge_score"), (Translation, "sacrebleu")])
def test_a_missing_package_is_an_error_before_training(
    task_class: type[SequenceToSequence], module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = importlib.import_module

    def import_module(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(name)
        return original(name, *rest)

    monkeypatch.setattr(importlib, "import_module", import_module)
    table = make_table([("a", "b")])
    with pytest.raises(InputError, match=r"task.generate_examples: .* needs a package: pip install .*; or set it to 0"):
        task_class.from_table(make_config(), table)
    task_class.from_table(make_config(generate_examples=0), table)


# --- scoring --------------------------------------------------------------------------------------------------------


def test_examples_for_generation_are_spread_over_the_split_and_always_the_same() -> None:
    for count in (1, 2, 7, 22, 23, 24, 200):
        chosen = get_scoring(make_task(generate_examples=count)).choose_examples(23)
        assert len(set(chosen.tolist())) == len(chosen) == min(count, 23)
        assert chosen[0] == 0
        assert chosen.max() < 23
        assert max(np.diff([*chosen, 23]), default=0) <= -(-23 // len(chosen))
    assert len(get_scoring(make_task(generate_examples=0)).choose_examples(23)) == 0


class CopyingRunner:
    """A runner whose model generates the index of each feature."""

    def __init__(self) -> None:
        self.evaluated: list[int] = []
        self.generated: list[int] = []

    def compute_outputs(self, indices: np.ndarray, reduce: Any = None) -> EvaluationOutput:
        self.evaluated = indices.tolist()
        return EvaluationOutput(loss=0.5, outputs=[None] * len(indices))

    def generate_texts(self, generate: Any, indices: np.ndarray) -> list[str]:
        self.generated = indices.tolist()
        return [f" {index} " for index in indices]


def compare_texts(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns the share of texts that equal their first reference."""
    return {"equal": float(np.mean([text == of_text[0] for text, of_text in zip(texts, references, strict=True)]))}


@pytest.mark.parametrize(
    ("indices", "max_texts", "generated"),
    [
        (range(20), None, [0, 4, 8, 12, 16]),
        (range(20), 2, [0, 4]),
        (range(6), 2, [0, 4]),
        (range(3), 2, [0]),
        ([13, 12, 8, 9], None, [8, 12]),
        ([1, 2], 2, []),
    ],
)
def test_metrics_are_of_texts_for_the_chosen_examples_among_those_evaluated(
    indices: Any, max_texts: int | None, generated: list[int]
) -> None:
    scoring = SequenceToSequenceScoring(
        target="summary", text_metrics=TextMetrics(names=("equal",), compute=compare_texts), num_texts=5
    )
    table = make_table([("a", str(number)) for number in range(20)])
    features, runner = encode(make_task(), table), CopyingRunner()
    values = scoring.evaluate(runner, features, table, metric="equal", indices=np.array(indices), max_texts=max_texts)
    assert values == ({"loss": 0.5, "equal": 1.0} if generated else {"loss": 0.5})
    assert runner.evaluated == list(indices)
    assert runner.generated == generated
    assert list(scoring.predict(runner, features, table))[:2] == [{"text": "0"}, {"text": "1"}]


# --- ROUGE, BLEU, chrF -------------------------------------------------------------------------------------------------

TEXTS = ["the cat sat on the mat", "a dog", "", "it's raining, cats & dogs!", "the the the"]
REFERENCES = [
    ["the cat is on the mat", "there is a cat on the mat"],
    ["a big dog"],
    ["something"],
    ["it is raining cats and dogs.", "It's raining, cats & dogs!", "rain"],
    ["the end"],
]


def test_rouge_by_hand_and_by_its_own_package() -> None:
    scores = compute_rouge(["a b c"], [["a b d", "x"]])
    assert scores["rouge1"] == pytest.approx(2 / 3)
    assert scores["rouge2"] == pytest.approx(1 / 2)
    assert compute_rouge(["running cats"], [["run cat"]])["rougeL"] == 1.0  # stemmed
    lines = compute_rouge(["a b\nc d"], [["c d\na b"]])
    assert lines["rougeLsum"] == 1.0
    assert lines["rougeL"] == pytest.approx(1 / 2)
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer, values = RougeScorer(names, use_stemmer=True), compute_rouge(TEXTS, REFERENCES)
    assert set(values) == set(names)
    for name in names:
        best = [
            max(scorer.score(reference, text)[name].fmeasure for reference in references)
            for text, references in zip(TEXTS, REFERENCES, strict=True)
        ]
        assert values[name] == pytest.approx(float(np.mean(best)))


def run_sacrebleu(folder: Path, texts: list[str], references: list[list[str]]) -> dict[str, float]:
    """Returns BLEU and chrF by the command line of sacrebleu. Its references are separated by tabs, missing ones are empty."""
    texts_path, references_path = folder / "texts.txt", folder / "references.tsv"
    texts_path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    most = max(len(of_text) for of_text in references)
    lines = ["\t".join([*[""] * (most - len(of_text)), *of_text]) + "\n" for of_text in references]
    references_path.write_text("".join(lines), encoding="utf-8")
    inputs = [str(references_path), "--num-refs", str(most), "-i", str(texts_path)]
    command = [sys.executable, "-m", "sacrebleu", *inputs, "-m", "bleu", "chrf", "-w", "10", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {row["name"].lower().removesuffix("2"): row["score"] for row in json.loads(done.stdout)}


@pytest.mark.parametrize("seed", range(2))
def test_bleu_and_chrf_are_those_of_the_command_line_of_sacrebleu(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    words = [*tiny.FILLER, "it's", "A-b,", "Größe."]
    targets = [generator.choices(words, k=generator.randint(4, 12)) for _ in range(12)]
    texts = [" ".join(word if generator.random() < 0.8 else "cat" for word in target) for target in targets]
    single = [[" ".join(target)] for target in targets]
    several = [
        [*references, " ".join(target[::-1])] if number % 2 else references
        for number, (references, target) in enumerate(zip(single, targets, strict=True))
    ]
    for references in (single, several):
        scores, expected = compute_bleu_and_chrf(texts, references), run_sacrebleu(tmp_path, texts, references)
        assert 10 < scores["bleu"] < 90
        assert scores == pytest.approx(expected, abs=1e-6)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[RunConfig, RunResult]]:
    """`runs("summarize", "t5", **settings)`: config and result of a finished run, trained once."""
    folder = tmp_path_factory.mktemp("sequence-to-sequence")
    made: dict[str, tuple[RunConfig, RunResult]] = {}

    def run(kind: str, family: str, layers: int = 2, **settings: Any) -> tuple[RunConfig, RunResult]:
        name = f"run{len(made)}"
        key = f"{kind} {family} {layers} {sorted(settings.items())}"
        if key not in made:
            backbone, data = folder / f"{family}{layers}", folder / kind
            if not backbone.exists():
                tiny.make_backbone(backbone, family, layers=layers)
            data.mkdir(exist_ok=True)
            files = make_summaries(data) if kind == "summarize" else make_translations(data)
            source, target = ("document", "summary") if kind == "summarize" else ("source", "target")
            common = {
                "task.kind": kind,
                "name": name,
                "output_dir": str(folder),
                "model.backbone": str(backbone),
                "tracking.trackers": [],
                "data.text_columns": [source],
                "data.label_column": target,
                "train.batch_size": 8,
                "train.precision": "fp32",
                "tracking.log_every": 1,
            }
            config = load_config(common | SETTINGS | files | settings, [])
            made[key] = config, finetune(config)
        return made[key]

    return run


def read_losses(config: RunConfig) -> list[float]:
    """Returns all losses of training and validation, in order."""
    rows = map(json.loads, (config.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row[key] for row in rows for key in ("train/loss", "validation/loss") if key in row]


LEARNED = {"train.epochs": 25, "evaluation.every": 75}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_what_plain_generate_writes_with_the_exported_model(family: str, runs: Any) -> None:
    config, result = runs("summarize", family, **LEARNED)
    assert read_losses(config)[-1] < read_losses(config)[0] * 0.5
    predictor = Predictor.from_pretrained(str(result.run_dir))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(result.model_dir)
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.model_dir)
    documents = ["cat", "the old saw", "a one this new cat then there now here some red old", "zebra", "  the   bread "]
    documents += [row["document"] for row in map(json.loads, Path(config.data.test[0]).read_text().splitlines())]
    rows = [{"document": text} for text in documents]
    expected = []
    for text in documents:  # one at a time: nothing is padded
        ids = model.generate(**tokenizer(text, return_tensors="pt"))
        expected.append(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
    for batch_size in (1, 3, 64):
        assert [row["text"] for row in predictor.predict(rows, batch_size=batch_size)] == expected
    assert len(set(expected)) > 1
    assert predict_texts(predictor, ["the old saw"]) == {"text": expected[1]}
    with pytest.raises(InputError, match=r"--text: takes one text, not 2"):
        predict_texts(predictor, ["a", "b"])
    generation = json.loads((result.model_dir / "generation_config.json").read_text())
    assert (generation["num_beams"], generation["max_new_tokens"]) == (2, 10)
    assert "summarization" in (result.model_dir / "README.md").read_text()


def test_the_input_prefix_is_put_before_texts_to_predict(runs: Any) -> None:
    _, result = runs("summarize", "t5", **{"task.input_prefix": "this very ", "train.max_updates": 8})
    predictor = Predictor.from_pretrained(str(result.run_dir))
    ids = predictor.encode(make_table([("cat", None)]), has_labels=False).inputs["input_ids"]
    assert ids.tolist() == TOKENIZER("this very cat")["input_ids"]
    assert "Inputs begin with `this very `" in (result.model_dir / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "family"), [("summarize", "t5"), ("translate", "bart")])
def test_evaluating_the_exported_model_gives_the_numbers_of_the_run(kind: str, family: str, runs: Any) -> None:
    config, result = runs(kind, family, **LEARNED)
    predictor = Predictor.from_pretrained(str(result.run_dir))
    assert evaluate_file(predictor, config.data.test) == result.results["test"]
    columns = predictor.read(config.data.test, needs_labels=True).columns
    rows = range(0, 16, 2)  # task.generate_examples is 8, of 16
    texts = [row["text"] for row in iterate_predictions(predictor, config.data.test[0])]
    targets = [columns[config.data.label_column][row] for row in rows]
    references = [target if isinstance(target, list) else [target] for target in targets]
    compute = compute_rouge if kind == "summarize" else compute_bleu_and_chrf
    scores = compute([texts[row] for row in rows], references)
    assert scores == {name: value for name, value in result.results["test"].items() if name != "loss"}
    assert result.results["metric"] == next(iter(scores))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layers"), [("t5", 1), ("bart", 2)])
def test_a_frozen_encoder_with_cached_activations_trains_the_same(family: str, layers: int, runs: Any) -> None:
    """With dropout, and with smaller micro-batches; texts are generated by the entire model."""
    settings = {"freeze.embeddings": True, "freeze.layers": "all", "train.epochs": 3}
    plain, first = runs("translate", family, layers, **settings, **{"cache.activations": "off"})
    cache = {"cache.activations": "on", "cache.precision": "fp32"}
    cached, second = runs("translate", family, layers, **settings, **cache)
    small = {"cache.activations": "off", "train.micro_batch_size": 3}
    micro, third = runs("translate", family, layers, **settings, **small)
    assert read_losses(cached) == pytest.approx(read_losses(plain), abs=1e-5)
    assert read_losses(micro) == pytest.approx(read_losses(plain), abs=1e-5)
    for other in (second, third):
        assert other.results["test"] == pytest.approx(first.results["test"], abs=1e-4)
    trained = transformers.AutoModelForSeq2SeqLM.from_pretrained(second.model_dir).state_dict()
    began = transformers.AutoModelForSeq2SeqLM.from_pretrained(str(cached.model.backbone)).state_dict()
    changed = {name for name in trained if not torch.equal(trained[name], began[name])}
    assert any("decoder" in name for name in changed)
    encoder = {name for name in changed if "encoder." in name.replace("decoder.", "")}
    assert encoder <= {"encoder.final_layer_norm.weight"}  # T5's comes after the encoder's last block


def test_without_generated_texts_the_loss_decides_which_checkpoint_is_best(runs: Any) -> None:
    _, result = runs("translate", "t5", **{"task.generate_examples": 0, "train.max_updates": 4})
    assert result.results["metric"] == "loss"
    assert set(result.results["test"]) == {"loss"}


def test_the_loss_may_decide_although_texts_are_generated(runs: Any) -> None:
    _, result = runs("translate", "t5", **{"evaluation.metric": "loss", "train.max_updates": 6})
    assert result.results["metric"] == "loss"
    assert set(result.results["test"]) == {"loss", "bleu", "chrf"}


def test_texts_are_generated_in_the_precision_of_the_run(runs: Any) -> None:
    """generate() calls the encoder by itself; under bf16 it must run as in training."""
    _, result = runs("summarize", "bart", **{"train.precision": "bf16", "train.max_updates": 6})
    assert np.isfinite(result.results["test"]["rougeL"])


def test_a_model_that_was_trained_elsewhere_generates_text(tmp_path: Path) -> None:
    make_model("t5").save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    predictor = Predictor.from_pretrained(str(tmp_path), text_columns=("document",), label_column="summary")
    assert predictor.task.problem == "summarization"
    assert isinstance(predict_texts(predictor, ["the cat"])["text"], str)


def test_evaluate_says_what_training_says_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The delimiter that was found, an encoding that is probably wrong, and targets that look like lists."""
    make_model("t5").save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    path = tmp_path / "a.csv"
    path.write_text("document;summary\nthe cät;a dog\nthe cat;['a cow', 'a pig']\n", encoding="utf-8")
    columns = {"text_columns": ("document",), "label_column": "summary"}
    predictor = Predictor.from_pretrained(str(tmp_path / "model"), **columns, encoding=("latin-1",))
    capsys.readouterr()
    evaluate_file(predictor, str(path))
    note, *warnings = capsys.readouterr().out.splitlines()
    assert note == "a.csv: the delimiter is ; (set data.delimiter to choose another)"
    assert [warning.startswith("warning: ") for warning in warnings] == [True, True]
    assert "a.csv: is valid utf-8, and data.encoding says latin-1" in warnings[0]
    assert warnings[1].endswith(
        "a.csv:3: summary is a list that is written as text, and so are 1 of 2: each is read as one text"
    )
