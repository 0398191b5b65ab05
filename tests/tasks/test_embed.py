"""Sentence embeddings: each part alone; losses and metrics against sentence-transformers, gradients of a batch over micro-batches
and processes, exported folders, predictions.

    torchrun --nproc_per_node 2 test_embed.py CONFIG.yaml OUT.pt      writes the gradients of GROUPINGS from two processes
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny
from support.script_server import ScriptServer
from support.sentence_pairs import COLUMNS, WORDS, encode_pairs, make_rows

from hf_finetune.config.loading import load_config, to_yaml
from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import load_task
from hf_finetune.data.batches import MicroBatchLimit, share_batch
from hf_finetune.data.encoder import make_encoding_key
from hf_finetune.data.encoding import encode
from hf_finetune.data.features import Batch, Padding, collate
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table
from hf_finetune.export.materialize import materialize
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_rows import iterate_predictions
from hf_finetune.export.predictor_calls import evaluate_file, predict_texts
from hf_finetune.run import checkpoint
from hf_finetune.run.folder import open_run
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun, evaluate_split
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.embed import Embedding
from hf_finetune.tasks.embed_columns import EmbeddingColumns
from hf_finetune.tasks.embed_encoding import EmbeddingEncoding
from hf_finetune.tasks.embed_objectives import Pooling, RankingObjective, SimilarityObjective
from hf_finetune.tasks.embed_scoring import EmbeddingScoring
from hf_finetune.train import RunResult, finetune
from hf_finetune.training.gradient_cache import UpdatePasses
from hf_finetune.training.loop import accumulate_gradients
from hf_finetune.training.train_state import UpdateBatch, make_training_batch, run_training_forward

GROUPINGS = [(7, None), (7, 2), (7, 1), (1, None)]  # features of a batch, of a micro-batch
EXTRAS = {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json"}
MODEL_FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} | EXTRAS
LIVELY = {"initializer_range": 0.2}  # ten times BERT's own, so that texts and their gradients differ
MEAN = Pooling(mode="mean", normalize=True)
RANKING = RankingObjective(pooling=MEAN, similarity_scale=20.0)


def make_config(folder: Path, backbone: Path, kind: str, **settings: Any) -> RunConfig:
    """Returns a config of embeddings, and makes the data unless the settings name some."""
    columns: dict[str, Any] = {"data.text_columns": COLUMNS[kind], "data.label_column": None}
    if kind == "scored":
        columns["data.label_column"] = "score"
    for seed, (split, count) in enumerate((("train", 40), ("validation", 24), ("test", 24))):
        path = folder / f"{split}-{kind}.jsonl"
        if f"data.{split}" not in settings and not path.exists():
            tiny.write_jsonl(path, make_rows(kind, count, seed))
        settings.setdefault(f"data.{split}", [str(path)])
    defaults = {
        "task.kind": "embed",
        "output_dir": str(folder / "outputs"),
        "model.backbone": str(backbone),
        "data.max_length": 48,
        "train.epochs": 2,
        "train.batch_size": 8,
        "train.learning_rate": 5e-3,
        "train.precision": "fp32",
        "tracking.trackers": [],
        "tracking.log_every": 1,
        "cache.activations": "off",
    }
    return load_config(defaults | columns | settings, [])


def set_up_run(config: RunConfig) -> TrainingRun:
    """Returns a run that is set up; nothing is trained."""
    with open_run(config) as runtime:
        return set_up(config, runtime, Clock())


SetUp = Callable[..., TrainingRun]


@pytest.fixture
def set_up_kind(tmp_path: Path, backbones: Callable[..., Path]) -> SetUp:
    """`set_up_kind("pairs", **settings)`."""
    return lambda kind, **settings: set_up_run(make_config(tmp_path, backbones("bert", **LIVELY), kind, **settings))


def compute_gradients(
    run: TrainingRun, size: int, micro: int | None, update: int = 3
) -> tuple[float, dict[str, torch.Tensor]]:
    """Returns loss and gradients of the first `size` training features as one batch, in micro-batches of `micro`."""
    runtime, state, features, indices = run.runtime, run.train_state, run.features["train"], np.arange(size)
    limit = MicroBatchLimit(num_examples=micro or -(-size // runtime.num_processes))
    micro_batches = share_batch(indices, features.lengths, limit, runtime.process, runtime.num_processes)
    torch.manual_seed(5)
    torch.rand(3)  # the generator is not at the start of its seed
    state.optimizer.zero_grad()
    state.model.train()
    batch = UpdateBatch(number=update, pass_number=1, feature_indices=indices, micro_batches=micro_batches)
    loss, _ = accumulate_gradients(UpdatePasses(state, features, run.task, runtime, batch))
    return float(loss), copy_gradients(state.model)


def copy_gradients(model: Any) -> dict[str, torch.Tensor]:
    """Returns the gradients of a model's parameters that have one."""
    return {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Asserts that gradients are equal apart from the order of sums: within 1e-5 of the largest."""
    assert ours.keys() == theirs.keys()
    largest = max(float(tensor.abs().max()) for tensor in theirs.values())
    assert largest > 0.01
    for name, tensor in theirs.items():
        assert float((ours[name] - tensor).abs().max()) <= 1e-5 * largest, name


def load_reference(folder: Path, pooling: str = "mean", *, normalize: bool = True) -> Any:
    """Returns the model that sentence-transformers makes of a backbone's folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(folder), max_seq_length=48)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling)]
    if normalize:
        modules.append(Normalize())
    return SentenceTransformer(modules=modules, device="cpu")


# --- parts ----------------------------------------------------------------------------------------------------------


def make_table(rows: list[dict[str, Any]], file: str = "rows.jsonl") -> Table:
    """Returns a table of rows from lines 1, 2, ... of a file."""
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    return Table(columns=columns, files=[file] * len(rows), lines=list(range(1, len(rows) + 1)))


def test_only_the_anchor_is_needed_to_predict() -> None:
    pairs = EmbeddingColumns(texts=("anchor", "positive"), label=None)
    assert (pairs.spec.inputs, pairs.spec.labels, pairs.spec.together) == (("anchor",), ("positive",), ("anchor",))
    assert EmbeddingColumns(texts=("one", "two"), label="score").spec.labels == ("two", "score")
    assert pairs.make_row(["a"]) == {"anchor": "a"}
    assert pairs.make_row(["a", "b"]) == {"anchor": "a", "positive": "b"}


def test_a_feature_has_the_anchor_the_positive_and_any_number_of_negatives() -> None:
    rows = [
        {"anchor": "the cat", "positive": "a dog", "negative": None},
        {"anchor": "the cat", "positive": "bread", "negative": ["saw", "a dog"]},
        {"anchor": "nail", "positive": None, "negative": "saw"},
        {"anchor": "fish", "positive": "a  dog", "negative": "saw"},  # the same tokens as "a dog"
    ]
    encoding = EmbeddingEncoding(problem="triplets", texts=tuple(rows[0]), label=None, pooling=MEAN)
    arrays = encoding.tokenize(make_table(rows), tiny.make_tokenizer(), 48)
    assert arrays["rows"].tolist() == [0, 2, 6, 7, 10]
    assert arrays["texts"].tolist() == [0, 1, 0, 3, 4, 1, 6, 7, 1, 4]
    with pytest.raises(InputError, match=r"rows.jsonl:3: positive is null"):
        encoding.labels(make_table(rows), arrays)
    complete = [rows[0], rows[1], rows[3]]
    arrays = encoding.tokenize(make_table(complete), tiny.make_tokenizer(), 48)
    assert encoding.labels(make_table(complete), arrays).tolist() == [0, 0, 0]


def test_negatives_that_are_written_as_text_are_lists() -> None:
    """As pandas writes them into a csv file, which has no null. The tokens are those of the lists."""
    lists: list[Any] = [["saw", "a dog"], ["bread"], None, []]
    rows = [{"anchor": "the cat", "positive": "a dog", "negative": cell} for cell in lists]
    written = [row | {"negative": "" if row["negative"] is None else str(row["negative"])} for row in rows]
    tables = [make_table(written, "rows.csv"), make_table(rows)]
    tasks = [learn_triplets(table) for table in tables]
    ours, theirs = (
        task.encoding.tokenize(table, tiny.make_tokenizer(), 48) for task, table in zip(tasks, tables, strict=True)
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    note = ("negatives", "lists that are written as text are read as lists: negative")
    assert [task.encoding.describe_problem(table) for task, table in zip(tasks, tables, strict=True)] == [[note], []]
    mixed = make_table([*written, rows[0] | {"negative": "bread"}], "rows.csv")
    with pytest.raises(InputError, match=r"rows.csv:1: negative is a list .*, and rows.csv:5 has a text"):
        learn_triplets(mixed)


def make_triplets(*negatives: Any) -> list[dict[str, Any]]:
    """Returns rows with these negatives."""
    return [{"anchor": "the cat", "positive": "a dog", "negative": negative} for negative in negatives]


def learn_triplets(table: Table) -> Embedding:
    """Returns the task that a training table of anchor, positive and negative makes."""
    columns = {"data.text_columns": list(table.columns), "data.label_column": None}
    settings = {"task.kind": "embed", "model.backbone": "none", "data.train": ["none"], **columns}
    return Embedding.from_table(RunConfig.from_settings(settings), table)


@pytest.mark.parametrize(
    ("training", "other", "message"),
    [
        ("saw", "['bread']", "is a list that is written as text, and those of training are no lists"),
        ("['bread']", "saw", "is a text, and those of training are lists that are written as text"),
    ],
)
def test_negatives_are_written_as_those_of_training(training: str, other: str, message: str) -> None:
    """In each place where rows are encoded, by a task of the training rows and by one of its state."""
    learned = learn_triplets(make_table(make_triplets("", training)))
    settings = {"task.kind": "embed", "model.backbone": "none", "data.train": ["none"], "data.label_column": None}
    config = RunConfig.from_settings(settings | {"data.text_columns": ["anchor", "positive", "negative"]})
    loaded = Embedding.from_state(config, json.loads(json.dumps(learned.state_dict())))
    table = make_table(make_triplets(["rice"], None, other))
    for encoding in (learned.encoding, loaded.encoding):
        encoding.check_rows(make_table(make_triplets(["rice"], None, training)))
        calls = (
            lambda encoding: encoding.check_rows(table),
            lambda encoding: encoding.tokenize(table, tiny.make_tokenizer(), 48),
        )
        for call in calls:
            with pytest.raises(InputError, match=rf"rows.jsonl:3: negative {message}"):
                call(encoding)


def test_a_column_of_negatives_that_is_not_named_is_a_warning() -> None:
    table = make_table(make_triplets("saw", "bread"))
    columns = {"data.text_columns": ["anchor", "positive"], "data.label_column": None}
    settings = {"task.kind": "embed", "model.backbone": "none", "data.train": ["none"], **columns}
    config = RunConfig.from_settings(settings)
    assert "negative" in Embedding.make_columns(config).spec.columns
    (warning,) = Embedding.from_table(config, table).encoding.find_warnings({"train": table})
    assert warning.endswith("name it after the others: --data.text_columns anchor positive negative")
    assert learn_triplets(table).encoding.find_warnings({"train": table}) == []


def test_negatives_that_are_joined_in_one_text_are_a_warning() -> None:
    table = make_table(make_triplets("rice|bread", "rice", "saw|nail", ""), "rows.csv")
    assert learn_triplets(table).encoding.find_row_warnings(table) == []  # three texts are few
    table = make_table(make_triplets("rice|bread", "rice", "saw|nail", "", "bread|saw"), "rows.csv")
    (warning,) = learn_triplets(table).encoding.find_row_warnings(table)
    assert warning.startswith("3 of 4 negatives hold '|' between texts, such as rows.csv:1 ('rice|bread'): each is")
    lists = make_table(make_triplets(*[["rice", "bread"]] * 3))
    assert learn_triplets(lists).encoding.find_row_warnings(lists) == []


@pytest.mark.parametrize("column", ["anchor", "positive"])
def test_a_text_of_a_pair_that_is_a_list_in_a_csv_file_is_an_error(column: str) -> None:
    rows = [row | {column: "['rice', 'bread']"} for row in make_triplets("saw")]
    encoding = learn_triplets(make_table(rows)).encoding
    encoding.check_rows(make_table(rows, "rows.jsonl"))  # a string of a jsonl file is a text
    with pytest.raises(
        InputError, match=rf"rows.csv:1: {column} is a list that is written as text; make a row of each"
    ):
        encoding.check_rows(make_table(rows, "rows.csv"))


def test_a_state_without_the_form_of_the_negatives_takes_either_but_not_both() -> None:
    """Those of earlier versions, and of training without texts in the column."""
    task = learn_triplets(make_table(make_triplets(["rice"], None)))
    assert task.state_dict() == {"problem": "triplets", "written_lists": {}}
    for negative in ("saw", "['bread']"):
        task.encoding.check_rows(make_table(make_triplets(negative)))
    with pytest.raises(InputError, match=r"rows.jsonl:2: negative is a list .*, and rows.jsonl:1 has a text"):
        task.encoding.check_rows(make_table(make_triplets("saw", "['bread']")))


def test_the_key_of_encoded_text_has_the_form_of_the_negatives() -> None:
    """Without it, one that an earlier version made, which knew no lists as text, would be read."""
    texts, lists = (learn_triplets(make_table(make_triplets(cell))).encoding for cell in ("saw", "['bread']"))
    table, tokenizer = make_table(make_triplets("['bread']")), tiny.make_tokenizer()
    keys = [make_encoding_key(encoding, table, tokenizer, 48) for encoding in (texts, lists)]
    pairs = EmbeddingEncoding(problem="pairs", texts=("anchor", "positive"), label=None, pooling=MEAN)
    assert keys[0] != keys[1]
    assert {} not in (texts.encoding_settings(), lists.encoding_settings())
    assert pairs.encoding_settings() == {}


@pytest.mark.parametrize("blank", ["", "  "])
def test_only_files_without_null_have_blank_negatives(blank: str, tmp_path: Path) -> None:
    rows = make_triplets("saw", blank)
    encoding, tokenizer = learn_triplets(make_table(rows)).encoding, tiny.make_tokenizer()
    features = encode(encoding, make_table(rows, "rows.csv.gz"), tokenizer, 48, root=tmp_path)
    assert features.num_sequences == 5
    message = r"rows.jsonl:2: negative is empty"
    with pytest.raises(InputError, match=message):
        encode(encoding, make_table(rows), tokenizer, 48, root=tmp_path)  # the text is encoded already
    with pytest.raises(InputError, match=message):
        encoding.tokenize(make_table(rows), tokenizer, 48)
    with pytest.raises(InputError, match=message):
        encoding.check_rows(make_table(rows))
    with pytest.raises(InputError, match=r"rows.csv:1: negative is empty"):
        encoding.check_rows(make_table(make_triplets([blank, "saw"]), "rows.csv"))


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling_reads_the_tokens_of_a_text_and_not_its_padding(mode: str, normalize: bool) -> None:
    features = encode_pairs([{"anchor": "the old cat", "positive": "bread"}])
    batch = collate(features, np.arange(1), Padding(0))
    hidden = torch.randn(*batch.inputs["input_ids"].shape, 8, generator=torch.Generator().manual_seed(0))
    vectors = Pooling(mode=mode, normalize=normalize).embed(hidden, batch)
    for vector, states, length in zip(vectors, hidden, features.sequence_lengths, strict=True):
        expected = states[:length].mean(0) if mode == "mean" else states[0]
        torch.testing.assert_close(vector, expected / expected.norm() if normalize else expected)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnPooling(Pooling):
    """A pooling of one's own that takes its outputs as docs/extending.md describes them."""

    def embed(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert batch.reading is not None
        assert outputs.shape[:2] == (1, len(batch.reading))
        return outputs[0]


@pytest.mark.parametrize("kind", ["pairs", "scored"])
def test_a_task_of_ones_own_gets_the_outputs_that_it_reads_alone(set_up_kind: SetUp, kind: str) -> None:
    """In training, in validation, and in the test by the entire model."""
    run = set_up_kind(kind, **{"task.pooling": "cls", "task.normalize": False})
    pooling, task = OwnPooling(mode="cls", normalize=False), run.task
    objective, scoring = (dataclasses.replace(part, pooling=pooling) for part in (task.objective, task.scoring))  # type: ignore[type-var]
    own = dataclasses.replace(run, task=dataclasses.replace(task, objective=objective, scoring=scoring))
    assert compute_gradients(own, 6, 3)[0] == compute_gradients(run, 6, 3)[0]
    for uses_cache in (True, False):
        expected = evaluate_split(run, "validation", uses_cache=uses_cache)
        assert evaluate_split(own, "validation", uses_cache=uses_cache) == expected


def test_the_loss_of_scored_pairs_is_the_squared_difference_to_the_scaled_score() -> None:
    objective = SimilarityObjective(pooling=MEAN, score_range=(1.0, 5.0))
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    batch = Batch(
        feature_indices=np.arange(2),
        sequence_indices=np.arange(4),
        sequence_counts=np.array([2, 2]),
        inputs={"attention_mask": torch.ones(4, 1)},
        labels=torch.tensor([5.0, 3.0]),
    )
    loss, count = objective.loss(vectors[:, None], batch)
    assert (loss.item(), count) == (pytest.approx(0.25), 2.0)
    outputs = EmbeddingScoring(pooling=MEAN, has_scores=True).reduce(vectors[:, None], batch)
    assert [array.shape for array in outputs] == [(2, 2), (2, 2)]


def test_metrics_and_predictions_of_vectors() -> None:
    features = encode_pairs(make_rows("pairs", 12))
    scoring = EmbeddingScoring(pooling=MEAN, has_scores=False)
    outputs = [np.ones((2, 4), dtype=np.float32)] * 12
    values = scoring.compute_metrics("recall_at_3", outputs, features, None, np.arange(12))  # type: ignore[arg-type]
    assert values == {"recall_at_1": 0.0, "recall_at_10": 0.0, "recall_at_3": 0.0, "mrr": pytest.approx(1 / 12)}
    vectors = np.array([[1, 0], [0, 1], [2, 0]], dtype=np.float32)
    predictions = scoring.make_predictions([vectors[:1], vectors[:2], vectors], features, None)  # type: ignore[arg-type]
    assert list(predictions) == [{"embedding": [1.0, 0.0]}, {"similarity": 0.0}, {"similarities": [0.0, 1.0]}]


def test_recall_takes_any_rank_unless_there_are_scores() -> None:
    ranked, scored = (EmbeddingScoring(pooling=MEAN, has_scores=has_scores) for has_scores in (False, True))
    assert ranked.check_metric("recall_at_025") == "recall_at_25"
    assert scored.check_metric("spearmanr") == "spearman"
    assert (ranked.default_metric, scored.default_metric) == ("recall_at_1", "spearman")
    with pytest.raises(InputError, match=r"must be one of loss, spearman, pearson"):
        scored.check_metric("recall_at_1")


# --- the loss of a batch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "pooling"), [("pairs", "mean"), ("triplets", "cls"), ("scored", "mean")])
def test_gradients_are_those_of_sentence_transformers(
    set_up_kind: SetUp, backbones: Callable[..., Path], kind: str, pooling: str
) -> None:
    """Of MultipleNegativesRankingLoss and CosineSimilarityLoss, for any size of the micro-batches."""
    from sentence_transformers.sentence_transformer import losses

    scale = {} if kind == "scored" else {"task.similarity_scale": 15.0}
    run = set_up_kind(kind, **{"model.dropout": 0.0, "task.pooling": pooling, **scale})
    reference = load_reference(backbones("bert", **LIVELY), pooling).eval()
    rows = make_rows(kind, 40)[:7]
    texts = [reference.preprocess([row[name] for row in rows]) for name in COLUMNS[kind]]
    scores = torch.tensor([row.get("score", 0.0) / 3 for row in rows])  # scores are from 0 to 3
    ranking = losses.MultipleNegativesRankingLoss(reference, scale=15.0)
    expected = (losses.CosineSimilarityLoss(reference) if kind == "scored" else ranking)(texts, scores)
    expected.backward()
    theirs = copy_gradients(reference[0].model)
    for micro in (7, 3, 1):
        loss, ours = compute_gradients(run, 7, micro)
        assert loss == pytest.approx(expected.item(), abs=1e-5)
        assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_the_size_of_micro_batches_changes_nothing_with_stateless_dropout(set_up_kind: SetUp, kind: str) -> None:
    run = set_up_kind(kind, **{"model.dropout": 0.2, "train.dropout_masks": "stateless"})
    loss, expected = compute_gradients(run, 9, 9)
    for micro in (4, 2, 1):
        other, ours = compute_gradients(run, 9, micro)
        assert other == pytest.approx(loss, abs=1e-5)
        assert_close(ours, expected)
    assert compute_gradients(run, 9, 9, update=4)[0] != pytest.approx(loss, abs=1e-4)  # other masks
    without = set_up_kind(kind, **{"model.dropout": 0.0, "name": "without"})
    assert compute_gradients(without, 9, 9)[0] != pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("micro", [3, 9])
def test_masks_from_a_generator_are_the_same_in_both_forwards(set_up_kind: SetUp, micro: int) -> None:
    """Against one graph over all micro-batches."""
    run = set_up_kind("pairs", **{"model.dropout": 0.2, "train.dropout_masks": "torch"})
    loss, ours = compute_gradients(run, 9, micro)
    state, features, indices, objective = run.train_state, run.features["train"], np.arange(9), run.task.objective
    assert isinstance(objective, RankingObjective)
    micro_batches = share_batch(indices, features.lengths, MicroBatchLimit(num_examples=micro), 0, 1)
    update_batch = UpdateBatch(number=3, pass_number=1, feature_indices=indices, micro_batches=micro_batches)
    torch.manual_seed(5)
    state.optimizer.zero_grad()
    vectors: list[Any] = [None] * features.num_sequences
    for part in micro_batches:
        batch = make_training_batch(state, features, run.task, part, update_batch)
        outputs, batch = run_training_forward(state, features, run.runtime.device, batch, update_batch)
        for sequence, vector in zip(batch.sequence_indices, objective.embed(outputs, batch), strict=True):
            vectors[sequence] = vector
    embeddings = torch.stack([vectors[sequence] for sequence in features.get_sequence_indices(indices)])
    total, count = objective.batch_loss(embeddings, features.count_sequences(indices), features, indices)
    (total / count).backward()
    assert loss == pytest.approx((total / count).item(), abs=1e-6)
    assert_close(ours, copy_gradients(state.model))


@pytest.mark.parametrize(("micro", "forwards"), [(8, 1), (4, 4), (3, 6)])
def test_a_single_micro_batch_is_computed_only_once(set_up_kind: SetUp, micro: int, forwards: int) -> None:
    run = set_up_kind("pairs")
    calls: list[int] = []
    run.train_state.model.embeddings.register_forward_hook(lambda *_: calls.append(1))
    compute_gradients(run, 8, micro)
    assert len(calls) == forwards


@pytest.mark.processes
def test_two_processes_compute_the_gradients_of_one(
    tmp_path: Path, backbones: Callable[..., Path], script_server: ScriptServer
) -> None:
    """With dropout; each process has one micro-batch, or several of which some are empty."""
    settings = {"model.dropout": 0.1, "train.dropout_masks": "stateless"}
    config = make_config(tmp_path, backbones("bert", **LIVELY), "triplets", **settings)
    path, out = tmp_path / "config.yaml", tmp_path / "out.pt"
    path.write_text(to_yaml(config), encoding="utf-8")
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}  # for support
    started = script_server.start(Path(__file__), [str(path), str(out)], tmp_path, environment, ranks=2)
    assert started.wait(100) == 0, started.read("stderr")[-3000:]
    results = torch.load(out, weights_only=True)
    single = set_up_run(dataclasses.replace(config, name="single"))
    assert len(results) == len(GROUPINGS)
    for (size, micro), (loss, theirs) in zip(GROUPINGS, results, strict=True):
        expected, ours = compute_gradients(single, size, micro)
        assert loss == pytest.approx(expected, abs=1e-5)
        assert_close(theirs, ours)


# --- false negatives ------------------------------------------------------------------------------------------------


def compute_loss_by_hand(vectors: dict[str, np.ndarray], rows: list[dict[str, str]], scale: float = 20.0) -> float:
    """Returns the summed cross entropy, candidate by candidate, without false negatives."""
    total = 0.0
    candidates = [row[name] for row in rows for name in row if name != "anchor"]
    for row in rows:
        excluded = {row["anchor"]} | {other["positive"] for other in rows if other["anchor"] == row["anchor"]}
        scores = [scale * float(vectors[row["anchor"]] @ vectors[text]) for text in candidates if text not in excluded]
        of_positive = scale * float(vectors[row["anchor"]] @ vectors[row["positive"]])
        total += np.log(np.exp(np.array([of_positive, *scores]) - of_positive).sum())
    return total


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_false_negatives_are_no_candidates_whatever_the_order_of_rows(seed: int) -> None:
    rows = [
        {"anchor": "the cat", "positive": "a dog", "negative": "bread"},
        {"anchor": "the horse", "positive": "a dog", "negative": "apple"},  # the same positive
        {"anchor": "the cat", "positive": "one bird", "negative": "saw"},  # the same anchor
        {"anchor": "a dog", "positive": "the cat", "negative": "nail"},  # the reverse
        {"anchor": "old fish", "positive": "new fish", "negative": "one bird"},
        {"anchor": "red soup", "positive": "big rice", "negative": "big rice"},  # its own positive
    ]
    generator = np.random.default_rng(seed)
    texts = sorted({text for row in rows for text in row.values()})
    drawn = generator.normal(size=(len(texts), 8)).astype(np.float32)
    vectors = dict(zip(texts, drawn / np.linalg.norm(drawn, axis=1, keepdims=True), strict=True))
    expected = compute_loss_by_hand(vectors, rows)
    longer = [*rows, {**rows[0], "negative": "nail"}]
    assert expected != pytest.approx(compute_loss_by_hand(vectors, longer), abs=1e-3)
    for _ in range(4):
        shuffled = [rows[index] for index in generator.permutation(len(rows))]
        features, indices = encode_pairs(shuffled), np.arange(len(rows))
        embeddings = torch.from_numpy(np.stack([vectors[text] for row in shuffled for text in row.values()]))
        loss, count = RANKING.batch_loss(embeddings, features.count_sequences(indices), features, indices)
        assert count == len(rows)
        assert float(loss) == pytest.approx(expected, abs=1e-4)


def test_a_false_negative_gets_no_gradient() -> None:
    features = encode_pairs([{"anchor": "the cat", "positive": "a dog"}, {"anchor": "the horse", "positive": "a dog"}])
    vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, _ = RANKING.batch_loss(vectors, np.array([2, 2]), features, np.arange(2))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(vectors.grad, torch.zeros(4, 8))


# --- finished runs --------------------------------------------------------------------------------------------------

Runs = Callable[..., tuple[RunConfig, RunResult]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Iterator[Runs]:
    """`runs("pairs", "bert", **settings)`: config and result of a finished run, trained once."""
    made: dict[str, tuple[RunConfig, RunResult]] = {}
    with pytest.MonkeyPatch.context() as patch:

        def run(kind: str, family: str = "bert", **settings: Any) -> tuple[RunConfig, RunResult]:
            key = f"{kind} {family} {settings}"
            if key not in made:
                folder = tmp_path_factory.mktemp("embedded")
                patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))
                config = make_config(folder, backbones(family), kind, **settings)
                made[key] = config, finetune(config)
            return made[key]

        yield run


LONG = " ".join(f"{one} {other}" for one in tiny.FILLER for other in WORDS[:3])
TEXTS = ["the old cat", "bread", "a big red hammer here", LONG, "quite unknown words"]
EXPORTS = [("pairs", "bert", "mean", True), ("triplets", "mpnet", "cls", True), ("scored", "modernbert", "mean", False)]


@pytest.mark.parametrize(("kind", "family", "pooling", "normalize"), EXPORTS)
def test_sentence_transformers_loads_the_folder_and_computes_the_same_vectors(
    runs: Runs, tmp_path: Path, kind: str, family: str, pooling: str, normalize: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    _, result = runs(kind, family, **{"task.pooling": pooling, "task.normalize": normalize})
    folder = result.model_dir
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == MODEL_FILES | ({"2_Normalize/config.json"} if normalize else set())

    model = SentenceTransformer(str(folder), device="cpu")
    predictor = Predictor.from_pretrained(str(folder))
    anchor = predictor.task.columns.spec.inputs[0]
    ours = np.array([row["embedding"] for row in predictor.predict([{anchor: text} for text in TEXTS])])
    np.testing.assert_allclose(ours, model.encode(TEXTS), atol=1e-5)
    assert np.allclose(np.linalg.norm(ours, axis=1), 1.0, atol=1e-5) == normalize
    assert len(np.unique(ours.round(4), axis=0)) == len(TEXTS)
    assert model.max_seq_length == 48
    assert model.preprocess([LONG])["input_ids"].shape == (1, 48)
    assert model.similarity_fn_name == "cosine"

    model.save(str(tmp_path / "again"), create_model_card=False)
    for name in files - MODEL_FILES | EXTRAS:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_plain_transformers_and_its_pipeline_compute_the_states_that_are_pooled(runs: Runs, pooling: str) -> None:
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
def test_cached_activations_change_no_loss(tmp_path: Path, backbones: Callable[..., Path], settings: Any) -> None:
    settings = settings | {"freeze.embeddings": True, "freeze.layers": 1, "cache.precision": "fp32"}
    histories = []
    for cache in ("off", "on"):
        cached = {"cache.activations": cache, "name": cache}
        config = make_config(tmp_path, backbones("bert"), "pairs", **settings, **cached)
        lines = (finetune(config).run_dir / "metrics.jsonl").read_text().splitlines()
        histories.append([value for line in lines for key, value in json.loads(line).items() if key.endswith("/loss")])
    assert len(histories[0]) >= 10
    np.testing.assert_allclose(*histories, atol=1e-5)


def test_a_run_prints_its_pairs_and_its_card_shows_how_to_use_the_model(
    runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = make_config(tmp_path, Path(runs("pairs")[0].model.backbone), "triplets", **{"freeze.embeddings": True})
    result = finetune(config)
    printed = capsys.readouterr().out
    assert (
        "triplets of anchor and positive; all other texts of a batch are negatives; mean pooling, vectors of" in printed
    )
    assert "120 distinct; 40 hard negatives" in printed
    assert re.search(r"unused +1,056  frozen", printed)  # BertModel's pooler
    card = (result.model_dir / "README.md").read_text(encoding="utf-8")
    assert "library_name: sentence-transformers" in card
    assert "pipeline_tag: sentence-similarity" in card
    assert 'SentenceTransformer("model")' in card
    assert "mean of the last hidden states, scaled to length 1" in card

    path, _ = checkpoint.find_newest_intact(result.run_dir / "checkpoints")
    assert path is not None
    made = materialize(path, tmp_path / "made")
    assert (made / "1_Pooling/config.json").read_bytes() == (result.model_dir / "1_Pooling/config.json").read_bytes()
    assert "library_name: sentence-transformers" in (made / "README.md").read_text(encoding="utf-8")


# --- predictions ----------------------------------------------------------------------------------------------------


def test_one_text_gives_its_vector_and_two_texts_their_similarity(runs: Runs, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(str(runs("pairs", **{"task.pooling": "mean"})[1].run_dir))
    first, second = (np.array(predict_texts(predictor, [text])["embedding"]) for text in ("the cat", "a saw"))
    assert first.shape == (32,)
    assert np.array_equal(first, first.astype(np.float32).astype(float).round(12)) is False  # not rounded away
    assert all(float(np.float32(value)) == pytest.approx(value, rel=1e-7) for value in first)
    assert predict_texts(predictor, ["the cat", "a saw"]) == {"similarity": pytest.approx(first @ second, abs=1e-5)}
    with pytest.raises(InputError, match="--text: takes one text, or two to compare"):
        predict_texts(predictor, ["a", "b", "c"])

    rows = [{"anchor": "the cat", "positive": None}, {"anchor": "the cat", "positive": "a saw"}, {"anchor": "a saw"}]
    answers = list(iterate_predictions(predictor, str(tiny.write_jsonl(tmp_path / "mixed.jsonl", rows))))
    assert [list(answer) for answer in answers] == [["embedding"], ["similarity"], ["embedding"]]
    np.testing.assert_allclose(answers[2]["embedding"], second, atol=1e-6)

    run_dir = runs("pairs", **{"task.pooling": "mean"})[1].run_dir
    other = Predictor.from_pretrained(str(run_dir), text_columns=("text",))
    path = tiny.write_jsonl(tmp_path / "texts.jsonl", [{"text": "the cat"}, {"text": "a saw"}])
    vectors = [row["embedding"] for row in iterate_predictions(other, str(path))]
    np.testing.assert_allclose(vectors, [first, second], atol=1e-6)
    with pytest.raises(InputError, match=r"data.text_columns \(\['text'\]\): evaluation needs two columns"):
        evaluate_file(other, str(path))
    with pytest.raises(InputError, match=r"--text: takes one text$"):
        predict_texts(other, ["a", "b"])


def test_an_anchor_is_compared_with_all_other_texts(runs: Runs) -> None:
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
        ("pairs", {"positive": 7}, {}, r"train.jsonl:2: positive is an int, not a string"),
        ("pairs", {"positive": ["a"]}, {}, r"train.jsonl:2: positive is a list, not a string"),
        ("pairs", {"anchor": None}, {}, r"train.jsonl:2: anchor is null"),
        ("triplets", {"negative": ["a", ""]}, {}, r"train.jsonl:2: negative is empty"),
        ("scored", {"score": "high"}, {}, r"train.jsonl:2: score \('high'\) is not a number, as a score must be"),
        ("scored", {"score": None}, {}, r"train.jsonl:2: score \(null\) is not a number, as a score must be"),
        ("pairs", {}, {"data.text_columns": ["anchor"]}, r"data.text_columns \(\['anchor'\]\): must be two columns whose"),
        ("scored", {}, {"data.text_columns": ["one", "two", "three"]}, r"must be two columns if there are scores \(data"),
        ("scored", {}, {"task.similarity_scale": 15.0}, r"task.similarity_scale \(15.0\): has no effect on pairs with scores"),
        ("pairs", {}, {"data.label_column": "score"}, r"train.jsonl:1: no column 'score' \(columns: anchor, positive\)"),
        ("pairs", {}, {"task.problem": "regression"}, r"task.problem \(regression\): embed has no such setting; it"),
        ("pairs", {}, {"evaluation.metric": "spearman"}, r"evaluation.metric \(spearman\): must be one of loss, recall_at_1"),
        ("pairs", {}, {"evaluation.metric": "recall_at_0"}, r"evaluation.metric \(recall_at_0\): must be one of loss"),
        ("scored", {}, {"evaluation.metric": "recall_at_1"}, r"evaluation.metric \(recall_at_1\): must be one of loss, spe"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_an_error(
    tmp_path: Path, backbones: Callable[..., Path], kind: str, change: dict[str, Any], settings: Any, message: str
) -> None:
    rows = [row | {"three": "x"} if kind == "scored" else row for row in make_rows(kind, 6)]
    rows[1] |= change
    settings = {"data.train": [str(tiny.write_jsonl(tmp_path / "train.jsonl", rows))]} | settings
    with pytest.raises(InputError, match=message):
        set_up_run(make_config(tmp_path, backbones("bert"), kind, **settings))


def test_equal_scores_and_an_encoder_decoder_are_errors(tmp_path: Path, backbones: Callable[..., Path]) -> None:
    rows = [{**row, "score": 2} for row in make_rows("scored", 6)]
    settings = {"data.train": [str(tiny.write_jsonl(tmp_path / "train.jsonl", rows))]}
    with pytest.raises(InputError, match=r"data.label_column \(score\): training has only one score, 2"):
        set_up_run(make_config(tmp_path, backbones("bert"), "scored", **settings))
    with pytest.raises(InputError, match=r"model.backbone \(BartModel\): is an encoder-decoder"):
        set_up_run(make_config(tmp_path, backbones("bart"), "pairs"))


def test_rows_with_equal_anchors_stay_in_one_split(tmp_path: Path, backbones: Callable[..., Path]) -> None:
    rows = [{**row, "anchor": WORDS[number % 10]} for number, row in enumerate(make_rows("pairs", 60))]
    settings = {
        "data.train": [str(tiny.write_jsonl(tmp_path / "train.jsonl", rows))],
        "data.validation": [],
        "data.test": [],
        "data.validation_fraction": 0.3,
        "data.test_fraction": 0.2,
    }
    config = make_config(tmp_path, backbones("bert"), "pairs", **settings)
    assert Embedding.make_columns(config).spec.inputs == ("anchor",)
    tables = set_up_run(config).splits.tables()
    anchors = [set(table.columns["anchor"]) for table in tables.values()]
    assert len(anchors) == 3
    assert sum(len(part) for part in anchors) == len(set().union(*anchors)) == 10


def main(config_path: str, out: str) -> None:
    """Writes loss and gradients of all GROUPINGS, from the main process."""
    torch.set_num_threads(1)
    config = load_config({}, ["--config", config_path])
    with open_run(config) as runtime:
        run = set_up(config, runtime, Clock())
        results = [compute_gradients(run, size, micro) for size, micro in GROUPINGS]
        if runtime.process == 0:
            torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])


def test_a_column_of_scores_that_is_not_read_is_a_warning(tmp_path: Path) -> None:
    rows = [{"anchor": "a cat", "positive": "a dog", "label": number % 2} for number in range(6)]
    path = str(tiny.write_jsonl(tmp_path / "pairs.jsonl", rows))
    settings = {"task.kind": "embed", "model.backbone": "none", "data.train": [path]}
    for changes, warned in (
        ({}, True),
        ({"data.label_column": "label", "data.text_columns": ["anchor", "positive"]}, False),
    ):
        config = RunConfig.from_settings(settings | changes)
        task_class = load_task("embed")
        table = read_table((path,), config.data, "data.train", task_class.make_columns(config).spec)
        warnings = task_class.from_table(config, table).encoding.find_warnings({"train": table})
        assert [warning.startswith("the column label (0, 1) is not read") for warning in warnings] == [True] * warned
