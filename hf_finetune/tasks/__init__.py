"""The tasks, one file each: what the columns of the data mean. Their names are in hf_finetune/config/tasks.py."""
