"""Pairs of sequences whose loss is not a sum over sequences, and what is learned from them besides a policy."""
