"""Ground that everything stands on: errors, configuration, the run folder, the console. No torch."""
