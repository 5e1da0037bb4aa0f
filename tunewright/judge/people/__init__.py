"""What people prefer: blind pairs of answers, and the rate at which one side wins."""
