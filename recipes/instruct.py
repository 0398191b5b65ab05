"""Fine-tunes a causal language model on conversations, or on prompts with answers. Only the answers count in the loss.

    accelerate launch recipes/instruct.py --model.backbone HuggingFaceTB/SmolLM2-135M-Instruct --data.train chats.jsonl
    accelerate launch recipes/instruct.py --config FILE.yaml
    hf-finetune train instruct ...                                the same after pip install, from any folder

Data: {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]} per line, with an optional
system message first; ShareGPT's conversations, Alpaca's instructions, or prompt and completion. The tokenizer's chat template, or
the template in the file task.chat_template, turns them into text. Metrics: perplexity and token accuracy of the answers.
"""

import sys

from hf_finetune import run_recipe

DEFAULTS = {
    "task.kind": "instruct",
    "data.text_columns": ["messages"],
    "data.label_column": None,
    # 2e-5, cosine with 3 % warm-up, 3 epochs and 512 tokens are those of Stanford Alpaca (training command in the README of
    # github.com/tatsu-lab/stanford_alpaca); 2e-5 and 8 examples per update are also the defaults of TRL's SFTTrainer
    "data.max_length": 512,
    "train.learning_rate": 2e-5,
    "train.schedule": "cosine",
    "train.warmup_fraction": 0.03,
    "train.weight_decay": 0.0,
    "train.batch_size": 8,
    "evaluation.batch_size": 8,  # logits over a vocabulary are large: 8 x 512 x 50,000 in fp32 are 0.8 GB
}

if __name__ == "__main__":
    sys.exit(run_recipe(DEFAULTS, description=__doc__))
