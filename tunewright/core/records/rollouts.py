"""rollouts/: what a model that learns from rewards wrote in each step, and what it was worth."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter

from tunewright.core.records.common import Line


class RolloutStart(Line):
    """First line: what the samples are a function of. A resumed run uses them only if all of it is the same."""

    weights: str = Field(description="sha256 of the trained tensors that drew the samples.")
    settings: str = Field(description="sha256 of template, stop tokens, sampling and graders.")
    seed: int = Field(description="Seed of the run.")
    step: int = Field(
        description="The step that is trained on them, from 0; of greedy answers to dev prompts, the steps before them."
    )
    rows: tuple[int, ...] = Field(description="Rows of the data set whose prompts were answered, in order.")
    mismatch: float = Field(
        description="Mean difference of the log-probability of a token in sampling and in training, in nats; of a few."
    )


class RolloutLine(Line):
    """One sample."""

    row: int = Field(description="Row number, from 0.")
    sample: int = Field(description="Number of the sample of this prompt, from 0.")
    ids: tuple[int, ...] = Field(description="Its tokens, with the one that ended it; of greedy answers, without.")
    logp: tuple[float, ...] = Field(
        description="Their log-probabilities, in nats, at the temperature of sampling; none of greedy answers."
    )
    old_logp: tuple[float, ...] | None = Field(
        None, description="The same as training computes them, if it takes several updates; of samples trained on."
    )
    reference_logp: tuple[float, ...] | None = Field(
        None, description="The same by the model before training, if the loss has a KL term."
    )
    finish: Literal["stop", "length"] = Field(description="Whether a stop token or the limit ended it.")
    text: str = Field(description="What graders read.")
    reward: float | None = Field(None, description="By reward.grader, 0 to 1; absent if it failed.")
    problem: str | None = Field(None, description="Why it failed.")


class GradeLine(Line):
    """What a model that grades replied to one question."""

    key: str = Field(description="Hash of the question, the model, its address and the sampling.")
    score: float = Field(description="The number that it replied, in the range of the grader.")
    reply: str = Field(description="The beginning of its reply.")


def _kind(line: object) -> str:
    first = "weights" in line if isinstance(line, dict) else isinstance(line, RolloutStart)
    return "<RolloutStart>" if first else "<RolloutLine>"


ROLLOUT: TypeAdapter[RolloutStart | RolloutLine] = TypeAdapter(
    Annotated[
        Annotated[RolloutStart, Tag("<RolloutStart>")] | Annotated[RolloutLine, Tag("<RolloutLine>")],
        Discriminator(_kind),
    ]
)
