"""The pretrained backbone, its head, its structure, frozen parameters and LoRA adapters."""
