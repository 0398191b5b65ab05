"""GGUF files are converted to model folders once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from support.gguf_files import make_causal_model, write_gguf

from hf_finetune.cache.listing import find_damage, list_all_entries
from hf_finetune.config.model_sections import CacheConfig
from hf_finetune.model.conversions import open_source
from hf_finetune.model.converted_files import FOLDER
from hf_finetune.system.errors import InputError

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, make_causal_model(3))
    return path


def test_the_folder_holds_what_transformers_reads_from_the_file(gguf_file: Path, tmp_path: Path) -> None:
    folder = open_source(str(gguf_file), "model.backbone", cache=CacheConfig(dir=str(tmp_path)))
    assert Path(folder).parent == tmp_path / FOLDER
    converted = transformers.AutoModelForCausalLM.from_pretrained(folder)
    direct = transformers.AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    expected, actual = direct.state_dict(), converted.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    read = transformers.AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    assert tokenizer.get_vocab() == read.get_vocab()
    assert tokenizer.special_tokens_map == read.special_tokens_map
    text = "hammer a nail, and a word of no vocabulary: Großmutter"
    assert tokenizer(text) == read(text)


def test_a_second_load_converts_nothing(gguf_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cache = CacheConfig(dir=str(tmp_path))
    first = open_source(str(gguf_file), "model.backbone", cache=cache)
    assert "is converted once" in caplog.text
    caplog.clear()
    weights = Path(first) / "model.safetensors"
    written = weights.stat().st_mtime_ns
    moved = tmp_path / "moved.gguf"
    shutil.copy(gguf_file, moved)  # the same bytes in another place
    assert open_source(str(moved), "model.backbone", cache=cache) == first
    assert not caplog.records
    assert weights.stat().st_mtime_ns == written


def test_a_damaged_folder_is_converted_again_and_a_changed_file_has_its_own(gguf_file: Path, tmp_path: Path) -> None:
    cache = CacheConfig(dir=str(tmp_path))
    folder = Path(open_source(str(gguf_file), "model.backbone", cache=cache))
    (entry,) = list_all_entries(tmp_path)
    assert entry.kind == "converted"
    assert entry.content == "LlamaForCausalLM, 2 layers, from a GGUF file"
    assert find_damage(entry) is None
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert find_damage(entry) == "is damaged in model.safetensors; the next run converts the file again"
    assert open_source(str(gguf_file), "model.backbone", cache=cache) == str(folder)
    assert weights.read_bytes() == good
    other = tmp_path / "other.gguf"
    write_gguf(other, make_causal_model(4))
    assert open_source(str(other), "model.backbone", cache=cache) != str(folder)


def test_processes_that_start_together_convert_once(gguf_file: Path, tmp_path: Path) -> None:
    code = (
        "import logging, sys; logging.basicConfig(level='INFO'); from hf_finetune.model.conversions import open_source; "
        "print(open_source(sys.argv[1], 'MODEL'))"
    )
    environment = {**os.environ, "HF_FINETUNE_CACHE": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(gguf_file)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    results = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0], results
    assert len({out for out, _ in results}) == 1
    assert sum("is converted once" in err for _, err in results) == 1
    assert not list((tmp_path / FOLDER).glob(".writing-*"))


@pytest.mark.parametrize("kept", [0, 100, 2000])
def test_a_damaged_file_is_an_error_and_leaves_nothing(gguf_file: Path, tmp_path: Path, kept: int) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(gguf_file.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model.backbone .*damaged.gguf\): the model in this folder cannot be loaded"):
        open_source(str(damaged), "model.backbone", cache=CacheConfig(dir=str(tmp_path / "cache")))
    assert list((tmp_path / "cache" / FOLDER).iterdir()) == []


def test_a_folder_of_the_caches_that_cannot_be_written_is_an_error(gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"model.backbone .*: cannot be written: .*; set cache.dir or HF_FINETUNE_CACHE"
    ):
        open_source(str(gguf_file), "model.backbone", cache=CacheConfig(dir=str(tmp_path / "cache")))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no owners of this kind")
def test_what_another_user_could_have_written_is_not_used(gguf_file: Path, tmp_path: Path) -> None:
    cache = CacheConfig(dir=str(tmp_path))
    folder = Path(open_source(str(gguf_file), "model.backbone", cache=cache))
    (folder / "model.safetensors").chmod(0o666)
    with pytest.raises(InputError, match=r"another user could have written .*model.safetensors"):
        open_source(str(gguf_file), "model.backbone", cache=cache)
    trusting = CacheConfig(dir=str(tmp_path), trust_other_users=True)
    assert open_source(str(gguf_file), "model.backbone", cache=trusting) == str(folder)


def test_the_digests_are_of_all_files(gguf_file: Path, tmp_path: Path) -> None:
    folder = Path(open_source(str(gguf_file), "model.backbone", cache=CacheConfig(dir=str(tmp_path))))
    digests = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
    assert digests.keys() == {path.name for path in folder.iterdir()} - {"digests.json"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= digests.keys()
