"""Translation, scored by BLEU and chrF."""

from collections.abc import Sequence

from hf_finetune.tasks.sequence_to_sequence import SequenceToSequence, Settings
from hf_finetune.tasks.text.references import TextMetrics, import_package

__all__ = ["Settings", "Translation"]


def compute_bleu_and_chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU (13a tokens) and chrF2, from 0 to 100, as the command line of sacrebleu computes them."""
    sacrebleu = import_package("sacrebleu", "BLEU and chrF")
    most = max(len(of_text) for of_text in references)
    # One list for each position among the references, None for texts that have fewer
    streams = [[of_text[index] if index < len(of_text) else None for of_text in references] for index in range(most)]
    return {
        "bleu": float(sacrebleu.corpus_bleu(list(texts), streams).score),
        "chrf": float(sacrebleu.corpus_chrf(list(texts), streams).score),
    }


MOST_WORDS = 4  # of an n-gram of BLEU
MATCHES = tuple(f"matches_{size}" for size in range(1, MOST_WORDS + 1))
ALL = tuple(f"all_{size}" for size in range(1, MOST_WORDS + 1))
LENGTHS = ("text_words", "reference_words")


def count_matches(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """The n-grams of 1 to 4 words that each text shares with its references, all of its n-grams, and the lengths: corpus BLEU
    follows from their sums. chrF cannot be computed from what sacrebleu says of single texts."""
    metric = import_package("sacrebleu.metrics", "BLEU and chrF").BLEU(effective_order=True)
    scores = [metric.sentence_score(text, list(of_text)) for text, of_text in zip(texts, references, strict=True)]
    return {
        **{name: [float(score.counts[place]) for score in scores] for place, name in enumerate(MATCHES)},
        **{name: [float(score.totals[place]) for score in scores] for place, name in enumerate(ALL)},
        "text_words": [float(score.sys_len) for score in scores],
        "reference_words": [float(score.ref_len) for score in scores],
    }


class Translation(SequenceToSequence):
    """Texts in another language."""

    noun = "translation"
    text_metrics = TextMetrics(
        names=("bleu", "chrf"),
        compute=compute_bleu_and_chrf,
        score_each=count_matches,
        rules={"bleu": ("bleu", *MATCHES, *ALL, *LENGTHS)},
    )
