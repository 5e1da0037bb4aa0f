"""Training: plan, loop, checkpoints, self-test."""
