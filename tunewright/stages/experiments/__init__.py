"""Trainings beside the run that answer questions about it: a file per key of the config section `experiments`, and the
curve."""
