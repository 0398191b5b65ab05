"""What the commands evaluate and predict ask of a Predictor, but for files of predictions: metrics of files, and one example."""

from collections.abc import Sequence
from typing import Any

from hf_finetune.export.evaluation import BUILT_IN_SLICES, Evaluation
from hf_finetune.export.predict import BATCH_SIZE, Predictor
from hf_finetune.export.prediction_rows import keep_columns
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
    """Returns loss and metrics on a labelled file, or on several. The other arguments are those of evaluate_file_examples()."""
    evaluation = evaluate_file_examples(
        predictor, data, metric=metric, trust_metric_code=trust_metric_code, batch_size=batch_size, keeps=False
    )
    return evaluation.values


def evaluate_file_examples(
    predictor: Predictor,
    data: str | Sequence[str],
    *,
    slices: Sequence[str] = (),
    metric: str | None = None,
    trust_metric_code: bool = False,
    batch_size: int = BATCH_SIZE,
    keeps: bool = True,
) -> Evaluation:
    """Returns loss and metrics on a labelled file, or on several, with what is known of each example.

    slices: Columns to read besides those of the task, or BUILT_IN_SLICES. The other arguments are those of
    Predictor.evaluate_table().

    Rows and encoded text lie on disk, as in training, and encoded text is that of the run if it had these rows. In memory are the
    targets and what the metrics need of each output, such as the logits of its labels.
    """
    root = cache_root()
    columns = [name for name in slices if name not in BUILT_IN_SLICES]
    spec = keep_columns(predictor.task.columns.spec, columns, "--slice") if columns else None
    table = predictor.read(data, needs_labels=True, root=root, spec=spec)
    return predictor.evaluate_table(
        table,
        metric=metric,
        trust_metric_code=trust_metric_code,
        batch_size=batch_size,
        key="--metric",
        root=root,
        keeps=keeps,
    )


def predict_texts(predictor: Predictor, texts: Sequence[str], **options: Any) -> dict[str, Any]:
    """Returns the prediction for the texts of one example. options: those of Predictor.predict_table()."""
    if any(not text.strip() for text in texts):
        raise InputError("--text: is empty")
    row = predictor.task.columns.make_row(texts)
    return next(predictor.predict_table(predictor.make_table([row]), **options))
