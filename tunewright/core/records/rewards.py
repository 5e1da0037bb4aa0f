"""What training on rewards did: to several samples of a prompt, and compared with fine-tuning on good samples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, TypeAdapter

from tunewright.core.records.common import Measured, NotMeasured, Record, Value, VerdictWord
from tunewright.core.records.pairs import PairMeasure


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
