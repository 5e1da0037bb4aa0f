"""Inference with a finished run."""

from __future__ import annotations

from tunewright import api
from tunewright.core import run_folder
from tunewright.core.config import load
from tunewright.data import dataset
from tunewright.data.messages import question
from tunewright.runtime import chat
from tunewright.tokens import rendering


def test_chat_serves_what_was_trained(labelled: api.Result) -> None:
    """The prompt of `chat` is the prefix of the training sequence, and the tuned model answers with a label."""
    config = load(labelled.path / "config.yaml")
    template = chat.load_run(run_folder.Run(labelled.path)).template
    first = next(e for e in dataset.load(config).examples if not isinstance(e, rendering.Text))
    (sequence,) = rendering.for_training(template, first)
    asked = question(first.prompt.messages[-1].content, config.data.instruction)
    prompt = rendering.for_generation(template, asked)
    assert list(sequence.ids[: len(prompt)]) == prompt
    assert labelled.chat("lot 5 of fire and flame", max_new_tokens=6) == "warm"
    assert labelled.chat("lot 5 of ice and snow", max_new_tokens=6) == "cold"
