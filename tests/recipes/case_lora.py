"""Cases of LoRA adapters: classification by an encoder, instruction tuning of a decoder, summarization by an encoder-decoder."""

from dataclasses import replace

import case_classify
import case_instruct
import case_sequence_to_sequence
from recipe_case import Case

# A random backbone knows nothing that small updates could bring out, so the updates are large
LORA = {"adapter.kind": "lora", "adapter.alpha": 64, "checkpoint.content": "trainable"}


def add_lora(case: Case, **settings: object) -> Case:
    """Returns the case with adapters, and checkpoints of the trained weights only."""
    return replace(case, variant="lora", settings={**case.settings, **LORA, **settings})


def find_case(cases: list[Case], family: str) -> Case:
    """Returns the first case of a family."""
    return next(case for case in cases if case.family == family)


CASES = [
    add_lora(find_case(case_classify.CASES, "bert"), **{"train.learning_rate": 5e-3}),
    add_lora(
        find_case(case_instruct.CASES, "llama"), **{"adapter.targets": ["q_proj", "v_proj"], "adapter.dropout": 0.1}
    ),
    add_lora(find_case(case_sequence_to_sequence.CASES, "t5")),
]
