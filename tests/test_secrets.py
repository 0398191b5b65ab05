"""Tokens and passwords do not get into logs, configs, cards, trackers, checkpoints or error messages."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs import run_recipe
from support.script_server import ScriptServer

from hf_finetune import cli
from hf_finetune.config.loading import to_yaml
from hf_finetune.config.sections import RunConfig
from hf_finetune.system.errors import InputError, redact
from hf_finetune.train import finetune

pytestmark = pytest.mark.processes

MakeConfig = Callable[..., RunConfig]
SECRETS = {
    "HF_TOKEN": "hf_thisIsTheSecretToken123",
    "HUGGING_FACE_HUB_TOKEN": "hf_thisIsAnotherToken4567",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "anAmazonSecretThatIsLong",
}
PASSWORD = "passw0rdOfTheHub"
# Made up, in the forms of known services. In two parts, so that no scanner of secrets takes them for real
KEYS = [
    "AKI" + "AIOSFODNN7EXAMPLE",
    "AIz" + "aSyA0123456789abcdefghijklmnopqrstuv",
    "gh" + "p_0123456789abcdefghijABCDEFGHIJ012345",
    "github" + "_pat_0123456789abcdefghij_01",
    "glp" + "at-0123456789abcdefghij",
    "xox" + "b-0123456789-abcdef",
    "s" + "k-proj-0123456789abcdefghij0123456789abcdef",
    "ey" + "JhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
]


def assert_no_secret(source: str, content: bytes) -> None:
    """The content has none of the secrets. `source` is shown if it does."""
    for secret in (*SECRETS.values(), PASSWORD):
        assert secret.encode() not in content, source


def test_no_file_of_a_run_has_a_secret(
    make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_ENDPOINT", f"http://ada:{PASSWORD}@127.0.0.1:9")
    config = make_config(**{"tracking.trackers": ["tensorboard"]})
    done = run_recipe(script_server, 1, config, {}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert_no_secret("output", (done.stdout + done.stderr).encode())
    files = [path for path in config.run_dir.rglob("*") if path.is_file()]
    assert {"environment.json", "config.yaml", "README.md", "metrics.jsonl"} <= {path.name for path in files}
    assert any("tfevents" in path.name for path in files)
    assert any(path.suffix == ".pt" for path in files)
    for path in files:
        assert_no_secret(str(path), path.read_bytes())


@pytest.mark.parametrize(
    "text",
    [
        f"http://ada:{PASSWORD}@host/x",
        f"https://ada:p@{PASSWORD}/@host/x y",
        f"https://host/x?a=1&token={PASSWORD}&b=2",
        f"no such model {SECRETS['HF_TOKEN']}.",
        "hf_oauth_" + SECRETS["AWS_SECRET_ACCESS_KEY"],
        "api_org_" + SECRETS["AWS_SECRET_ACCESS_KEY"],
        f"https://host/x.csv?sp=r&sig={PASSWORD}%3D&se=2030",
        f"https://host/x?access_token={PASSWORD}",
        f"https://host/x?X-Amz-Credential={PASSWORD}%2Fus&X-Amz-Signature={PASSWORD}",
        f"https://host/x?x-goog-signature={PASSWORD}",
        f"aws_secret_access_key = {SECRETS['AWS_SECRET_ACCESS_KEY']}",
        f"AccountName=x;AccountKey={PASSWORD}==;EndpointSuffix=y",
        *KEYS,
    ],
)
def test_what_looks_like_a_secret_is_redacted(text: str) -> None:
    shown = redact(text)
    assert_no_secret("text", shown.encode())
    assert "***" in shown
    assert not any(key in shown for key in KEYS)


def test_other_text_is_unchanged() -> None:
    for text in (
        "/home/ada/hf_finetune/outputs/run",
        "hf_finetune_results",
        "https://host/x?b=2",
        "ada@host",
        "a/b@main",
        "--train.micro_batch_tokens=4096 --task.label_separator=;",
        "hf-finetune train classify --data.text_columns token key",
        "task-classification-of-sk-learn-data-with-long-names",
        "https://host/x?signed=no&keys=3",
    ):
        assert redact(text) == text


@pytest.mark.parametrize(
    ("key", "value"),
    [("hub.repo_id", f"https://ada:{PASSWORD}@host/x"), ("model.revision", SECRETS["HF_TOKEN"])],
)
def test_a_secret_in_a_setting_is_refused_and_not_shown(make_config: MakeConfig, key: str, value: str) -> None:
    with pytest.raises(InputError, match="must not hold a token or a password") as raised:
        make_config(**{key: value})
    assert str(raised.value).startswith(f"{key} (***)")
    assert_no_secret("error", str(raised.value).encode())


def test_a_push_that_fails_does_not_show_the_token(make_config: MakeConfig, tmp_path: Path) -> None:
    """The Hub of this process is a port on which nothing listens."""
    config = make_config()
    finetune(config)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    environment = {**os.environ, **SECRETS, "HF_ENDPOINT": f"http://ada:{PASSWORD}@127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    code = (
        "import sys; from hf_finetune import cli; from hf_finetune.export import hub_requests as requests\n"
        "requests.PATIENT = requests.Limits(request_seconds=9, failing_seconds=9, attempts=2)\n"
        "sys.exit(cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "push", str(config.run_dir), "--repo-id", "ada/model", "--debug"],
        capture_output=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert b"error" in done.stderr
    assert b"trying again" in done.stdout
    assert_no_secret("push", done.stdout)
    assert_no_secret("push", done.stderr)


def test_the_commands_do_not_take_a_token() -> None:
    """A token comes from the environment or the Hub's own file. Everyone on the machine can see a command line."""
    with pytest.raises(SystemExit):
        cli.main(["push", "run", "--repo-id", "a/b", "--token", "x"])
