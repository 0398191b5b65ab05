"""Every command of docs/tasks.md runs, one after the other in one process, on small data of the forms that the page shows."""

import json
import random
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from support import ranked, tiny

from hf_finetune import cli
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.recipe import run_recipe_file

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
SMALL = [
    "--train.max_updates",
    "2",
    "--data.max_train_examples",
    "40",
    "--tracking.trackers",
    "[]",
    "--train.precision",
    "fp32",
]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} [SEP] {% endfor %}"
QUESTIONS = [("who is here", "the old cat is here", "cat"), ("what is red", "a red saw and a big dog", "saw")]


def commands() -> list[str]:
    """The commands of the page, without those of pip."""
    found = re.findall(r"^```\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [line for text in found for line in text.splitlines() if line and not line.startswith("pip ")]


def write_data(folder: Path) -> None:
    """The files that the page's commands name, and small backbones under the names that they have on the Hub."""
    generator, rows = random.Random(0), tiny.make_rows(40)
    texts = [row["text"] for row in rows]
    tagged = [(text.split(), ["B-thing" if word in ("cat", "saw") else "O" for word in text.split()]) for text in texts]
    tiny.write_jsonl(folder / "train.jsonl", rows)
    tiny.write_jsonl(folder / "ner.jsonl", [{"tokens": words, "tags": tags} for words, tags in tagged])
    lines = ["".join(f"{word} {tag}\n" for word, tag in zip(*pair, strict=True)) + "\n" for pair in tagged]
    (folder / "chunks.conll").write_text("".join(lines), encoding="utf-8")
    asked = [
        {"context": f"{text} {number}", "qas": [{"id": str(number), "question": question, "answers": [
            {"text": answer, "answer_start": text.index(answer)}]}]}
        for number, (question, text, answer) in enumerate(QUESTIONS * 15)
    ]  # fmt: skip
    (folder / "squad.json").write_text(json.dumps({"version": "1.1", "data": [{"title": "", "paragraphs": asked}]}))
    choices = [
        {"stem": text, "choices": texts[: 2 + number % 2], "label": number % 2} for number, text in enumerate(texts)
    ]
    tiny.write_jsonl(folder / "quiz.jsonl", choices)
    (folder / "notes.txt").write_text("\n".join(texts * 4) + "\n", encoding="utf-8")
    for language in ("en", "de"):
        (folder / f"notes.{language}").write_text("\n".join(texts) + "\n", encoding="utf-8")
    tiny.write_jsonl(folder / "papers.jsonl", [{"document": text, "summary": text.split()[0]} for text in texts])
    said = [[{"role": "user", "content": text}, {"role": "assistant", "content": text.split()[-1]}] for text in texts]
    tiny.write_jsonl(folder / "chats.jsonl", [{"messages": messages} for messages in said])
    pairs = [{"anchor": text, "positive": " ".join(generator.sample(text.split(), 3))} for text in texts]
    tiny.write_jsonl(folder / "pairs.jsonl", pairs)
    tiny.write_jsonl(folder / "queries.jsonl", ranked.make_rows(40))
    scored = ranked.make_rows(40, form="pairs")
    lines = [f"{row['query']},{row['document']},{row['score']}\n" for row in scored]
    (folder / "scored.csv").write_text("query,document,score\n" + "".join(lines), encoding="utf-8")
    retrieved = [{"query": row["query"], "documents": ["one nail", row["document"]]} for row in scored]
    tiny.write_jsonl(folder / "retrieved.jsonl", retrieved)
    tiny.make_backbone(folder / "small", "bert", layers=6)
    for name, family in (("HuggingFaceTB/SmolLM2-135M", "llama"), ("HuggingFaceTB/SmolLM2-135M-Instruct", "llama"),
                         ("google-t5/t5-small", "t5")):  # fmt: skip
        backbone = tiny.make_backbone(folder / name, family)
        if name.endswith("Instruct"):
            tokenizer = tiny.make_tokenizer()
            tokenizer.chat_template = TEMPLATE
            tokenizer.save_pretrained(backbone)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the page's data, in which the commands run."""
    folder = tmp_path_factory.mktemp("tasks")
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["recipe"])
        yield folder


@pytest.mark.pretrained
def test_the_pages_commands_run(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first run of each recipe has the recipe's backbone; its further ones have a small one of that kind."""
    begun = set()
    for command in commands():
        words = shlex.split(command)
        if words[0] == "python":
            recipe = Path(words[1]).stem
            given = [*words[2:], *SMALL]
            if "--data.max_length" not in words:
                given += ["--data.max_length", "32"]
            if recipe in begun and "--model.backbone" not in words:
                given += ["--model.backbone", "small"]
            begun.add(recipe)
            code = run_recipe_file(recipe, given)
        else:
            assert words[0] == "hf-finetune"
            code = cli.main(words[1:])
        printed = capsys.readouterr()
        assert code == 0, f"{command}\n{printed.err}"
        if words[1] == "predict" and "--out" not in words:
            assert json.loads(printed.out.splitlines()[-1]), command
    assert json.loads((desk / "answers.json").read_text(encoding="utf-8")).keys() == {str(n) for n in range(30)}


def test_the_page_shows_every_recipe_and_every_setting_of_the_tasks() -> None:
    table = [line for line in PAGE.splitlines() if line.startswith("| `")]
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.py")}
    assert {line.split("`")[1] for line in table} == recipes
    assert {Path(shlex.split(command)[1]).stem for command in commands() if command.startswith("python ")} == recipes
    named = set(re.findall(r"\w+", " ".join(line.split("|")[5] for line in table)))
    settings = {field.name for kind in TASKS for field in fields(load_task(kind).Settings)}
    assert settings - {"kind"} <= named
