"""Runs with data.streaming: each example once an epoch, resume to the same bits, errors."""

import csv
import dataclasses
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.hub_server import HubServer
from support.runs import (
    assert_same_tensors,
    kill_recipe,
    launch,
    load_last_checkpoint,
    read_untimed_metrics,
    run_recipe,
    run_until,
)
from support.script_server import ScriptServer

from hf_finetune import train as train_module
from hf_finetune.api import finetune as finetune_rows
from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import load_task
from hf_finetune.data.shards import find_streamed_data
from hf_finetune.run.folder import open_run
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
SETTINGS: dict[str, Any] = {
    "data.streaming": True,
    "data.shuffle_buffer": 16,
    "data.test": [],
    "train.max_updates": 16,
    "checkpoint.every": 1,
    "evaluation.every": 4,
}


def write_shards(folder: Path, sizes: tuple[int, ...] = (25, 7, 28)) -> list[dict[str, Any]]:
    """Writes shards of several types of files, and returns all rows."""
    folder.mkdir(exist_ok=True)
    rows = tiny.make_rows(sum(sizes), seed=5)
    rows = [{**row, "text": f"{row['text']} {tiny.FILLER[number % 18]}"} for number, row in enumerate(rows)]
    parts, start = [], 0
    for size in sizes:
        parts.append(rows[start : start + size])
        start += size
    tiny.write_jsonl(folder / "0.jsonl", parts[0])
    with gzip.open(folder / "1.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in parts[1]))
    with (folder / "2.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(parts[2])
    return rows


def make_streamed(make_config: MakeConfig, folder: Path, **settings: Any) -> RunConfig:
    """The config of a run on shards in `folder`, which are written unless they are there."""
    if not (folder / "2.csv").exists():
        write_shards(folder)
    return make_config(**{**SETTINGS, "data.train": [f"{folder}/*"], **settings})


def collect_texts(config: RunConfig, monkeypatch: pytest.MonkeyPatch, updates: int) -> list[list[str]]:
    """The texts that each update of a run takes."""
    with open_run(config) as runtime:
        run = set_up(config, runtime, Clock())
        source, taken = run.make_source(), []
        for update in range(updates):
            batch = source.get_batch(update)
            assert run.stream is not None
            assert run.stream.block is not None
            taken.append([run.stream.block.table.columns["text"][index] for index in batch.indices.tolist()])
    return taken


def test_each_example_is_taken_once_an_epoch(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 rows in batches of 8, in blocks of 16 rows: 2 + 2 + 2 + 2 batches, the last of 6."""
    monkeypatch.setattr("hf_finetune.run.streaming.GROUPED_BATCHES", 2)
    rows = write_shards(tmp_path / "shards")
    taken = collect_texts(make_streamed(make_config, tmp_path / "shards"), monkeypatch, 16)
    assert [len(batch) for batch in taken] == [8, 8, 8, 8, 8, 8, 6, 6] * 2
    epochs = [[text for batch in part for text in batch] for part in (taken[:8], taken[8:])]
    expected = sorted(row["text"] for row in rows)
    assert [sorted(epoch) for epoch in epochs] == [expected, expected]
    assert epochs[0] != epochs[1]


def test_a_streamed_run_learns_and_says_how_it_reads(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"train.max_updates": 120, "train.epochs": 50, "model.dropout": 0.0, "checkpoint.every": 120}
    settings |= {"evaluation.every": 40}
    result = finetune(make_streamed(make_config, tmp_path / "shards", **settings)).results
    assert result["best"]["value"] >= 0.9
    assert result["updates"] == 120
    assert result["examples"] == {"train": 900, "validation": 24, "test": 0}  # 15 epochs of 8 updates and 60 rows
    printed = capsys.readouterr().out
    assert "train: a stream of 3 shards in random order, rows through a buffer of 16 (data.shuffle_buffer)" in printed
    assert "learns its labels and the like from the first 16 rows and from validation" in printed


@pytest.mark.parametrize("update", [1, 2, 3, 7, 8, 9, 15, 16])
def test_a_run_that_is_cut_off_after_any_update_goes_on_to_the_same_bits(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    """In a block, after a block (2), after an epoch (8), at the end (16)."""
    monkeypatch.setattr("hf_finetune.run.streaming.GROUPED_BATCHES", 2)
    whole = make_streamed(make_config, tmp_path / "shards", name="whole")
    finetune(whole)
    config = make_streamed(make_config, tmp_path / "shards")
    run_until(config, update, monkeypatch)
    finetune(config)
    assert_same_tensors(
        load_last_checkpoint(config.run_dir)["model_state_dict"],
        load_last_checkpoint(whole.run_dir)["model_state_dict"],
    )
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(whole.run_dir)


def test_epochs_end_where_the_stream_does(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluation and checkpoints by epoch; train.epochs ends the run before train.max_updates."""
    settings = {"train.max_updates": 100, "evaluation.every": "epoch", "checkpoint.every": "epoch"}
    settings["freeze.embeddings"] = True
    config = make_streamed(make_config, tmp_path / "shards", **settings)
    results = finetune(config).results
    assert [(row["epoch"], row["update"]) for row in results["history"]] == [(1, 8), (2, 16)]
    assert results["updates"] == 16
    printed = capsys.readouterr().out
    assert "train.epochs (2) ended the stream after 16 of 100 updates" in printed
    assert "evaluation.every and checkpoint.every epoch: only where an epoch ends, and at the end" in printed
    assert "off: data.streaming keeps nothing of what it has read" in printed
    assert load_last_checkpoint(config.run_dir)["epoch"] == 2
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=3))
    assert finetune(longer).results["updates"] == 24


def test_other_shards_or_another_buffer_are_not_resumed(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_streamed(make_config, tmp_path / "shards")
    run_until(config, 3, monkeypatch)
    with pytest.raises(
        InputError, match=r"other data \(train differs; changed: data.shuffle_buffer \(was 16, now 17\)"
    ):
        finetune(make_streamed(make_config, tmp_path / "shards", **{"data.shuffle_buffer": 17}))
    tiny.write_jsonl(tmp_path / "shards" / "3.jsonl", tiny.make_rows(5))
    with pytest.raises(InputError, match=r"other data \(train differs\)"):
        finetune(config)


def test_a_function_that_gives_other_rows_is_not_resumed(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first 100 rows, which the digest of the stream holds, are equal; the digest of the block finds the others."""
    shards = tmp_path / "shards"
    write_shards(shards, (400, 1, 1))
    config = make_streamed(make_config, shards, **{"data.train": [str(shards / "0.jsonl")], "data.shuffle_buffer": 400})
    run_until(config, 3, monkeypatch)
    monkeypatch.setattr("hf_finetune.data.shards.DIGESTED_BYTES", 10)
    monkeypatch.setattr(train_module.resume, "check_data", lambda *_: None)
    lines = (shards / "0.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (shards / "0.jsonl").write_text("".join(lines[:200] + lines[:200]), encoding="utf-8")
    with pytest.raises(InputError, match=r"data\.train gives other rows than when the checkpoint was saved"):
        finetune(config)


def test_a_label_that_comes_later_stops_with_its_line_and_the_way_out(make_config: MakeConfig, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    rows = [*tiny.make_rows(60), {"text": "the cat", "label": "plants"}]
    tiny.write_jsonl(shards / "0.jsonl", rows)
    config = make_streamed_file(make_config, shards / "0.jsonl")
    with pytest.raises(InputError, match=r"0\.jsonl:61: .*plants.*name all of them in task.label_names"):
        finetune(config)
    named = {"task.label_names": [*tiny.CLASSES, "plants"], "name": "named"}
    result = finetune(make_streamed_file(make_config, shards / "0.jsonl", **named)).results
    assert result["labels"] == ["animals", "food", "tools", "plants"]


def make_streamed_file(make_config: MakeConfig, path: Path, **settings: Any) -> RunConfig:
    """The config of a run on one file."""
    return make_config(**{**SETTINGS, "data.train": [str(path)], **settings})


def test_an_error_in_the_stream_saves_before_it_stops(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once the shard is as it was, the run goes on to the bits of an undisturbed one."""
    monkeypatch.setattr("hf_finetune.run.streaming.GROUPED_BATCHES", 2)
    settings = {"checkpoint.every": 100, "evaluation.every": 100}
    whole = make_streamed(make_config, tmp_path / "shards", name="whole", **settings)
    finetune(whole)
    config = make_streamed(make_config, tmp_path / "shards", **settings)

    class BrokenReader:
        calls = 0

        def __call__(self, *arguments: Any) -> Any:
            self.calls += 1
            if self.calls > 60:
                raise InputError("shard 7: the network is gone")
            return original(*arguments)

    from hf_finetune.data import shards

    original = shards.take_values
    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.data.shards.take_values", BrokenReader())
        with pytest.raises(
            InputError, match=r"the network is gone; the run is saved up to .*update\d+.* to continue from it"
        ):
            finetune(config)
    finetune(config)
    assert_same_tensors(
        load_last_checkpoint(config.run_dir)["model_state_dict"],
        load_last_checkpoint(whole.run_dir)["model_state_dict"],
    )


def test_rows_without_a_label_are_left_out_and_counted_when_resuming(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is read whether or not it is an example: a resume has to read as many."""
    monkeypatch.setattr("hf_finetune.run.streaming.GROUPED_BATCHES", 2)
    rows = [{**row, "label": None} if number % 3 == 1 or number > 40 else row
            for number, row in enumerate(write_shards(tmp_path / "shards"))]  # fmt: skip
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = {"task.ignore_labels": ["null"], "data.shuffle_buffer": 2, "train.epochs": 9, "train.max_updates": 12}
    whole = make_streamed_file(make_config, path, name="whole", **settings)
    finetune(whole)
    config = make_streamed_file(make_config, path, **settings)
    run_until(config, 6, monkeypatch)
    assert finetune(config).results["updates"] == 12
    assert_same_tensors(
        load_last_checkpoint(config.run_dir)["model_state_dict"],
        load_last_checkpoint(whole.run_dir)["model_state_dict"],
    )
    ends = load_last_checkpoint(config.run_dir)["run"]["stream"]
    assert ends["examples"] == load_last_checkpoint(whole.run_dir)["run"]["stream"]["examples"]


def test_what_is_recognised_in_shards_is_said_once(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the report that of the first rows, as without data.streaming; during training only what is new."""
    for number, delimiter in enumerate(";;|"):
        rows = [f"{row['text']} ä{delimiter}{row['label']}\n" for row in tiny.make_rows(20, seed=number)]
        (tmp_path / f"{number}.csv").write_text(f"text{delimiter}label\n{''.join(rows)}", encoding="utf-8")
    settings = {"data.train": [f"{tmp_path}/*.csv"], "data.encoding": ["latin-1"], "data.shuffle_buffer": 4}
    config = make_config(**{**SETTINGS, **settings})
    with open_run(config) as runtime:
        run = set_up(config, runtime, Clock())
        assert (
            "files",
            "0.csv: the delimiter is ; (set data.delimiter to choose another)",
        ) in run.data_report.recognised
        assert ["valid utf-8" in warning for warning in run.data_report.warnings].count(True) == 1
        source = run.make_source()
        capsys.readouterr()
        for update in range(16):  # two epochs
            source.get_batch(update)
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["data        2.csv: the delimiter is | (set data.delimiter to choose another)"]


def test_the_columns_of_a_function_are_recognised(make_config: MakeConfig) -> None:
    """The spans of a tagging that a generator function gives."""
    rows = [{"text": "Anna lives in Oslo", "label": [[0, 4, "PER"], [14, 18, "LOC"]]}] * 3
    config = make_config(
        **SETTINGS, **{"task.kind": "tag", "data.text_columns": ["tokens"], "data.label_column": "tags"}
    )
    spec = load_task("tag").make_columns(config).spec
    data = find_streamed_data(config.data, spec, lambda: iter(rows))
    assert len(list(data.shards[0].read())) == 3
    (note,) = data.notes.take()
    assert note == "train: 6 entities are spans of characters in the column label: read as words with tags"
    list(data.shards[0].read())
    assert data.notes.take() == []


@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0], [False, True]])
def test_labels_have_one_form_over_the_types_of_shards(
    make_config: MakeConfig, tmp_path: Path, values: list[Any]
) -> None:
    """Numbers in JSON, text in csv; a block may have a single label, or one type only."""
    texts = [row["text"] for row in tiny.make_rows(40, seed=2)]
    tiny.write_jsonl(tmp_path / "a.jsonl", [{"text": text, "label": values[text.count("a") % 2]} for text in texts])
    with (tmp_path / "b.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, values[1]) for text in texts)])
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.csv")]
    validation = tiny.write_jsonl(tmp_path / "v.jsonl", [{"text": text, "label": values[0]} for text in texts[:5]])
    settings = {"data.train": files, "data.validation": [str(validation)], "train.max_updates": 5}
    result = finetune(make_config(**{**SETTINGS, **settings})).results
    assert result["labels"] == (["false", "true"] if values[0] is False else ["0", "1"])


# --- other tasks ----------------------------------------------------------------------------------------------------


def write_lines(path: Path, count: int, seed: int) -> str:
    """Writes a text file of lines of different lengths."""
    path.parent.mkdir(exist_ok=True)
    lines = [row["text"] for row in tiny.make_rows(count, seed=seed)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_language_models_are_trained_on_all_tokens_of_the_stream(
    make_config: MakeConfig, tmp_path: Path, ending: str
) -> None:
    """Lines of text files stay together; documents of tables are shuffled. No token is lost, and none comes twice."""
    texts: list[str] = []
    for number in range(3):
        path = write_lines(tmp_path / "shards" / f"{number}{ending}", 30 + number, seed=number)
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        texts += lines
        if ending == ".jsonl":
            tiny.write_jsonl(Path(path), [{"text": line} for line in lines])
    config = make_config(
        **{
            **SETTINGS,
            "task.kind": "model_language",
            "task.objective": "masked",
            "data.label_column": None,
            "data.train": [f"{tmp_path}/shards/*"],
            "data.validation": [write_lines(tmp_path / "validation.txt", 20, seed=9)],
            "data.max_length": 16,
        }
    )
    with open_run(config) as runtime:
        run = set_up(config, runtime, Clock())
        source, ids = run.make_source(), list[int]()
        assert run.stream is not None
        while not run.stream.epoch_ends:
            batch = source.get_batch(run.stream.position.update)
            features = batch.measured.features
            for index in batch.indices.tolist():
                ids += features.inputs["input_ids"][features.offsets[index] : features.offsets[index + 1]].tolist()
    words = tiny.make_tokenizer()(texts, add_special_tokens=False)["input_ids"]
    expected = sorted(token for tokens in words for token in tokens)
    assert sorted(token for token in ids if token > 4) == expected


def test_masks_differ_from_block_to_block(make_config: MakeConfig, tmp_path: Path) -> None:
    """What is drawn for a feature depends on its number in the block: the number of the block has to enter too."""
    config = make_streamed(make_config, tmp_path / "shards")
    with open_run(config) as runtime:
        run = set_up(config, runtime, Clock())
        source = run.make_source()
        numbers = [source.get_batch(update).pass_number for update in range(16)]
    assert numbers == [1] * 8 + [2] * 8


def test_pairs_of_text_files_are_shards(tmp_path: Path) -> None:
    from hf_finetune.config.sections import DataConfig
    from hf_finetune.data.formats import PARALLEL
    from hf_finetune.data.table import ColumnSpec

    names = ["0.en", "0.de", "1.en", "1.de"]
    for name in names:
        (tmp_path / name).write_text(f"{name} first\n{name} second\n", encoding="utf-8")
    spec = ColumnSpec(inputs=("source",), labels=("target",), texts=("source", "target"), text_files=PARALLEL)
    files = tuple(str(tmp_path / name) for name in names)
    config = DataConfig(train=files, text_columns=("source",), label_column="target")
    data = find_streamed_data(config, spec)
    rows = [[(row.line, *row.values) for row in shard.read()] for shard in data.shards]
    assert rows == [
        [(1, f"{number}.en first", f"{number}.de first"), (2, f"{number}.en second", f"{number}.de second")]
        for number in range(2)
    ]
    with pytest.raises(InputError, match="text files must come in pairs"):
        list(find_streamed_data(dataclasses.replace(config, train=files[:3]), spec).shards[-1].read())


def test_a_task_that_joins_rows_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.streaming \(True\): does not go together with task\.kind rerank"):
        finetune(make_streamed(make_config, tmp_path / "shards", **{"task.kind": "rerank"}))


# --- from Python ----------------------------------------------------------------------------------------------------


def make_arguments(make_config: MakeConfig, name: str) -> dict[str, Any]:
    """The arguments of finetune() for a short run on a stream."""
    config = make_config()
    return {
        "validation": list(config.data.validation),
        "settings": {
            "name": name,
            "output_dir": config.output_dir,
            "model.backbone": config.model.backbone,
            "train.max_updates": 6,
            "train.batch_size": 8,
            "train.precision": "fp32",
            "tracking.trackers": [],
            "data.shuffle_buffer": 30,
            "data.max_length": 48,
        },
    }


def test_a_generator_function_and_an_iterable_data_set_are_streamed(make_config: MakeConfig, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = tiny.make_rows(60, seed=3)

    def generate() -> Iterator[dict[str, Any]]:
        yield from rows

    from_function = finetune_rows("classify", train=generate, **make_arguments(make_config, "function"))
    dataset = datasets.IterableDataset.from_generator(generate)
    from_dataset = finetune_rows("classify", train=dataset, **make_arguments(make_config, "dataset"))
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
    arguments = make_arguments(make_config, "file")
    arguments["settings"] |= {"data.streaming": True}
    from_file = finetune_rows("classify", train=path, **arguments)
    weights = [
        load_last_checkpoint(run.run_dir)["model_state_dict"] for run in (from_function, from_dataset, from_file)
    ]
    assert_same_tensors(weights[0], weights[1])
    assert_same_tensors(weights[0], weights[2])


def test_a_function_that_cannot_be_read_again_is_an_error(make_config: MakeConfig) -> None:
    rows = iter(tiny.make_rows(60, seed=3))
    with pytest.raises(InputError, match=r"train: the function returned the same iterator again"):
        finetune_rows("classify", train=lambda: rows, **make_arguments(make_config, "once"))


def test_an_error_of_the_function_names_the_row(make_config: MakeConfig) -> None:
    def generate() -> Iterator[dict[str, Any]]:
        yield from tiny.make_rows(35, seed=3)
        raise ConnectionError("reset by peer")

    with pytest.raises(InputError, match=r"train: cannot be read after train\[34\]: ConnectionError: reset by peer"):
        finetune_rows("classify", train=generate, **make_arguments(make_config, "broken"))


def test_a_data_set_folder_is_streamed_with_its_own_splits(make_config: MakeConfig, tmp_path: Path) -> None:
    """The same code as for a data set on the Hub: load_dataset_builder().as_streaming_dataset()."""
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    rows = tiny.make_rows(60, seed=3)
    tiny.write_jsonl(folder / "train-0.jsonl", rows[:30])
    tiny.write_jsonl(folder / "train-1.jsonl", rows[30:])
    tiny.write_jsonl(folder / "validation-0.jsonl", tiny.make_rows(24, seed=4))
    settings = {"data.dataset": str(folder), "data.train": [], "data.validation": [], "train.max_updates": 9}
    config = make_config(**{**SETTINGS, **settings})
    result = finetune(config).results
    assert result["examples"] == {"train": 68, "validation": 24, "test": 0}
    tiny.write_jsonl(folder / "train-1.jsonl", rows[31:])
    from hf_finetune.run.inputs import find_changed_inputs

    assert find_changed_inputs(config) == ["data.train: has other content now"]


# --- real processes -------------------------------------------------------------------------------------------------


@pytest.mark.processes
def test_a_killed_streamed_run_goes_on_to_the_same_bits(
    make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer
) -> None:
    """A real SIGKILL from outside, in the middle of an epoch, while the shards are read."""
    settings = {"train.max_updates": 30, "train.epochs": 9, "checkpoint.every": 3, "evaluation.every": 10}
    whole = make_streamed(make_config, tmp_path / "shards", name="whole", **settings)
    finetune(whole)
    config = make_streamed(make_config, tmp_path / "shards", **settings)
    kill_recipe(script_server, config, tmp_path)
    assert not (config.run_dir / "results.json").exists()
    done = run_recipe(script_server, 1, config, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert "resuming after update" in done.stdout
    assert_same_tensors(
        load_last_checkpoint(config.run_dir)["model_state_dict"],
        load_last_checkpoint(whole.run_dir)["model_state_dict"],
    )


@pytest.mark.processes
def test_a_stream_from_the_hub_that_breaks_is_resumed_to_the_bits_of_local_files(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client of the Hub, against a server on loopback that refuses a shard in the middle of the run."""
    pytest.importorskip("datasets")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    folder, rows = tmp_path / "set", tiny.make_rows(96, seed=5)
    folder.mkdir()
    for number in range(3):
        tiny.write_jsonl(folder / f"train-{number}.jsonl", rows[24 * number : 24 * number + 24])
    tiny.write_jsonl(folder / "validation.jsonl", rows[72:])
    settings = {**SETTINGS, "data.train": [], "data.validation": [], "train.max_updates": 12, "checkpoint.every": 3}
    whole = make_config(name="local", **{**settings, "data.dataset": str(folder)})
    finetune(whole)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with HubServer(users={"hf_ada": {"name": "ada", "role": "write", "orgs": []}}) as server:
        api = huggingface_hub.HfApi(endpoint=server.endpoint, token="hf_ada")
        api.create_repo("ada/rows", repo_type="dataset", private=True)
        api.upload_folder(repo_id="ada/rows", repo_type="dataset", folder_path=folder)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in server.environment("hf_ada", tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        config = make_config(name="hub", **{**settings, "data.dataset": "ada/rows"})
        server.fail_next("GET", r"/train-2\.jsonl$", status=403, times=9)
        broken = launch([sys.executable], config, {}, tmp_path)
        assert broken.returncode == 2, broken.stdout[-1500:] + broken.stderr[-1500:]
        assert (
            "data.dataset (ada/rows): cannot be read after ada/rows/train shard 2[0]: HfHubHTTPError: 403"
            in broken.stderr
        )
        server.faults.clear()
        done = launch([sys.executable], config, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    assert_same_tensors(
        load_last_checkpoint(config.run_dir)["model_state_dict"],
        load_last_checkpoint(whole.run_dir)["model_state_dict"],
    )


@pytest.mark.processes
def test_two_processes_have_the_losses_of_one(
    make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer
) -> None:
    one = make_streamed(make_config, tmp_path / "shards", name="one")
    finetune(one)
    two = make_streamed(make_config, tmp_path / "shards", name="two")
    done = run_recipe(script_server, 2, two, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    losses = [
        [row["train/loss"] for row in read_untimed_metrics(config.run_dir) if "train/loss" in row]
        for config in (one, two)
    ]
    assert len(losses[0]) == 16
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
