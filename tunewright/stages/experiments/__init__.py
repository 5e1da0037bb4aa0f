"""Extra training runs that answer questions about a run: one module per key of the config section `experiments`, and
the learning curve."""
