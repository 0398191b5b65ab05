"""The tasks, one file each, and what they share: base classes, losses and metrics."""
