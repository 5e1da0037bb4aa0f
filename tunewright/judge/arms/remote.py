"""Another model, behind any endpoint with OpenAI's chat completions API, as an arm. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tunewright.data.endpoints.openai_endpoint import Endpoint, ask
from tunewright.data.messages import Example, Prompt
from tunewright.data.metrics import read_label
from tunewright.data.scores import Answer, Written
from tunewright.data.text import without_thoughts
from tunewright.judge.arms.arm import Model, Progress


@dataclass(frozen=True)
class Remote:
    """Answers of at most ``max_new_tokens`` tokens; for a label task, the label that the answer names, if any. A
    question that the endpoint refuses, as its content filter may, has an empty answer."""

    endpoint: Endpoint
    max_new_tokens: int
    labels: tuple[str, ...] = ()
    needs_model: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    decoding: ClassVar[str] = "greedy"

    def prompt(self, example: Example) -> Prompt:
        return example.prompt

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        prompts = [self.prompt(e) for e in examples]
        answers = []
        for prompt, reply in zip(prompts, ask(self.endpoint, prompts, self.max_new_tokens, progress), strict=True):
            answer = without_thoughts(reply.text) if self.labels else ""
            text = read_label(answer, self.labels) or reply.text
            written = Written(reply.answer_tokens, reply.cut, round(reply.seconds, 3), reply.refused)
            answers.append(Answer(text, written, prompt.messages, prompt_tokens=reply.prompt_tokens))
        return answers
