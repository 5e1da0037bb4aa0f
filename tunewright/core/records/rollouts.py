"""rollouts/: what a model that learns from its own answers wrote in each step, with the rewards; and rewards.json: what
training on rewards did to several samples of a prompt, and how it compares with fine-tuning on good samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter

from tunewright.core.records.common import Line, Measured, NotMeasured, Record, Value, VerdictWord
from tunewright.core.records.pairs import PairMeasure


class RolloutStart(Line):
    """First line: what the samples are a function of. A resumed run uses them only if all of it is the same."""

    weights: str = Field(
        description="sha256 of the trained tensors that drew the samples; in test-*.jsonl, of their file."
    )
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
        None, description="The same as training computes them, in nats, if its loss reads them; of samples trained on."
    )
    reference_logp: tuple[float, ...] | None = Field(
        None, description="The same by the model before training, in nats, if the loss has a KL term."
    )
    finish: Literal["stop", "length"] = Field(description="Whether a stop token or the limit ended it.")
    text: str = Field(description="What graders read.")
    reward: float | None = Field(None, description="By reward.grader, 0 to 1; absent if it failed, or in distillation.")
    problem: str | None = Field(None, description="Why it failed.")


class GradeLine(Line):
    """What a model that grades replied to one question."""

    key: str = Field(description="Hash of the question, the model, its address and the sampling.")
    score: float = Field(description="The number that it replied: a score in the range of the grader.")
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


# -- what it did


class HighestOf(Value):
    """The highest reward of k samples of a test prompt, estimated from all; `run` is the tuned model, `other` the one
    before training."""

    k: int = Field(description="Samples.")
    reward: PairMeasure = Field(description="Mean over the test prompts; pass@k if rewards are 0 or 1.")


class Raft(Value):
    """The run compared with fine-tuning on samples of the model before training: of each training prompt the one with
    the highest reward, of no more sampled tokens than the run has trained on."""

    tokens: int = Field(description="Sampled tokens among which it chose.")
    run_tokens: int = Field(description="Sampled tokens that the run has trained on.")
    rows: int = Field(description="Prompts whose best sample was trained on.")
    metric: PairMeasure = Field(description="Mean reward of greedy answers to the test prompts.")
    check: PairMeasure | None = Field(description="The same by reward.check; null if there is none.")
    verdict: VerdictWord = Field(description="Verdict on the difference of the rewards.")


class Rewards(Record):
    """What training on rewards did, besides the verdict."""

    measured: Literal[True] = Field(True, description="Always true.")
    samples: int = Field(description="Samples of each test prompt, at temperature 1; 0 with prove.evidence=plain.")
    binary: bool = Field(description="Whether all their rewards are 0 or 1.")
    highest: tuple[HighestOf, ...] = Field(description="For k = 1 and all samples.")
    sharper: bool = Field(
        description="Whether one sample is shown to earn more, and the best of all is not: the model finds more "
        "certainly what it could write before."
    )
    raft: Raft | None = Field(description="Null unless experiments.raft is set.")


REWARDS: TypeAdapter[Rewards | NotMeasured] = TypeAdapter(Measured[Rewards])
