"""Forward passes that skip what need not be computed, and reproducible dropout masks."""
