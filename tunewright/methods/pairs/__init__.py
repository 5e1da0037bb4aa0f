"""Methods whose rows are pairs of sequences, and what these have in common."""
