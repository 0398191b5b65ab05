"""Summarization and translation against what others compute: the model's own loss, Trainer's smoothing, rouge-score, sacrebleu's
command line, plain generate()."""

import dataclasses
import importlib
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from support import tiny
from support.text_pairs import SETTINGS, make_summaries, make_translations
from transformers.trainer_pt_utils import LabelSmoother

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import DataConfig, EvaluationConfig, ModelConfig, RunConfig, TaskConfig, TrainConfig
from hf_finetune.data.features import IGNORED, Features, collate, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import Table
from hf_finetune.export.predict import Predictor, evaluate_file, predict_file, predict_texts
from hf_finetune.model import heads
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import TASKS, form_of
from hf_finetune.tasks.summarize import rouge
from hf_finetune.tasks.translate import bleu_and_chrf
from hf_finetune.train import RunResult, finetune

FAMILIES = ("t5", "bart")
TOKENIZER = tiny.make_tokenizer(ends_only=True)


def config_of(**task: Any) -> RunConfig:
    """A config of columns `document` and `summary`."""
    data = DataConfig(train=("-",), text_columns=("document",), label_column="summary")
    train = TrainConfig(label_smoothing=task.pop("label_smoothing", 0.0))
    return RunConfig(model=ModelConfig(backbone="-"), data=data, task=TaskConfig(**task), train=train)


def task_of(name: str = "summarization", **task: Any) -> Any:
    """The task with these settings."""
    return TASKS[name].from_facts(config_of(**task), {})


def table_of(rows: list[tuple[str, Any]]) -> Table:
    """A table of documents and summaries, with lines counted from 1."""
    documents, summaries = [list(side) for side in zip(*rows, strict=True)]
    columns = {"document": documents, "summary": summaries}
    return Table(columns=columns, files=["data.jsonl"] * len(rows), lines=list(range(1, len(rows) + 1)))


def random_rows(seed: int, count: int = 7) -> list[tuple[str, Any]]:
    """Documents of 1 to 12 words and summaries of 1 to 7."""
    generator = random.Random(seed)
    words = tiny.VOCABULARY[len(tiny.SPECIAL) :]
    return [
        tuple(" ".join(generator.choices(words, k=generator.randint(1, longest))) for longest in (12, 7))
        for _ in range(count)
    ]  # type: ignore[misc]


def features_of(task: Any, table: Table, max_length: int = 32) -> Features:
    """Encoded, without the disk."""
    arrays = task.tokenize(table, TOKENIZER, max_length)
    return make_features(arrays, task.labels(table, arrays))


def model_of(family: str, seed: int = 0, **changes: Any) -> Any:
    """A small random encoder-decoder in eval mode."""
    torch.manual_seed(seed)
    config = tiny.make_config(family, **changes)
    return transformers.AutoModelForSeq2SeqLM.from_config(config).eval()


# --- targets and loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_models_own_over_tokens(family: str, seed: int) -> None:
    task, model = task_of(), model_of(family, seed)
    features = features_of(task, table_of(random_rows(seed)))
    rows = np.arange(len(features))
    batch = task.prepare(collate(features, rows, 0), features, model, 1)
    with torch.no_grad():
        total, count = task.loss(heads.run_model(model, batch.inputs), batch)
        mask = batch.inputs["attention_mask"]
        expected = model(input_ids=batch.inputs["input_ids"], attention_mask=mask, labels=batch.labels).loss
        kept = task.keep(heads.run_model(model, batch.inputs), batch)
    assert count == len(features.labels.values) == int((batch.labels != IGNORED).sum())
    assert float(total) / count == pytest.approx(float(expected), rel=1e-5)
    assert -sum(float(each[0]) for each in kept) == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_label_smoothing_is_trainers(family: str, smoothing: float) -> None:
    task, model = task_of(label_smoothing=smoothing), model_of(family)
    features = features_of(task, table_of(random_rows(1)))
    batch = task.prepare(collate(features, np.arange(len(features)), 0), features, model, 1)
    with torch.no_grad():
        outputs = heads.run_model(model, batch.inputs)
        total, count = task.loss(outputs, batch)
        expected = LabelSmoother(epsilon=smoothing)({"logits": outputs}, batch.labels)
    assert float(total) / count == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_reads_the_models_own_shift_and_no_labels_are_passed(family: str) -> None:
    task, model = task_of(), model_of(family)
    features = features_of(task, table_of([("the big cat", "cat here"), ("a", "bread")]))
    batch = task.prepare(collate(features, np.arange(2), 0), features, model, 1)
    cat, here, bread, end = (TOKENIZER.convert_tokens_to_ids(word) for word in ("cat", "here", "bread", "[SEP]"))
    start = model.config.decoder_start_token_id
    assert batch.labels.tolist() == [[cat, here, end], [bread, end, IGNORED]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[start, cat, here], [start, bread, end]]
    assert "labels" not in batch.inputs
    bare = collate(dataclasses.replace(features, labels=None), np.arange(2), 0)
    assert task.prepare(bare, features, model, 0) is bare


def test_targets_are_tokenized_as_targets_cut_and_counted() -> None:
    task = task_of(max_target_length=4, input_prefix="the new ")
    rows = [("cat", "one two three"), ("dog", "this that here there now"), ("fish", None)]
    arrays = task.tokenize(table_of(rows), TOKENIZER, 5)
    ids, ends = arrays["target_ids"], arrays["target_offsets"]
    found = [ids[begin:end].tolist() for begin, end in itertools.pairwise(ends)]
    expected = [TOKENIZER(text_target=text, truncation=True, max_length=4)["input_ids"] for text in
                ("one two three", "this that here there now", "")]  # fmt: skip
    assert found == expected
    assert [len(each) for each in found] == [4, 4, 1]
    assert int(arrays["targets_cut"]) == 1
    assert arrays["input_ids"][: arrays["offsets"][1]].tolist() == TOKENIZER("the new cat")["input_ids"]
    features = make_features(arrays, None)
    lines = dict(task.describe(features, table_of(rows), 5))
    assert lines["targets"] == "at most 4 tokens; 1 training targets are longer and were cut"
    assert lines["writing"] == "4 beams, length penalty 1, for at most 200 examples of validation and of test"


def test_a_tokenizer_is_asked_for_targets() -> None:
    """Some write targets otherwise than inputs: other languages, other marks."""

    class TwoLanguages:
        def __call__(self, *texts: Any, text_target: Any = None, **options: Any) -> Any:
            return TOKENIZER(*([[f"red {text}" for text in text_target]] if text_target else texts), **options)

    arrays = task_of().tokenize(table_of([("cat", "dog")]), TwoLanguages(), 16)
    assert arrays["input_ids"].tolist() == TOKENIZER("cat")["input_ids"]
    assert arrays["target_ids"].tolist() == TOKENIZER("red dog")["input_ids"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"data.jsonl:2: summary is null"),
        ("", r"data.jsonl:2: summary is empty"),
        (" \t", r"data.jsonl:2: summary is empty"),
        ([], r"data.jsonl:2: summary is empty"),
        (3, r"data.jsonl:2: summary is \(3\) no text, nor a list of texts"),
        (["cat", ""], r"data.jsonl:2: summary is \(\['cat', ''\]\) no text"),
        ({"en": "cat"}, r"data.jsonl:2: summary is \(.*\) no text"),
    ],
)
def test_what_is_no_target_is_refused_with_its_line(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        features_of(task_of(), table_of([("a", "cat"), ("b", value)]))


def test_of_several_references_the_first_is_trained_on() -> None:
    task = task_of()
    features = features_of(task, table_of([("a", ["cat here", "dog"]), ("b", "fish")]))
    assert features.labels.get(0).tolist() == TOKENIZER("cat here")["input_ids"]
    values = task.generated_metrics(["dog", "fish"], features, table_of([("a", ["cat here", "dog"]), ("b", "fish")]),
                                    np.arange(2))  # fmt: skip
    assert values["rouge1"] == 1.0


# --- files ----------------------------------------------------------------------------------------------------------


def read_pairs(folder: Path, *sides: str, needs_labels: bool = True) -> Table:
    """The table of text files with these contents."""
    paths = []
    for number, text in enumerate(sides):
        paths.append(folder / f"{number}.txt")
        paths[-1].write_text(text, encoding="utf-8")
    form = form_of("translation", config_of())
    names = tuple(map(str, paths))
    return read_table(names, config_of().data, "data.train", form, needs_labels=needs_labels)


def test_parallel_files_are_pairs_of_lines(tmp_path: Path) -> None:
    table = read_pairs(tmp_path, "one cat\r\n\n two \nthree\n", "eins\n\nzwei\r\ndrei", "x\u2028y\n", "z\n")
    assert table.columns["document"] == ["one cat", "two", "three", "x\u2028y"]
    assert table.columns["summary"] == ["eins", "zwei", "drei", "z"]
    assert [table.where(row) for row in range(4)] == [
        f"{tmp_path}/1.txt:1", f"{tmp_path}/1.txt:3", f"{tmp_path}/1.txt:4", f"{tmp_path}/3.txt:1"
    ]  # fmt: skip


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
def test_text_files_that_do_not_belong_together(tmp_path: Path, sides: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path, *sides)


def test_a_source_alone_is_enough_to_predict(tmp_path: Path) -> None:
    table = read_pairs(tmp_path, "one\ntwo\n", needs_labels=False)
    assert table.columns == {"document": ["one", "two"], "summary": [None, None]}


def test_a_text_file_beside_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n", encoding="utf-8")
    tiny.write_jsonl(tmp_path / "b.jsonl", [{"document": "a", "summary": "b"}])
    with pytest.raises(InputError, match="text files must come in pairs"):
        read_table(tuple(str(tmp_path / name) for name in ("a.txt", "b.jsonl")), config_of().data, "data.train",
                   form_of("translation", config_of()))  # fmt: skip


@pytest.mark.parametrize("is_dataset", [False, True])
def test_columns_of_columns_as_data_sets_of_translations_have_them(tmp_path: Path, is_dataset: bool) -> None:
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
    splits = load_splits(data, 0, form_of("translation", dataclasses.replace(config_of(), data=data)))
    pairs = zip(splits.train.columns["translation.en"], splits.train.columns["translation.de"], strict=True)
    assert sorted(pairs)[0] in [(f"cat {number}", f"Katze {number}") for number in range(20)]
    assert len(splits.train) == 16
    wrong = dataclasses.replace(data, label_column="translation.fr")
    with pytest.raises(InputError, match=r"translation\.fr"):
        load_splits(wrong, 0, form_of("translation", dataclasses.replace(config_of(), data=wrong)))


def test_a_column_of_a_column_that_holds_no_objects(tmp_path: Path) -> None:
    path = tiny.write_jsonl(tmp_path / "a.jsonl", [{"translation": "x"}])
    data = DataConfig(train=(str(path),), text_columns=("translation.en",), label_column="translation.de")
    with pytest.raises(InputError, match=r"a.jsonl:1: no column 'translation.en' \(columns: translation\)"):
        read_table(
            (str(path),), data, "data.train", form_of("translation", dataclasses.replace(config_of(), data=data))
        )


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_columns": ("a", "b")}, r"data.text_columns \(\['a', 'b'\]\): takes one column"),
        ({"label_column": None}, r"data.label_column \(None\): is needed"),
    ],
)
def test_columns_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    config = config_of()
    with pytest.raises(InputError, match=message):
        form_of("summarization", dataclasses.replace(config, data=dataclasses.replace(config.data, **changes)))


def test_a_length_penalty_needs_beams() -> None:
    with pytest.raises(InputError, match=r"task.length_penalty \(2.0\): weighs beams, and task.num_beams is 1"):
        form_of("translation", config_of(num_beams=1, length_penalty=2.0))


def test_metrics_are_checked_by_name() -> None:
    assert task_of().default_metric == "rougeL"
    assert task_of("translation").default_metric == "bleu"
    assert task_of("translation").check_metric("chrf") == "chrf"
    assert task_of(generate_examples=0).default_metric == "loss"
    with pytest.raises(InputError, match=r"evaluation.metric \(bleu\): summarization has loss, rougeL, rouge1"):
        task_of().check_metric("bleu")
    with pytest.raises(InputError, match=r"--metric \(bleu\): translation has loss \(task.generate_examples is 0"):
        task_of("translation", generate_examples=0).check_metric("bleu", "--metric")


@pytest.mark.parametrize(("name", "module"), [("summarization", "rouge_score"), ("translation", "sacrebleu")])
def test_a_missing_package_is_named_before_training(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def lacking(asked: str, *rest: Any) -> Any:
        if asked.partition(".")[0] == module:
            raise ModuleNotFoundError(asked)
        return original(asked, *rest)

    monkeypatch.setattr(importlib, "import_module", lacking)
    with pytest.raises(InputError, match=r"task.generate_examples: .* needs a package: pip install .*; or set it to 0"):
        TASKS[name].from_table(config_of(), table_of([("a", "b")]))
    TASKS[name].from_table(config_of(generate_examples=0), table_of([("a", "b")]))


def test_generated_rows_are_spread_over_the_split_and_are_always_the_same() -> None:
    features = features_of(task_of(), table_of(random_rows(0, 23)))
    for count in (1, 2, 7, 22, 23, 24, 200):
        rows = task_of(generate_examples=count).generated_rows(features)
        assert len(set(rows.tolist())) == len(rows) == min(count, 23)
        assert rows[0] == 0
        assert rows.max() < 23
        assert max(np.diff([*rows, 23]), default=0) <= -(-23 // len(rows))
    assert task_of(generate_examples=0).generated_rows(features) is None


# --- the model's way of writing -------------------------------------------------------------------------------------


def test_what_the_backbone_brings_is_kept_as_far_as_it_belongs_to_its_vocabulary() -> None:
    model = model_of("bart")
    model.generation_config.update(min_length=56, max_length=142, do_sample=True, temperature=0.3, no_repeat_ngram_size=3,
                                   early_stopping=True, forced_bos_token_id=2, num_beams=6)  # fmt: skip
    task_of(num_beams=3, length_penalty=2.0, max_target_length=9).prepare_model(model, TOKENIZER)
    found = model.generation_config
    assert (found.num_beams, found.length_penalty, found.max_new_tokens, found.early_stopping) == (3, 2.0, 9, True)
    assert (found.no_repeat_ngram_size, found.forced_bos_token_id, found.decoder_start_token_id) == (3, 2, 3)
    assert (found.eos_token_id, found.pad_token_id) == (3, 0)
    assert not found.do_sample
    assert (found.min_length, found.max_length, found.temperature) == (None, None, None)
    task_of(num_beams=1, max_target_length=9).prepare_model(model, TOKENIZER)
    assert (model.generation_config.num_beams, model.generation_config.early_stopping) == (None, None)


def test_a_model_that_cannot_begin_or_end_or_write_so_much_is_refused() -> None:
    model = model_of("t5")
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(InputError, match=r"its config has no decoder_start_token_id, with which a text begins"):
        task_of().prepare_model(model, TOKENIZER)
    model.generation_config.decoder_start_token_id = 0
    task_of().prepare_model(model, TOKENIZER)
    assert model.config.decoder_start_token_id == 0  # its decoder inputs are shifted by the config's
    endless = tiny.make_tokenizer(ends_only=True)
    endless.backend_tokenizer.post_processor = tiny.processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(InputError, match=r"its tokenizer does not end a target with the model's end token"):
        task_of().prepare_model(model_of("t5"), endless)
    with pytest.raises(InputError, match=r"task.max_target_length \(128\): this backbone writes at most 66 tokens"):
        task_of().prepare_model(model_of("bart"), TOKENIZER)


# --- metrics --------------------------------------------------------------------------------------------------------

WRITTEN = ["the cat sat on the mat", "a dog", "", "it's raining, cats & dogs!", "the the the"]
RIGHT = [["the cat is on the mat", "there is a cat on the mat"], ["a big dog"], ["something"],
         ["it is raining cats and dogs.", "It's raining, cats & dogs!", "rain"], ["the end"]]  # fmt: skip


def test_rouge_by_hand_and_by_its_own_package() -> None:
    found = rouge(["a b c"], [["a b d", "x"]])
    assert found["rouge1"] == pytest.approx(2 / 3)
    assert found["rouge2"] == pytest.approx(1 / 2)
    assert rouge(["running cats"], [["run cat"]])["rougeL"] == 1.0  # stemmed
    lines = rouge(["a b\nc d"], [["c d\na b"]])
    assert lines["rougeLsum"] == 1.0
    assert lines["rougeL"] == pytest.approx(1 / 2)
    from rouge_score.rouge_scorer import RougeScorer

    scorer, names = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True), rouge([""], [["a"]])
    for name in names:
        best = [max(scorer.score(right, text)[name].fmeasure for right in rights) for text, rights in
                zip(WRITTEN, RIGHT, strict=True)]  # fmt: skip
        assert rouge(WRITTEN, RIGHT)[name] == pytest.approx(float(np.mean(best)))


def by_command(folder: Path, texts: list[str], references: list[list[str]]) -> dict[str, float]:
    """sacrebleu's command line on files, references tab-separated, empty ones for those that a text does not have."""
    (folder / "written.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    most = max(map(len, references))
    lines = ["\t".join([*[""] * (most - len(right)), *right]) + "\n" for right in references]
    (folder / "right.tsv").write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", str(folder / "right.tsv"), "--num-refs", str(most), "-i",
               str(folder / "written.txt"), "-m", "bleu", "chrf", "-w", "10", "--format", "json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {row["name"].lower().removesuffix("2"): row["score"] for row in json.loads(done.stdout)}


@pytest.mark.parametrize("seed", range(2))
def test_bleu_and_chrf_are_those_of_sacrebleus_command_line(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    right = [generator.choices([*tiny.FILLER, "it's", "A-b,", "Größe."], k=generator.randint(4, 12)) for _ in range(12)]
    texts = [" ".join(word if generator.random() < 0.8 else "cat" for word in words) for words in right]
    single = [[" ".join(words)] for words in right]
    several = [[first, " ".join(words[::-1])] if number % 2 else [first] for number, ((first,), words) in
               enumerate(zip(single, right, strict=True))]  # fmt: skip
    for references in (single, several):
        found, expected = bleu_and_chrf(texts, references), by_command(tmp_path, texts, references)
        assert 10 < found["bleu"] < 90
        assert found == pytest.approx(expected, abs=1e-6)


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[RunConfig, RunResult]]:
    """`runs(task, family, **settings)`: a finished run, made once."""
    folder = tmp_path_factory.mktemp("sequence-to-sequence")
    made: dict[str, tuple[RunConfig, RunResult]] = {}

    def make(task: str, family: str, layers: int = 2, **settings: Any) -> tuple[RunConfig, RunResult]:
        name = f"run{len(made)}"
        key = f"{task} {family} {layers} {sorted(settings.items())}"
        if key not in made:
            backbone, data = folder / f"{family}{layers}", folder / task
            if not backbone.exists():
                tiny.make_backbone(backbone, family, layers=layers)
            data.mkdir(exist_ok=True)
            given = make_summaries(data) if task == "summarization" else make_translations(data)
            columns = ("document", "summary") if task == "summarization" else ("source", "target")
            config = load_config(
                {"name": name, "output_dir": str(folder), "model.backbone": str(backbone), "tracking.trackers": [],
                 "data.text_columns": [columns[0]], "data.label_column": columns[1], "train.batch_size": 8,
                 "train.precision": "fp32", "tracking.log_every": 1, **SETTINGS, **given, **settings}, [],
            )  # fmt: skip
            assert config is not None
            made[key] = config, finetune(config, task_name=task)
        return made[key]

    return make


def losses_of(config: RunConfig) -> list[float]:
    """All losses of training and validation, in order."""
    rows = map(json.loads, (config.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row[key] for row in rows for key in ("train/loss", "validation/loss") if key in row]


LEARNED = {"train.epochs": 25, "evaluation.every": 75}


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_what_plain_generate_writes_from_the_exported_folder(family: str, runs: Any) -> None:
    config, result = runs("summarization", family, **LEARNED)
    assert losses_of(config)[-1] < losses_of(config)[0] * 0.5
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


def test_a_prefix_is_put_before_what_is_predicted_too(runs: Any) -> None:
    _, result = runs("summarization", "t5", **{"task.input_prefix": "this very ", "train.max_updates": 8})
    predictor = Predictor.from_pretrained(str(result.run_dir))
    ids = predictor.encode(table_of([("cat", None)]), has_labels=False).inputs["input_ids"]
    assert ids.tolist() == TOKENIZER("this very cat")["input_ids"]
    assert "Inputs begin with `this very `" in (result.model_dir / "README.md").read_text()


@pytest.mark.parametrize(("task", "family"), [("summarization", "t5"), ("translation", "bart")])
def test_evaluate_gives_what_the_run_gave(task: str, family: str, runs: Any) -> None:
    config, result = runs(task, family, **LEARNED)
    predictor = Predictor.from_pretrained(str(result.run_dir))
    assert evaluate_file(predictor, config.data.test) == result.results["test"]
    columns = predictor.read(config.data.test, needs_labels=True).columns
    rows = range(0, 16, 2)  # task.generate_examples 8 of 16
    written = [row["text"] for row in predict_file(predictor, config.data.test[0], None)]
    given = [columns[config.data.label_column][row] for row in rows]
    scores = (rouge if task == "summarization" else bleu_and_chrf)(
        [written[row] for row in rows], [right if isinstance(right, list) else [right] for right in given]
    )
    assert scores == {name: value for name, value in result.results["test"].items() if name != "loss"}
    assert result.results["metric"] == next(iter(scores))


@pytest.mark.parametrize(("family", "layers"), [("t5", 1), ("bart", 2)])
def test_the_encoder_frozen_whole_and_cached_trains_alike(family: str, layers: int, runs: Any) -> None:
    """With dropout on, and however many examples a forward takes; the metrics of written text come from the whole model."""
    settings = {"freeze.embeddings": True, "freeze.layers": "all", "train.epochs": 3}
    plain, first = runs("translation", family, layers, **settings, **{"cache.activations": "off"})
    cached, second = runs(
        "translation", family, layers, **settings, **{"cache.activations": "on", "cache.precision": "fp32"}
    )
    micro, third = runs("translation", family, layers, **settings,
                        **{"cache.activations": "off", "train.micro_batch_size": 3})  # fmt: skip
    assert losses_of(cached) == pytest.approx(losses_of(plain), abs=1e-5)
    assert losses_of(micro) == pytest.approx(losses_of(plain), abs=1e-5)
    for other in (second, third):
        assert other.results["test"] == pytest.approx(first.results["test"], abs=1e-4)
    trained = transformers.AutoModelForSeq2SeqLM.from_pretrained(second.model_dir).state_dict()
    began = transformers.AutoModelForSeq2SeqLM.from_pretrained(str(cached.model.backbone)).state_dict()
    moved = {name for name in trained if not torch.equal(trained[name], began[name])}
    assert any("decoder" in name for name in moved)
    encoder = {name for name in moved if "encoder." in name.replace("decoder.", "")}
    assert encoder <= {"encoder.final_layer_norm.weight"}  # T5's stands above the encoder's last block


def test_without_written_text_the_loss_decides(runs: Any) -> None:
    _, result = runs("translation", "t5", **{"task.generate_examples": 0, "train.max_updates": 4})
    assert result.results["metric"] == "loss"
    assert set(result.results["test"]) == {"loss"}


def test_the_loss_may_decide_beside_written_text(runs: Any) -> None:
    config, result = runs("translation", "t5", **{"evaluation.metric": "loss", "train.max_updates": 6})
    assert isinstance(config.evaluation, EvaluationConfig)
    assert result.results["metric"] == "loss"
    assert set(result.results["test"]) == {"loss", "bleu", "chrf"}


def test_text_is_written_in_the_runs_precision(runs: Any) -> None:
    """generate() calls the encoder by itself; under bf16 it must run as in training."""
    _, result = runs("summarization", "bart", **{"train.precision": "bf16", "train.max_updates": 6})
    assert np.isfinite(result.results["test"]["rougeL"])


def test_a_model_that_was_fine_tuned_elsewhere_writes_too(tmp_path: Path) -> None:
    model_of("t5").save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    predictor = Predictor.from_pretrained(str(tmp_path), text_columns=("document",), label_column="summary")
    assert predictor.task.name == "summarization"
    assert isinstance(predict_texts(predictor, ["the cat"])["text"], str)
