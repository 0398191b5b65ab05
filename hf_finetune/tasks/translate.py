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


class Translation(SequenceToSequence):
    """Texts in another language."""

    noun = "translation"
    text_metrics = TextMetrics(names=("bleu", "chrf"), compute=compute_bleu_and_chrf)
