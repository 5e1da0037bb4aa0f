"""Ranks two given answers to a prompt by their scores: of a head, of the language model, or of their text. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from tunewright.data import baselines
from tunewright.data.messages import Chat, Example, Prompt
from tunewright.data.scores import Answer, Ranked
from tunewright.judge.arms.arm import Arm, Model, Progress
from tunewright.judge.arms.classifier import Classifier, Output

By = Literal["head", "logp", "logp_per_byte"]


def by_text(score: Callable[[Sequence[str]], Sequence[float]]) -> Classifier:
    """``score``: of answers, as texts."""
    return Classifier(lambda chats: _ranked(chats, score([chat.target for chat in _sides(chats)])))


@dataclass(frozen=True)
class ByModel:
    """The score is the head's, or the log-probability of the answer, its end included."""

    by: By
    needs_model: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False
    decoding: ClassVar[str] = "greedy"

    def prompt(self, example: Example) -> Prompt:
        return example.prompt

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        assert model is not None
        sides = _sides(examples)
        if self.by == "head":
            return self._answers(examples, model.rewards(sides), progress)
        read = model.likelihoods([chat.prompt for chat in sides], [chat.messages[-1] for chat in sides])
        bytes_S = [max(1, r.bytes) if self.by == "logp_per_byte" else 1 for r in read]
        return self._answers(examples, [-r.nats / n for r, n in zip(read, bytes_S, strict=True)], progress)

    def _answers(self, examples: Sequence[Example], scores: Sequence[float], progress: Progress) -> list[Answer]:
        progress(len(examples))
        ranked = zip(examples, _ranked(examples, scores), strict=True)
        return [Answer(text, both, example.prompt.messages) for example, (text, both) in ranked]


def _sides(examples: Sequence[Example]) -> list[Chat]:
    """Every row with its chosen and with its rejected answer, one after the other."""
    sides = []
    for chat in examples:
        assert isinstance(chat, Chat)
        assert chat.rejected is not None
        sides += [chat, replace(chat, messages=(*chat.messages[:-1], chat.rejected), rejected=None)]
    return sides


def _ranked(examples: Sequence[Example], scores: Sequence[float]) -> list[Output]:
    """The answer with the higher score, empty if both have the same, for each row, and the scores of both."""
    sides = [chat.target for chat in _sides(examples)]
    answers: list[Output] = []
    for n in range(len(examples)):
        both = Ranked(*scores[2 * n : 2 * n + 2])
        answers.append(("" if both.chosen == both.rejected else sides[2 * n + (both.chosen < both.rejected)], both))
    return answers


def arms(train: Sequence[Chat], full: bool) -> dict[str, list[Arm]]:
    """The ways to rank two answers, by family, the tuned arm last."""
    more, less = "the base model: the more probable answer", "the base model: the answer that is more probable per byte"
    families = {
        "length": [
            Arm("length", "the longer answer", by_text(lambda texts: [float(len(t)) for t in texts]), "longer"),
            Arm("length", "the shorter answer", by_text(lambda texts: [-float(len(t)) for t in texts]), "shorter"),
        ],
        "base": [Arm("base", more, ByModel("logp")), Arm("base", less, ByModel("logp_per_byte"), "per_byte")],
    }
    if full:
        score = baselines.pair_scores([e.target for e in train], [e.rejected.text for e in train if e.rejected])
        description = "TF-IDF of the answers, and logistic regression on the difference of two"
        families["classical"] = [Arm("classical", description, by_text(score), trained=True)]
    tuned = Arm("tuned", "the trained weights and head", ByModel("head"), uses_adapter=True, trained=True)
    return {**families, "tuned": [tuned]}
