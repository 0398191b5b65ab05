"""Reports on runs and comparisons of them, read from their folders without a model."""
