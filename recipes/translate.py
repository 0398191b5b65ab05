"""Fine-tunes an encoder-decoder model to write a text in another language, measured by BLEU and chrF.

    accelerate launch recipes/translate.py --data.train [train.en, train.de] --data.validation [dev.en, dev.de]
    accelerate launch recipes/translate.py --data.dataset USER/NAME --data.text_columns translation.en ...
    hf-finetune train translate ...                               the same after pip install, from any folder

Data: two text files whose lines belong together, first the source and then its translation; or {"source": ..., "target": ...}
a line (jsonl, csv, tsv, json, parquet); or a column of objects, as data sets of translations have it:
--data.text_columns translation.en --data.label_column translation.de. A target may be a list of several translations: the
first is trained on, all count in BLEU and chrF.

BLEU and chrF are sacrebleu's, on task.generate_examples of the validation and of the test split, spread evenly over them.
`pip install 'hf-finetune[generation]'` brings it. A model of many languages must know the pair from its tokenizer's files
(src_lang, tgt_lang) and its generation_config.json (forced_bos_token_id).
"""

import sys

from hf_finetune import run_recipe

DEFAULTS = {
    "task.kind": "translate",
    "model.backbone": "google-t5/t5-small",
    "data.text_columns": ["source"],
    "data.label_column": "target",
    "data.max_length": 128,  # sentences, as transformers' course on translation has it
    "task.max_target_length": 128,
    "task.num_beams": 4,  # as Raffel et al. 2020, arXiv:1910.10683, section 3.7
    "train.batch_size": 32,
    # transformers' page on T5 names 1e-4 and 3e-4 for AdamW; for Marian's models its course takes 2e-5
    "train.learning_rate": 3e-4,
}

if __name__ == "__main__":
    sys.exit(run_recipe(DEFAULTS, description=__doc__))
