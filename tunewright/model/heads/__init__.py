"""Heads: what a model answers with instead of writing."""
