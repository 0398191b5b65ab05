"""Fine-tunes a language model on plain text, to make it at home in a domain: causal (what comes next) or masked (what is hidden).

    accelerate launch recipes/model_language.py --model.backbone HuggingFaceTB/SmolLM2-135M --data.train 'books/*.txt'
    accelerate launch recipes/model_language.py --config FILE.yaml
    hf-finetune train model_language ...                          the same after pip install, from any folder

Data: text files, or csv, jsonl or parquet with a column of texts (data.text_columns). Text is packed into blocks of
data.max_length tokens; lines of a file belong together, rows of a table are texts of their own with an end token between
(task.packing none: each line or row by itself). Validation and test are taken from the end of each file. Which objective,
the backbone says, or task.objective. Metrics: perplexity, token accuracy.
"""

import sys

from hf_finetune import run_recipe

DEFAULTS = {
    "task.kind": "model_language",
    "data.label_column": None,
    # 5e-5, linear to 0, 8 blocks an update and 3 epochs are the defaults of transformers' run_clm.py and run_mlm.py (theirs
    # have no warm-up; ours is 10 % of the updates, which costs nothing and spares AdamW's first ones)
    "train.learning_rate": 5e-5,
    "train.batch_size": 8,
    "evaluation.batch_size": 8,  # logits over a vocabulary are large: 8 x 512 x 50,000 in fp32 are 0.8 GB
}

if __name__ == "__main__":
    sys.exit(run_recipe(DEFAULTS, description=__doc__))
