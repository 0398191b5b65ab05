"""Summarization: short texts for long ones, measured by ROUGE."""

from collections.abc import Callable, Sequence

import numpy as np

from hf_finetune.tasks.sequence_to_sequence import SequenceToSequence, package


class Summarization(SequenceToSequence):
    """Short texts for long ones, measured by ROUGE."""

    name = problem = pipeline_tag = "summarization"

    @property
    def scorer(self) -> tuple[tuple[str, ...], Callable[..., dict[str, float]]]:
        return ("rougeL", "rouge1", "rouge2", "rougeLsum"), rouge


def rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F-measures from 0 to 1 by rouge-score, words stemmed as in transformers' run_summarization.py; of several references
    the best counts. rougeLsum splits sentences at line breaks."""
    names = ("rougeL", "rouge1", "rouge2", "rougeLsum")
    scorer = package("rouge_score.rouge_scorer", "ROUGE").RougeScorer(names, use_stemmer=True)
    found = [scorer.score_multi(list(right), text) for text, right in zip(texts, references, strict=True)]
    return {name: float(np.mean([scores[name].fmeasure for scores in found])) for name in names}
