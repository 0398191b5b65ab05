"""Every file of docs/data.md is read as the page says.

An entry of the page is one or more files, then the rows that are read of them:

    ```csv file=reviews.csv task=classify data.label_column=stars
    text,stars
    ...
    ```
    ```json read
    [{"text": ..., "stars": ...}]
    ```

The words after file= and task= are settings (values as in YAML). A file in a folder, file=reviews/pos/1.txt, is read with its
folder. A block whose first word is `python` is code that writes its file. Before the block `json read`, a block `says` may
have the notes of the reader, and its warnings, one on each line. In its place, a block `error` has the error.
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import load_task
from hf_finetune.data.features import ClassSets
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```([^\n]+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Files of the page, and what is read of them.

    Args:
        files: The first word of each file's block (its format) and its content, by the name of the file.
        settings: Settings by their dotted keys, task.kind included.
        rows, notes, error: What the page says; None if it does not.
    """

    files: dict[str, tuple[str, str]]
    settings: dict[str, Any]
    rows: Any = None
    notes: list[str] | None = None
    error: str | None = None


def parse_entries(page: str) -> list[Entry]:
    """Returns the entries of a page. AssertionError if a block cannot be read."""
    entries: list[Entry] = []
    files: dict[str, tuple[str, str]] = {}
    settings: dict[str, Any] = {}
    notes: list[str] | None = None
    for info, content in BLOCK.findall(page):
        kind, *words = shlex.split(info)
        if (kind == "json" and words == ["read"]) or kind in ("error", "says"):
            assert files, f"no file stands before: {content}"
            if kind == "says":
                notes = content.splitlines()
                continue
            rows = json.loads(content) if kind == "json" else None
            error = content.strip() if kind == "error" else None
            entries.append(Entry(files=files, settings=settings, rows=rows, notes=notes, error=error))
            files, settings, notes = {}, {}, None
        elif options := dict(word.split("=", 1) for word in words if "=" in word):
            assert options.get("file"), info
            files[options.pop("file")] = (kind, content)
            named = {"task.kind": options.pop("task", "classify"), **options}
            settings |= {key: yaml.safe_load(value) for key, value in named.items()}
    assert not files, f"nothing is said of {files}"
    return entries


ENTRIES = parse_entries(PAGE)


def read_columns(task: type[Any], config: RunConfig, table: Table) -> list[dict[str, Any]]:
    """Returns the rows of a table: the columns that the task reads, without those that are empty."""
    names = [name for name in table.columns if any(value is not None for value in table.columns[name])]
    return [{name: table.columns[name][row] for name in names} for row in range(len(table))]


def read_classes(task: type[Any], config: RunConfig, table: Table) -> list[dict[str, Any]]:
    """Returns the texts of a table with their labels as the task reads them: a name, a list of names or a number."""
    made = task.from_table(config, table)
    label = config.data.label_column if isinstance(config.data.label_column, str) else "labels"
    targets = made.encoding.labels(table, {})
    return [
        {name: table.columns[name][row] for name in made.columns.spec.inputs}
        | {label: name_target(made, targets.get(row) if isinstance(targets, ClassSets) else targets[row])}
        for row in range(len(table))
    ]


def name_target(task: Any, target: Any) -> Any:
    """Returns a target of classification as the names of its labels, or as a number."""
    if task.problem == "regression":
        return float(target)
    if task.problem == "single_label":
        return task.label_names[int(target)]
    return [task.label_names[number] for number in target]


def read_questions(task: type[Any], config: RunConfig, table: Table) -> list[dict[str, Any]]:
    """Returns the questions of a table, with their contexts, and with their answers as lists of text and position."""
    reader = task.from_table(config, table).encoding.reader
    columns = [table.columns[name] for name in (reader.question, reader.context)]
    return [
        {"question": question, "context": context, "answers": [list(answer) for answer in reader.read(table, row)]}
        for row, (question, context) in enumerate(zip(*columns, strict=True))
    ]


def read_choices(task: type[Any], config: RunConfig, table: Table) -> list[dict[str, Any]]:
    """Returns the prompts of a table with their choices and the right one."""
    reader, rows = task.from_table(config, table).encoding.reader, []
    for row, prompt in enumerate(table.columns[config.data.text_columns[0]]):
        texts = reader.read_choices(table, row).texts
        rows.append({"prompt": prompt, "choices": list(texts), "right": texts[reader.read_label(table, row)]})
    return rows


def read_dialogues(task: type[Any], config: RunConfig, table: Table) -> list[dict[str, Any]]:
    """Returns the conversations of a table, with tools if they have any."""
    encoding = task.from_table(config, table).encoding
    dialogues = [encoding.read_dialogue(table, row) for row in range(len(table))]
    return [{"messages": talk.messages} | ({"tools": talk.tools} if talk.tools else {}) for talk in dialogues]


def read_tags(task: type[Any], config: RunConfig, table: Table) -> list[dict[str, Any]]:
    """Returns the words of a table and their tags, null for a word that is not labelled."""
    reader = task.from_table(config, table).encoding.reader
    return [
        {"tokens": reader.read_words(table, row), "tags": [tag or None for tag in reader.read_tags(table, row)]}
        for row in range(len(table))
    ]


def read_pairs(task: type[Any], config: RunConfig, table: Table) -> list[dict[str, Any]]:
    """Returns the texts of each row: an anchor, its positive and its negatives."""
    encoding = task.from_table(config, table).encoding
    encoding.find_warnings({"train": table})
    return [{"texts": encoding.read_texts(table, row)} for row in range(len(table))]


def read_documents(task: type[Any], config: RunConfig, table: Table) -> list[dict[str, Any]]:
    """Returns the queries of a table with their documents and labels."""
    names = ("query", "documents", "labels")
    return [{name: table.columns[name][row] for name in names} for row in range(len(table))]


def read_targets(task: type[Any], config: RunConfig, table: Table) -> list[dict[str, Any]]:
    """Returns the rows of a table whose targets can be used."""
    task.from_table(config, table).encoding.find_warnings({"train": table})
    return read_columns(task, config, table)


# How a task's rows are shown, if not by its columns
READERS: Mapping[str, Callable[[type[Any], RunConfig, Table], list[dict[str, Any]]]] = {
    "classify": read_classes,
    "answer": read_questions,
    "choose": read_choices,
    "instruct": read_dialogues,
    "tag": read_tags,
    "embed": read_pairs,
    "rerank": read_documents,
    "summarize": read_targets,
}


def write_files(entry: Entry, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Writes the files of an entry into a folder. Returns the files, or the folders in it that hold them."""
    monkeypatch.chdir(folder)
    for name, (kind, content) in entry.files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        if kind == "python":
            exec(content, {})
        else:
            Path(name).write_text(content, encoding="utf-8", newline="")
        assert Path(name).is_file()
    return list(dict.fromkeys(Path(name).parts[0] for name in entry.files))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: next(iter(entry.files)))
def test_an_entry_of_the_page_is_read_as_it_says(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_files(entry, tmp_path, monkeypatch)
    config = RunConfig.from_settings({"model.backbone": "unused", "data.train": names, **entry.settings})
    kind = config.task.kind
    task = load_task(kind)
    spec = task.make_columns(config).spec
    if entry.error is not None:
        with pytest.raises(InputError) as caught:
            READERS.get(kind, read_columns)(task, config, read_table(names, config.data, "data.train", spec))
        assert str(caught.value) == entry.error
        return
    table = read_table(names, config.data, "data.train", spec)
    assert READERS.get(kind, read_columns)(task, config, table) == entry.rows
    if entry.notes is not None:
        assert list(table.notes) == [note for note in entry.notes if note not in table.warnings]


def test_the_page_has_entries_and_each_differs_from_the_others() -> None:
    assert len(ENTRIES) >= 4
    assert len({next(iter(entry.files)) for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize(
    "page", ["```csv file=a.csv task=classify\ntext\n```\n", "```json read\n[]\n```\n", "```csv task=tag\n```\n"]
)
def test_an_incomplete_entry_is_found(page: str) -> None:
    with pytest.raises(AssertionError):
        parse_entries(page)
