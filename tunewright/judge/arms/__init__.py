"""The arms: ways of answering a row."""
