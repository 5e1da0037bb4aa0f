"""The arms: ways of answering a row. `arm.py` says what an arm is, `families.py` which arms a run has."""
