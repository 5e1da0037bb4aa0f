"""How much the stages after training evaluate, where it is no setting: the stages do it, and the forecast counts it."""

from __future__ import annotations

REPEATED = 16  # test rows that two arms answer again
CALIBRATED = 400  # dev rows for temperature and hand-over: scoring labels is cheap, and 40 rows are too few
OWN_ANSWER_TOKENS = 64  # of the base's own answers to dev prompts
PROBE_TOKENS = 32  # of an answer to a probe
