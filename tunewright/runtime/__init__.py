"""One run in one process: its inputs, models, answers and branches."""
