"""Question answering: SQuAD's files, each part alone, windows, targets, loss, the best span, the official metrics, a run."""

import collections
import json
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny
from support.tiny import make_questions
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig, TrainConfig
from hf_finetune.data.features import Array, Batch, Features, Padding, collate, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import Table
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_files import predict_file
from hf_finetune.export.prediction_rows import iterate_predictions
from hf_finetune.export.predictor_calls import evaluate_file, predict_texts
from hf_finetune.model import backbone, heads
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.answer import (
    Answering,
    AnsweringColumns,
    AnsweringEncoding,
    AnsweringObjective,
    AnsweringScoring,
    Settings,
)
from hf_finetune.tasks.text import contexts, squad
from hf_finetune.tasks.text.answer_reader import AnswerReader, get_id
from hf_finetune.train import finetune

READER = AnswerReader(question="question", context="context", answers="answers")


def make_config(
    *,
    smoothing: float = 0.0,
    columns: tuple[str, ...] = ("question", "context"),
    label: Any = "answers",
    **settings: Any,
) -> RunConfig:
    """Returns a config that is never run, by default with the columns of SQuAD."""
    return RunConfig(
        model=ModelConfig(backbone="-"),
        data=DataConfig(train=("-",), text_columns=columns, label_column=label),
        task=Settings(kind="answer", **settings),
        train=TrainConfig(label_smoothing=smoothing),
    )


def make_table(rows: list[dict[str, Any]]) -> Table:
    """Returns a table of rows from lines 1, 2, ... of a.jsonl."""
    names = ("id", "question", "context", "answers", "is_impossible")
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Table(columns=columns, files=["a.jsonl"] * len(rows), lines=list(range(1, len(rows) + 1)))


def make_row(context: str, *answers: tuple[str, int], question: str = "this one", **more: Any) -> dict[str, Any]:
    """Returns a row with these answers: pairs of text and position."""
    texts, starts = [text for text, _ in answers], [start for _, start in answers]
    return {"question": question, "context": context, **more, "answers": {"text": texts, "answer_start": starts}}


def make_task(table: Table, **settings: Any) -> Answering:
    """Returns the task that a training table gives."""
    return Answering.from_table(make_config(**settings), table)


def encode(task: Answering, table: Table, max_length: int, tokenizer: Any = None) -> Features:
    """Returns features with labels."""
    arrays = task.encoding.tokenize(table, tokenizer or tiny.make_tokenizer(), max_length)
    return make_features(arrays, task.encoding.labels(table, arrays))


def get_array(features: Features, window: int, name: str) -> Array:
    """Returns an array of one window."""
    array = features.inputs[name] if name in features.inputs else features.extras[name]
    return array[features.offsets[window] : features.offsets[window + 1]]


# --- files ----------------------------------------------------------------------------------------------------------

SQUAD = {"version": "v2.0", "data": [{"title": "T", "paragraphs": [
    {"context": "The cat sat. The dog ran.", "qas": [
        {"id": 7, "question": "Who ran?", "is_impossible": False,
         "answers": [{"text": "The dog", "answer_start": 13}, {"text": "dog", "answer_start": 17}]},
        {"id": "b", "question": "Who flew?", "is_impossible": True, "answers": [],
         "plausible_answers": [{"text": "The cat", "answer_start": 0}]}]}]}]}  # fmt: skip


def read(tmp_path: Path, content: Any) -> Table:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    config = make_config()
    return read_table([str(path)], config.data, "data.train", Answering.make_columns(config).spec)


def test_squad_files_are_read(tmp_path: Path) -> None:
    table = read(tmp_path, SQUAD)
    assert [get_id(table, row) for row in range(2)] == ["7", "b"]
    assert READER.read(table, 0) == [("The dog", 13), ("dog", 17)]
    assert READER.read(table, 1) == []
    assert make_task(table).unanswerable
    old = json.loads(json.dumps(SQUAD))
    old["data"][0]["paragraphs"][0]["qas"] = [{"id": "a", "question": "Who ran?",
                                               "answers": [{"text": "The dog", "answer_start": 13}]}]  # fmt: skip
    assert not make_task(read(tmp_path, old)).unanswerable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[0].pop("paragraphs"), r"squad.json: article 1 lacks 'paragraphs'; SQuAD files hold data: "),
        (lambda data: data[0]["paragraphs"][0].pop("context"), "article 1 lacks 'context'"),
        (lambda data: data[0]["paragraphs"][0]["qas"][0].pop("id"), "article 1 lacks 'id'"),
        (lambda data: data[0]["paragraphs"][0]["qas"][0]["answers"][0].pop("text"), "article 1 lacks 'text'"),
        (lambda data: data.append("words"), "article 2 does not have the layout of SQuAD"),
        (lambda data: data[0].update(paragraphs=3), "article 1 does not have the layout of SQuAD"),
        (lambda data: data[0]["paragraphs"][0]["qas"][0]["answers"][1].update(answer_start=18),
         r"squad.json:1 \(id 7\): answers: answer_start \(18\) of 'dog': the context has 'og ' there; .* begins at 17"),
        (lambda data: data[0]["paragraphs"][0].update(context=" "), "squad.json:1: context is empty"),
    ],
)  # fmt: skip
def test_errors_of_squad_files(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    content = json.loads(json.dumps(SQUAD))
    change(content["data"])
    with pytest.raises(InputError, match=message):
        make_task(read(tmp_path, content))


def test_errors_of_settings() -> None:
    for change, message in (
        ({"smoothing": 0.1}, r"train.label_smoothing \(0.1\): must be 0"),
        ({"columns": ("question",)}, r"data.text_columns \(\['question'\]\): must be two columns, the question and"),
        ({"label": None}, r"data.label_column \(None\): question answering needs the column of the answers"),
    ):
        with pytest.raises(InputError, match=message):
            Answering.make_columns(make_config(**change))
    for change, message in (
        ({"window_overlap": -1}, r"task.window_overlap \(-1\): must be 0 or more"),
        ({"longest_answer": 0}, r"task.longest_answer \(0\): must be at least 1"),
        ({"num_best": 0}, r"task.num_best \(0\): must be at least 1"),
        ({"null_threshold": float("inf")}, r"task.null_threshold \(inf\): must be finite"),
    ):
        with pytest.raises(InputError, match=message):
            make_config(**change)
    with pytest.raises(InputError, match="no training question has an answer"):
        make_task(make_table([make_row("the cat")]))


def test_questions_on_one_context_stay_together(tmp_path: Path) -> None:
    contexts = [f"the cat {word}" for word in tiny.FILLER[:12]]
    rows = [
        make_row(context, ("cat", 4), question=question) for context in contexts for question in ("this", "that", "one")
    ]
    config = make_config()
    data = DataConfig(train=(str(tiny.write_jsonl(tmp_path / "a.jsonl", rows)),), text_columns=("question", "context"),
                      label_column="answers", validation_fraction=0.3)  # fmt: skip
    for seed in range(3):
        splits = load_splits(data, seed, Answering.make_columns(config).spec)
        contexts_of_splits = [set(table.columns["context"]) for table in splits.tables().values()]
        assert all(contexts_of_splits)
        assert sum(map(len, contexts_of_splits)) == len(set.union(*contexts_of_splits)) == 12


# --- windows and targets --------------------------------------------------------------------------------------------


def test_windows_are_those_of_the_tokenizer_and_hold_every_token() -> None:
    """They are compared with one call of the tokenizer, and with the text."""
    rows, tokenizer = make_questions(20), tiny.make_tokenizer()
    table = make_table([row | {"question": "this one"} for row in rows])
    features = encode(make_task(table, window_overlap=5), table, 20, tokenizer)
    expected = tokenizer(["this one"] * 20, [row["context"] for row in rows],
                         truncation="only_second", max_length=20, stride=5, return_overflowing_tokens=True)  # fmt: skip
    assert len(features) == len(expected["input_ids"]) > 20
    assert features.example_indices is not None
    assert features.example_indices.tolist() == expected["overflow_to_sample_mapping"]
    for window, ids in enumerate(expected["input_ids"]):
        assert get_array(features, window, "input_ids").tolist() == ids
        is_context = [sequence == 1 for sequence in expected.sequence_ids(window)]
        assert (get_array(features, window, "char_starts") >= 0).tolist() == is_context
    for number, row in enumerate(rows):
        words = set()
        for window in np.flatnonzero(features.example_indices == number):
            spans = zip(
                get_array(features, int(window), "char_starts"),
                get_array(features, int(window), "char_ends"),
                strict=True,
            )
            words |= {(b, row["context"][b:e]) for b, e in spans if b >= 0}
        assert words == {(match.start(), match[0]) for match in re.finditer(r"\w+", row["context"])}


def test_targets_hold_the_answer_or_point_at_the_first_token() -> None:
    for seed in range(3):
        rows = make_questions(30, seed=seed)
        table = make_table(rows)
        features = encode(make_task(table, window_overlap=3), table, 16)
        assert isinstance(features.labels, np.ndarray)
        counts = collections.Counter()
        for window in range(len(features)):
            row = rows[features.get_example(window)]
            start, end = features.labels[window]
            begins, ends = get_array(features, window, "char_starts"), get_array(features, window, "char_ends")
            text = "".join(row["answers"]["text"])
            position = sum(row["answers"]["answer_start"])
            if start:
                assert (begins[start], row["context"][begins[start] : ends[end]]) == (position, text)
            else:
                assert end == 0
                assert not text or position not in begins
            counts["answer" if start else "part" if text else "none"] += 1
        assert min(counts.values()) > 5
        assert len(counts) == 3


def test_an_answer_of_several_tokens_that_no_window_holds_is_counted() -> None:
    words = [tiny.FILLER[number % 18] for number in range(40)]
    context = " ".join(words)
    answer = " ".join(words[10:22])
    inside = " ".join(words[3:6])
    rows = [make_row(context, (answer, context.index(answer)), (inside, context.index(inside))), make_row(context),
            make_row(context, (inside, context.index(inside)))]  # fmt: skip
    table = make_table([row | {"question": "this " * count} for row, count in zip(rows, (1, 2, 9), strict=True)])
    task = make_task(table)
    features = encode(task, table, 16)
    assert features.num_truncated == 1
    assert features.lengths.max() == 16
    lines = dict(task.encoding.describe(features, table, 16))
    assert (
        lines["input"]
        == "3 questions in 22 windows of at most 16 tokens; 1 questions are longer than half a window and were cut"
    )
    assert lines["answers"] == (
        "1 of 3 questions have no answer (empty lists); 1 answers fit into no window and are not trained on"
    )
    assert isinstance(features.labels, np.ndarray)
    held = [window for window in range(len(features)) if features.labels[window].any()]
    assert {features.get_example(window) for window in held} == {2}
    for window in held:
        begins, ends = (get_array(features, window, name) for name in ("char_starts", "char_ends"))
        assert context[begins[features.labels[window, 0]] : ends[features.labels[window, 1]]] == inside
    short = make_table(rows[1:])
    assert (
        "each answer fits into a window" in dict(task.encoding.describe(encode(task, short, 64), short, 64))["answers"]
    )


def test_windows_without_room_are_an_error() -> None:
    table = make_table([make_row("the cat", ("cat", 4))])
    task = make_task(table)
    with pytest.raises(InputError, match=r"data.max_length \(6\): leaves no room for a question and a context"):
        task.encoding.tokenize(table, tiny.make_tokenizer(), 6)
    with pytest.raises(
        InputError, match=r"task.window_overlap \(9\): must be at most 8, half of a window of 20 tokens"
    ):
        make_task(table, window_overlap=9).encoding.tokenize(table, tiny.make_tokenizer(), 20)
    make_task(table, window_overlap=8).encoding.tokenize(table, tiny.make_tokenizer(), 20)

    class SlowTokenizer:
        is_fast = False

    with pytest.raises(
        InputError, match=r"tokenizer \(SlowTokenizer\) does not give the position of a token in the text"
    ):
        task.encoding.tokenize(table, SlowTokenizer(), 20)


def make_byte_tokenizer() -> Any:
    """Returns a byte-level tokenizer like GPT-2's. Each byte is a token, and offsets include the space before a word."""
    tokenizer = Tokenizer(
        models.BPE({byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="!", model_max_length=64)


def test_answers_in_any_script_keep_their_characters() -> None:
    """Tokens may be parts of a character or begin with a space; accents may be decomposed, and characters have four bytes."""
    context = "  Zoe\u0308 — “naïve”\t😀 東京\u00a0x "
    answers = ["Zoe\u0308", "“naïve”", "😀 東京", "x "]
    rows = [make_row(context, (text, context.index(text)), question="wh" * 30) for text in answers]
    table, tokenizer = make_table(rows), make_byte_tokenizer()
    features = encode(make_task(table), table, 60, tokenizer)
    assert isinstance(features.labels, np.ndarray)
    for row, text in enumerate(answers):
        held = [w for w in range(len(features)) if features.get_example(w) == row and features.labels[w].any()]
        assert held
        for window in held:
            start, end = features.labels[window]
            span = context[
                get_array(features, window, "char_starts")[start] : get_array(features, window, "char_ends")[end]
            ]
            assert span == text.strip()
    questions, lengths = contexts.truncate_questions(["wh 東京 " * 20, "a"], tokenizer, 10)
    assert lengths[0] <= 10
    assert ("wh 東京 " * 20).startswith(questions[0])
    assert questions[1] == "a"


# --- loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_loss_is_the_models_own_and_ignores_padding(family: str) -> None:
    torch.manual_seed(1)
    model = transformers.AutoModelForQuestionAnswering.from_config(tiny.make_config(family)).eval()
    table = make_table(make_questions(12))
    task = make_task(table, window_overlap=4)
    features = encode(task, table, 24, tiny.make_tokenizer(ends_only=family == "bart"))

    def compute_losses(indices: Array) -> tuple[float, float]:
        batch = collate(features, indices, Padding(0))
        assert batch.labels is not None
        with torch.no_grad():
            total, count = task.objective.loss(heads.run_model(model, batch.inputs), batch)
            own = model(**batch.inputs, start_positions=batch.labels[:, 0], end_positions=batch.labels[:, 1]).loss
        assert count == len(indices)
        return float(total) / count, float(own)

    equal = np.flatnonzero(features.lengths == 24)
    assert len(equal) > 3
    ours, theirs = compute_losses(equal)
    assert ours == pytest.approx(theirs, abs=1e-6)
    everything = np.arange(len(features))
    alone = [compute_losses(everything[index : index + 1])[1] for index in everything]
    assert compute_losses(everything)[0] == pytest.approx(sum(alone) / len(alone), abs=1e-5)
    outputs = task.scoring.reduce(
        heads.run_model(model, collate(features, everything, Padding(0)).inputs).detach(),
        collate(features, everything, Padding(0)),
    )
    assert [len(logits) for logits in outputs] == features.lengths.tolist()


# --- the best span --------------------------------------------------------------------------------------------------


def best_of_run_qa(windows: list[squad.Window], context: str, *, num_best: int, longest: int, null: bool) -> Any:
    """Returns the text and the score difference as postprocess_qa_predictions of transformers' run_qa.py finds them."""
    prelim: list[dict[str, Any]] = []
    least = None
    for window in windows:
        start_logits, end_logits = window.logits[:, 0], window.logits[:, 1]
        offsets = [None if b < 0 else (b, e) for b, e in zip(window.char_starts, window.char_ends, strict=True)]
        score = start_logits[0] + end_logits[0]
        if least is None or least > score:
            least = score
        for start in np.argsort(start_logits)[-1 : -num_best - 1 : -1].tolist():
            for end in np.argsort(end_logits)[-1 : -num_best - 1 : -1].tolist():
                if offsets[start] is None or offsets[end] is None or end < start or end - start + 1 > longest:
                    continue
                prelim.append(
                    {"offsets": (offsets[start][0], offsets[end][1]), "score": start_logits[start] + end_logits[end]}
                )
    best = max(prelim, key=lambda span: span["score"])
    text = context[best["offsets"][0] : best["offsets"][1]]
    difference = least - best["score"]
    return ("" if null and difference > 0 else text), difference


@pytest.mark.parametrize("null", [False, True])
def test_the_best_span_is_that_of_run_qa(null: bool) -> None:
    """There are several windows. All tokens are tried, since run_qa.py counts tokens of the question among the best."""
    num_empty = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        context = " ".join(f"w{number}" for number in range(30))
        spans = [(match.start(), match.end()) for match in re.finditer(r"\w+", context)]
        windows = []
        for first in (0, 8, 16):
            inside = spans[first : first + 14]
            begins, ends = (np.array([-1, -1, *(span[side] for span in inside), -1]) for side in (0, 1))
            logits = generator.normal(size=(len(begins), 2)).astype(np.float32)
            logits[0] += 2.5
            windows.append(squad.Window(logits=logits, char_starts=begins, char_ends=ends))
        search = squad.Search(num_best=17, longest=4, null_threshold=0.0 if null else None)
        answer = squad.find_best_answer(context, windows, search)
        text, difference = best_of_run_qa(windows, context, num_best=17, longest=4, null=null)
        assert answer.text == text
        assert 0 < answer.score <= 1
        num_empty += not text
        if text:
            assert context[answer.begin : answer.end] == text
        if null:
            assert answer.no_answer_score == pytest.approx(difference, abs=1e-5)
            sure = squad.Search(num_best=17, longest=4, null_threshold=difference - 0.01)
            assert squad.find_best_answer(context, windows, sure).text == ""
    assert (num_empty > 5) == null


def make_window(logits: list[tuple[float, float]], first: int = 1) -> squad.Window:
    """Returns a window of one-letter tokens, the first ones outside the context."""
    count = len(logits)
    begins = np.array([-1] * first + [2 * index for index in range(count - first)])
    return squad.Window(logits=np.array(logits, dtype=np.float32), char_starts=begins,
                        char_ends=np.where(begins < 0, -1, begins + 1))  # fmt: skip


def test_spans_in_wrong_order_too_long_or_empty_are_no_answers() -> None:
    search = squad.Search(num_best=1, longest=2, null_threshold=None)
    backwards = make_window([(9, 9), (0, 5), (1, 1), (5, 0)])  # the best start is after the best end
    assert squad.find_best_answer("a b c", [backwards], search).text == "a"
    apart = make_window([(9, 9), (5, 0), (0, 1), (0, 5)])  # the best start is two tokens before it, one too many
    assert squad.find_best_answer("a b c", [apart], search).text == "a b"
    nothing = squad.Window(logits=np.zeros((3, 2)), char_starts=np.array([-1, 0, -1]), char_ends=np.array([-1, 0, -1]))
    for threshold in (None, 0.0):
        empty = squad.find_best_answer("", [nothing], squad.Search(num_best=5, longest=5, null_threshold=threshold))
        assert (empty.text, empty.begin, empty.score) == ("", None, 1.0)
    outside = squad.Window(logits=np.zeros((1, 2)), char_starts=np.array([-1]), char_ends=np.array([-1]))
    assert squad.find_best_answer("", [outside], search).text == ""


# --- the official metrics -------------------------------------------------------------------------------------------


def normalize_answer(s: str) -> str:
    """As evaluate-v1.1.py and evaluate-v2.0.py have it."""

    def remove_articles(text: str) -> str:
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def official_1(answers: list[str], golds: list[list[str]]) -> dict[str, float]:
    """evaluate-v1.1.py."""

    def f1_score(prediction: str, ground_truth: str) -> float:
        prediction_tokens = normalize_answer(prediction).split()
        ground_truth_tokens = normalize_answer(ground_truth).split()
        common = collections.Counter(prediction_tokens) & collections.Counter(ground_truth_tokens)
        num_same = sum(common.values())
        if num_same == 0:
            return 0
        precision = 1.0 * num_same / len(prediction_tokens)
        recall = 1.0 * num_same / len(ground_truth_tokens)
        return (2 * precision * recall) / (precision + recall)

    f1 = exact = 0.0
    for answer, truths in zip(answers, golds, strict=True):
        exact += max(normalize_answer(answer) == normalize_answer(truth) for truth in truths)
        f1 += max(f1_score(answer, truth) for truth in truths)
    return {"exact_match": exact / len(answers), "f1": f1 / len(answers)}


def official_2(answers: list[str], golds: list[list[str]]) -> dict[str, float]:
    """evaluate-v2.0.py."""

    def get_tokens(s: str) -> list[str]:
        return normalize_answer(s).split() if s else []

    def compute_f1(a_gold: str, a_pred: str) -> float:
        gold_toks, pred_toks = get_tokens(a_gold), get_tokens(a_pred)
        num_same = sum((collections.Counter(gold_toks) & collections.Counter(pred_toks)).values())
        if len(gold_toks) == 0 or len(pred_toks) == 0:
            return int(gold_toks == pred_toks)
        if num_same == 0:
            return 0
        precision, recall = 1.0 * num_same / len(pred_toks), 1.0 * num_same / len(gold_toks)
        return (2 * precision * recall) / (precision + recall)

    exact, f1 = [], []
    for answer, texts in zip(answers, golds, strict=True):
        gold_answers = [a for a in texts if normalize_answer(a)] or [""]
        exact.append(max(int(normalize_answer(a) == normalize_answer(answer)) for a in gold_answers))
        f1.append(max(compute_f1(a, answer) for a in gold_answers))
    values = {"exact_match": sum(exact) / len(exact), "f1": sum(f1) / len(f1)}
    for name, kept in (
        ("HasAns", [i for i, g in enumerate(golds) if g]),
        ("NoAns", [i for i, g in enumerate(golds) if not g]),
    ):
        values |= {
            f"{name}_exact": sum(exact[i] for i in kept) / len(kept),
            f"{name}_f1": sum(f1[i] for i in kept) / len(kept),
        }
    return values


WORDS = [
    "The",
    "a",
    "cat",
    "Cat,",
    "dog",
    "U.S.",
    "an",
    "naïve",
    "İstanbul",
    "—",
    "$5",
    "it's",
    "A-1",
    "\u00a0x",
    "the\tdog",
    "",
]


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_the_official_scripts(seed: int) -> None:
    generator = random.Random(seed)

    def make_text() -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(0, 4)))

    references = [[make_text() for _ in range(generator.randint(1, 3))] for _ in range(300)]
    answers = [generator.choice([make_text(), *texts]) for texts in references]
    assert squad.score_answers(answers, references) == pytest.approx(official_1(answers, references), abs=1e-12)
    references = [[] if generator.random() < 0.3 else texts for texts in references]
    answers = [generator.choice([answer, ""]) for answer in answers]
    values = squad.score_answers(answers, references, unanswerable=True)
    assert values == pytest.approx(official_2(answers, references), abs=1e-12)
    assert 0.1 < values["exact_match"] < values["f1"] < 0.95


def test_metrics_of_known_answers() -> None:
    assert squad.score_answers(["The cat!", "old dog", ""], [["a cat"], ["dog", "cow"], ["x"]]) == pytest.approx(
        {"f1": (1 + 2 / 3 + 0) / 3, "exact_match": 1 / 3}
    )
    only = squad.score_answers(["", "x"], [[], []], unanswerable=True)
    assert only == pytest.approx({"f1": 0.5, "exact_match": 0.5, "HasAns_f1": np.nan, "HasAns_exact": np.nan,
                                  "NoAns_f1": 0.5, "NoAns_exact": 0.5}, nan_ok=True)  # fmt: skip


# --- a run and its predictions --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a finished run. Its data are next to it."""
    folder = tmp_path_factory.mktemp("answering")
    files = {
        f"data.{split}": [str(tiny.write_jsonl(folder / f"{split}.jsonl", make_questions(count, seed=seed)))]
        for seed, (split, count) in enumerate((("train", 96), ("validation", 24), ("test", 24)))
    }
    settings = {
        "task.kind": "answer",
        "task.window_overlap": 4,
        "model.backbone": str(tiny.make_backbone(folder / "backbone", initializer_range=0.1)),
        "output_dir": str(folder),
        "data.text_columns": ["question", "context"],
        "data.label_column": "answers",
        "data.max_length": 24,
        "train.epochs": 6,
        "train.batch_size": 8,
        "train.learning_rate": 5e-3,
        "train.precision": "fp32",
        "tracking.trackers": [],
    }
    config = load_config(settings | files)
    return finetune(config).run_dir


def test_flat_rows_are_predicted_and_evaluated_as_squads_are(trained: Path, tmp_path: Path) -> None:
    predictor, rows = Predictor.from_pretrained(str(trained)), make_questions(12, seed=7)
    flat = []
    for row in rows:
        (text,), (start,) = (row["answers"][key] or [empty] for key, empty in (("text", ""), ("answer_start", -1)))
        kept = {name: row[name] for name in ("id", "question", "context")}
        flat.append({**kept, "answer_text": text, "answer_start": start})
    assert predictor.predict(flat) == predictor.predict(rows)
    assert predictor.evaluate(flat) == predictor.evaluate(rows)
    path = tiny.write_jsonl(tmp_path / "flat.jsonl", flat)
    assert evaluate_file(predictor, str(path)) == predictor.evaluate(rows)
    assert list(iterate_predictions(predictor, str(path), keep=("answer_text",))) == [
        {"input": {"answer_text": row["answer_text"]}, **prediction}
        for row, prediction in zip(flat, predictor.predict(rows), strict=True)
    ]


def test_a_run_learns_and_evaluate_repeats_its_metrics(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["metric"] == "f1"
    assert results["test"]["f1"] > 0.5
    assert results["test"].keys() == {
        "loss",
        "f1",
        "exact_match",
        "HasAns_f1",
        "HasAns_exact",
        "NoAns_f1",
        "NoAns_exact",
    }
    values = evaluate_file(Predictor.from_pretrained(str(trained)), str(trained.parent / "test.jsonl"))
    assert values == results["test"]


def test_the_exported_folder_answers_with_plain_transformers(trained: Path) -> None:
    """transformers 5 has no pipeline for question answering, so the test takes the best pair of tokens of one window."""
    assert "question-answering" not in transformers.pipelines.SUPPORTED_TASKS
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(trained / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "model")
    predictor = Predictor.from_pretrained(str(trained))
    rows = [row for row in make_questions(40, seed=7) if len(row["context"].split()) < 12]
    assert len(rows) > 10
    for row, prediction in zip(rows, predictor.predict(rows), strict=True):
        encoded = tokenizer(row["question"], row["context"], return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            output = model(**encoded)
        start, end = output.start_logits[0], output.end_logits[0]
        tokens = [token for token, sequence in enumerate(encoded.sequence_ids(0)) if sequence == 1]
        score, i, j = max((float(start[i] + end[j]), -i, j) for i in tokens for j in tokens if i <= j)
        null = float(start[0] + end[0]) - score
        assert prediction["no_answer_score"] == pytest.approx(null, abs=1e-4)
        assert prediction["answer"] == ("" if null > 0 else row["context"][offsets[-i][0] : offsets[j][1]])


def test_predictions_as_rows_and_as_a_file_of_squad(trained: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    rows = make_questions(20, seed=5)
    path = tiny.write_jsonl(
        tmp_path / "rows.jsonl", [{key: row[key] for key in ("id", "question", "context")} for row in rows]
    )
    assert predict_file(predictor, str(path), str(tmp_path / "out.jsonl")) == 20
    predictions = predictor.predict(rows)
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == predictions
    assert [row["id"] for row in predictions] == [row["id"] for row in rows]
    for prediction, row in zip(predictions, rows, strict=True):
        assert set(prediction) == {"id", "answer", "score", "begin", "end", "no_answer_score"}
        assert (prediction["begin"] is None) == (prediction["answer"] == "")
        context = row["context"]
        expected_answer = "" if prediction["begin"] is None else context[prediction["begin"] : prediction["end"]]
        assert prediction["answer"] == expected_answer
    assert {bool(row["answer"]) for row in predictions} == {True, False}
    predict_file(predictor, str(path), str(tmp_path / "out.json"))
    written = json.loads((tmp_path / "out.json").read_text())
    assert written == {row["id"]: row["answer"] for row in predictions}
    references = [row["answers"]["text"] for row in rows]
    values = evaluate_file(predictor, str(tiny.write_jsonl(tmp_path / "labelled.jsonl", rows)))
    expected = official_2([written[row["id"]] for row in rows], references)
    assert {key: value for key, value in values.items() if key != "loss"} == pytest.approx(expected)
    twice = tiny.write_jsonl(tmp_path / "twice.jsonl", [{**rows[0], "id": "same"}, {**rows[1], "id": "same"}])
    with pytest.raises(
        InputError, match=r"--out: two questions have the id same, and a .json file needs different ones"
    ):
        predict_file(predictor, str(twice), str(tmp_path / "out.json"))


def test_unusual_texts_are_answered(trained: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    rows = [
        {"question": "this", "context": context}
        for context in ("cat", " \u200b😀  cat\n\n", "??" * 200, "the\r\ncat " * 30)
    ]
    rows += [{"question": "what " * 500, "context": "a cat"}]
    predictions = list(predictor.predict(rows))
    assert [row["id"] for row in predictions] == ["1", "2", "3", "4", "5"]
    for prediction, row in zip(predictions, rows, strict=True):
        assert prediction["answer"] == row["context"][prediction["begin"] or 0 : prediction["end"] or 0]
    assert predict_texts(predictor, ["this", "cat"])["answer"] == predictions[0]["answer"]
    with pytest.raises(InputError, match="--text: takes two texts, the question and the context, not 1"):
        predict_texts(predictor, ["this"])
    with pytest.raises(InputError, match=r"rows\[0\]: context"):
        list(predictor.predict([{"question": "this", "context": ""}]))


def test_a_model_with_another_number_of_labels_gets_two_outputs(tmp_path: Path) -> None:
    config = ModelConfig(backbone=str(tiny.make_backbone(tmp_path / "three", num_labels=3)))
    task = Answering.from_state(make_config(), {})
    loaded = backbone.load_backbone(config, task.head, backbone.load_tokenizer(config))
    assert loaded.model.qa_outputs.out_features == 2
    elsewhere = Answering.from_state(make_config(), Answering.read_state(loaded.model.config))
    assert elsewhere.scoring.metric_names == ("f1", "exact_match")


# --- the parts alone ------------------------------------------------------------------------------------------------


def test_columns_alone() -> None:
    columns = AnsweringColumns(reader=READER)
    assert columns.spec.own_columns == ("question", "context", "answers", "id", "is_impossible")
    assert columns.spec.together == ("context",)
    assert columns.make_row(["q", "c"]) == {"question": "q", "context": "c"}


def test_encoding_alone() -> None:
    encoding = AnsweringEncoding(reader=READER)
    table = make_table([make_row("the cat", ("cat", 4), question="this"), make_row("the", question="this")])
    arrays = encoding.tokenize(table, tiny.make_tokenizer(), 16)  # [CLS] this [SEP] the cat [SEP]
    assert arrays["char_starts"].tolist() == [-1, -1, -1, 0, 4, -1, -1, -1, -1, 0, -1]
    assert arrays["char_ends"].tolist() == [-1, -1, -1, 3, 7, -1, -1, -1, -1, 3, -1]
    assert encoding.labels(table, arrays).tolist() == [[4, 4], [0, 0]]
    assert encoding.encoded_columns() == ("question", "context")


def test_objective_alone() -> None:
    logits, mask = torch.randn(2, 4, 2), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    labels, indices = torch.tensor([[1, 3], [0, 0]]), np.arange(2)
    batch = Batch(
        feature_indices=indices,
        sequence_indices=indices,
        sequence_counts=np.ones(2),
        inputs={"attention_mask": mask},
        labels=labels,
    )
    loss, count = AnsweringObjective().loss(logits, batch)
    first, second = torch.nn.functional.log_softmax(logits[0], 0), torch.nn.functional.log_softmax(logits[1, :2], 0)
    expected = -(first[1, 0] + first[3, 1] + second[0, 0] + second[0, 1]) / 2
    torch.testing.assert_close(loss, expected)
    assert count == 2


def test_scoring_alone() -> None:
    arrays = {
        "input_ids": np.arange(3),
        "offsets": np.array([0, 3]),
        "examples": np.array([0]),
        "truncated": np.array(0),
        "char_starts": np.array([-1, 0, 4]),
        "char_ends": np.array([-1, 3, 7]),
    }
    features, table = make_features(arrays, None), make_table([make_row("the cat", ("cat", 4))])
    logits = np.array([[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]])
    scoring = AnsweringScoring(reader=READER)
    values = scoring.compute_metrics("f1", [logits], features, table, np.array([0]))
    assert values == {"f1": 1.0, "exact_match": 1.0}
    (prediction,) = scoring.make_predictions([logits], features, table)
    assert prediction.keys() == {"id", "answer", "score", "begin", "end"}
    assert (prediction["answer"], prediction["begin"], prediction["end"]) == ("cat", 4, 7)
    may_decline = AnsweringScoring(reader=READER, unanswerable=True, null_threshold=-3.0)
    (prediction,) = may_decline.make_predictions([logits], features, table)
    assert (prediction["answer"], prediction["no_answer_score"]) == ("", -2.0)


def test_the_task_has_the_four_parts() -> None:
    task = make_task(make_table([make_row("the cat", ("cat", 4)), make_row("the")]), num_best=3, longest_answer=2)
    assert (task.head.auto_class, task.pipeline_tag) == ("AutoModelForQuestionAnswering", "question-answering")
    assert not task.head.has_labels
    assert (task.scoring.num_best, task.scoring.longest_answer, task.scoring.unanswerable) == (3, 2, True)
    assert "have no answer" in task.describe_for_card()
    assert Answering.from_state(make_config(num_best=3, longest_answer=2), task.state_dict()) == task
