"""What the model in training writes: samples for rewards and for distillation, and the check of rewards before."""
