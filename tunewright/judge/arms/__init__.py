"""Arms: ways to answer a row. `arm.py` defines an arm, `families.py` chooses the arms of a run."""
