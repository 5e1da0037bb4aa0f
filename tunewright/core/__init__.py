"""The base layer: errors, configuration, records, the run folder, the console. No torch."""
