"""The file that a command of many runs keeps in its folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_finetune.choosing.trials import check_base, read_journal, write_journal
from hf_finetune.config.sections import RunConfig
from hf_finetune.system.errors import InputError

MakeConfig = Callable[..., RunConfig]
CONTENT = {"settings": {}, "inputs": {}}


def test_the_file_is_read_as_it_was_written_once_a_run_has_begun(tmp_path: Path) -> None:
    assert read_journal(tmp_path, "sweep") == {}
    write_journal(tmp_path, "sweep", CONTENT)
    assert read_journal(tmp_path, "sweep") == {}
    run_dir = tmp_path / "trials" / "trial-01"
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").touch()
    assert read_journal(tmp_path, "sweep") == {"format": 1, **CONTENT}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "is not the file of a sweep"),
        (json.dumps(CONTENT), "is not the file of a sweep"),
        (json.dumps({**CONTENT, "format": 2}), "has format 2, and this version of hf-finetune continues 1"),
    ],
)
def test_a_file_that_cannot_be_continued_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sweep.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"sweep\.json: {message}.*; choose another name to start again"):
        read_journal(tmp_path, "sweep")


def test_settings_of_one_run_are_errors(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"hub\.push \(true\): is for one run.* hf-finetune push FOLDER"):
        check_base(make_config(**{"hub.push": True, "hub.repo_id": "somebody/model"}), "sweep", {})
    with pytest.raises(InputError, match=r"checkpoint\.resume \(never\): must be auto.*choose another name"):
        check_base(make_config(**{"checkpoint.resume": "never"}), "folds", {})
