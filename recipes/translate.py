"""Fine-tunes an encoder-decoder model to translate, scored by BLEU and chrF.

    accelerate launch recipes/translate.py --data.train train.en train.de --data.validation dev.en dev.de
    accelerate launch recipes/translate.py --data.dataset USER/NAME --data.text_columns translation.en ...
    hf-finetune train translate ...                               the same after pip install, from any folder

Data: two text files with matching lines, first the source and then its translation; or {"source": ..., "target": ...} per line
(jsonl, csv, tsv, json, parquet); or a column of objects, as in many translation data sets: --data.text_columns translation.en
--data.label_column translation.de. A target may be a list of several translations: the first is trained on, and all count in
BLEU and chrF.

BLEU and chrF are computed by sacrebleu on task.generate_examples examples of validation and of the test, spread evenly over
them. `pip install 'hf-finetune[generation]'` installs it. If the model is multilingual, the tokenizer's files (src_lang,
tgt_lang) and generation_config.json (forced_bos_token_id) must name the languages.
"""

import sys

from hf_finetune import run_recipe

DEFAULTS = {
    "task.kind": "translate",
    "model.backbone": "google-t5/t5-small",
    "data.text_columns": ["source"],
    "data.label_column": "target",
    "data.max_length": 128,  # sentences; as in transformers' course on translation
    "task.max_target_length": 128,
    "task.num_beams": 4,  # as in Raffel et al. 2020, arXiv:1910.10683, section 3.7
    "train.batch_size": 32,
    # transformers' page on T5 recommends 1e-4 or 3e-4 for AdamW; its course uses 2e-5 for Marian's models
    "train.learning_rate": 3e-4,
}

if __name__ == "__main__":
    sys.exit(run_recipe(DEFAULTS, description=__doc__))
