"""Translation, measured by BLEU and chrF."""

from collections.abc import Callable, Sequence

from hf_finetune.tasks.sequence_to_sequence import SequenceToSequence, package


class Translation(SequenceToSequence):
    """Texts in another language, measured by BLEU and chrF."""

    name = problem = pipeline_tag = "translation"

    @property
    def scorer(self) -> tuple[tuple[str, ...], Callable[..., dict[str, float]]]:
        return ("bleu", "chrf"), bleu_and_chrf


def bleu_and_chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """sacrebleu's corpus BLEU (13a tokens) and chrF2, from 0 to 100, as its command line gives them."""
    sacrebleu = package("sacrebleu", "BLEU and chrF")
    most = max(map(len, references))
    streams = [[right[number] if number < len(right) else None for right in references] for number in range(most)]
    return {
        "bleu": float(sacrebleu.corpus_bleu(list(texts), streams).score),
        "chrf": float(sacrebleu.corpus_chrf(list(texts), streams).score),
    }
