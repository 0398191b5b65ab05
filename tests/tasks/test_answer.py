"""Question answering: SQuAD's files, windows, targets, loss, the best span, the official counting, use."""

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
from support.tiny import make_questions as make_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig, TaskConfig, TrainConfig
from hf_finetune.data.features import Features, collate, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import Table
from hf_finetune.export.predict import Predictor, evaluate_file, predict_file, predict_texts
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import form_of
from hf_finetune.tasks.answer import Answering, fit_questions
from hf_finetune.tasks.text import squad
from hf_finetune.train import finetune

COLUMNS = squad.Columns(question="question", context="context", answers="answers")


def make_config(*, train: float = 0.0, **settings: Any) -> RunConfig:
    """A config with the columns of SQuAD."""
    data = DataConfig(train=("-",), text_columns=("question", "context"), label_column="answers")
    return RunConfig(model=ModelConfig(backbone="-"), data=data, task=TaskConfig(**settings),
                     train=TrainConfig(label_smoothing=train))  # fmt: skip


def make_table(rows: list[dict[str, Any]]) -> Table:
    """Rows as lines of a file."""
    names = ("id", "question", "context", "answers", "is_impossible")
    return Table(columns={name: [row.get(name) for row in rows] for name in names}, files=["a.jsonl"] * len(rows),
                 lines=list(range(1, len(rows) + 1)))  # fmt: skip


def one(context: str, *answers: tuple[str, int], question: str = "this one", **more: Any) -> dict[str, Any]:
    """A row."""
    return {"question": question, "context": context, **more,
            "answers": {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]}}  # fmt: skip


def make_task(table: Table, **settings: Any) -> Answering:
    return Answering.from_table(make_config(**settings), table)


def encode(task: Answering, table: Table, max_length: int, tokenizer: Any = None) -> Features:
    arrays = task.tokenize(table, tokenizer or tiny.make_tokenizer(), max_length)
    return make_features(arrays, task.labels(table, arrays))


def part(features: Features, window: int, name: str) -> np.ndarray[Any, Any]:
    """An array of one window."""
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
    return read_table([str(path)], config.data, "data.train", form_of("answering", config))


def test_squad_files_are_read(tmp_path: Path) -> None:
    table = read(tmp_path, SQUAD)
    assert [squad.id_of(table, row) for row in range(2)] == ["7", "b"]
    assert squad.answers_of(table, 0, COLUMNS) == [("The dog", 13), ("dog", 17)]
    assert squad.answers_of(table, 1, COLUMNS) == []
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
        (lambda data: data.append("words"), "article 2 is not of SQuAD's form"),
        (lambda data: data[0].update(paragraphs=3), "article 1 is not of SQuAD's form"),
        (lambda data: data[0]["paragraphs"][0]["qas"][0]["answers"][1].update(answer_start=18),
         r"squad.json:1 \(id 7\): answers: answer_start \(18\) of 'dog': the context has 'og ' there; .* begins at 17"),
        (lambda data: data[0]["paragraphs"][0].update(context=" "), "squad.json:1: context is empty"),
    ],
)  # fmt: skip
def test_squad_files_that_are_none_are_refused(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    content = json.loads(json.dumps(SQUAD))
    change(content["data"])
    with pytest.raises(InputError, match=message):
        make_task(read(tmp_path, content))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (None, r"a.jsonl:1: answers \(None\) must be {text: \[...\], answer_start: \[...\]}"),
        ("cat", "must be {text"),
        ({"text": ["the"]}, "must be {text"),
        ({"text": "the", "answer_start": 0}, "must be {text"),
        ({"text": ["the"], "answer_start": [0, 3]}, "as many of one as of the other"),
        ({"text": [" "], "answer_start": [3]}, "the text ' ' is no answer; empty lists say that there is none"),
        ({"text": [5], "answer_start": [3]}, "the text 5 is no answer"),
        ({"text": ["the"], "answer_start": ["0"]}, r"answer_start \(0\) of 'the' must be a whole number"),
        ({"text": ["the"], "answer_start": [True]}, r"answer_start \(True\) of 'the' must be a whole number"),
        ({"text": ["the"], "answer_start": [-3]}, "the context has '' there; the nearest one begins at 0"),
        ({"text": ["the"], "answer_start": [7]}, "the context has ' th' there; the nearest one begins at 8"),
        ({"text": ["dog"], "answer_start": [4]}, "the context has 'cat' there; it stands nowhere in the context"),
        ({"text": ["b" * 99], "answer_start": [0]}, "of 'b{60}...'"),
    ],
)
def test_answers_that_are_none_are_refused(answers: Any, message: str) -> None:
    row = {"question": "this", "context": "the cat the red", "answers": answers}
    with pytest.raises(InputError, match=message):
        make_task(make_table([row]))


def test_answers_are_read_as_lists_of_objects_and_is_impossible_empties_them() -> None:
    row = {"question": "q", "context": "the cat", "answers": [{"text": "cat", "answer_start": 4}]}
    table = make_table([row, row | {"is_impossible": True}, row | {"is_impossible": "False"}, row | {"answers": []}])
    found = [squad.answers_of(table, number, COLUMNS) for number in range(4)]
    assert found == [[("cat", 4)], [], [("cat", 4)], []]


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"train.label_smoothing \(0.1\): is not for positions"):
        form_of("answering", make_config(train=0.1))
    data = DataConfig(train=("-",), text_columns=("question",), label_column="answers")
    with pytest.raises(InputError, match=r"data.text_columns \(\['question'\]\): takes two columns, the question and"):
        form_of("answering", RunConfig(model=ModelConfig(backbone="-"), data=data))
    data = DataConfig(train=("-",), text_columns=("question", "context"), label_column=None)
    with pytest.raises(InputError, match=r"data.label_column \(None\): names the column of the answers"):
        form_of("answering", RunConfig(model=ModelConfig(backbone="-"), data=data))
    with pytest.raises(InputError, match="no training question has an answer"):
        make_task(make_table([one("the cat")]))


def test_questions_on_one_context_stay_together(tmp_path: Path) -> None:
    contexts = [f"the cat {word}" for word in tiny.FILLER[:12]]
    rows = [one(context, ("cat", 4), question=question) for context in contexts for question in ("this", "that", "one")]
    config = make_config()
    data = DataConfig(train=(str(tiny.write_jsonl(tmp_path / "a.jsonl", rows)),), text_columns=("question", "context"),
                      label_column="answers", validation_fraction=0.3)  # fmt: skip
    for seed in range(3):
        splits = load_splits(data, seed, form_of("answering", config))
        found = [set(table.columns["context"]) for table in splits.tables().values()]
        assert all(found)
        assert sum(map(len, found)) == len(set.union(*found)) == 12


# --- windows and targets --------------------------------------------------------------------------------------------


def test_windows_are_those_of_the_tokenizer_and_hold_every_token() -> None:
    """Against transformers' own call, and against the text."""
    rows, tokenizer = make_rows(20), tiny.make_tokenizer()
    table = make_table([row | {"question": "this one"} for row in rows])
    features = encode(make_task(table, window_overlap=5), table, 20, tokenizer)
    expected = tokenizer(["this one"] * 20, [row["context"] for row in rows],
                         truncation="only_second", max_length=20, stride=5, return_overflowing_tokens=True)  # fmt: skip
    assert len(features) == len(expected["input_ids"]) > 20
    assert features.example_indices is not None
    assert features.example_indices.tolist() == expected["overflow_to_sample_mapping"]
    for window, ids in enumerate(expected["input_ids"]):
        assert part(features, window, "input_ids").tolist() == ids
        is_context = [sequence == 1 for sequence in expected.sequence_ids(window)]
        assert (part(features, window, "begins") >= 0).tolist() == is_context
    for row, given in enumerate(rows):
        words = set()
        for window in np.flatnonzero(features.example_indices == row):
            begins, ends = part(features, int(window), "begins"), part(features, int(window), "ends")
            words |= {(b, given["context"][b:e]) for b, e in zip(begins, ends, strict=True) if b >= 0}
        assert words == {(match.start(), match[0]) for match in re.finditer(r"\w+", given["context"])}


def test_targets_hold_the_answer_or_point_at_the_first_token() -> None:
    for seed in range(3):
        rows = make_rows(30, seed=seed)
        table = make_table(rows)
        features = encode(make_task(table, window_overlap=3), table, 16)
        assert isinstance(features.labels, np.ndarray)
        found = collections.Counter()
        for window in range(len(features)):
            row = rows[features.get_example(window)]
            start, end = features.labels[window]
            begins, ends = part(features, window, "begins"), part(features, window, "ends")
            text = "".join(row["answers"]["text"])
            place = sum(row["answers"]["answer_start"])
            if start:
                assert (begins[start], row["context"][begins[start] : ends[end]]) == (place, text)
            else:
                assert end == 0
                assert not text or place not in begins
            found["answer" if start else "part" if text else "none"] += 1
        assert min(found.values()) > 5
        assert len(found) == 3


def test_an_answer_of_several_tokens_that_no_window_holds_is_counted() -> None:
    words = [tiny.FILLER[number % 18] for number in range(40)]
    context = " ".join(words)
    answer = " ".join(words[10:22])
    inside = " ".join(words[3:6])
    rows = [one(context, (answer, context.index(answer)), (inside, context.index(inside))), one(context),
            one(context, (inside, context.index(inside)))]  # fmt: skip
    table = make_table([row | {"question": "this " * count} for row, count in zip(rows, (1, 2, 9), strict=True)])
    task = make_task(table)
    features = encode(task, table, 16)
    assert features.num_truncated == 1
    assert features.lengths.max() == 16
    lines = dict(task.describe(features, table, 16))
    assert (
        "3 questions in 22 windows of at most 16 tokens; questions longer than half a window, and cut: 1"
        in lines["input"]
    )
    assert lines["answers"] == ("2 questions with an answer, 1 without; whole in no window, and not trained on: 1")
    assert isinstance(features.labels, np.ndarray)
    held = [window for window in range(len(features)) if features.labels[window].any()]
    assert {features.get_example(window) for window in held} == {2}
    for window in held:
        begins, ends = (part(features, window, name) for name in ("begins", "ends"))
        assert context[begins[features.labels[window, 0]] : ends[features.labels[window, 1]]] == inside
    short = make_table(rows[1:])
    assert "each answer is whole in a window" in dict(task.describe(encode(task, short, 64), short, 64))["answers"]


def test_windows_that_cannot_be_made_are_refused() -> None:
    table = make_table([one("the cat", ("cat", 4))])
    task = make_task(table)
    with pytest.raises(InputError, match=r"data.max_length \(6\): leaves no room for a question and a context"):
        task.tokenize(table, tiny.make_tokenizer(), 6)
    with pytest.raises(InputError, match=r"task.window_overlap \(9\): windows of 20 tokens can share 8"):
        make_task(table, window_overlap=9).tokenize(table, tiny.make_tokenizer(), 20)
    make_task(table, window_overlap=8).tokenize(table, tiny.make_tokenizer(), 20)

    class SlowTokenizer:
        is_fast = False

    with pytest.raises(InputError, match=r"tokenizer \(SlowTokenizer\) does not say where tokens stand in the text"):
        task.tokenize(table, SlowTokenizer(), 20)


def make_byte_tokenizer() -> Any:
    """Bytes as GPT-2 and RoBERTa have them: every byte a token, or with the blank before it, which offsets include."""
    tokenizer = Tokenizer(
        models.BPE({byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="!", model_max_length=64)


def test_text_of_any_script_keeps_its_characters() -> None:
    """Tokens that are parts of a character, blanks at the ends of tokens, decomposed accents, signs of four bytes."""
    context = "  Zoe\u0308 — “naïve”\t😀 東京\u00a0x "
    answers = ["Zoe\u0308", "“naïve”", "😀 東京", "x "]
    rows = [one(context, (text, context.index(text)), question="wh" * 30) for text in answers]
    table, tokenizer = make_table(rows), make_byte_tokenizer()
    features = encode(make_task(table), table, 60, tokenizer)
    assert isinstance(features.labels, np.ndarray)
    for row, text in enumerate(answers):
        held = [w for w in range(len(features)) if features.get_example(w) == row and features.labels[w].any()]
        assert held
        for window in held:
            start, end = features.labels[window]
            span = context[part(features, window, "begins")[start] : part(features, window, "ends")[end]]
            assert span == text.strip()
    questions, lengths = fit_questions(["wh 東京 " * 20, "a"], tokenizer, 10)
    assert lengths[0] <= 10
    assert ("wh 東京 " * 20).startswith(questions[0])
    assert questions[1] == "a"


# --- loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_loss_is_the_models_own_and_padding_takes_no_part(family: str) -> None:
    torch.manual_seed(1)
    model = transformers.AutoModelForQuestionAnswering.from_config(tiny.make_config(family)).eval()
    table = make_table(make_rows(12))
    task = make_task(table, window_overlap=4)
    features = encode(task, table, 24, tiny.make_tokenizer(ends_only=family == "bart"))
    from hf_finetune.model import heads

    def both(rows: np.ndarray[Any, Any]) -> tuple[float, float]:
        batch = collate(features, rows, 0)
        assert batch.labels is not None
        with torch.no_grad():
            total, count = task.loss(heads.run_model(model, batch.inputs), batch)
            own = model(**batch.inputs, start_positions=batch.labels[:, 0], end_positions=batch.labels[:, 1]).loss
        assert count == len(rows)
        return float(total) / count, float(own)

    equal = np.flatnonzero(features.lengths == 24)
    assert len(equal) > 3
    ours, theirs = both(equal)
    assert ours == pytest.approx(theirs, abs=1e-6)
    everything = np.arange(len(features))
    alone = [both(everything[row : row + 1])[1] for row in everything]
    assert both(everything)[0] == pytest.approx(sum(alone) / len(alone), abs=1e-5)
    kept = task.keep(
        heads.run_model(model, collate(features, everything, 0).inputs).detach(), collate(features, everything, 0)
    )
    assert [len(logits) for logits in kept] == features.lengths.tolist()


# --- the best span --------------------------------------------------------------------------------------------------


def best_of_run_qa(windows: list[squad.Window], context: str, *, num_best: int, longest: int, null: bool) -> Any:
    """The text and the score difference as postprocess_qa_predictions of transformers' run_qa.py finds them."""
    prelim: list[dict[str, Any]] = []
    least = None
    for window in windows:
        start_logits, end_logits = window.logits[:, 0], window.logits[:, 1]
        offsets = [None if b < 0 else (b, e) for b, e in zip(window.begins, window.ends, strict=True)]
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
    best = max(prelim, key=lambda each: each["score"])
    text = context[best["offsets"][0] : best["offsets"][1]]
    difference = least - best["score"]
    return ("" if null and difference > 0 else text), difference


@pytest.mark.parametrize("null", [False, True])
def test_the_best_span_is_that_of_run_qa(null: bool) -> None:
    """Over several windows; all tokens are tried, since run_qa.py counts those of the question among the best."""
    none = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        context = " ".join(f"w{number}" for number in range(30))
        places = [(match.start(), match.end()) for match in re.finditer(r"\w+", context)]
        windows = []
        for first in (0, 8, 16):
            inside = places[first : first + 14]
            begins, ends = (np.array([-1, -1, *(place[side] for place in inside), -1]) for side in (0, 1))
            logits = generator.normal(size=(len(begins), 2)).astype(np.float32)
            logits[0] += 2.5
            windows.append(squad.Window(logits=logits, begins=begins, ends=ends))
        search = squad.Search(num_best=17, longest=4, null_threshold=0.0 if null else None)
        found = squad.best_answer(context, windows, search)
        text, difference = best_of_run_qa(windows, context, num_best=17, longest=4, null=null)
        assert found.text == text
        assert 0 < found.score <= 1
        none += not text
        if text:
            assert context[found.begin : found.end] == text
        if null:
            assert found.no_answer_score == pytest.approx(difference, abs=1e-5)
            sure = squad.Search(num_best=17, longest=4, null_threshold=difference - 0.01)
            assert squad.best_answer(context, windows, sure).text == ""
    assert (none > 5) == null


def window_of(logits: list[tuple[float, float]], first: int = 1) -> squad.Window:
    """A window of one-letter tokens, the first ones outside the context."""
    count = len(logits)
    begins = np.array([-1] * first + [2 * place for place in range(count - first)])
    return squad.Window(logits=np.array(logits, dtype=np.float32), begins=begins,
                        ends=np.where(begins < 0, -1, begins + 1))  # fmt: skip


def test_spans_in_wrong_order_too_long_or_empty_are_none() -> None:
    search = squad.Search(num_best=1, longest=2, null_threshold=None)
    backwards = window_of([(9, 9), (0, 5), (1, 1), (5, 0)])  # the best start lies behind the best end
    assert squad.best_answer("a b c", [backwards], search).text == "a"
    apart = window_of([(9, 9), (5, 0), (0, 1), (0, 5)])  # and here two tokens before it, one too many
    assert squad.best_answer("a b c", [apart], search).text == "a b"
    nothing = squad.Window(logits=np.zeros((3, 2)), begins=np.array([-1, 0, -1]), ends=np.array([-1, 0, -1]))
    for threshold in (None, 0.0):
        empty = squad.best_answer("", [nothing], squad.Search(num_best=5, longest=5, null_threshold=threshold))
        assert (empty.text, empty.begin, empty.score) == ("", None, 1.0)
    outside = squad.Window(logits=np.zeros((1, 2)), begins=np.array([-1]), ends=np.array([-1]))
    assert squad.best_answer("", [outside], search).text == ""


# --- the official counting ------------------------------------------------------------------------------------------


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

    def some() -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(0, 4)))

    golds = [[some() for _ in range(generator.randint(1, 3))] for _ in range(300)]
    answers = [generator.choice([some(), *texts]) for texts in golds]
    assert squad.score_answers(answers, golds) == pytest.approx(official_1(answers, golds), abs=1e-12)
    golds = [[] if generator.random() < 0.3 else texts for texts in golds]
    answers = [generator.choice([answer, ""]) for answer in answers]
    found = squad.score_answers(answers, golds, unanswerable=True)
    assert found == pytest.approx(official_2(answers, golds), abs=1e-12)
    assert 0.1 < found["exact_match"] < found["f1"] < 0.95


def test_metrics_of_known_answers() -> None:
    assert squad.score_answers(["The cat!", "old dog", ""], [["a cat"], ["dog", "cow"], ["x"]]) == pytest.approx(
        {"f1": (1 + 2 / 3 + 0) / 3, "exact_match": 1 / 3}
    )
    only = squad.score_answers(["", "x"], [[], []], unanswerable=True)
    assert only == pytest.approx({"f1": 0.5, "exact_match": 0.5, "HasAns_f1": np.nan, "HasAns_exact": np.nan,
                                  "NoAns_f1": 0.5, "NoAns_exact": 0.5}, nan_ok=True)  # fmt: skip


# --- a run, and its use ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, whose data are beside it."""
    folder = tmp_path_factory.mktemp("answering")
    files = {f"data.{split}": [str(tiny.write_jsonl(folder / f"{split}.jsonl", make_rows(count, seed=seed)))]
             for seed, (split, count) in enumerate((("train", 96), ("validation", 24), ("test", 24)))}  # fmt: skip
    config = load_config(
        {"model.backbone": str(tiny.make_backbone(folder / "backbone", initializer_range=0.1)), "output_dir": str(folder),
         "data.text_columns": ["question", "context"], "data.label_column": "answers", "data.max_length": 24,
         "task.window_overlap": 4, "train.epochs": 6, "train.batch_size": 8, "train.learning_rate": 5e-3,
         "train.precision": "fp32", "tracking.trackers": [], **files}, []
    )  # fmt: skip
    assert config is not None
    return finetune(config, task_name="answering").run_dir


def test_a_run_learns_and_evaluate_gives_its_numbers(trained: Path) -> None:
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
    found = evaluate_file(Predictor.from_pretrained(str(trained)), str(trained.parent / "test.jsonl"))
    assert found == results["test"]


def test_the_exported_folder_answers_with_plain_transformers(trained: Path) -> None:
    """transformers 5 has no question answering pipeline; so by hand: from_pretrained, one window, the best pair of tokens."""
    assert "question-answering" not in transformers.pipelines.SUPPORTED_TASKS
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(trained / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "model")
    predictor = Predictor.from_pretrained(str(trained))
    rows = [row for row in make_rows(40, seed=7) if len(row["context"].split()) < 12]
    assert len(rows) > 10
    for row, found in zip(rows, predictor.predict(rows), strict=True):
        encoded = tokenizer(row["question"], row["context"], return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            output = model(**encoded)
        start, end = output.start_logits[0], output.end_logits[0]
        tokens = [token for token, sequence in enumerate(encoded.sequence_ids(0)) if sequence == 1]
        score, i, j = max((float(start[i] + end[j]), -i, j) for i in tokens for j in tokens if i <= j)
        null = float(start[0] + end[0]) - score
        assert found["no_answer_score"] == pytest.approx(null, abs=1e-4)
        assert found["answer"] == ("" if null > 0 else row["context"][offsets[-i][0] : offsets[j][1]])


def test_predictions_and_squads_own_file(trained: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    rows = make_rows(20, seed=5)
    path = tiny.write_jsonl(
        tmp_path / "rows.jsonl", [{key: row[key] for key in ("id", "question", "context")} for row in rows]
    )
    found = predict_file(predictor, str(path), str(tmp_path / "out.jsonl"))
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == found
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    for row, given in zip(found, rows, strict=True):
        assert set(row) == {"id", "answer", "score", "begin", "end", "no_answer_score"}
        assert (row["begin"] is None) == (row["answer"] == "")
        assert row["answer"] == ("" if row["begin"] is None else given["context"][row["begin"] : row["end"]])
    assert {bool(row["answer"]) for row in found} == {True, False}
    predict_file(predictor, str(path), str(tmp_path / "out.json"))
    written = json.loads((tmp_path / "out.json").read_text())
    assert written == {row["id"]: row["answer"] for row in found}
    golds = [row["answers"]["text"] for row in rows]
    values = evaluate_file(predictor, str(tiny.write_jsonl(tmp_path / "labelled.jsonl", rows)))
    expected = official_2([written[row["id"]] for row in rows], golds)
    assert {key: value for key, value in values.items() if key != "loss"} == pytest.approx(expected)
    twice = tiny.write_jsonl(tmp_path / "twice.jsonl", [{**rows[0], "id": "same"}, {**rows[1], "id": "same"}])
    with pytest.raises(InputError, match=r"--out: of a .json file every question needs an id of its own"):
        predict_file(predictor, str(twice), str(tmp_path / "out.json"))


def test_tricky_texts_are_answered(trained: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    rows = [
        {"question": "this", "context": context}
        for context in ("cat", " \u200b😀  cat\n\n", "??" * 200, "the\r\ncat " * 30)
    ]
    rows += [{"question": "what " * 500, "context": "a cat"}]
    found = list(predictor.predict(rows))
    assert [row["id"] for row in found] == ["1", "2", "3", "4", "5"]
    for row, given in zip(found, rows, strict=True):
        assert row["answer"] == given["context"][row["begin"] or 0 : row["end"] or 0]
    assert predict_texts(predictor, ["this", "cat"])["answer"] == found[0]["answer"]
    with pytest.raises(InputError, match="--text: takes two texts, the question and the context, not 1"):
        predict_texts(predictor, ["this"])
    with pytest.raises(InputError, match="row 1: context"):
        list(predictor.predict([{"question": "this", "context": ""}]))


def test_a_model_of_elsewhere_with_another_number_of_labels_gets_a_start_and_an_end(tmp_path: Path) -> None:
    from hf_finetune.model import backbone

    folder = tiny.make_backbone(tmp_path / "three", num_labels=3)
    config = ModelConfig(backbone=str(folder))
    task = Answering.from_facts(make_config(), {})
    loaded = backbone.load_backbone(config, task.head, backbone.load_tokenizer(config))
    assert loaded.model.qa_outputs.out_features == 2
    assert Answering.from_facts(make_config(), Answering.facts_of_model(loaded.model.config)).metric_names == (
        "f1",
        "exact_match",
    )
    assert "have no answer" in make_task(make_table([one("the cat", ("cat", 4)), one("the")])).card()
