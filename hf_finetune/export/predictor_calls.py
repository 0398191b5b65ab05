"""What the commands evaluate and predict ask of a Predictor, but for files of predictions: metrics of files, and one example."""

from collections.abc import Sequence
from typing import Any

from hf_finetune.export.predict import BATCH_SIZE, Predictor
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import cache_root


def evaluate_file(
    predictor: Predictor,
    data: str | Sequence[str],
    *,
    metric: str | None = None,
    trust_metric_code: bool = False,
    batch_size: int = BATCH_SIZE,
) -> dict[str, float]:
    """Returns loss and metrics on a labelled file, or on several.

    Rows and encoded text lie on disk, as in training, and encoded text is that of the run if it had these rows. In memory are the
    targets and what the metrics need of each output, such as the logits of its labels.
    """
    root = cache_root()
    table = predictor.read(data, needs_labels=True, root=root)
    return predictor.evaluate(
        table, metric=metric, trust_metric_code=trust_metric_code, batch_size=batch_size, key="--metric", root=root
    )


def predict_texts(predictor: Predictor, texts: Sequence[str], **options: Any) -> dict[str, Any]:
    """Returns the prediction for the texts of one example. options: those of Predictor.predict_table()."""
    if any(not text.strip() for text in texts):
        raise InputError("--text: is empty")
    row = predictor.task.columns.make_row(texts)
    return next(predictor.predict_table(predictor.make_table([row]), **options))
