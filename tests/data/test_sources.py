"""Globs and folders of files, and data sets of the datasets library."""

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.files import error_of, read, write

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.hub_datasets import read_hub_dataset
from hf_finetune.data.sources import find_files
from hf_finetune.system.errors import InputError

# --- files ------------------------------------------------------------------------------------------------------------


def test_globs_are_sorted_and_lists_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = glob.glob
    monkeypatch.setattr(glob, "glob", lambda *where, **options: sorted(original(*where, **options), reverse=True))
    for name in ("b1.csv", "a2.csv", "a1.csv", "sub/a3.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, f"text,label\n{name},x\n")
    assert read(f"{tmp_path}/a*.csv").columns["text"] == ["a1.csv", "a2.csv"]
    assert read(f"{tmp_path}/b1.csv", f"{tmp_path}/a?.csv").columns["text"] == ["b1.csv", "a1.csv", "a2.csv"]
    assert len(read(f"{tmp_path}/**/*.csv")) == 4


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    write(tmp_path / "data[1].csv", "text,label\nbrackets,x\n")
    write(tmp_path / "data1.csv", "text,label\nplain,x\n")
    assert read(tmp_path / "data[1].csv").columns["text"] == ["brackets"]


@pytest.mark.parametrize("name", ["none.csv", "none/*.csv", "*.csv", "a" * 300 + ".csv"])
def test_a_location_without_a_file_names_the_setting(tmp_path: Path, name: str) -> None:
    location = f"{tmp_path}/{name}"
    assert error_of(location) == f"data.train ({location}): no such file or folder"
    with pytest.raises(InputError, match=r"^data\.test \("):
        find_files([location], "data.test")


# --- data sets of the datasets library ------------------------------------------------------------------------------


@pytest.fixture
def make_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`make_dataset(train=[...], test=[...])`: a folder that datasets.load_dataset loads, with named classes."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(*, names: Sequence[str] | None = ("neg", "pos"), **splits: list[tuple[str, int]]) -> str:
        folder = tmp_path / "dataset"
        folder.mkdir()
        features = None
        if names:
            features = datasets.Features(
                {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
            )
        for split, rows in splits.items():
            columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
            datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
        return str(folder)

    return make


def test_a_hub_data_set_gives_its_splits_and_class_names(make_dataset: Callable[..., str]) -> None:
    folder = make_dataset(train=[("a", 1), ("b", 0)], validation=[("c", 1)], test=[("d", 0)])
    tables = read_hub_dataset(DataConfig(dataset=folder))
    assert list(tables) == ["train", "validation", "test"]
    assert tables["train"].columns == {"text": ["a", "b"], "label": [1, 0]}
    assert tables["train"].class_names == ("neg", "pos")
    assert tables["validation"].where(0) == f"{folder}/validation:1"


def test_a_test_split_with_hidden_labels_is_left_out(make_dataset: Callable[..., str]) -> None:
    folder = make_dataset(train=[("a", 1), ("b", 0)], test=[("c", -1), ("d", -1)])
    assert list(read_hub_dataset(DataConfig(dataset=folder))) == ["train"]


def test_plain_labels_have_no_class_names(make_dataset: Callable[..., str]) -> None:
    folder = make_dataset(names=None, train=[("a", 3), ("b", -1)])
    assert read_hub_dataset(DataConfig(dataset=folder))["train"].class_names is None


def test_splits_that_are_called_otherwise_are_named_in_the_settings(make_dataset: Callable[..., str]) -> None:
    folder = make_dataset(train=[("a", 1), ("b", 0)], test=[("c", 1)])
    tables = read_hub_dataset(DataConfig(dataset=folder, validation=("test",)))
    assert tables["validation"].columns["text"] == ["c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": ("dev",)}, "data.validation (dev): "),
        ({"train": ("training",)}, "data.train (training): "),
        ({"text_columns": ("sentence",)}, "data.text_columns (sentence): "),
        ({"label_column": "gold"}, "data.label_column (gold): "),
        ({"subset": "none"}, "data.dataset ("),
    ],
)
def test_what_a_hub_data_set_lacks_is_named(
    make_dataset: Callable[..., str], changes: dict[str, Any], message: str
) -> None:
    folder = make_dataset(train=[("a", 1), ("b", 0)])
    with pytest.raises(InputError) as caught:
        read_hub_dataset(DataConfig(dataset=folder, **changes))
    assert str(caught.value).startswith(message)
    assert folder in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_data_set_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    for name in (str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(InputError, match=r"^data\.dataset \(.*cannot be loaded"):
            read_hub_dataset(DataConfig(dataset=name))


def test_an_empty_text_of_a_hub_data_set_is_named_with_its_row(make_dataset: Callable[..., str]) -> None:
    folder = make_dataset(train=[("a", 1), (" ", 0)])
    with pytest.raises(InputError) as caught:
        read_hub_dataset(DataConfig(dataset=folder))
    assert str(caught.value) == f"{folder}/train:2: text is empty"


def test_a_column_inside_an_object_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": 1, "data": {"text": "a"}, "label": "x"}\n')
    assert error_of(path).endswith("see data.text_columns: set it to data.text for the entry of an object")
