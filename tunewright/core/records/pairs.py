"""What training on preferences did to the answers of the test pairs, or of rated test rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, TypeAdapter

from tunewright.core.records.common import Interval, Measured, NotMeasured, Record, Value, VerdictWord


class PairMeasure(Value):
    """A mean over test pairs or test rows, of the run and of a model that it is compared with."""

    run: float = Field(description="Of the run.")
    other: float = Field(description="Of the other model.")
    difference: float = Field(description="run - other.")
    interval: Interval = Field(description="Interval of the difference.")


class SftOnChosen(Value):
    """The run compared with fine-tuning on the chosen, or desirable, answers alone: the same rows and steps."""

    metric: PairMeasure = Field(description="Test score by the task's metric.")
    verdict: VerdictWord = Field(description="Verdict on the difference of the test scores.")
    style: PairMeasure | None = Field(
        description="Mean probability that an answer is a chosen one and not a rejected one (desirable and not "
        "undesirable), by the classifier of voice, fitted to the training answers; null where answers are not texts."
    )
    style_accuracy: float | None = Field(
        description="Accuracy of this classifier on the answers of both kinds of the test rows."
    )
    characters: PairMeasure | None = Field(description="Mean length of an answer.")


class Pairs(Record):
    """What training on preferences did to the answers of the test pairs, and whether it did more than fine-tuning on
    the chosen answers."""

    measured: Literal[True] = Field(True, description="Always true.")
    pairs: int = Field(description="Test pairs.")
    accuracy: PairMeasure = Field(
        description="Fraction of the pairs whose chosen answer is more probable than the rejected one (per token, if "
        "the method compares means over tokens), compared with the model before training."
    )
    implicit_accuracy: float = Field(
        description="Fraction of the pairs in which training raised the chosen answer's log-probability by more than "
        "the rejected one's."
    )
    chosen_logp: PairMeasure = Field(
        description="Log-probability of the chosen answers per token, in nats, compared with the model before "
        "training. It may fall although the accuracy rises."
    )
    rejected_logp: PairMeasure = Field(description="The same for the rejected answers.")
    sft_on_chosen: SftOnChosen | None = Field(description="Null with prove.evidence=plain.")


class Ratings(Record):
    """What training on rated answers did to the answers of the test rows, and whether it did more than fine-tuning on
    the desirable ones. Null where there are fewer than two groups of test rows of either kind."""

    measured: Literal[True] = Field(True, description="Always true.")
    desirable: int = Field(description="Desirable test answers: those of the verdict.")
    undesirable: int = Field(description="Undesirable test answers, which nothing else reads.")
    accuracy: PairMeasure | None = Field(
        description="Probability that a desirable answer is more probable per token than an undesirable one, whatever "
        "their prompts (area under the ROC curve), compared with the model before training."
    )
    implicit_accuracy: float | None = Field(
        description="Probability that training raised the log-probability of a desirable answer by more than that of "
        "an undesirable one."
    )
    desirable_logp: PairMeasure | None = Field(
        description="Log-probability of the desirable answers per token, in nats, compared with the model before "
        "training. It may fall although the accuracy rises."
    )
    undesirable_logp: PairMeasure | None = Field(description="The same for the undesirable answers.")
    one_sided_steps: int = Field(description="Steps of the plan whose rows are all of one kind.")
    sft_on_desirable: SftOnChosen | None = Field(description="Null with prove.evidence=plain.")


class ScoreComparison(PairMeasure):
    """Test scores by the task's metric, of the run and of another arm."""

    verdict: VerdictWord = Field(description="Verdict on the difference; PRACTICALLY EQUAL: within the margin.")


class Distillation(Record):
    """How close the run came to its teacher."""

    measured: Literal[True] = Field(True, description="Always true.")
    teacher: str = Field(description="The teacher, as it was configured, without its folder.")
    divergence: str = Field(description="What was minimised: forward, reverse or jsd.")
    rows: int = Field(description="Test rows on which the divergence was measured.")
    nats: PairMeasure = Field(
        description="Divergence per token of the reference answers, in nats, compared with the model before training."
    )
    nats_of_sft: PairMeasure | None = Field(
        description="The same, compared with fine-tuning on the same rows; null with prove.evidence=plain."
    )
    teacher_score: ScoreComparison | None = Field(
        description="Compared with the teacher's own answers; null with prove.evidence=plain, or for documents."
    )
    sft_score: ScoreComparison | None = Field(
        description="Compared with fine-tuning on the same rows, in as many steps; null likewise."
    )


PAIRS: TypeAdapter[Pairs | Ratings | NotMeasured] = TypeAdapter(Measured[Pairs | Ratings])
DISTILLATION: TypeAdapter[Distillation | NotMeasured] = TypeAdapter(Measured[Distillation])
