"""The masks of masked language modelling, drawn with a numpy generator.

T tokens of a sequence, M tokens to predict.
"""

import numpy as np

from hf_finetune.data.features import Array

# Of the tokens to predict, these shares are shown as the mask token and as a random token. The rest is shown unchanged
# (Devlin et al. 2019, section 3.1)
MASK_SHARE = 0.8
RANDOM_SHARE = 0.1


def choose_masked_tokens(
    generator: np.random.Generator, word_indices: Array, fraction: float, *, whole_words: bool
) -> Array:
    """Returns the positions of the tokens to predict, in order [M].

    About `fraction` of the tokens that belong to a word are chosen, and at least one if there is any. Whole words are taken in
    random order; a word that would exceed the share is skipped, as in BERT's create_pretraining_data.py. If every word does, the
    shortest is taken.

    Args:
        generator: The only source of randomness.
        word_indices: Word of each token, -1 for tokens that are not to be predicted [T].
        fraction: Share of the tokens to predict, in (0, 1).
        whole_words: Choose all tokens of a word or none.
    """
    candidates = np.flatnonzero(word_indices >= 0)
    count = max(1, int(fraction * len(candidates) + 0.5)) if len(candidates) else 0
    if not whole_words:
        return np.sort(generator.permutation(candidates)[:count])
    word_starts = np.flatnonzero(np.diff(word_indices[candidates], prepend=-1))
    words = np.split(candidates, word_starts[1:]) if len(candidates) else []
    chosen: list[Array] = []
    num_left = count
    for number in generator.permutation(len(words)):
        if len(words[number]) <= num_left:
            chosen.append(words[number])
            num_left -= len(words[number])
        if not num_left:
            break
    if not chosen and words:
        chosen = [min(words, key=len)]
    return np.sort(np.concatenate(chosen)) if chosen else candidates


def draw_shown_tokens(
    generator: np.random.Generator, targets: Array, mask_token_id: int, replacement_ids: Array
) -> Array:
    """Returns the token ids that the model sees instead of the targets [M] int64.

    Args:
        generator: The only source of randomness.
        targets: Ids of the tokens to predict [M].
        mask_token_id: The tokenizer's mask token.
        replacement_ids: Ids that a random token is drawn from: all that are not special.
    """
    random_ids = replacement_ids[generator.integers(len(replacement_ids), size=len(targets))]
    draws = generator.random(len(targets))
    shown = np.where(draws < MASK_SHARE + RANDOM_SHARE, random_ids, targets)
    return np.where(draws < MASK_SHARE, mask_token_id, shown).astype(np.int64)
