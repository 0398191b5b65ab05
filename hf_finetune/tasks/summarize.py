"""Summarization: short texts for long ones, scored by ROUGE."""

from collections.abc import Sequence

import numpy as np

from hf_finetune.tasks.sequence_to_sequence import SequenceToSequence, Settings
from hf_finetune.tasks.text.references import TextMetrics, import_package

__all__ = ["Settings", "Summarization"]

ROUGE_NAMES = ("rougeL", "rouge1", "rouge2", "rougeLsum")


def compute_rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F-measures from 0 to 1 by the package rouge-score, with stemming as in transformers' run_summarization.py.

    The best of several references counts. rougeLsum splits sentences at line breaks.
    """
    return {name: float(np.mean(values)) for name, values in compute_rouge_of_each(texts, references).items()}


def compute_rouge_of_each(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """The F-measures of each text, whose means compute_rouge() returns."""
    scorer = import_package("rouge_score.rouge_scorer", "ROUGE").RougeScorer(ROUGE_NAMES, use_stemmer=True)
    pairs = zip(texts, references, strict=True)
    scores = [scorer.score_multi(list(of_text), text) for text, of_text in pairs]
    return {name: [score[name].fmeasure for score in scores] for name in ROUGE_NAMES}


class Summarization(SequenceToSequence):
    """Short texts for long ones."""

    noun = "summarization"
    text_metrics = TextMetrics(
        names=ROUGE_NAMES,
        compute=compute_rouge,
        score_each=compute_rouge_of_each,
        rules={name: ("mean", name) for name in ROUGE_NAMES},
    )
