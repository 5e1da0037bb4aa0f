"""Many trainings: jobs, and where they run: on this machine, on a Ray cluster, or wherever printed lines are run."""
