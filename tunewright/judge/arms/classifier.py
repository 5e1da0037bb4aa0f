"""Answers with a baseline of data/baselines.py, without a language model. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tunewright.data.baselines import Predict, PredictProbs
from tunewright.data.messages import Chat, Example, Prompt
from tunewright.data.scores import Answer, LabelProbs, Ranked, Written
from tunewright.judge.arms.arm import Model, Progress

Output = tuple[str, LabelProbs | Ranked | Written]  # the answer as text, and what it was chosen from


@dataclass(frozen=True)
class Classifier:
    """``predict``: gives the answers."""

    predict: Callable[[Sequence[Chat]], list[Output]]
    needs_model: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    decoding: ClassVar[str] = "greedy"

    def prompt(self, example: Example) -> Prompt:
        return example.prompt

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        chats = [e for e in examples if isinstance(e, Chat)]
        answers = []
        for chat, (text, output) in zip(chats, self.predict(chats), strict=True):
            answers.append(Answer(text, output, chat.prompt.messages, prompt_tokens=0))
            progress(1)
        return answers


def most_probable(predict: PredictProbs, labels: tuple[str, ...]) -> Classifier:
    """Answers with the most probable label, the first of equals."""

    def chosen(chats: Sequence[Chat]) -> list[Output]:
        every = predict(chats)
        best = [max(labels, key=lambda label: probs[label]) for probs in every]
        rounded = [LabelProbs({label: round(p, 6) for label, p in probs.items()}) for probs in every]
        return list(zip(best, rounded, strict=True))

    return Classifier(chosen)


def texts(predict: Predict) -> Classifier:
    """Answers with texts."""
    return Classifier(lambda chats: [(text, Written(0, cut=False)) for text in predict(chats)])
