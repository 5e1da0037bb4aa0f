"""Answers with a baseline of data/baselines.py, without a language model. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tunewright.data.baselines import Predict, PredictProbs
from tunewright.data.messages import Chat, Example, Prompt
from tunewright.data.scores import Answer, LabelProbs, Written
from tunewright.judge.arms.arm import Model, Progress


@dataclass(frozen=True)
class Classifier:
    """``predict`` gives the probabilities of ``labels``; the most probable is chosen, the first of equals."""

    predict: PredictProbs
    labels: tuple[str, ...]
    needs_model: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    decoding: ClassVar[str] = "greedy"

    def prompt(self, example: Example) -> Prompt:
        return example.prompt

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        chats = [e for e in examples if isinstance(e, Chat)]
        answers = []
        for chat, probs in zip(chats, self.predict(chats), strict=True):
            best = max(self.labels, key=lambda label: probs[label])
            rounded = LabelProbs({label: round(p, 6) for label, p in probs.items()})
            answers.append(Answer(best, rounded, chat.prompt.messages, prompt_tokens=0))
            progress(1)
        return answers


@dataclass(frozen=True)
class Predictor:
    """``predict`` gives the answers, as texts."""

    predict: Predict
    needs_model: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    decoding: ClassVar[str] = "greedy"

    def prompt(self, example: Example) -> Prompt:
        return example.prompt

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        chats = [e for e in examples if isinstance(e, Chat)]
        answers = []
        for chat, text in zip(chats, self.predict(chats), strict=True):
            answers.append(Answer(text, Written(0, cut=False), chat.prompt.messages, prompt_tokens=0))
            progress(1)
        return answers
