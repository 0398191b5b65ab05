"""Code that comes with a model does not run, and no command asks a question, unless the user trusts the code by a setting."""

import ast
import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import tiny

from hf_finetune import cli
from hf_finetune.cache import capture
from hf_finetune.config.loading import get_setting_types
from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import load_task
from hf_finetune.data.text_files import FREE_SIZE
from hf_finetune.export.predict import Predictor
from hf_finetune.model import freezing
from hf_finetune.model.loading import check_layers
from hf_finetune.run import checkpoint
from hf_finetune.system.errors import InputError
from hf_finetune.system.limited import LimitedFunction
from hf_finetune.tasks.text import chat
from hf_finetune.train import finetune

ROOT = Path(__file__).parent.parent
FOLDERS = ("hf_finetune", "recipes", "benchmarks")

# Calls that take trust_remote_code. If they are not given it, transformers asks whether to run code, on standard output
CALLS = ("from_pretrained", "from_config", "pipeline", "SentenceTransformer", "CrossEncoder")
WITHOUT = ("GenerationConfig", "LoraConfig", "Predictor", "PeftModel")  # whose from_pretrained() does not take it

CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
class EvilConfig(BertConfig):
    model_type = {model_type!r}
class EvilModel(BertForSequenceClassification):
    config_class = EvilConfig
class EvilTokenizer(BertTokenizerFast):
    pass
def generate(model, *arguments, **options):
    return None
"""
AUTO_MAP = {"AutoConfig": "evil.EvilConfig", "AutoModelForSequenceClassification": "evil.EvilModel"}


def find_calls(tree: ast.AST) -> list[ast.Call]:
    """Returns the calls of a module that take trust_remote_code."""
    calls = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner_name = getattr(owner, "attr", getattr(owner, "id", ""))
        if name in CALLS and owner_name not in WITHOUT:
            calls.append(node)
    return calls


def test_every_call_that_takes_trust_remote_code_is_given_it() -> None:
    missing, count = [], 0
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for call in find_calls(ast.parse(path.read_text(encoding="utf-8"))):
            count += 1
            if "trust_remote_code" not in {keyword.arg for keyword in call.keywords}:
                missing.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not missing
    assert count > 15


def test_the_page_on_security_has_the_settings_and_limits_of_the_code() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    settings = get_setting_types(load_task("classify").Settings)
    named = set(re.findall(r"`((?:model|data|freeze|cache|evaluation)\.\w+)", page))
    assert (
        {"model.trust_remote_code", "evaluation.trust_metric_code", "cache.trust_other_users"} <= named <= {*settings}
    )
    limits = inspect.signature(LimitedFunction).parameters
    for sentence in (
        f"may take {chat.SECONDS_TO_RENDER:g} seconds and {limits['megabytes'].default:,} MB for a conversation",
        f"may write {chat.FREE_CHARACTERS:,} characters and {chat.MOST_EXPANSION} times the conversation",
        f"may take {freezing.SECONDS_TO_MATCH:g} seconds",
        f"{capture.NUM_STORED} random sequences",
        f"at most {FREE_SIZE // 1_000_000} MB or `data.max_expansion` times its size",
    ):
        assert sentence in page


@pytest.fixture
def make_evil(tmp_path: Path, backbones: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`make_evil(config={...}, tokenizer={...})`: a classifier with code of its own, and these entries in its two configs.

    If its code runs, tmp_path/ran is there. If a question is asked, the test fails."""

    def refuse(*_: Any) -> str:
        raise AssertionError("a question is asked")

    monkeypatch.setattr("builtins.input", refuse)
    # HF_MODULES_CACHE is read at import: trusted code is copied there
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def make(config: dict[str, Any] | None = None, tokenizer: dict[str, Any] | None = None) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(backbones("bert"), folder)
        model_type = (config or {}).get("model_type", "bert")
        code = CODE.format(marker=str(tmp_path / "ran"), model_type=model_type)
        (folder / "evil.py").write_text(code, encoding="utf-8")
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(code, encoding="utf-8")
        labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
        entries = {"architectures": ["BertForSequenceClassification"], **labels, **(config or {})}
        for name, changes in (("config.json", entries), ("tokenizer_config.json", tokenizer or {})):
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            (folder / name).write_text(json.dumps({**content, **changes}), encoding="utf-8")
        return folder

    return make


def list_commands(folder: Path) -> list[list[str]]:
    """Returns a command line for each of the commands that load a model."""
    data = folder.parent / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in tiny.make_rows(24, seed=1)), encoding="utf-8")
    train = ["--model.backbone", str(folder), "--data.train", str(data), "--output_dir", str(folder.parent / "out")]
    return [
        ["inspect", str(folder)],
        ["predict", str(folder), "--text", "a cat"],
        ["evaluate", str(folder), "--data", str(data)],
        ["train", "classify", *train, "--train.max_updates", "1", "--tracking.trackers", "[]"],
    ]


@pytest.mark.parametrize(
    ("config", "tokenizer", "reason"),
    [
        ({"model_type": "evil", "auto_map": AUTO_MAP}, {}, "needs Python code that came with it (evil.EvilConfig, "),
        ({}, {"auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}, "tokenizer_class": "EvilTokenizer"}, ""),
        ({"attn_implementation": "someone/kernel"}, {}, "asks for the attn_implementation someone/kernel"),
        (
            {"_attn_implementation": "someone/kernel@main:f"},
            {},
            "asks for the attn_implementation someone/kernel@main:f",
        ),
    ],
    ids=["config", "tokenizer", "attention", "hidden attention"],
)
def test_code_of_a_model_is_named_and_not_run(
    make_evil: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    reason: str,
) -> None:
    """The attack: `printf 'y\\n' | hf-finetune inspect FOLDER` ran it, after a question that nobody saw."""
    for words in list_commands(make_evil(config, tokenizer)):
        code = cli.main(words)
        printed = capsys.readouterr().err
        if reason:
            assert code == 2, words
            lines = [line for line in printed.splitlines() if line.startswith("error: ")]
            assert len(lines) == 1, printed
            assert reason in lines[0]
            assert "model.trust_remote_code" in lines[0]
        assert "Traceback" not in printed
        assert not (tmp_path / "ran").exists(), words


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "config",
    [{"num_hidden_layers": 10**9}, {"hidden_size": 10**13}, {"vocab_size": 10**12}],
    ids=str,
)
def test_a_config_that_asks_for_the_impossible_is_one_line(
    make_evil: Callable[..., Path], capsys: pytest.CaptureFixture[str], config: dict[str, int]
) -> None:
    for words in list_commands(make_evil(config)):
        assert cli.main(words) == 2
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        assert len([line for line in printed.splitlines() if line.startswith("error: ")]) == 1


def test_layers_are_counted_by_any_name_and_in_configs_inside_a_config() -> None:
    large = transformers.GPT2Config(n_layer=10**9)
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(transformers.BertConfig(), large)
    for config in (large, both):
        with pytest.raises(
            InputError, match=r"^a model: its config.json asks for n_layer 1,000,000,000, more than any"
        ):
            check_layers(config, "a model")


def test_the_class_of_transformers_is_used_although_the_config_names_another(
    make_evil: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_evil({"auto_map": AUTO_MAP})
    assert cli.main(["inspect", str(folder)]) == 0
    assert Predictor.from_pretrained(folder).predict("a cat")["label"] in ("a", "b")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_cannot_trust_code_for_the_user(
    make_evil: Callable[..., Path],
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The attack: a checkpoint whose settings name a backbone with code, and trust it."""
    config = make_config(**{"train.max_updates": 1})
    finetune(config)
    path = next((config.run_dir / "checkpoints").glob("*.pt"))
    content = torch.load(path, weights_only=True)
    backbone = make_evil({"model_type": "evil", "auto_map": AUTO_MAP})
    content["run"]["config"]["model"] |= {"backbone": str(backbone), "trust_remote_code": True}
    torch.save(content, path)
    monkeypatch.setattr(checkpoint, "find_damage_in_file", lambda path: None)  # its digest can be made to fit
    start = ["train", "classify", "--start_from", str(path), "--data.train", str(config.data.train[0])]
    for words in (
        ["materialize", str(path), "--out", str(tmp_path / "made")],
        [*start, "--output_dir", str(tmp_path / "out")],
    ):
        assert cli.main(words) == 2
        assert "which runs only with model.trust_remote_code true" in capsys.readouterr().err
        assert not (tmp_path / "ran").exists()


def test_code_that_the_user_trusts_runs(make_evil: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_evil({"model_type": "evil", "auto_map": AUTO_MAP})
    with pytest.raises(InputError, match="which runs only with"):
        Predictor.from_pretrained(folder)
    assert cli.main(["inspect", str(folder), "--model.trust_remote_code", "false"]) == 2
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(folder), "--model.trust_remote_code", "perhaps"])
    assert not (tmp_path / "ran").exists()
    assert cli.main(["inspect", str(folder), "--model.trust_remote_code"]) == 0
    assert (tmp_path / "ran").exists()
    assert Predictor.from_pretrained(folder, trust_remote_code=True).predict("a cat")["label"] in ("a", "b")
