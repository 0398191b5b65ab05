"""One run: its setup, folder, checkpoints, resume, tracking and printed report."""
