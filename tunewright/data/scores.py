"""Answers and scores: what arms return, what tasks make of it, and how it is stored as a line of scores/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.data.examples import Message
from tunewright.data.metrics import FieldComparison


@dataclass(frozen=True)
class Written:
    """A generated text of ``tokens`` tokens. ``cut``: it ended at the limit; ``seconds``: of a remote request."""

    tokens: int
    cut: bool
    seconds: float | None = None


@dataclass(frozen=True)
class LabelProbs:
    """The probability of each label of a closed set; the answer is the most probable one."""

    probs: dict[str, float]


@dataclass(frozen=True)
class Likelihood:
    """Instead of an answer: the negative log-likelihood, in nats, of a document of ``bytes`` UTF-8 bytes."""

    bytes: int
    nats: float


@dataclass(frozen=True)
class Answer:
    """``messages``: the arm's prompt; ``prompt_tokens``: its length, None for a document, which has no prompt."""

    text: str
    output: Written | LabelProbs | Likelihood
    messages: tuple[Message, ...] = ()
    prompt_tokens: int | None = None


@dataclass(frozen=True)
class Readings:
    """A written answer by the metrics that are shown in addition to the task's own; ``fields`` for JSON, ``chrf`` for
    free text."""

    exact_match: float
    strict_match: float
    fields: FieldComparison | None = None
    chrf: float | None = None


@dataclass(frozen=True)
class Score:
    """``score`` is by the task's metric. ``row`` and ``key`` (a hash of what the answer depends on) are set when the
    score is stored."""

    where: str
    target: str
    answer: Answer
    score: float
    readings: Readings | None = None
    row: int | None = None
    key: str | None = None

    def to_json(self) -> dict[str, Any]:
        """One line of scores/*.jsonl."""
        answer = self.answer
        line: dict[str, Any] = {
            "row": self.row,
            "where": self.where,
            "messages": [{"role": m.role, "content": m.content} for m in answer.messages],
            "target": self.target,
            "answer": answer.text,
            "score": self.score,
            **_output_to_json(answer, self.readings),
            "key": self.key,
        }
        return {k: v for k, v in line.items() if v is not None}

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Score:
        output, readings = _output_from_json(line)
        messages = tuple(Message(m["role"], m["content"]) for m in line["messages"])
        return cls(
            where=line["where"],
            target=line["target"],
            answer=Answer(line["answer"], output, messages, line.get("prompt_tokens")),
            score=line["score"],
            readings=readings,
            row=line.get("row"),
            key=line.get("key"),
        )


def _output_to_json(answer: Answer, readings: Readings | None) -> dict[str, Any]:
    output = answer.output
    if isinstance(output, Likelihood):
        return {"bytes": output.bytes, "nats": output.nats}
    if isinstance(output, LabelProbs):
        return {"prompt_tokens": answer.prompt_tokens, "probs": output.probs}
    assert readings is not None
    counts = readings.fields
    return {
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": output.tokens,
        "cut": output.cut,
        "exact_match": readings.exact_match,
        "strict_match": readings.strict_match,
        "valid": None if counts is None else counts.valid,
        "fields": None if counts is None else [counts.right, counts.wrong, counts.missed],
        "chrf": readings.chrf,
        "seconds": output.seconds,
    }


def _output_from_json(line: dict[str, Any]) -> tuple[Written | LabelProbs | Likelihood, Readings | None]:
    if "nats" in line:
        return Likelihood(line["bytes"], line["nats"]), None
    if "probs" in line:
        return LabelProbs(line["probs"]), None
    counts = None
    if "fields" in line:
        right, wrong, missed = line["fields"]
        counts = FieldComparison(right=right, wrong=wrong, missed=missed, valid=line["valid"])
    readings = Readings(line["exact_match"], line["strict_match"], counts, line.get("chrf"))
    return Written(line["answer_tokens"], line["cut"], line.get("seconds")), readings


def mean_prompt_tokens(scores: Sequence[Score]) -> float:
    return sum(s.answer.prompt_tokens or 0 for s in scores) / len(scores)


def mean(scores: Sequence[Score]) -> float:
    return float(sum(s.score for s in scores) / len(scores))
