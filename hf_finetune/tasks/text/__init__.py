"""Pure functions on text: words, tags, SQuAD answers and packed blocks."""
