"""Checkpoints that hold only what trains, whole models made of them, and the list of a run's checkpoints."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.runs import assert_same_tensors, load_last_checkpoint, run_until

from hf_finetune import Predictor, cli
from hf_finetune.config.sections import RunConfig
from hf_finetune.export.materialize import materialize
from hf_finetune.run import checkpoint
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., RunConfig]
SMALL = {"freeze.embeddings": True, "freeze.layers": 1, "checkpoint.content": "trainable"}


def exported(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model folder."""
    return load_file(folder / "model.safetensors")


def find_best_checkpoint(config: RunConfig) -> Path:
    """The file of the best checkpoint."""
    folder = config.run_dir / "checkpoints"
    return folder / str(checkpoint.read_references(folder)["best"])


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "distilbert"])
def test_a_small_checkpoint_gives_the_whole_model_back(
    make_config: MakeConfig, backbones: Callable[..., Path], tmp_path: Path, family: str, problem: str
) -> None:
    config = make_config(problem, **SMALL, **{"model.backbone": str(backbones(family))})
    finetune(config)
    path, out = find_best_checkpoint(config), tmp_path / "whole"
    content = checkpoint.load_checkpoint(path)
    assert not set(content["model_state_dict"]) & set(content["run"]["frozen"])
    assert len(content["run"]["omitted"]["names"]) > 5
    materialize(path, out)
    assert_same_tensors(exported(out), exported(config.run_dir / "model"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == dict(enumerate(content["run"]["task_state"]["labels"]))
    ours, theirs = (
        list(Predictor.from_pretrained(str(each)).predict([{"text": "a red cat"}])) for each in (out, config.run_dir)
    )
    assert ours == theirs


def test_it_is_a_fraction_of_the_bytes_and_the_run_is_the_same(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Cut off twice with only what trains stored, it ends as one that stores all and was never cut off."""
    settings = {**SMALL, "freeze.patterns": ["classifier.bias"], "checkpoint.every": 2}  # new, and frozen
    full = make_config(**settings | {"checkpoint.content": "full"}, name="full")
    finetune(full)
    small = make_config(**settings, name="small")
    for stop in (3, 9):
        run_until(small, stop, monkeypatch)
    finetune(small)
    assert_same_tensors(exported(small.run_dir / "model"), exported(full.run_dir / "model"))
    assert find_best_checkpoint(small).stat().st_size < 0.8 * find_best_checkpoint(full).stat().st_size
    assert "classifier.bias" in load_last_checkpoint(small.run_dir)["model_state_dict"]
    for config in (full, small):
        materialize(find_best_checkpoint(config), tmp_path / f"{config.name}-whole")
        assert_same_tensors(exported(tmp_path / f"{config.name}-whole"), exported(full.run_dir / "model"))


def change_backbone(config: RunConfig) -> None:
    """Another value in a frozen tensor of the backbone's file."""
    path = Path(config.model.backbone) / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "word_embeddings" in name)
    tensors[name][3, 3] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def own_backbone(backbones: Callable[..., Path], tmp_path: Path) -> dict[str, str]:
    """A backbone that a test may change."""
    return {"model.backbone": str(shutil.copytree(backbones("bert"), tmp_path / "backbone"))}


def test_another_backbone_is_refused(
    make_config: MakeConfig, own_backbone: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = make_config(**SMALL, **own_backbone)
    run_until(config, 8, monkeypatch)
    change_backbone(config)
    message = "its frozen weights are not those the checkpoint was trained on"
    with pytest.raises(InputError, match=message):
        finetune(config)
    with pytest.raises(InputError, match=message):
        materialize(find_best_checkpoint(config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_made_whole_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(**SMALL)
    finetune(config)
    path, out = find_best_checkpoint(config), tmp_path / "out"
    with pytest.raises(InputError, match="exists; name a new folder"):
        materialize(path, config.run_dir)
    with pytest.raises(InputError, match="there is no folder"):
        materialize(path, tmp_path / "a" / "b")
    with pytest.raises(InputError, match="no such checkpoint"):
        materialize(tmp_path / "none.pt", out)
    shutil.copy(path, tmp_path / "alone.pt")
    with pytest.raises(InputError, match="no readable manifest"):
        materialize(tmp_path / "alone.pt", out)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="does not match the digest"):
        materialize(path, out)
    other = tmp_path / "other"
    checkpoint.save_checkpoint(
        other, {"epoch": 1, "update": 1, "loss": 0.5, "w": torch.ones(1)}, metric="accuracy", value=None
    )
    with pytest.raises(InputError, match="is not a checkpoint of hf-finetune"):
        materialize(next(other.glob("*.pt")), out)
    assert not out.exists()


def test_the_checkpoints_of_a_run_are_listed(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(**{"checkpoint.keep_last": 2, "evaluation.metric": "loss"})
    finetune(config)
    moved = shutil.move(config.run_dir, tmp_path / "elsewhere")  # names, not paths
    capsys.readouterr()
    assert cli.main(["checkpoints", str(moved)]) == 0
    *rows, summary = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"2 checkpoints, [\d.]+ MB in .*elsewhere/checkpoints", summary)
    assert [row.split()[:4] for row in rows] == [["epoch", "1", "update", "8"], ["epoch", "2", "update", "16"]]
    assert all("not read" in row for row in rows)
    assert [("best" in row, "last" in row) for row in rows] in (
        [(True, False), (False, True)],
        [(False, False), (True, True)],
    )
    assert cli.main(["checkpoints", str(moved), "--verify"]) == 0
    assert capsys.readouterr().out.count(" intact ") == 2
    path = sorted((Path(moved) / "checkpoints").glob("*.pt"))[0]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    (path.parent / "ckpt_epoch0003_update000024_loss0.1.pt").write_bytes(b"unreadable manifest")
    (path.parent / "ckpt_epoch0003_update000024_loss0.1.json").write_bytes(b"{")
    assert cli.main(["checkpoints", str(moved), "--verify"]) == 2
    shown = capsys.readouterr()
    assert "does not match the digest in its manifest" in shown.out
    assert "has no readable manifest" in shown.out
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert cli.main(["checkpoints", str(tmp_path)]) == 2


def test_materialize_on_the_command_line(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(**SMALL)
    finetune(config)
    capsys.readouterr()
    assert cli.main(["materialize", str(find_best_checkpoint(config)), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}  (from_pretrained)\n"
    assert cli.main(["materialize", str(find_best_checkpoint(config)), "--out", str(tmp_path / "out")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_checkpoint_cannot_have_a_class_imported_that_the_user_does_not_name(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = make_config(**{"train.max_updates": 1})
    finetune(config)
    path = find_best_checkpoint(config)
    original = checkpoint.load_checkpoint

    def load_hostile(path: Path) -> dict[str, object]:
        content = original(path)
        content["run"]["config"]["task"]["kind"] = "hostile_module:Task"
        return content

    monkeypatch.setattr(checkpoint, "load_checkpoint", load_hostile)
    (tmp_path / "hostile_module.py").write_text("raise SystemExit('this code ran')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"is imported only if you name it: --task hostile_module:Task$"):
        materialize(path, tmp_path / "out")
    with pytest.raises(SystemExit, match="this code ran"):  # named, it is imported
        materialize(path, tmp_path / "out", task="hostile_module:Task")
