"""Greedy decoding and label scoring, in batches whose prompts begin alike."""
