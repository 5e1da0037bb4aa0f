"""scores/: one line per evaluated row, with the prompt, the expected answer and the actual one."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field, JsonValue

from tunewright.core.records.common import Line, Value


class Function(Value):
    """A called function."""

    name: str = Field(description="Its name.")
    arguments: dict[str, JsonValue] = Field(description="Its arguments.")


class Call(Value):
    """A tool call, as in OpenAI's API."""

    type: Literal["function"] = Field(description="Always function.")
    id: str | None = Field(None, description="Its id in the row, if it has one.")
    function: Function = Field(description="The function and its arguments.")


class Turn(Value):
    """One message of a prompt, as in OpenAI's API."""

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Author of the message.")
    content: str = Field(description="The text.")
    reasoning_content: str | None = Field(None, description="The thoughts before an assistant's answer.")
    tool_calls: tuple[Call, ...] | None = Field(None, description="The tool calls of an assistant.")
    name: str | None = Field(None, description="Of a result: the function that was called.")
    tool_call_id: str | None = Field(None, description="Of a result: the id of the call.")


class FieldCounts(NamedTuple):
    """Numbers of fields in a structured answer; JSON: [right, wrong, missed]."""

    right: int
    wrong: int
    missed: int

    @property
    def f1(self) -> float:
        """2 right / (2 right + wrong + missed)."""
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else 1.0


class Reference(NamedTuple):
    """How likely the reference answer is after the arm's prompt; JSON: [nats, bytes]."""

    nats: float
    bytes: int


class Ranked(NamedTuple):
    """The scores of the chosen and of the rejected answer; JSON: [chosen, rejected]."""

    chosen: float
    rejected: float


class Hits(NamedTuple):
    """Of the documents that are relevant to a query, how many are ranked among the first ten; JSON: [first, all]."""

    first: int
    all: int


class Answered(Line):
    """An arm's answer to one row. Scores are 0 to 1, except bits per byte and errors; lengths are in tokens."""

    where: str = Field(description="file:line of the row.")
    messages: tuple[Turn, ...] = Field(description="The prompt, before the chat template; empty for documents.")
    target: str = Field(description="The expected answer; for a document, its first 200 characters.")
    answer: str = Field(description="The arm's answer; empty for documents.")
    score: float = Field(description="By the task's metric.")
    prompt_tokens: int | None = Field(
        None, description="Tokens of the rendered prompt; 0 for arms without a language model."
    )
    probs: dict[str, float] | None = Field(
        None, description="Probability of each label, rounded to 6 digits; label tasks only."
    )
    answer_tokens: int | None = Field(None, description="Tokens generated.")
    cut: bool | None = Field(None, description="Whether the answer ended at the token limit.")
    exact_match: float | None = Field(
        None, description="1 if answer and target are equal, ignoring fences, quotes and case; else 0."
    )
    strict_match: float | None = Field(
        None, description="1 if answer and target are equal, ignoring only case and white space; else 0."
    )
    valid: bool | None = Field(
        None,
        description="Whether the answer is well-formed and nothing else; JSON, YAML, XML, CSV and tool calls only.",
    )
    schema_valid: bool | None = Field(None, description="Whether it also satisfies the schema; JSON and YAML only.")
    fields: FieldCounts | None = Field(
        None, description="[right, wrong, missed] fields; JSON, YAML, XML and tool calls only."
    )
    chrf: float | None = Field(None, description="chrF of the row, 0 to 1; free text only.")
    reference: Reference | None = Field(
        None,
        description="[nats, bytes]: negative log-likelihood of the expected answer after the prompt, and its length in "
        "UTF-8 bytes; free text only.",
    )
    reference_bits: float | None = Field(None, description="The same in bits per byte.")
    error: float | None = Field(
        None, description="Distance from the target, in standard deviations of the training answers; numbers only."
    )
    reward: float | None = Field(None, description="By reward.grader, 0 to 1; rows without answers only.")
    check: float | None = Field(None, description="By reward.check, 0 to 1; rows without answers only.")
    ungraded: str | None = Field(None, description="Why the grader gave no reward; the score is then 0.")
    retrieved: tuple[int, ...] | None = Field(
        None, description="Documents of the corpus by their places in it, the best first, at most 100; search only."
    )
    hits: Hits | None = Field(
        None, description="[first, all]: relevant documents among the first ten, and in the corpus; search only."
    )
    reciprocal_rank: float | None = Field(
        None, description="1 over the rank of the first relevant document; 0 if it is not in the ranking; search only."
    )
    seconds: float | None = Field(None, description="Duration of the request, in seconds; remote models only.")
    refused: str | None = Field(
        None, description="Why the endpoint gave no answer; the score is then the worst. Remote models only."
    )
    ranked: Ranked | None = Field(
        None, description="[chosen, rejected]: the scores of a pair's answers; answer is the higher one's text."
    )
    bytes: int | None = Field(None, description="Length of the document in UTF-8 bytes; documents only.")
    nats: float | None = Field(None, description="Summed negative log-likelihood of the document; documents only.")


class ScoreLine(Answered):
    """One line of a file in scores/. Scores are 0 to 1, except bits per byte and errors; lengths are in tokens."""

    row: int = Field(description="Row number, from 0.")
    key: str = Field(description="Hash of what the answer depends on; a row whose key has changed is answered again.")


class RegressionLine(Answered):
    """One line of scores/regression.jsonl: a regression row, answered by tuned model and base. Scores are 0 to 1."""

    before: str = Field(description="The base model's answer.")
