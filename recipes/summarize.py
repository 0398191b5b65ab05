"""Fine-tunes an encoder-decoder model to write a short text for a long one, scored by ROUGE.

    accelerate launch recipes/summarize.py --data.train train.jsonl --data.test test.jsonl
    accelerate launch recipes/summarize.py --config FILE.yaml --model.backbone facebook/bart-base --task.input_prefix ""
    hf-finetune train summarize ...                               the same after pip install, from any folder

Data: {"document": ..., "summary": ...} per line. A summary may be a list of several: the first is trained on, and the best
match counts in ROUGE. Also csv, tsv, json and parquet files, a data set on the Hub, or pairs of text files with matching lines:
--data.train train.source train.target.

ROUGE is computed on task.generate_examples examples of validation and of the test, spread evenly over them. `pip install
'hf-finetune[generation]'` installs what it needs. The complete encoder can be frozen and computed once: --freeze.embeddings
true --freeze.layers all.
"""

import sys

from hf_finetune import run_recipe

DEFAULTS = {
    "task.kind": "summarize",
    "model.backbone": "google-t5/t5-small",
    "data.text_columns": ["document"],
    "data.label_column": "summary",
    "data.max_length": 512,  # as T5 was trained (Raffel et al. 2020, arXiv:1910.10683, section 3.1.2); BART: 1024
    "task.input_prefix": "summarize: ",  # T5's prefix (the same paper, appendix D); BART has none
    "task.max_target_length": 128,  # as in transformers' example run_summarization.py
    "task.num_beams": 4,  # as in Raffel et al., section 3.7
    "train.batch_size": 16,
    # transformers' page on T5 recommends 1e-4 or 3e-4 for AdamW; BART is usually trained with 3e-5 to 5e-5
    "train.learning_rate": 3e-4,
}

if __name__ == "__main__":
    sys.exit(run_recipe(DEFAULTS, description=__doc__))
