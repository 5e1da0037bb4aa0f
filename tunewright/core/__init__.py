"""The base layer: errors, configuration, the run folder, the console. No torch."""
