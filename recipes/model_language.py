"""Fine-tunes a language model on plain text of a domain: causal (predicts the next token) or masked (predicts hidden tokens).

    accelerate launch recipes/model_language.py --model.backbone HuggingFaceTB/SmolLM2-135M --data.train 'books/*.txt'
    accelerate launch recipes/model_language.py --config FILE.yaml
    hf-finetune train model_language ...                          the same after pip install, from any folder

Data: text files, or csv, jsonl or parquet files with a column of texts (data.text_columns). Text is packed into blocks of
data.max_length tokens. The lines of a file are one text; each row of a table is a text of its own, with an end token after it
(with task.packing none, each line or row is one example). Validation and test are taken from the end of each file. The
objective is chosen by the backbone, or set by task.objective. Metrics: perplexity, token accuracy.
"""

import sys

from hf_finetune import run_recipe

DEFAULTS = {
    "task.kind": "model_language",
    "data.label_column": None,
    # 5e-5, linear to 0, 8 blocks per update and 3 epochs are the defaults of transformers' run_clm.py and run_mlm.py. They have
    # no warm-up; here 10 % of the updates, which costs nothing and keeps AdamW's first updates small
    "train.learning_rate": 5e-5,
    "train.batch_size": 8,
    "evaluation.batch_size": 8,  # logits over a vocabulary are large: 8 x 512 x 50,000 in fp32 are 0.8 GB
}

if __name__ == "__main__":
    sys.exit(run_recipe(DEFAULTS, description=__doc__))
