"""Decoding settings that are tried on dev for each arm that writes free text, so that no arm is penalised merely
because greedy decoding makes it loop. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunewright.data.scores import Score
from tunewright.data.task import GENERATION, Task
from tunewright.judge.arms.arm import Arm
from tunewright.judge.arms.prompted import Prompted

DECIDED_BY = ("chrf", "reference_bits")  # metrics of the verdict for answers of some length


def candidates(arm: Arm, task: Task, names: Sequence[str]) -> list[Arm]:
    """The arm with each decoding, in order; none if it does not write free text."""
    responder = arm.responder
    if not isinstance(responder, Prompted) or task.kind is not GENERATION or task.metric.name not in DECIDED_BY:
        return []
    return [replace(arm, responder=replace(responder, decoding=name)) for name in names]


def value(scores: Sequence[Score]) -> float:
    """What dev compares: the mean chrF, whatever the metric of the verdict. The likelihood of reference answers does
    not depend on the decoding."""
    return sum(s.readings.chrf for s in scores if s.readings and s.readings.chrf is not None) / len(scores)
