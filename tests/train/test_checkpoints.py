"""A checkpoint is resumed only on the inputs it was written with."""

from __future__ import annotations

from typing import Any

import pytest
from build import (
    LORA,
    learner_of,
    plan_of,
    tiny_model,
)

from tunewright.model import adapters
from tunewright.train import checkpoints


def test_resume_on_other_ground_names_what_changed(tmp_path: Any) -> None:
    model = tiny_model()
    adapters.attach(model, LORA, 0)
    student = learner_of(model, plan_of())
    parameters, optimizer = student.parameters, student.optimizer
    checkpoints.save(tmp_path, parameters, optimizer, checkpoints.State(4, {"data": "a", "model": "b"}), 2)
    with pytest.raises(Exception, match=r"RESUME_MISMATCH.*data was a, is x"):
        checkpoints.restore(tmp_path, parameters, optimizer, {"data": "x", "model": "b"})
