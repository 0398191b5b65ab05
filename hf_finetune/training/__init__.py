"""The training loop, in-batch losses, evaluation, optimizer, schedule and progress."""
