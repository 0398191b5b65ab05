"""Sentence embeddings: losses and metrics against sentence-transformers, gradients of a whole batch however it is cut, known
positives, exported folders, predictions.

    torchrun --nproc_per_node 2 test_embedding.py CONFIG.yaml OUT.pt         the gradients of GROUPINGS, on several processes
"""

import dataclasses
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny

from hf_finetune.config.loading import load_config, to_yaml
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.batches import MicroBatchLimit, share_batch
from hf_finetune.data.features import make_features
from hf_finetune.data.table import Table
from hf_finetune.export.materialize import materialize
from hf_finetune.export.predict import Predictor, evaluate_file, predict_file, predict_texts
from hf_finetune.run import checkpoint
from hf_finetune.run.folder import open_run
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import form_of
from hf_finetune.tasks.embed import Embedding, known_alike, ranks
from hf_finetune.train import RunResult, finetune
from hf_finetune.training import trainee
from hf_finetune.training.loop import accumulate_gradients
from hf_finetune.training.train_state import UpdateBatch

COLUMNS = {"pairs": ["anchor", "positive"], "triplets": ["anchor", "positive", "negative"], "scored": ["one", "two"]}
GROUPINGS = [(7, None), (7, 2), (7, 1), (1, None)]  # rows of a batch, of a micro-batch
EXTRAS = {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json"}
MODEL_FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} | EXTRAS
LIVELY = {"initializer_range": 0.2}  # ten times BERT's own, so that texts and their gradients differ
WORDS = [word for words in tiny.CLASSES.values() for word in words.split()]


def make_rows(kind: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose texts all differ: pairs and triplets about one word, or scored pairs."""
    generator = random.Random(seed)
    seen: set[str] = set()

    def text(word: str) -> str:
        while True:
            made = " ".join([*generator.choices(tiny.FILLER, k=generator.randint(2, 7)), word])
            if made not in seen:
                seen.add(made)
                return made

    rows: list[dict[str, Any]] = []
    for number in range(count):
        one, other = generator.sample(WORDS, 2)
        if kind == "scored":
            rows.append({"one": text(one), "two": text(one if number % 2 else other), "score": number % 7 / 2})
        else:
            rows.append({"anchor": text(one), "positive": text(one)})
            rows[-1] |= {"negative": text(other)} if kind == "triplets" else {}
    return rows


def config_of(folder: Path, backbone: Path, kind: str, **settings: Any) -> RunConfig:
    """A config of embeddings, with data made where there are none."""
    columns: dict[str, Any] = {"data.text_columns": COLUMNS[kind], "data.label_column": None}
    columns |= {"data.label_column": "score"} if kind == "scored" else {}
    for seed, (split, count) in enumerate((("train", 40), ("validation", 24), ("test", 24))):
        path = folder / f"{split}-{kind}.jsonl"
        if f"data.{split}" not in settings and not path.exists():
            tiny.write_jsonl(path, make_rows(kind, count, seed))
        settings.setdefault(f"data.{split}", [str(path)])
    defaults = {"output_dir": str(folder / "outputs"), "model.backbone": str(backbone), "data.max_length": 48}
    defaults |= {"train.epochs": 2, "train.batch_size": 8, "train.learning_rate": 5e-3, "train.precision": "fp32"}
    defaults |= {"tracking.trackers": [], "tracking.log_every": 1, "cache.activations": "off"}
    config = load_config(defaults | columns | settings, [])
    assert config is not None
    return config


def set_up_job(config: RunConfig) -> TrainingRun:
    """A job that is set up and not begun."""
    with open_run(config) as run:
        return set_up(config, "embedding", run, Clock())


@pytest.fixture
def job(tmp_path: Path, backbones: Callable[..., Path]) -> Callable[..., TrainingRun]:
    """`job("pairs", **settings)`."""
    return lambda kind, **settings: set_up_job(config_of(tmp_path, backbones("bert", **LIVELY), kind, **settings))


def gradients(job: TrainingRun, size: int, micro: int | None, update: int = 3) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the first `size` training rows as one batch, in micro-batches."""
    run, features, rows = job.runtime, job.features["train"], np.arange(size)
    limit = MicroBatchLimit(num_examples=micro or -(-size // run.num_processes))
    pieces = share_batch(rows, features.lengths, limit, run.process, run.num_processes)
    torch.manual_seed(5)
    torch.rand(3)  # something has drawn since
    job.train_state.optimizer.zero_grad()
    job.train_state.model.train()
    window = UpdateBatch(number=update, epoch=1, feature_indices=rows, micro_batches=pieces)
    loss = accumulate_gradients(job.train_state, features, job.task, run, window)
    named = job.train_state.model.named_parameters()
    return loss, {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Equal but for the order of sums: within 1e-5 of the largest gradient."""
    assert ours.keys() == theirs.keys()
    largest = max(float(tensor.abs().max()) for tensor in theirs.values())
    assert largest > 0.01
    for name, tensor in theirs.items():
        assert float((ours[name] - tensor).abs().max()) <= 1e-5 * largest, name


def sentence_transformer(folder: Path, pooling: str = "mean", *, normalize: bool = True) -> Any:
    """sentence-transformers' own model on a folder of transformers'."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(folder), max_seq_length=48)
    pooled = Pooling(transformer.get_embedding_dimension(), pooling)
    return SentenceTransformer(modules=[transformer, pooled, *([Normalize()] if normalize else [])], device="cpu")


# --- the loss of a whole batch --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "pooling"), [("pairs", "mean"), ("triplets", "cls"), ("scored", "mean")])
def test_gradients_are_those_of_sentence_transformers(
    job: Callable[..., TrainingRun], backbones: Callable[..., Path], kind: str, pooling: str
) -> None:
    """On the same batch, whatever the micro-batches; MultipleNegativesRankingLoss and CosineSimilarityLoss."""
    from sentence_transformers.sentence_transformer import losses

    scale = {} if kind == "scored" else {"task.similarity_scale": 15.0}
    made = job(kind, **{"model.dropout": 0.0, "task.pooling": pooling, **scale})
    reference = sentence_transformer(backbones("bert", **LIVELY), pooling).eval()
    rows = make_rows(kind, 40)[:7]
    texts = [reference.preprocess([row[name] for row in rows]) for name in COLUMNS[kind]]
    scores = torch.tensor([row.get("score", 0.0) / 3 for row in rows])  # from 0 to 3 they go
    ranking = losses.MultipleNegativesRankingLoss(reference, scale=15.0)
    expected = (losses.CosineSimilarityLoss(reference) if kind == "scored" else ranking)(texts, scores)
    expected.backward()
    theirs = {name: p.grad for name, p in reference[0].model.named_parameters() if p.grad is not None}
    for micro in (7, 3, 1):
        loss, ours = gradients(made, 7, micro)
        assert loss == pytest.approx(expected.item(), abs=1e-5)
        assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_micro_batches_change_nothing_with_dropout_from_the_hash(job: Callable[..., TrainingRun], kind: str) -> None:
    made = job(kind, **{"model.dropout": 0.2, "train.dropout_masks": "stateless"})
    loss, whole = gradients(made, 9, 9)
    for micro in (4, 2, 1):
        other, ours = gradients(made, 9, micro)
        assert other == pytest.approx(loss, abs=1e-5)
        assert_close(ours, whole)
    assert gradients(made, 9, 9, update=4)[0] != pytest.approx(loss, abs=1e-4)  # other masks
    without = job(kind, **{"model.dropout": 0.0, "name": "without"})
    assert gradients(without, 9, 9)[0] != pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("micro", [3, 9])
def test_masks_from_a_generator_are_the_same_in_both_forwards(job: Callable[..., TrainingRun], micro: int) -> None:
    """Against one graph over all micro-batches."""
    made = job("pairs", **{"model.dropout": 0.2, "train.dropout_masks": "torch"})
    loss, ours = gradients(made, 9, micro)
    features, rows, task = made.features["train"], np.arange(9), made.task
    window = UpdateBatch(number=3, epoch=1, feature_indices=rows, micro_batches=share_batch(
        rows, features.lengths, MicroBatchLimit(num_examples=micro), 0, 1))  # fmt: skip
    torch.manual_seed(5)
    made.train_state.optimizer.zero_grad()
    vectors: list[Any] = [None] * features.num_sequences
    for piece in window.micro_batches:
        outputs, batch = trainee.run_training_forward(made.train_state, features, task, made.runtime, piece, window)
        for sequence, vector in zip(batch.sequence_indices, task.represent(outputs, batch), strict=True):
            vectors[sequence] = vector
    stacked = torch.stack([vectors[sequence] for sequence in features.get_sequence_indices(rows)])
    total, count = task.coupled_loss(stacked, features.count_sequences(rows), features, rows)
    (total / count).backward()
    assert loss == pytest.approx((total / count).item(), abs=1e-6)
    model = made.train_state.model
    assert_close(ours, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize(("micro", "forwards"), [(8, 1), (4, 4), (3, 6)])
def test_one_micro_batch_is_computed_once(job: Callable[..., TrainingRun], micro: int, forwards: int) -> None:
    made = job("pairs")
    calls: list[int] = []
    made.train_state.model.embeddings.register_forward_hook(lambda *_: calls.append(1))
    gradients(made, 8, micro)
    assert len(calls) == forwards


def test_two_processes_give_the_gradients_of_one(tmp_path: Path, backbones: Callable[..., Path]) -> None:
    """With dropout, one micro-batch a process and several, some of them empty."""
    settings = {"model.dropout": 0.1, "train.dropout_masks": "stateless"}
    config = config_of(tmp_path, backbones("bert", **LIVELY), "triplets", **settings)
    path, out = tmp_path / "config.yaml", tmp_path / "out.pt"
    path.write_text(to_yaml(config), encoding="utf-8")
    words = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, str(path), str(out)]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(out, weights_only=True)
    alone = set_up_job(dataclasses.replace(config, name="alone"))
    assert len(found) == len(GROUPINGS)
    for (size, micro), (loss, theirs) in zip(GROUPINGS, found, strict=True):
        expected, ours = gradients(alone, size, micro)
        assert loss == pytest.approx(expected, abs=1e-5)
        assert_close(theirs, ours)


# --- what is no negative --------------------------------------------------------------------------------------------


def features_of(rows: list[dict[str, str]]) -> tuple[Embedding, Any]:
    """The task and the features of pairs or triplets."""
    columns = tuple(rows[0])
    task = Embedding(problem="pairs", text_columns=columns, label_column=None)
    table = Table(columns={name: [row[name] for row in rows] for name in columns},
                  files=["file"] * len(rows), lines=list(range(1, len(rows) + 1)))  # fmt: skip
    arrays = task.tokenize(table, tiny.make_tokenizer(), 48)
    return task, make_features(arrays, task.labels(table, arrays))


def loss_by_hand(vectors: dict[str, np.ndarray], rows: list[dict[str, str]], scale: float = 20.0) -> float:
    """Cross entropy over the texts that are not known to be alike, candidate by candidate."""
    total = 0.0
    candidates = [row[name] for row in rows for name in row if name != "anchor"]
    for row in rows:
        own = {row["anchor"]} | {other["positive"] for other in rows if other["anchor"] == row["anchor"]}
        scores = [scale * float(vectors[row["anchor"]] @ vectors[text]) for text in candidates if text not in own]
        right = scale * float(vectors[row["anchor"]] @ vectors[row["positive"]])
        total += np.log(np.exp(np.array([right, *scores]) - right).sum())
    return total


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_texts_known_to_be_alike_are_no_negatives_whatever_their_order(seed: int) -> None:
    rows = [
        {"anchor": "the cat", "positive": "a dog", "negative": "bread"},
        {"anchor": "the horse", "positive": "a dog", "negative": "apple"},  # the same positive
        {"anchor": "the cat", "positive": "one bird", "negative": "saw"},  # the same anchor
        {"anchor": "a dog", "positive": "the cat", "negative": "nail"},  # the other way round
        {"anchor": "old fish", "positive": "new fish", "negative": "one bird"},
        {"anchor": "red soup", "positive": "big rice", "negative": "big rice"},  # its own positive
    ]
    generator = np.random.default_rng(seed)
    texts = sorted({text for row in rows for text in row.values()})
    drawn = generator.normal(size=(len(texts), 8)).astype(np.float32)
    vectors = dict(zip(texts, drawn / np.linalg.norm(drawn, axis=1, keepdims=True), strict=True))
    expected = loss_by_hand(vectors, rows)
    assert expected != pytest.approx(loss_by_hand(vectors, [*rows, {**rows[0], "negative": "nail"}]), abs=1e-3)
    for _ in range(4):
        shuffled = [rows[place] for place in generator.permutation(len(rows))]
        task, features = features_of(shuffled)
        stacked = torch.from_numpy(np.stack([vectors[text] for row in shuffled for text in row.values()]))
        places = np.arange(len(rows))
        loss, count = task.coupled_loss(stacked, features.counts(places), features, places)
        assert count == len(rows)
        assert float(loss) == pytest.approx(expected, abs=1e-4)


def test_a_text_alike_is_neither_pushed_nor_pulled() -> None:
    rows = [{"anchor": "the cat", "positive": "a dog"}, {"anchor": "the horse", "positive": "a dog"}]
    task, features = features_of(rows)
    vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, _ = task.coupled_loss(vectors, np.array([2, 2]), features, np.arange(2))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(vectors.grad, torch.zeros(4, 8))
    found = known_alike(np.array([0, 5]), np.array([1, 1]), np.array([1, 7, 5, 1]))
    assert sorted(zip(*(part.tolist() for part in found), strict=True)) == [(0, 0), (0, 3), (1, 0), (1, 2), (1, 3)]


# --- metrics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ranks_are_those_of_a_search_by_hand(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_finetune.tasks.embed.ANCHORS_AT_ONCE", 7)
    generator = np.random.default_rng(seed)
    words = [f"{one} {other}" for one in tiny.FILLER[:6] for other in WORDS[:4]]  # few: many are alike
    rows = [dict(zip(COLUMNS["triplets"], generator.choice(words, 3), strict=True)) for _ in range(25)]
    _, features = features_of(rows)
    vectors = {word: generator.normal(size=6) for word in words}
    kept = [np.stack([vectors[text] for text in row.values()]) for row in rows]
    chosen = np.array([20, 3, 4, 11, 0, 7, 8, 9, 22, 24])
    expected = []
    for number in chosen:
        row = rows[number]
        own = {row["anchor"]} | {rows[other]["positive"] for other in chosen if rows[other]["anchor"] == row["anchor"]}
        others = {rows[other][name] for other in chosen for name in ("positive", "negative")} - own

        def nearness(text: str, row: dict[str, str] = row) -> float:
            one, other = vectors[row["anchor"]], vectors[text]
            return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

        expected.append(1 + sum(nearness(text) >= nearness(row["positive"]) for text in others))
    found = ranks([kept[number] for number in chosen], features, chosen)
    assert found.tolist() == expected
    assert max(expected) > 3


def test_vectors_that_are_all_the_same_find_nothing() -> None:
    task, features = features_of(make_rows("pairs", 12))
    kept = [np.ones((2, 4), dtype=np.float32)] * 12
    values = task.metrics("recall_at_3", kept, features, None, np.arange(12))  # type: ignore[arg-type]
    assert values == {"recall_at_1": 0.0, "recall_at_10": 0.0, "recall_at_3": 0.0, "mrr": pytest.approx(1 / 12)}


# --- finished runs --------------------------------------------------------------------------------------------------

Runs = Callable[..., tuple[RunConfig, RunResult]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Iterator[Runs]:
    """`runs("pairs", "bert", **settings)`: config and result of a finished run, made once."""
    made: dict[str, tuple[RunConfig, RunResult]] = {}
    with pytest.MonkeyPatch.context() as patch:

        def run(kind: str, family: str = "bert", **settings: Any) -> tuple[RunConfig, RunResult]:
            key = f"{kind} {family} {settings}"
            if key not in made:
                folder = tmp_path_factory.mktemp("embedded")
                patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))
                config = config_of(folder, backbones(family), kind, **settings)
                made[key] = config, finetune(config, task_name="embedding")
            return made[key]

        yield run


LONG = " ".join(f"{one} {other}" for one in tiny.FILLER for other in WORDS[:3])
TEXTS = ["the old cat", "bread", "a big red hammer here", LONG, "quite unheard of"]
EXPORTS = [("pairs", "bert", "mean", True), ("triplets", "mpnet", "cls", True), ("scored", "modernbert", "mean", False)]


@pytest.mark.parametrize(("kind", "family", "pooling", "normalize"), EXPORTS)
def test_sentence_transformers_loads_the_folder_and_gives_the_same_vectors(
    runs: Runs, tmp_path: Path, kind: str, family: str, pooling: str, normalize: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    _, result = runs(kind, family, **{"task.pooling": pooling, "task.normalize": normalize})
    folder = result.model_dir
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == MODEL_FILES | ({"2_Normalize/config.json"} if normalize else set())

    model = SentenceTransformer(str(folder), device="cpu")
    predictor = Predictor.from_pretrained(str(folder))
    ours = np.array([row["embedding"] for row in predictor.predict([{predictor.task.text_columns[0]: text}
                                                                    for text in TEXTS])])  # fmt: skip
    np.testing.assert_allclose(ours, model.encode(TEXTS), atol=1e-5)
    assert np.allclose(np.linalg.norm(ours, axis=1), 1.0, atol=1e-5) == normalize
    assert len(np.unique(ours.round(4), axis=0)) == len(TEXTS)
    assert model.max_seq_length == 48
    assert model.preprocess([LONG])["input_ids"].shape == (1, 48)
    assert model.similarity_fn_name == "cosine"

    model.save(str(tmp_path / "again"), create_model_card=False)
    for name in found - MODEL_FILES | EXTRAS:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_plain_transformers_and_its_pipeline_give_what_is_pooled(runs: Runs, pooling: str) -> None:
    _, result = runs("pairs", **{"task.pooling": pooling})
    predictor = Predictor.from_pretrained(str(result.run_dir))
    ours = np.array([row["embedding"] for row in predictor.predict([{"anchor": text} for text in TEXTS])])
    pipeline = transformers.pipeline("feature-extraction", model=str(result.model_dir), device="cpu")
    model = transformers.AutoModel.from_pretrained(result.model_dir).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.model_dir)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**inputs).last_hidden_state.numpy()
    for number, text in enumerate(TEXTS):
        of_pipeline = np.array(pipeline(text, tokenize_kwargs={"truncation": True}))[0]
        length = int(inputs["attention_mask"][number].sum())
        assert of_pipeline.shape == (length, 32)
        for tokens in (of_pipeline, hidden[number, :length]):
            vector = tokens.mean(0) if pooling == "mean" else tokens[0]
            np.testing.assert_allclose(ours[number], vector / np.linalg.norm(vector), atol=1e-5)


def test_metrics_are_those_of_sentence_transformers(runs: Runs) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import evaluation

    config, result = runs("scored", "bert", **{"freeze.embeddings": True})
    rows = [json.loads(line) for line in Path(config.data.test[0]).read_text().splitlines()]
    values = [[row[name] for row in rows] for name in ("one", "two", "score")]
    theirs = evaluation.EmbeddingSimilarityEvaluator(*values)(SentenceTransformer(str(result.model_dir), device="cpu"))
    ours = evaluate_file(Predictor.from_pretrained(str(result.run_dir)), config.data.test[0])
    for name in ("spearman", "pearson"):
        assert ours[name] == pytest.approx(theirs[f"{name}_cosine"], abs=1e-5)
    assert ours == pytest.approx(result.results["test"], abs=1e-6)

    config, result = runs("pairs", **{"task.pooling": "mean"})
    rows = [json.loads(line) for line in Path(config.data.test[0]).read_text().splitlines()]
    queries, corpus = ({str(n): row[name] for n, row in enumerate(rows)} for name in ("anchor", "positive"))
    evaluator = evaluation.InformationRetrievalEvaluator(
        queries, corpus, {number: {number} for number in queries}, mrr_at_k=[len(rows)], accuracy_at_k=[1, 5, 10]
    )
    theirs = evaluator(SentenceTransformer(str(result.model_dir), device="cpu"))
    ours = evaluate_file(Predictor.from_pretrained(str(result.run_dir)), config.data.test[0], metric="recall_at_5")
    for number in (1, 5, 10):
        assert ours[f"recall_at_{number}"] == pytest.approx(theirs[f"cosine_accuracy@{number}"])
    assert ours["mrr"] == pytest.approx(theirs[f"cosine_mrr@{len(rows)}"])
    assert 0 < ours["recall_at_1"] < ours["recall_at_10"]
    assert result.results["metric"] == "recall_at_1"


@pytest.mark.parametrize("settings", [{"model.dropout": 0.1}, {"task.pooling": "cls"}])
def test_a_cached_prefix_changes_no_loss(tmp_path: Path, backbones: Callable[..., Path], settings: Any) -> None:
    settings = settings | {"freeze.embeddings": True, "freeze.layers": 1, "cache.precision": "fp32"}
    histories = []
    for cache in ("off", "on"):
        config = config_of(tmp_path, backbones("bert"), "pairs", **settings, **{"cache.activations": cache, "name": cache})
        lines = (finetune(config, task_name="embedding").run_dir / "metrics.jsonl").read_text().splitlines()
        histories.append([value for line in lines for key, value in json.loads(line).items() if key.endswith("/loss")])
    assert len(histories[0]) >= 10
    np.testing.assert_allclose(*histories, atol=1e-5)


def test_what_a_run_says_and_leaves(runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = config_of(tmp_path, Path(runs("pairs")[0].model.backbone), "triplets", **{"freeze.embeddings": True})
    result = finetune(made, task_name="embedding")
    said = capsys.readouterr().out
    assert "triplets of anchor and positive; every other text of a batch is a negative; mean pooling, length 1" in said
    assert "120 different ones; 40 negatives of their own row" in said
    assert re.search(r"unused +1,056  frozen", said)  # BertModel's pooler
    card = (result.model_dir / "README.md").read_text(encoding="utf-8")
    assert "library_name: sentence-transformers" in card
    assert "pipeline_tag: sentence-similarity" in card
    assert 'SentenceTransformer("model")' in card
    assert "mean of the last hidden states, scaled to length 1" in card

    path, _ = checkpoint.find_newest_intact(result.run_dir / "checkpoints")
    assert path is not None
    whole = materialize(path, tmp_path / "whole")
    assert (whole / "1_Pooling" / "config.json").read_bytes() == (
        result.model_dir / "1_Pooling/config.json"
    ).read_bytes()
    assert "library_name: sentence-transformers" in (whole / "README.md").read_text(encoding="utf-8")


# --- predictions ----------------------------------------------------------------------------------------------------


def test_one_text_is_a_vector_and_two_are_compared(runs: Runs, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(str(runs("pairs", **{"task.pooling": "mean"})[1].run_dir))
    first, second = (np.array(predict_texts(predictor, [text])["embedding"]) for text in ("the cat", "a saw"))
    assert first.shape == (32,)
    assert np.array_equal(first, first.astype(np.float32).astype(float).round(12)) is False  # not rounded away
    assert all(float(np.float32(value)) == pytest.approx(value, rel=1e-7) for value in first)
    assert predict_texts(predictor, ["the cat", "a saw"]) == {"similarity": pytest.approx(first @ second, abs=1e-5)}
    with pytest.raises(InputError, match="--text: takes one text, or two to compare"):
        predict_texts(predictor, ["a", "b", "c"])

    rows = [{"anchor": "the cat", "positive": None}, {"anchor": "the cat", "positive": "a saw"}, {"anchor": "a saw"}]
    answers = predict_file(predictor, str(tiny.write_jsonl(tmp_path / "mixed.jsonl", rows)), None)
    assert [list(answer) for answer in answers] == [["embedding"], ["similarity"], ["embedding"]]
    np.testing.assert_allclose(answers[2]["embedding"], second, atol=1e-6)

    other = Predictor.from_pretrained(str(predictor_folder := runs("pairs", **{"task.pooling": "mean"})[1].run_dir),
                                      text_columns=("text",))  # fmt: skip
    path = tiny.write_jsonl(tmp_path / "texts.jsonl", [{"text": "the cat"}, {"text": "a saw"}])
    np.testing.assert_allclose([row["embedding"] for row in predict_file(other, str(path), None)], [first, second],
                               atol=1e-6)  # fmt: skip
    assert predictor_folder.is_dir()
    with pytest.raises(InputError, match=r"data.text_columns \(\['text'\]\): measuring takes two columns"):
        evaluate_file(other, str(path))
    with pytest.raises(InputError, match=r"--text: takes one text$"):
        predict_texts(other, ["a", "b"])


def test_an_anchor_is_compared_with_all_others(runs: Runs) -> None:
    predictor = Predictor.from_pretrained(
        str(runs("triplets", "mpnet", **{"task.pooling": "cls", "task.normalize": True})[1].run_dir)
    )
    texts = ["the cat", "a dog", "old bread", "big soup"]
    row = {"anchor": texts[0], "positive": texts[1], "negative": texts[2:]}
    (answer,) = predictor.predict([row])
    vectors = np.array([predict_texts(predictor, [text])["embedding"] for text in texts])
    np.testing.assert_allclose(answer["similarities"], vectors[1:] @ vectors[0], atol=1e-5)
    with pytest.raises(InputError, match="--text: takes one text, or up to 3 to compare the first with"):
        predict_texts(predictor, texts)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change", "settings", "message"),
    [
        ("pairs", {"positive": None}, {}, r"train.jsonl:2: positive is null"),
        ("pairs", {"positive": " "}, {}, r"train.jsonl:2: positive is empty"),
        ("pairs", {"positive": 7}, {}, r"train.jsonl:2: positive is a int, not a string"),
        ("pairs", {"positive": ["a"]}, {}, r"train.jsonl:2: positive is a list, not a string"),
        ("pairs", {"anchor": None}, {}, r"train.jsonl:2: anchor is null"),
        ("triplets", {"negative": ["a", ""]}, {}, r"train.jsonl:2: negative is empty"),
        ("scored", {"score": "high"}, {}, r"train.jsonl:2: score \('high'\) is no number, as a score is"),
        ("scored", {"score": None}, {}, r"train.jsonl:2: score \(null\) is no number, as a score is"),
        ("pairs", {}, {"data.text_columns": ["anchor"]}, r"data.text_columns \(\['anchor'\]\): takes two columns that"),
        ("scored", {}, {"data.text_columns": ["one", "two", "three"]}, r"takes two columns where there are scores \(data"),
        ("scored", {}, {"task.similarity_scale": 15.0}, r"task.similarity_scale \(15.0\): has no meaning where there are scores"),
        ("pairs", {}, {"data.label_column": "score"}, r"train.jsonl:1: no column 'score' \(columns: anchor, positive\)"),
        ("pairs", {}, {"task.problem": "regression"}, r"task.problem \(regression\): embedding has no such setting; it"),
        ("pairs", {}, {"evaluation.metric": "spearman"}, r"evaluation.metric \(spearman\): embedding has loss, recall_at_1"),
        ("pairs", {}, {"evaluation.metric": "recall_at_0"}, r"evaluation.metric \(recall_at_0\): embedding has loss"),
        ("scored", {}, {"evaluation.metric": "recall_at_1"}, r"evaluation.metric \(recall_at_1\): embedding has loss, spe"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_is_said(
    tmp_path: Path, backbones: Callable[..., Path], kind: str, change: dict[str, Any], settings: Any, message: str
) -> None:
    rows = [row | {"three": "x"} if kind == "scored" else row for row in make_rows(kind, 6)]
    rows[1] |= change
    settings = {"data.train": [str(tiny.write_jsonl(tmp_path / "train.jsonl", rows))]} | settings
    with pytest.raises(InputError, match=message):
        set_up_job(config_of(tmp_path, backbones("bert"), kind, **settings))


def test_scores_that_are_all_the_same_and_a_decoder_are_refused(tmp_path: Path, backbones: Callable[..., Path]) -> None:
    rows = [{**row, "score": 2} for row in make_rows("scored", 6)]
    settings = {"data.train": [str(tiny.write_jsonl(tmp_path / "train.jsonl", rows))]}
    with pytest.raises(InputError, match=r"data.label_column \(score\): training has one score only, 2"):
        set_up_job(config_of(tmp_path, backbones("bert"), "scored", **settings))
    with pytest.raises(InputError, match=r"model.backbone \(BartModel\): has a decoder beside its encoder"):
        set_up_job(config_of(tmp_path, backbones("bart"), "pairs"))


def test_anchors_that_are_equal_stay_in_one_split(tmp_path: Path, backbones: Callable[..., Path]) -> None:
    rows = [{**row, "anchor": WORDS[number % 10]} for number, row in enumerate(make_rows("pairs", 60))]
    settings = {"data.train": [str(tiny.write_jsonl(tmp_path / "train.jsonl", rows))], "data.validation": [],
                "data.test": [], "data.validation_fraction": 0.3, "data.test_fraction": 0.2}  # fmt: skip
    config = config_of(tmp_path, backbones("bert"), "pairs", **settings)
    assert form_of("embedding", config).inputs == ("anchor",)
    tables = set_up_job(config).splits.tables()
    anchors = [set(table.columns["anchor"]) for table in tables.values()]
    assert len(anchors) == 3
    assert sum(len(part) for part in anchors) == len(set().union(*anchors)) == 10


def main(config_path: str, out: str) -> None:
    """Writes loss and gradients of all GROUPINGS, as the main process has them."""
    from hf_finetune.recipe import exit_process

    torch.set_num_threads(1)
    config = load_config({}, ["--config", config_path])
    assert config is not None
    with open_run(config) as run:
        job = set_up(config, "embedding", run, Clock())
        found = [gradients(job, size, micro) for size, micro in GROUPINGS]
        if run.process == 0:
            torch.save(found, out)
    sys.exit(exit_process(0))


if __name__ == "__main__":
    main(*sys.argv[1:])
