"""How much the stages after training evaluate, where it is no setting: the stages do it, and the forecast counts it."""

from __future__ import annotations

CALIBRATED = 400  # dev rows for temperature and hand-over: scoring labels is cheap, and 40 rows are too few
OWN_ANSWER_TOKENS = 64  # of the base's own answers to dev prompts
PROBE_TOKENS = 32  # of an answer to a probe


def repeated(test_rows: int) -> int:
    """How many of the test rows two arms answer again: fewer than all, so that they share batches with others."""
    return min(16, max(1, test_rows // 2))
