"""Each task's rows encoded in parts, by several workers, are those encoded at once, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipe_case import Case, load_cases

from hf_finetune.config.loading import load_config
from hf_finetune.config.tasks import load_task
from hf_finetune.data import encoding
from hf_finetune.data.encoder import rows_are_independent
from hf_finetune.data.features import Features, Ragged, make_features
from hf_finetune.data.splits import load_splits
from hf_finetune.model import backbone

PACKING = {"model_language"}  # tasks that join rows

CASES = list({(case.recipe, case.variant): case for case in load_cases()}.values())


def list_arrays(features: Features) -> dict[str, Any]:
    """All arrays of features by name."""
    labels = features.labels
    ragged = {"label values": labels.values, "label offsets": labels.offsets} if isinstance(labels, Ragged) else {}
    return {
        **features.inputs, **features.extras, **ragged,
        "labels": None if ragged else labels,
        "offsets": features.offsets,
        "rows": features.sequence_offsets,
        "examples": features.example_indices,
        "truncated": np.array(features.num_truncated),
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parts_are_joined_to_the_arrays_of_the_whole_table(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(case.make_settings(tmp_path), [])
    task_class = load_task(config.task.kind)
    table = load_splits(config.data, config.seed, task_class.make_columns(config).spec).train
    table = task_class.extend_training(config, table)
    task = task_class.from_table(config, table)
    loaded = backbone.load_backbone(config.model, task.head, backbone.load_tokenizer(config.model))
    task.prepare_model(loaded.model, loaded.tokenizer)
    arrays = task.encoding.tokenize(table, loaded.tokenizer, 10)
    whole = list_arrays(make_features(arrays, task.encoding.labels(table, arrays)))
    monkeypatch.setattr(encoding, "ROWS_IN_PART", 5)
    for workers in (1, 3):
        root = tmp_path / str(workers)
        features = encoding.encode(task.encoding, table, loaded.tokenizer, 10, root=root, workers=workers)
        parts = next(root.glob("encoded/*/parts.jsonl")).read_text().splitlines()
        assert (len(parts) > 1) == rows_are_independent(task.encoding) == (case.recipe not in PACKING)
        joined = list_arrays(features)
        assert joined.keys() == whole.keys()
        for name, array in whole.items():
            same_type = array is None or joined[name].dtype == array.dtype
            assert same_type, name
            assert np.array_equal(joined[name], array) or (joined[name] is None and array is None), name
