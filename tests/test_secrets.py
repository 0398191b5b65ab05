"""Tokens and passwords reach no log, config, card, tracker, checkpoint or error message."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from recipes.test_classify import launch

from hf_finetune import cli
from hf_finetune.config import RunConfig
from hf_finetune.finetune import finetune
from hf_finetune.settings import to_yaml

MakeConfig = Callable[..., RunConfig]
SECRETS = {
    "HF_TOKEN": "hf_thisIsTheSecretToken123",
    "HUGGING_FACE_HUB_TOKEN": "hf_thisIsAnotherToken4567",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "anAmazonSecretThatIsLong",
}
PASSWORD = "passw0rdOfTheHub"


def assert_clean(place: str, content: bytes) -> None:
    """No secret in it."""
    for secret in (*SECRETS.values(), PASSWORD):
        assert secret.encode() not in content, place


def test_no_secret_in_anything_a_run_leaves(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_ENDPOINT", f"http://ada:{PASSWORD}@127.0.0.1:9")
    config = make_config(**{"tracking.trackers": ["tensorboard"]})
    done = launch([sys.executable], config, {}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert_clean("output", (done.stdout + done.stderr).encode())
    files = [path for path in config.run_dir.rglob("*") if path.is_file()]
    assert {"environment.json", "config.yaml", "README.md", "metrics.jsonl"} <= {path.name for path in files}
    assert any("tfevents" in path.name for path in files)
    assert any(path.suffix == ".pt" for path in files)
    for path in files:
        assert_clean(str(path), path.read_bytes())


@pytest.mark.parametrize("words", [["--hub.repo_id", f"http://ada:{PASSWORD}@host/x"], ["--nme", SECRETS["HF_TOKEN"]]])
def test_no_secret_of_the_command_line_in_environment_json(words: list[str]) -> None:
    from hf_finetune.runtime import without_secrets

    assert_clean("command", " ".join(without_secrets(words)).encode())


def test_a_push_that_fails_does_not_show_the_token(make_config: MakeConfig, tmp_path: Path) -> None:
    """The Hub of this process is a port where nobody listens."""
    config = make_config()
    finetune(config)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    environment = {**os.environ, **SECRETS, "HF_ENDPOINT": f"http://ada:{PASSWORD}@127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "hf_finetune", "push", str(config.run_dir), "--repo-id", "ada/model", "--debug"],
        capture_output=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert b"error" in done.stderr
    assert_clean("push", done.stdout)
    assert_clean("push", done.stderr)


def test_the_commands_do_not_take_a_token() -> None:
    """It comes from the environment or the Hub's own file: a command line is seen by everyone on the machine."""
    with pytest.raises(SystemExit):
        cli.main(["push", "run", "--repo-id", "a/b", "--token", "x"])
