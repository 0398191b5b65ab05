"""Choosing settings and examining data by many runs in one process: sweeps, folds, seeds, learning curves, label errors."""
