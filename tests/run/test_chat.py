"""Inference with a finished run."""

from __future__ import annotations

from tunewright.run.session import Session

from tunewright import api
from tunewright.core import run_folder
from tunewright.core.config import load
from tunewright.core.console import Console
from tunewright.data.examples import Message
from tunewright.tokens import rendering


def test_chat_serves_what_was_trained(labelled: api.Result) -> None:
    """The prompt of `chat` is the prefix of the training sequence, and the tuned model answers with a label."""
    config = load(labelled.path / "config.yaml")
    session = Session(run_folder.Run(labelled.path), config, Console(True), "")
    first = next(e for e in session.data.examples if not isinstance(e, rendering.Text))
    (sequence,) = rendering.for_training(session.template, first)
    prompt = rendering.for_generation(
        session.template, [Message("system", config.data.instruction or ""), Message("user", first.prompt[-1].content)]
    )
    assert list(sequence.ids[: len(prompt)]) == prompt
    assert labelled.chat("lot 5 of fire and flame", max_new_tokens=6) == "warm"
    assert labelled.chat("lot 5 of ice and snow", max_new_tokens=6) == "cold"
