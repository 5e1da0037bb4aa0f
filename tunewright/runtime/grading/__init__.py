"""How what a model writes is graded: its rollouts, and the reward models that grade."""
