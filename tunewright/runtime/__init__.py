"""A run within one process: its inputs, models, answers and branches."""
