"""Files with an example on each line: fastText's labels, and pairs of files."""

from pathlib import Path

import pytest
from support.files import error_of, read, write

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.formats import PARALLEL, read_rows
from hf_finetune.system.errors import InputError


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.ft", "a.train", "a.txt.gz", "a.TXT"])
def test_lines_of_fasttext_are_texts_with_a_label(tmp_path: Path, name: str, line_end: str) -> None:
    lines = ["__label__pos a good film", "", "__label__neg\tbad , really", "__label__pos  fine __label__x", ""]
    table = read(write(tmp_path / name, line_end.join(lines)))
    assert table.columns == {"text": ["a good film", "bad , really", "fine __label__x"], "label": ["pos", "neg", "pos"]}
    assert list(table.lines) == [1, 3, 4]
    assert table.notes == (f"{name}: lines are as fastText reads them, __label__NAME and a text",)


def test_labels_are_lists_if_a_line_has_several(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "__label__a one\n__label__a __label__b two\n")
    assert read(path).columns == {"text": ["one", "two"], "label": [["a"], ["a", "b"]]}


@pytest.mark.parametrize(
    ("text", "number"), [("a text\n", 1), ("__label__a one\nno label\n", 2), ("__label__a one\n\n__label b\n", 3)]
)
def test_a_line_without_a_label_is_an_error_in_training(tmp_path: Path, text: str, number: int) -> None:
    path = write(tmp_path / "a.txt", text)
    assert error_of(path) == (
        f"{path}:{number}: no column 'label' (columns: text); see data.label_column; a line of such a file is __label__NAME and "
        "a text"
    )
    assert read(path, needs_labels=False).columns["text"][-1] in ("a text", "no label", "__label b")


def test_a_line_with_only_a_label_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "__label__a one\n__label__b\n")
    assert error_of(path) == f"{path}:2: text is empty; remove the row"


def test_a_file_of_lines_has_one_column_of_text(tmp_path: Path) -> None:
    config = DataConfig(train=("x",), text_columns=("text", "other"))
    message = error_of(write(tmp_path / "a.txt", "__label__a one\n"), config=config)
    assert message == "data.text_columns (['text', 'other']): a .txt file has one text column"


def test_other_text_files_are_refused_with_what_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.text", "a")
    with pytest.raises(
        InputError, match=r"the ending must be one of .*; or a folder; or a .txt file as fastText reads it$"
    ):
        read(path)


def test_pairs_of_files_of_other_lengths_are_found_before_a_row_is_read(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.en", "a\nb\nc\n"), write(tmp_path / "a.de", "x\n\n")
    config = DataConfig(train=("x",), text_columns=("source",), label_column="target")
    assert PARALLEL.read_pair is not None
    with pytest.raises(InputError, match=r"a.de: has 2 lines, but .*a.en has 3; "):
        next(PARALLEL.read_pair(source, target, config))
    assert [row for _, row in read_rows(source, config, PARALLEL)] == [{"source": text} for text in "abc"]
