"""The scored examples of a run's splits, written at its end.

Nothing is computed twice for them: those of validation come from the evaluation that was the best, and those of the test split
from its only one.
"""

from collections.abc import Mapping
from typing import Any

from hf_finetune.run.details import describe_details, measure_lengths
from hf_finetune.run.kept import MOST_KEPT, can_describe
from hf_finetune.run.scored import FOLDER, add_origins, write_scored
from hf_finetune.run.tensorboard import ScoredSplit
from hf_finetune.run.tracking import Tracking
from hf_finetune.run.training_run import TrainingRun


def write_scored_splits(
    run: TrainingRun, final: Mapping[str, Mapping[str, float]], tracker: Tracking
) -> dict[str, Any]:
    """Writes the scored examples of the splits that were evaluated at the end, and returns the `details` of results.json: what
    they say of each split. On the main process.

    tracker: Keeps them until it has shown them.
    """
    details = {}
    for split, values in final.items():
        features, table = run.features[split], run.splits.tables()[split]
        scores = run.describe_kept(split)
        reason = run.kept.left_out.get(split, "")
        if can_describe(run.task.scoring) and len(features) > MOST_KEPT:
            reason = f"{len(features):,} examples are more than {MOST_KEPT:,}"
        if scores is None and reason:
            run.runtime.say(
                f"{FOLDER}/{split}.jsonl is left out: {reason}; "
                f"hf-finetune evaluate {run.config.run_dir} --data FILE --scored OUT.jsonl writes it\n"
            )
        if scores is None:
            continue
        scored = add_origins(scores, run.task, table, values, kind=run.config.task.kind, metric=run.metric)
        write_scored(run.config.run_dir / FOLDER / f"{split}.jsonl", scored)
        lengths = measure_lengths(scored.scores, features)
        details[split] = describe_details(scored.scores, tuple(values), lengths, run.metric)
        inputs = tuple(run.task.encoding.encoded_columns())
        tracker.keep_split(split, ScoredSplit(scored=scored, details=details[split], table=table, inputs=inputs))
    return details
