"""Answers and scores: what arms return, what tasks make of it, and how it is stored as a line of scores/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.data.messages import Message
from tunewright.data.structure.comparison import FieldCounts


@dataclass(frozen=True)
class Written:
    """A generated text of ``tokens`` tokens. ``cut``: it ended at the limit; ``seconds``: of a remote request;
    ``refused``: why an endpoint gave no answer."""

    tokens: int
    cut: bool
    seconds: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class LabelProbs:
    """The probability of each label of a closed set; the answer is the most probable one."""

    probs: dict[str, float]


@dataclass(frozen=True)
class Likelihood:
    """The negative log-likelihood, in nats, of a text of ``bytes`` UTF-8 bytes: of a document, instead of an answer; or
    of the reference answer."""

    bytes: int
    nats: float


@dataclass(frozen=True)
class Ranked:
    """The scores of the two answers of a preference row; the answer is the one with the higher score."""

    chosen: float
    rejected: float

    @property
    def correct(self) -> float:
        """1 if the chosen answer has the higher score, 0.5 if both have the same."""
        return float(self.chosen > self.rejected) + 0.5 * float(self.chosen == self.rejected)


@dataclass(frozen=True)
class Retrieved:
    """The documents of a corpus that were ranked first for a query, by their places in it."""

    documents: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """``messages``: the arm's prompt; ``prompt_tokens``: its length, None for a document, which has no prompt.
    ``reference``: how likely the reference answer is after the prompt, if that was computed."""

    text: str
    output: Written | LabelProbs | Likelihood | Ranked | Retrieved
    messages: tuple[Message, ...] = ()
    prompt_tokens: int | None = None
    reference: Likelihood | None = None


@dataclass(frozen=True)
class Readings:
    """What its task reads in a written answer; metrics are functions of it. ``fields``: of structured answers and tool
    calls; ``chrf``: of free text; ``valid``: whether the answer is well-formed in the notation of the task, and nothing
    else; ``schema_valid``: whether it also satisfies the schema. ``reference_bits``: bits per byte of the reference
    answer, which do not depend on what was written. ``error``: distance from the target, of numbers, in standard
    deviations of the training answers. ``reward``: of an answer without a reference, and ``check``: by the grader that
    is never trained on; ``ungraded``: why it has no reward, and counts as 0. ``hits``: of a ranking, how many relevant
    documents are among the first ten, and how many there are; ``reciprocal_rank``: of the first relevant one."""

    exact_match: float | None = None
    strict_match: float | None = None
    fields: FieldCounts | None = None
    chrf: float | None = None
    valid: bool | None = None
    schema_valid: bool | None = None
    reference_bits: float | None = None
    error: float | None = None
    reward: float | None = None
    check: float | None = None
    ungraded: str | None = None
    hits: tuple[int, int] | None = None
    reciprocal_rank: float | None = None


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
            "messages": [m.to_json() for m in answer.messages],
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
        messages = tuple(Message.from_json(m) for m in line["messages"])
        nats, text_bytes = line.get("reference", (None, None))
        reference = None if nats is None else Likelihood(text_bytes, nats)
        return cls(
            where=line["where"],
            target=line["target"],
            answer=Answer(line["answer"], output, messages, line.get("prompt_tokens"), reference),
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
    if isinstance(output, Ranked):
        return {"ranked": [output.chosen, output.rejected]}
    assert readings is not None
    if isinstance(output, Retrieved):
        ranking = {"retrieved": list(output.documents), "reciprocal_rank": readings.reciprocal_rank}
        return {"prompt_tokens": answer.prompt_tokens, "hits": list(readings.hits or ()), **ranking}
    counts = readings.fields
    return {
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": output.tokens,
        "cut": output.cut,
        "exact_match": readings.exact_match,
        "strict_match": readings.strict_match,
        "valid": readings.valid,
        "schema_valid": readings.schema_valid,
        "fields": None if counts is None else [counts.right, counts.wrong, counts.missed],
        "chrf": readings.chrf,
        "seconds": output.seconds,
        "refused": output.refused or None,
        "reference": None if answer.reference is None else [answer.reference.nats, answer.reference.bytes],
        "reference_bits": readings.reference_bits,
        "error": readings.error,
        "reward": readings.reward,
        "check": readings.check,
        "ungraded": readings.ungraded,
    }


def _output_from_json(
    line: dict[str, Any],
) -> tuple[Written | LabelProbs | Likelihood | Ranked | Retrieved, Readings | None]:
    if "nats" in line:
        return Likelihood(line["bytes"], line["nats"]), None
    if "probs" in line:
        return LabelProbs(line["probs"]), None
    if "ranked" in line:
        return Ranked(*line["ranked"]), None
    if "retrieved" in line:
        first, every = line["hits"]
        return Retrieved(tuple(line["retrieved"])), Readings(
            hits=(first, every), reciprocal_rank=line["reciprocal_rank"]
        )
    counts = None
    if "fields" in line:
        right, wrong, missed = line["fields"]
        counts = FieldCounts(right=right, wrong=wrong, missed=missed)
    readings = Readings(
        exact_match=line.get("exact_match"),
        strict_match=line.get("strict_match"),
        fields=counts,
        chrf=line.get("chrf"),
        valid=line.get("valid"),
        schema_valid=line.get("schema_valid"),
        reference_bits=line.get("reference_bits"),
        error=line.get("error"),
        reward=line.get("reward"),
        check=line.get("check"),
        ungraded=line.get("ungraded"),
    )
    return Written(line["answer_tokens"], line["cut"], line.get("seconds"), line.get("refused", "")), readings


def mean_prompt_tokens(scores: Sequence[Score]) -> float:
    return sum(s.answer.prompt_tokens or 0 for s in scores) / len(scores)


def mean(scores: Sequence[Score]) -> float:
    return float(sum(s.score for s in scores) / len(scores))
