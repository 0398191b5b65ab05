"""The activation cache: hidden states of the frozen prefix, computed once, stored on disk."""
