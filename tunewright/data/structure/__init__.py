"""Structured answers: how they are read from text, compared, and checked against a schema."""
