"""Reranking: each part alone, losses and metrics of sentence-transformers, runs, exports and predictions."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from recipe_case import load_recipe
from support import ranked, tiny

import hf_finetune
from hf_finetune import cli
from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import Batch, Features, Padding, Ragged, collate, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import Table
from hf_finetune.export import prediction_rows
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_files import predict_file
from hf_finetune.export.prediction_rows import iterate_predictions
from hf_finetune.export.predictor_calls import evaluate_file, predict_texts
from hf_finetune.model import heads
from hf_finetune.run.folder import open_run
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.rerank import Reranking
from hf_finetune.tasks.rerank_scoring import RerankingObjective, RerankingScoring
from hf_finetune.tasks.text.document_examples import DOCUMENTS, LABELS
from hf_finetune.train import RunResult, finetune

Runs = Callable[..., tuple[RunConfig, RunResult]]
LOSSES = ("listwise", "pairwise", "pointwise")


def make_config(folder: Path, backbone: Path, form: str = "lists", **settings: Any) -> RunConfig:
    """Returns the config of a small run. Writes rows of a form into the folder, unless data.train is given."""
    defaults = {
        **load_recipe("rerank").DEFAULTS,
        "name": "run",
        "output_dir": str(folder / "outputs"),
        "model.backbone": str(backbone),
        "data.max_length": 32,
        "train.epochs": 2,
        "train.batch_size": 8,
        "train.learning_rate": 2e-3,
        "train.precision": "fp32",
        "tracking.trackers": [],
    }
    files = {} if "data.train" in settings else ranked.write_splits(folder, form)
    return load_config(defaults | files | settings, [])


def make_own_config(folder: Path, backbone: Path, rows: list[dict[str, Any]], **settings: Any) -> RunConfig:
    """Returns the config of a run on these training rows."""
    train = str(tiny.write_jsonl(folder / "train.jsonl", rows))
    return make_config(folder, backbone, **{"data.train": [train], "data.validation_fraction": 0.3, **settings})


def set_up_run(config: RunConfig) -> TrainingRun:
    """Returns a run that is ready for update 0."""
    with open_run(config) as runtime:
        return set_up(config, runtime, Clock())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Runs:
    """`runs(form, **settings)`: config and result of a finished run, made once."""
    made: dict[str, tuple[RunConfig, RunResult]] = {}

    def make(form: str = "lists", **settings: Any) -> tuple[RunConfig, RunResult]:
        key = f"{form} {settings}"
        if key not in made:
            backbone = backbones("bert", initializer_range=0.2)
            config = make_config(tmp_path_factory.mktemp("rerank"), backbone, form, **settings)
            made[key] = config, finetune(config)
        return made[key]

    return make


def read_rows(path: str) -> list[dict[str, Any]]:
    """Returns the rows of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# --- the parts alone ------------------------------------------------------------------------------------------------


def make_features_of(labels: list[list[float]]) -> Features:
    """Returns features of queries with these labels, one token each document."""
    counts = np.cumsum([0, *map(len, labels)])
    arrays = {
        "input_ids": np.ones(counts[-1], dtype=np.int32),
        "offsets": np.arange(counts[-1] + 1),
        "truncated": np.array(0),
        "rows": counts,
    }
    return make_features(arrays, Ragged(values=np.concatenate(labels).astype(np.float32), offsets=counts))


def make_batch(labels: list[list[float]]) -> Batch:
    """Returns the batch of queries with these labels."""
    return collate(make_features_of(labels), np.arange(len(labels)), Padding(0))


LABELLED = [[0.0, 2.0, 1.0, 0.0], [1.0, 0.0], [0.0, 0.0, 0.0], [1.0]]
SCORES = [[0.5, -1.0, 2.0, 0.0], [3.0, 0.25], [1.0, 2.0, 3.0], [-2.0]]
OUTPUTS = torch.tensor([[score] for scores in SCORES for score in scores])


def test_listwise_loss_by_hand() -> None:
    """Queries without a relevant document, and with one document, do not count."""
    loss, count = RerankingObjective(kind="listwise").loss(OUTPUTS, make_batch(LABELLED))
    first, second = (torch.tensor(scores).log_softmax(0) for scores in SCORES[:2])
    torch.testing.assert_close(loss, -(2 * first[1] + first[2]) / 3 - second[0])
    assert count == 2
    smooth, count = RerankingObjective(kind="listwise", label_smoothing=0.2).loss(OUTPUTS, make_batch(LABELLED))
    torch.testing.assert_close(smooth, 0.8 * loss - 0.2 * (first.mean() + second.mean()))
    assert count == 2


def test_pairwise_loss_by_hand() -> None:
    loss, count = RerankingObjective(kind="pairwise").loss(OUTPUTS, make_batch(LABELLED))
    differences = torch.tensor([-1.0 - 0.5, -1.0 - 2.0, -1.0 - 0.0, 2.0 - 0.5, 2.0 - 0.0, 3.0 - 0.25])
    torch.testing.assert_close(loss, torch.log1p(torch.exp(-differences)).sum())
    assert count == 6


def test_pointwise_loss_by_hand() -> None:
    loss, count = RerankingObjective(kind="pointwise", highest_label=2.0).loss(OUTPUTS, make_batch(LABELLED))
    targets = torch.tensor([label / 2 for labels in LABELLED for label in labels])
    probabilities = OUTPUTS[:, 0].sigmoid()
    expected = -(targets * probabilities.log() + (1 - targets) * (1 - probabilities).log()).sum()
    torch.testing.assert_close(loss, expected)
    assert count == 10


@pytest.mark.parametrize("kind", LOSSES)
def test_a_batch_without_a_target_has_no_gradient(kind: str) -> None:
    outputs = torch.zeros((4, 1), requires_grad=True)
    loss, count = RerankingObjective(kind=kind).loss(outputs, make_batch([[0.0, 0.0, 0.0], [1.0]]))
    loss.backward()
    assert outputs.grad is not None
    assert (count, bool(outputs.grad.any())) == ((4, True) if kind == "pointwise" else (0, False))


@pytest.mark.parametrize("kind", LOSSES)
def test_loss_and_gradient_of_a_batch_are_the_sums_of_its_queries(kind: str) -> None:
    objective = RerankingObjective(kind=kind, highest_label=2.0)
    together, alone = (OUTPUTS.clone().requires_grad_() for _ in range(2))
    total, count = objective.loss(together, make_batch(LABELLED))
    total.backward()
    parts = zip(alone.split([len(labels) for labels in LABELLED]), LABELLED, strict=True)
    terms = [objective.loss(scores, make_batch([labels])) for scores, labels in parts]
    torch.stack([loss for loss, _ in terms]).sum().backward()
    torch.testing.assert_close(total.detach(), sum(loss.detach() for loss, _ in terms))
    assert count == sum(number for _, number in terms)
    assert together.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(together.grad, alone.grad)
    assert torch.isfinite(together.grad).all()


def test_scoring_alone() -> None:
    scoring = RerankingScoring(query="query", gives_probabilities=False)
    features = make_features_of(LABELLED)
    outputs = scoring.reduce(OUTPUTS, make_batch(LABELLED))
    assert [scores.tolist() for scores in outputs] == SCORES
    table = Table(
        columns={"query": ["a", "b"], DOCUMENTS: [["p", "q", "r", "s"], ["t", "u"]]}, files=["x"] * 2, lines=[1, 2]
    )
    values = scoring.compute_metrics("mrr_at_1", outputs, features, table, np.arange(4))
    ndcg = [(1 + 2 / np.log2(5)) / (2 + 1 / np.log2(3)), 1.0, 0.0, 1.0]
    assert values == {
        "ndcg_at_10": pytest.approx(np.mean(ndcg)),
        "mrr_at_10": pytest.approx(3 / 4),
        "map": pytest.approx(((1 + 2 / 4) / 2 + 1 + 0 + 1) / 4),
        "mrr_at_1": pytest.approx(3 / 4),
    }
    assert scoring.compute_metrics("loss", outputs[1:2], features, table, np.array([1]))["map"] == 1.0
    inputs = scoring.make_metric_inputs(outputs, features, table, np.arange(4))
    assert [labels.tolist() for labels in inputs.references] == LABELLED
    assert [scores.tolist() for scores in inputs.predictions] == SCORES
    first, second = scoring.make_predictions(outputs[:2], features, table)
    assert [entry["document"] for entry in first["ranking"]] == [2, 0, 3, 1]
    assert second == {
        "query": "b",
        "ranking": [{"document": 0, "text": "t", "score": 3.0}, {"document": 1, "text": "u", "score": 0.25}],
    }


def test_names_of_metrics() -> None:
    scoring = RerankingScoring(query="query", gives_probabilities=False)
    assert scoring.default_metric == "ndcg_at_10"
    assert [scoring.check_metric(name) for name in ("loss", "map", "ndcg@5", "mrr_at_100")] == [
        "loss",
        "map",
        "ndcg_at_5",
        "mrr_at_100",
    ]
    with pytest.raises(InputError, match=r"evaluation.metric \(mrr\): must be one of loss, ndcg_at_10, mrr_at_10, map"):
        scoring.check_metric("mrr")


# --- sentence-transformers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small random CrossEncoder."""
    from sentence_transformers import CrossEncoder

    folder = tmp_path_factory.mktemp("cross-encoder")
    tiny.make_model(num_labels=1, initializer_range=0.5).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return CrossEncoder(str(folder), device="cpu").eval()


def compute_loss(
    cross_encoder: Any, tmp_path: Path, backbones: Callable[..., Path], rows: list[dict[str, Any]], kind: str
) -> float:
    """Returns hf-finetune's mean loss of rows, by the model of a CrossEncoder."""
    config = make_own_config(tmp_path, backbones("bert"), rows, **{"task.loss": kind})
    spec = Reranking.make_columns(config).spec
    assert spec.join_rows is not None
    names = dict.fromkeys((*spec.columns, "query"))
    columns = {name: [row.get(name) for row in rows] for name in names}
    table = spec.join_rows(Table(columns=columns, files=["a"] * len(rows), lines=list(range(len(rows)))))
    task = Reranking.from_table(config, table)
    arrays = task.encoding.tokenize(table, tiny.make_tokenizer(), 48)
    features = make_features(arrays, task.encoding.labels(table, arrays))
    batch = collate(features, np.arange(len(features)), Padding(0))
    with torch.no_grad():
        loss, count = task.objective.loss(heads.run_model(cross_encoder[0].model, batch.inputs), batch)
    return float(loss) / count


def test_listwise_loss_is_sentence_transformers(
    cross_encoder: Any, tmp_path: Path, backbones: Callable[..., Path]
) -> None:
    """ListNetLoss takes the softmax of the labels as target: with the logarithms of our targets, that is our loss."""
    from sentence_transformers.cross_encoder import losses

    rows = ranked.make_rows(20)
    targets = [torch.tensor(row["labels"]) / sum(row["labels"]) for row in rows]
    assert {len(target) for target in targets} == {2, 3, 4, 5}
    inputs = [[row[name] for row in rows] for name in ("query", "documents")]
    with torch.no_grad():
        theirs = losses.ListNetLoss(cross_encoder)(inputs, [target.log() for target in targets])
    assert compute_loss(cross_encoder, tmp_path, backbones, rows, "listwise") == pytest.approx(float(theirs), abs=1e-5)


def test_listwise_loss_of_one_relevant_document_is_that_of_multiple_negatives(
    cross_encoder: Any, tmp_path: Path, backbones: Callable[..., Path]
) -> None:
    from sentence_transformers.cross_encoder import losses

    rows = [
        row
        for row in ranked.make_rows(60, form="positives")
        if len(row["positive"]) == 1 and len(row["negatives"]) == 2
    ]
    loss = losses.MultipleNegativesRankingLoss(cross_encoder, scale=1, activation_fn=torch.nn.Identity())
    columns = [
        [row["positive"][0] for row in rows],
        *([row["negatives"][number] for row in rows] for number in range(2)),
    ]
    with torch.no_grad():
        scores = [loss.call_model_with_columns([row["query"] for row in rows], texts) for texts in columns]
        theirs = loss.calculate_loss(scores, len(rows))
    assert len(rows) > 10
    assert compute_loss(cross_encoder, tmp_path, backbones, rows, "listwise") == pytest.approx(float(theirs), abs=1e-5)


def test_pairwise_loss_is_sentence_transformers(
    cross_encoder: Any, tmp_path: Path, backbones: Callable[..., Path]
) -> None:
    from sentence_transformers.cross_encoder import losses

    rows = ranked.make_rows(20)
    labels = [torch.tensor(row["labels"]).float() for row in rows]
    assert any(len(set(row["labels"])) == 3 for row in rows)
    inputs = [[row[name] for row in rows] for name in ("query", "documents")]
    with torch.no_grad():
        theirs = losses.RankNetLoss(cross_encoder, reduction_log="natural")(inputs, labels)
    assert compute_loss(cross_encoder, tmp_path, backbones, rows, "pairwise") == pytest.approx(float(theirs), abs=1e-5)


def test_pointwise_loss_is_sentence_transformers(
    cross_encoder: Any, tmp_path: Path, backbones: Callable[..., Path]
) -> None:
    from sentence_transformers.cross_encoder import losses

    rows = ranked.make_rows(20)
    pairs = [(row["query"], *pair) for row in rows for pair in zip(row["documents"], row["labels"], strict=True)]
    queries, documents, labels = (list(values) for values in zip(*pairs, strict=True))
    with torch.no_grad():
        theirs = losses.BinaryCrossEntropyLoss(cross_encoder)([queries, documents], torch.tensor(labels) / 2)
    assert compute_loss(cross_encoder, tmp_path, backbones, rows, "pointwise") == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_cross_encoder_gives_the_same_scores_and_metrics(runs: Runs, loss: str) -> None:
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

    config, result = runs("positives", **{"task.loss": loss})
    rows = read_rows(config.data.test[0])
    cross_encoder = CrossEncoder(str(result.model_dir), device="cpu")
    predictor = Predictor.from_pretrained(str(result.run_dir))
    for row, prediction in zip(rows, iterate_predictions(predictor, config.data.test[0]), strict=True):
        pairs = [(row["query"], text) for text in (*row["positive"], *row["negatives"])]
        ranking = sorted(prediction["ranking"], key=lambda entry: entry["document"])
        assert [entry["text"] for entry in ranking] == [text for _, text in pairs]
        np.testing.assert_allclose([entry["score"] for entry in ranking], cross_encoder.predict(pairs), atol=1e-5)
        if loss == "pointwise":
            assert all(0 < entry["score"] < 1 for entry in ranking)
    samples = [{"query": row["query"], "positive": row["positive"], "negative": row["negatives"]} for row in rows]
    theirs = CrossEncoderRerankingEvaluator(samples, write_csv=False)(cross_encoder)
    ours = evaluate_file(predictor, config.data.test[0])
    for name in ("ndcg", "mrr"):
        assert ours[f"{name}_at_10"] == pytest.approx(theirs[f"{name}@10"], abs=1e-6)
    assert ours["map"] == pytest.approx(theirs["map"], abs=1e-6)
    assert ours == pytest.approx(result.results["test"], abs=1e-6)


def test_the_exported_model_gives_the_same_scores_in_plain_transformers(runs: Runs) -> None:
    for loss in LOSSES:
        _, result = runs("positives", **{"task.loss": loss})
        predictor = Predictor.from_pretrained(str(result.run_dir))
        (entry,) = predict_texts(predictor, ["the cat", "a dog here"])["ranking"]
        pipeline = transformers.pipeline("text-classification", str(result.model_dir), device="cpu")
        (answer,) = pipeline([{"text": "the cat", "text_pair": "a dog here"}])
        assert answer == {"label": "score", "score": pytest.approx(entry["score"], abs=1e-5)}


# --- runs -----------------------------------------------------------------------------------------------------------


def test_the_forms_of_rows_give_the_same_run(runs: Runs) -> None:
    """Of rows with a positive and negatives, and of rows with one document: the same documents in another order."""
    losses = {}
    for form in ("positives", "pairs"):
        config, result = runs(form, **{"task.loss": "pairwise", "model.dropout": 0.0})
        losses[form] = result.results["validation"]
        assert result.results["examples"] == {"train": 48, "validation": 16, "test": 16}
    assert losses["pairs"] == pytest.approx(losses["positives"], abs=1e-5)
    assert config.data.label_column is None


def test_a_run_prints_what_it_read_and_its_card_shows_how_to_use_the_model(
    tmp_path: Path, backbones: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*ranked.make_rows(30), {"query": "only", "documents": ["one"], "labels": [1]},
            {"query": "none", "documents": ["cat", "dog"], "labels": [0, 0]}]  # fmt: skip
    negatives = [{"query": row["query"], "documents": ["the saw", *row["documents"]]} for row in rows[:4]]
    path = tiny.write_jsonl(tmp_path / "negatives.jsonl", [*negatives, {"query": "unknown", "documents": ["rope"]}])
    validation = {
        "data.validation": [str(tiny.write_jsonl(tmp_path / "validation.jsonl", ranked.make_rows(9, seed=5)))]
    }
    settings = {"task.negatives": str(path), "data.test_fraction": 0.0, "train.max_updates": 1, **validation}
    result = finetune(make_own_config(tmp_path, backbones("bert"), rows, **settings))
    printed = " ".join(capsys.readouterr().out.split())
    counts = [len(row["documents"]) + (number < 4) for number, row in enumerate(rows)]
    labels = [*(label for row in rows for label in row["labels"]), *[0] * 4]
    assert "task reranking; 32 rows with a query and a list of documents" in printed
    assert f"documents {sum(counts)}, 1 to {max(counts)} for each query" in printed
    ordered = sorted(range(3), key=lambda label: -labels.count(label))
    shown = ", ".join(f"{label} ({labels.count(label)})" for label in ordered)
    assert f"labels {shown}; a document above 0 is relevant" in printed
    assert "negatives 4 of task.negatives added to 4 of 32 queries" in printed
    assert "unused 2 queries have no effect: they have one document, or no relevant document" in printed
    card = (result.model_dir / "README.md").read_text(encoding="utf-8")
    assert "library_name: sentence-transformers" in card
    assert "pipeline_tag: text-ranking" in card
    assert 'CrossEncoder("model").predict' in card
    assert str(tmp_path) not in card
    assert result.results["reload_difference"] <= 1e-5


def test_negatives_are_added_to_training_alone(tmp_path: Path, backbones: Callable[..., Path]) -> None:
    rows = ranked.make_rows(40)
    path = tiny.write_jsonl(
        tmp_path / "more.jsonl", [{"query": row["query"], "negatives": ["hammer", "saw"]} for row in rows]
    )
    run = set_up_run(make_own_config(tmp_path, backbones("bert"), rows, **{"task.negatives": str(path)}))
    plain = set_up_run(make_own_config(tmp_path, backbones("bert"), rows, name="other"))
    for split in ("validation", "test"):
        assert run.splits.tables()[split].columns == plain.splits.tables()[split].columns
        assert run.features[split].fingerprint() == plain.features[split].fingerprint()
    for before, after in zip(plain.splits.train.columns[DOCUMENTS], run.splits.train.columns[DOCUMENTS], strict=True):
        assert after == [*before, "hammer", "saw"]
    assert run.features["train"].num_sequences == plain.features["train"].num_sequences + 2 * len(plain.splits.train)


def test_queries_stay_in_one_split_and_are_counted_as_examples(tmp_path: Path, backbones: Callable[..., Path]) -> None:
    rows = ranked.make_rows(40, form="pairs")
    queries = {row["query"] for row in rows}
    config = make_own_config(tmp_path, backbones("bert"), rows, **{"data.max_train_examples": 12})
    splits = load_splits(config.data, 0, Reranking.make_columns(config).spec)
    assert len(splits.train) == 12
    parts = [set(table.columns["query"]) for table in splits.tables().values()]
    assert sum(map(len, parts)) == len(set().union(*parts)) < len(queries)
    for table in splits.tables().values():
        for query, documents in zip(table.columns["query"], table.columns[DOCUMENTS], strict=True):
            assert documents == list(dict.fromkeys(row["document"] for row in rows if row["query"] == query))


@pytest.mark.parametrize("form", ["lists", "pairs"])
def test_rows_of_python_and_of_the_datasets_library(
    tmp_path: Path, backbones: Callable[..., Path], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = ranked.make_rows(30, form=form)
    settings = {"model.backbone": str(backbones("bert")), "train.max_updates": 2, "train.precision": "fp32",
                "data.max_length": 32, "tracking.trackers": []}  # fmt: skip
    results = []
    for number, train in enumerate((rows, Dataset.from_list(rows))):
        run = hf_finetune.finetune("rerank", train=train, settings={**settings, "name": f"run{number}"})
        results.append(run.results["test"])
    tiny.write_jsonl(tmp_path / "train.jsonl", rows)
    run = hf_finetune.finetune("rerank", train=str(tmp_path / "train.jsonl"), settings={**settings, "name": "file"})
    assert results[0] == results[1] == run.results["test"]
    (tmp_path / "hub").mkdir()
    tiny.write_jsonl(tmp_path / "hub" / "train.jsonl", rows)
    config = make_config(tmp_path, backbones("bert"), **{"data.train": [], "data.dataset": str(tmp_path / "hub")})
    table = load_splits(config.data, 0, Reranking.make_columns(config).spec).train
    assert set(table.columns["query"]) <= {row["query"] for row in rows}
    assert all(isinstance(text, str) for texts in table.columns[DOCUMENTS] for text in texts)


@pytest.mark.parametrize("source", ["file", "dataset"])
def test_columns_inside_another_one(
    tmp_path: Path, backbones: Callable[..., Path], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MS MARCO has them on the Hub."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made = ranked.make_rows(30)
    rows = [
        {"query": row["query"], "passages": {"is_selected": row["labels"], "passage_text": row["documents"]}}
        for row in made
    ]
    (tmp_path / "hub").mkdir()
    path = tiny.write_jsonl(tmp_path / "hub" / "train.jsonl", rows)
    data = {"data.train": [str(path)]} if source == "file" else {"data.train": [], "data.dataset": str(path.parent)}
    names = {"task.document_columns": ["passages.passage_text"], "data.label_column": "passages.is_selected"}
    config = make_config(tmp_path, backbones("bert"), **data, **names)
    table = load_splits(config.data, 0, Reranking.make_columns(config).spec).train
    expected = {row["query"]: (row["documents"], row["labels"]) for row in made}
    found = zip(table.columns["query"], table.columns[DOCUMENTS], table.columns[LABELS], strict=True)
    assert all(expected[query] == (documents, labels) for query, documents, labels in found)
    assert len(table) == 24


def test_graded_labels_with_a_pointwise_loss_are_scaled(
    tmp_path: Path, backbones: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, backbones("bert"), **{"task.loss": "pointwise", "train.max_updates": 1})
    finetune(config)
    assert "; trained as probabilities: 2 as 1; a document above 0 is relevant" in capsys.readouterr().out
    rows = [{"query": "the", "documents": ["cat", "dog"], "labels": [0, 3]}]
    config = make_config(tmp_path, backbones("bert"), **{"task.loss": "pointwise", "name": "high"})
    tiny.write_jsonl(Path(config.data.validation[0]), rows)
    with pytest.raises(InputError, match=r"validation.jsonl:1: the label 3 is above the highest of training, 2, which"):
        set_up_run(config)


def test_joined_rows_and_repeated_queries_are_described(tmp_path: Path, backbones: Callable[..., Path]) -> None:
    pairs, lists = ranked.make_rows(30, form="pairs"), ranked.make_rows(30)
    for name, rows in (("pairs", pairs), ("lists", [*lists, *lists[:4]])):
        run = set_up_run(make_own_config(tmp_path, backbones("bert"), rows, name=name))
        train = run.splits.train
        (label, line), *_ = run.task.encoding.describe(run.features["train"], train, 32)
        assert label == "task"
        if name == "pairs":
            num_rows = sum(len(documents) for documents in train.columns[DOCUMENTS])
            assert line == f"reranking; {num_rows} rows with a query and one document, joined to {len(train)} queries"
        else:
            num_repeated = len(train) - len({*train.columns["query"]})
            assert num_repeated > 0
            assert line.endswith(f"; {num_repeated} queries occur again, and each list is ranked by itself")


def test_many_labels_are_described_by_their_range(tmp_path: Path, backbones: Callable[..., Path]) -> None:
    rows = [{"query": f"{number}", "documents": ["cat", "dog"], "labels": [0, number / 8]} for number in range(1, 20)]
    run = set_up_run(make_own_config(tmp_path, backbones("bert"), rows))
    lines = dict(run.task.encoding.describe(run.features["train"], run.splits.train, 32))
    highest = max(label for labels in run.splits.train.columns[LABELS] for label in labels)
    assert lines["labels"] == f"0 to {highest:g}; a document above 0 is relevant"
    assert "unused" not in lines


# --- predictions ----------------------------------------------------------------------------------------------------


def test_predictions_of_a_file_without_labels_and_of_texts(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_pretrained(str(runs("lists")[1].run_dir))
    documents = ["a dog", "the cat", "old bread", "the cat"]
    listed = tiny.write_jsonl(tmp_path / "listed.jsonl", [{"query": "the cat", "documents": documents}])
    assert predict_file(predictor, str(listed), str(tmp_path / "out.jsonl")) == 1
    (of_list,) = iterate_predictions(predictor, str(listed))
    assert of_list["query"] == "the cat"
    assert sorted(entry["document"] for entry in of_list["ranking"]) == [0, 1, 2, 3]
    scores = [entry["score"] for entry in of_list["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert read_rows(str(tmp_path / "out.jsonl")) == [of_list]
    assert predict_texts(predictor, ["the cat", *documents]) == of_list
    (tmp_path / "pairs.csv").write_text(
        "query,document\n" + "".join(f"the cat,{text}\n" for text in documents), encoding="utf-8"
    )
    (of_pairs,) = iterate_predictions(predictor, str(tmp_path / "pairs.csv"))
    assert {entry["text"] for entry in of_pairs["ranking"]} == {*documents}
    assert len(of_pairs["ranking"]) == 3
    with_ids = [{"query": "the cat", "document": text, "id": number} for number, text in enumerate(documents)]
    lines = "".join(f"{json.dumps(row)}\n" for row in with_ids)
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    (of_input,) = iterate_predictions(predictor, "-", keep=["id"], batch_size=2)
    assert of_input == {"input": {"id": [0, 1, 2]}, **of_pairs}
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    with pytest.raises(InputError, match=r"--keep \(document\): the task joins this column's rows"):
        list(iterate_predictions(predictor, "-", keep=["document"]))
    with pytest.raises(InputError, match="--text: takes the query and then one document or more, not one text"):
        predict_texts(predictor, ["the cat"])
    with pytest.raises(
        InputError, match=r"listed.jsonl:1: 4 of 4 documents of this query have no label; the column must be"
    ):
        evaluate_file(predictor, str(listed))


def test_predictions_hold_the_rows_of_the_queries_at_work_only(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_pretrained(str(runs("lists")[1].run_dir))
    rows = [
        {"query": f"the cat {number}", "document": text}
        for number in range(12)
        for text in ("a dog", "the cat", "old bread")
    ]
    sizes: list[int] = []
    make = prediction_rows.make_examples
    monkeypatch.setattr(
        prediction_rows, "make_examples", lambda table, spec: (sizes.append(len(table)), make(table, spec))[1]
    )

    def predict(name: str, rows: Sequence[Any]) -> list[Any]:
        sizes.clear()
        return list(iterate_predictions(predictor, str(tiny.write_jsonl(tmp_path / name, rows)), batch_size=1))

    by_query = predict("sorted.jsonl", rows)
    assert sizes == [3, 18, 15]
    assert [entry["query"] for entry in by_query] == [f"the cat {number}" for number in range(12)]
    assert {len(entry["ranking"]) for entry in by_query} == {3}
    assert predict("turns.jsonl", [*rows[::3], *rows[1::3], *rows[2::3]]) == by_query
    assert sizes == [36]
    lists = predict("lists.jsonl", [{"query": "the cat", "documents": ["a dog", "the cat"]}] * 20)
    assert (len(lists), sizes) == (20, [1, 16, 3])
    out = tmp_path / "out.jsonl"
    assert predict_file(predictor, str(tmp_path / "sorted.jsonl"), str(out), batch_size=1) == 12
    assert read_rows(str(out)) == by_query
    with pytest.raises(
        InputError, match=r"mixed.jsonl:37: has a list of documents, and .*mixed.jsonl:1 has one document"
    ):
        predict("mixed.jsonl", [*rows, {"query": "other", "documents": ["a dog"]}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": ["a cat"]}, r"train\[0\]: labels has 2 labels; it must be a list of labels for 1 documents"),
        ({"labels": 0}, r"train\[0\]: labels is an int; it must be a list"),
        ({"labels": [-1, 1]}, r"train\[0\]: labels \(-1\) is not a label"),
        ({"documents": [], "labels": []}, r"train\[0\]: documents is empty"),
        ({"documents": "a cat"}, r"train\[0\]: documents is a str, not a list of texts"),
        ({"documents": [None, "a"]}, r"train\[0\]: documents has a text that is null"),
    ],
)
def test_a_row_of_an_augmentation_keeps_a_label_for_each_document(
    make_config: Callable[..., RunConfig], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """Labels that do not fit would be those of other queries' documents."""
    rows = [{"query": f"a cat {number}", "documents": ["a cat", "a dog"], "labels": [1, 0]} for number in range(20)]
    backbone = make_config().model.backbone
    settings = {"model.backbone": backbone, "data.max_length": 32, "train.precision": "fp32", "output_dir": tmp_path}
    with pytest.raises(InputError, match=message):
        hf_finetune.finetune("rerank", rows, settings=settings, augment=lambda row, seed, epoch: {**row, **change})


# --- the form of the documents --------------------------------------------------------------------------------------


def read_csv(path: Path, config: RunConfig, *negatives: str) -> Table:
    """Returns the examples of a csv file with these negatives, a row each."""
    rows = (f'q{number},a cat,"{cell}"' for number, cell in enumerate(negatives))
    path.write_text("\n".join(["query,positive,negatives", *rows, ""]), encoding="utf-8")
    return read_table((str(path),), config.data, "data.train", Reranking.make_columns(config).spec)


@pytest.mark.parametrize(
    ("training", "other", "message"),
    [
        ("a dog", "['a cow', 'a pig']", "is a list that is written as text, and those of training are no lists"),
        ("['a cow', 'a pig']", "a dog", "is a text, and those of training are lists that are written as text"),
    ],
)
def test_documents_are_written_as_those_of_training(training: str, other: str, message: str, tmp_path: Path) -> None:
    """In each place where rows are encoded, by a task of the training rows and by one of its state."""
    settings = {"task.kind": "rerank", "model.backbone": "none", "data.train": ["none"], "data.text_columns": ["query"]}
    config = RunConfig.from_settings(settings | {"data.label_column": None})
    learned = Reranking.from_table(config, read_csv(tmp_path / "train.csv", config, "", training))
    loaded = Reranking.from_state(config, json.loads(json.dumps(learned.state_dict())))
    equal = read_csv(tmp_path / "equal.csv", config, training, "")
    table = read_csv(tmp_path / "other.csv", config, "", other)
    calls: list[Callable[[Any], Any]] = [
        lambda encoding: encoding.check_rows(table),
        lambda encoding: encoding.tokenize(table, tiny.make_tokenizer(), 48),
        lambda encoding: encoding.labels(table, {}),  # the tokens of equal documents may be there already
    ]
    for encoding in (learned.encoding, loaded.encoding):
        encoding.check_rows(equal)
        for call in calls:
            with pytest.raises(InputError, match=rf"other.csv:3: negatives {message}"):
                call(encoding)
    changes = {"data.label_column": None, "task.negatives": str(tmp_path / "other.csv")}
    trained = equal.with_columns({**equal.columns, "query": ["q1", "q0"]})  # other.csv has its text for q1
    with pytest.raises(InputError, match=rf"other.csv:3: negatives {message}"):
        Reranking.extend_training(RunConfig.from_settings(settings | changes), trained)
    older = Reranking.from_state(config, {"highest_label": 1.0})  # of an earlier version
    older.encoding.check_rows(table)


def test_documents_that_are_joined_in_one_text_are_a_warning(tmp_path: Path) -> None:
    settings = {"task.kind": "rerank", "model.backbone": "none", "data.train": ["none"], "data.text_columns": ["query"]}
    config = RunConfig.from_settings(settings | {"data.label_column": None})
    table = read_csv(tmp_path / "a.csv", config, "a dog|a cow", "a pig", "a hen|a rat", "a fox|a bee", "")
    (warning,) = Reranking.from_table(config, table).encoding.find_row_warnings(table)
    assert warning.startswith("3 of 4 documents that are not relevant hold '|' between texts, such as ")


def test_a_file_without_labels_is_refused_by_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As by the run."""
    train = tiny.write_jsonl(tmp_path / "train.jsonl", ROWS)
    test = tiny.write_jsonl(tmp_path / "test.jsonl", [{"query": "the", "documents": ["cat", "dog"]}])
    assert cli.main(["data", str(train), "--task", "rerank", "--test", str(test)]) == 2
    assert "test.jsonl:1: 2 of 2 documents of this query have no label" in capsys.readouterr().err


# --- errors ---------------------------------------------------------------------------------------------------------

ROWS = [{"query": "the", "documents": ["cat", "dog"], "labels": [0, 1]}]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (ROWS, {"data.text_columns": ["query", "other"]}, r"data.text_columns \(\['query', 'other'\]\): must be one column"),
        (ROWS, {"data.text_columns": ["labels"]}, r"data.text_columns \(\['labels'\]\): must not be named documents or labels"),
        (ROWS, {"task.document_columns": []}, r"task.document_columns \(\[\]\): must name at least one column"),
        (ROWS, {"task.positive_columns": ["document"]}, r"task.document_columns \(.*\): must differ from each other, and"),
        (ROWS, {"data.label_column": "positive"}, r"task.document_columns \(.*\): must differ from each other, and"),
        (ROWS, {"data.label_column": "grade"}, r"train.jsonl:1: no column 'grade' \(.*\); see data.label_column"),
        (ROWS, {"task.loss": "pairwise", "train.label_smoothing": 0.1}, r"train.label_smoothing \(0.1\): is for task.loss"),
        (ROWS, {"task.negatives": "nowhere.jsonl"}, r"task.negatives \(nowhere.jsonl\): no such file or folder"),
        ([ROWS[0] | {"query": None}], {}, "train.jsonl:1: query is null"),
        ([ROWS[0] | {"labels": None}], {}, "train.jsonl:1: 2 of 2 documents of this query have no label"),
        ([ROWS[0] | {"labels": [0, 0]}], {}, "train.jsonl: no training query has a relevant document and one that is less"),
        ([ROWS[0] | {"labels": [1, 1]}], {"task.loss": "pointwise"}, "task.negatives can add documents that are not relevant"),
        ([{"query": "q", "positive": "a"}, {"query": "r", "positive": "b"}], {}, "task.negatives can add documents"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_an_error(
    tmp_path: Path, backbones: Callable[..., Path], rows: list[dict[str, Any]], settings: Any, message: str
) -> None:
    validation = {
        "data.validation": [str(tiny.write_jsonl(tmp_path / "validation.jsonl", ROWS))],
        "data.test_fraction": 0.0,
    }
    with pytest.raises(InputError, match=message):
        set_up_run(make_own_config(tmp_path, backbones("bert"), rows, **{**validation, **settings}))


def test_a_split_without_any_relevant_document_is_an_error(tmp_path: Path, backbones: Callable[..., Path]) -> None:
    config = make_config(tmp_path, backbones("bert"))
    tiny.write_jsonl(Path(config.data.test[0]), [ROWS[0] | {"labels": [0, 0]}])
    with pytest.raises(InputError, match=r"test.jsonl: no document of any query is relevant \(has a label above 0\)"):
        set_up_run(config)
