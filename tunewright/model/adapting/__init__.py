"""What adapters begin with, how they are stored, and those that PEFT computes."""
