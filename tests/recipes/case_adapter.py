"""LoRA adapters instead of whole upper blocks: an encoder that classifies, a decoder that is instructed, both stacks of one that
summarizes."""

from dataclasses import replace

import case_classification
import case_instruct
import case_sequence_to_sequence
from recipe_case import Case

# Random backbones know nothing that small changes could bring out: hence the large ones
LORA = {"adapter.kind": "lora", "adapter.alpha": 64, "checkpoint.content": "trainable"}


def with_lora(case: Case, **settings: object) -> Case:
    """The case with adapters, of which checkpoints hold no more than what trains."""
    return replace(case, variant="lora", settings={**case.settings, **LORA, **settings})


def first_of(cases: list[Case], family: str) -> Case:
    """The first case of a family."""
    return next(case for case in cases if case.family == family)


CASES = [
    with_lora(first_of(case_classification.CASES, "bert"), **{"train.learning_rate": 5e-3}),
    with_lora(
        first_of(case_instruct.CASES, "llama"), **{"adapter.targets": ["q_proj", "v_proj"], "adapter.dropout": 0.1}
    ),
    with_lora(first_of(case_sequence_to_sequence.CASES, "t5")),
]
