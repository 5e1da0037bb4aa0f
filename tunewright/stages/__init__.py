"""The stages of a run, a file each, and the runner that knows their order."""
