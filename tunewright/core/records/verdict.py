"""The protocol, which is fixed before training, and the verdict."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from tunewright.core.records.common import Interval, Measured, Record, RunVerdict, Value
from tunewright.core.records.evidence import (
    AnyCleaning,
    AnyCrossfit,
    AnyCurve,
    Cost,
    Forgetting,
    Mitigation,
    PromptDistillation,
)
from tunewright.core.records.pairs import Distillation, Pairs, Ratings
from tunewright.core.records.rollouts import Rewards
from tunewright.core.records.score import FieldCounts
from tunewright.core.records.voice import TopicContrast, Voice


class ProtocolRecord(Record):
    """How the test rows will be evaluated. Differences and margins in units of the metric."""

    rule: str = Field(description="How the comparator is chosen and what BETTER requires.")
    metric: str = Field(description="The metric of the verdict.")
    higher_is_better: bool = Field(description="Direction of the metric.")
    margin: float = Field(description="Differences within it are practically equal.")
    alpha: float = Field(description="1 - coverage of the intervals, 0 to 1.")
    arms: dict[str, tuple[str, ...]] = Field(description="Family of arms -> description of each variant.")
    max_new_tokens: int = Field(description="Longest answer, in tokens.")
    dev_rows: int = Field(description="Number of dev rows, used to choose.")
    test_rows: int = Field(description="Number of test rows, used to decide.")
    rows_sha256: str = Field(description="Hash over the content of both.")
    detectable: float | None = Field(
        description="Difference that the test rows detect with power 0.8; null if unknown."
    )
    assumed: str = Field(description="What that assumes about the arms.")
    list_order: Literal["ignored", "counted"] | None = Field(
        None, description="Whether the order of lists counts; structured answers only."
    )
    number_tolerance: float | None = Field(
        None, description="Largest relative difference of equal numbers; structured answers only."
    )
    decoding: dict[str, dict[str, float]] | None = Field(
        None, description="Decoding settings among which dev chooses, by name; free text only."
    )
    grader: str | None = Field(None, description="reward.grader, as it was read; rows without answers only.")
    check: str | None = Field(None, description="reward.check, likewise.")
    corpus: str | None = Field(None, description="Hash of the documents that queries search; search only.")


class Contrast(Value):
    """The tuned arm minus another on the same rows, oriented so that positive is better; exploratory."""

    difference: float = Field(description="tuned - this arm.")
    interval: Interval = Field(description="Its interval.")
    p_value: float = Field(description="Two-sided p-value of the difference.")
    p_holm: float = Field(description="The p-value, adjusted for the number of arms (Holm).")


class ArmResult(Value):
    """One arm on the test rows. Scores by the task's metric, time in seconds, lengths in tokens."""

    description: str = Field(description="What the arm is.")
    trained: bool = Field(
        description="Whether its model was trained on the training rows; such an arm cannot be the comparator."
    )
    variant: str = Field(description="The variant that dev chose; empty if there is only one.")
    decoding: str | None = Field(
        None, description="How dev chose that tokens are chosen (prove.decoding); absent if greedily."
    )
    on_dev: float | None = Field(description="Its dev score; null if dev did not choose.")
    score: float = Field(description="Mean score on the test rows.")
    summary: dict[str, float] = Field(description="Other metrics of the same answers.")
    seconds: float | None = Field(
        description="How long the test rows took, in seconds; of arms that were decoded together, an equal part."
    )
    prompt_tokens: float = Field(description="Mean length of a prompt, in tokens.")
    interval: Interval = Field(description="Interval of the score.")
    tuned_minus_this: Contrast | None = Field(
        None, description="Comparison with the tuned arm; absent for the tuned arm itself."
    )


class Comparator(Value):
    """The untrained arm that the verdict compares with. Scores by the task's metric."""

    name: str = Field(description="Family of the arm; a key of arms.")
    score: float = Field(description="Its test score.")
    variant: str = Field(description="Its variant; empty if there is only one.")
    chosen_on: Literal["dev", "test"] = Field(
        description="The side on which it was chosen; on test, the choice among several arms favours it."
    )
    on_dev: dict[str, float] = Field(description="Dev score of every untrained arm; empty if it was chosen on test.")


class Rerun(Value):
    """Evaluation noise: some test rows, answered a second time."""

    rows: int = Field(description="Rows.")
    changed: int = Field(description="Answers that changed, over both arms.")
    floor: float = Field(description="Sum of the changes in both arms' mean scores; smaller differences are noise.")


class Overlap(Value):
    """The comparison without test rows that share 13 consecutive words with training rows. Scores by the metric."""

    rows: int = Field(description="Test rows left out.")
    tuned: float = Field(description="Score of the tuned arm.")
    comparator: float = Field(description="Score of the comparator.")
    difference: float = Field(description="tuned - comparator; positive is better.")
    interval: Interval = Field(description="Interval of the difference.")


class CorpusComparison(Value):
    """A metric over all rows together, such as macro-F1 or corpus chrF. 0 to 1, except bits per byte."""

    metric: str = Field(description="Which metric.")
    tuned: float = Field(description="Value of the tuned arm.")
    comparator: float = Field(description="Value of the comparator.")
    difference: float = Field(description="tuned - comparator, in the metric's own direction.")
    interval: Interval | None = Field(description="BCa bootstrap over groups; null where that is not possible.")
    note: str | None = Field(None, description="Why there is no interval.")


class FieldExample(Value):
    """A row in which the tuned arm is wrong about a field. What looks private is masked; long values are cut."""

    where: str = Field(description="file:line.")
    expected: str = Field(description="The field's values in the reference answer that the answer lacks.")
    given: str = Field(description="The field's values in the answer that the reference answer lacks.")


class FieldErrors(Value):
    """One field of structured answers, over all test rows. A value that differs is both wrong and missed."""

    path: str = Field(description="The field, such as items[].price.")
    tuned: FieldCounts = Field(description="[right, wrong, missed] of the tuned arm.")
    comparator: FieldCounts = Field(description="[right, wrong, missed] of the comparator.")
    example: FieldExample | None = Field(description="The first row with an error of the tuned arm; null if none.")


class CalibrationErrors(Value):
    """How well the label probabilities are calibrated on test."""

    log_loss: float = Field(description="Mean -log probability of the right label, in nats.")
    brier: float = Field(description="Mean squared error of the probabilities, summed over labels; 0 to 2.")
    ece: float = Field(description="Expected calibration error, 0 to 1.")
    ece_interval: Interval = Field(description="Its 95% interval.")


class CoveragePoint(NamedTuple):
    """The result of answering only rows with at least some confidence; JSON: [threshold, coverage, accuracy]."""

    threshold: float
    coverage: float
    accuracy: float


class Handover(Value):
    """The confidence below which a person should answer. Fractions are 0 to 1."""

    threshold: float = Field(description="Chosen on dev.")
    answered: float = Field(description="Fraction of test rows at or above it.")
    accuracy: float | None = Field(description="Fraction of those that are right; null if there are none.")
    interval: Interval = Field(description="Interval of the accuracy.")


class Calibration(Value):
    """Whether the label probabilities can be trusted: temperature and threshold from dev, the rest on test. 0 to 1."""

    temperature: float = Field(
        description="Divides the log probabilities; above 1 means that the model was overconfident."
    )
    uncalibrated: CalibrationErrors = Field(description="Errors of the model's own probabilities.")
    calibrated: CalibrationErrors = Field(description="Errors of the probabilities at that temperature.")
    rows: int = Field(description="Test rows.")
    enough_rows: bool = Field(description="Whether there are enough test rows to rely on.")
    target_accuracy: float = Field(description="Required accuracy (prove.target_accuracy).")
    curve: tuple[CoveragePoint, ...] = Field(description="From the most confident row to all rows.")
    handover: Handover | None = Field(None, description="Absent if no threshold reached the required accuracy on dev.")


class RewardCheck(Value):
    """Tuned arm and comparator by the grader that was not trained on, on the same test answers. Scores are 0 to 1."""

    tuned: float = Field(description="Mean score of the tuned arm.")
    comparator: float = Field(description="Mean score of the comparator.")
    difference: float = Field(description="tuned - comparator.")
    interval: Interval = Field(description="Its interval, at 1 - alpha.")


class Verdict(Record):
    """The verdict with every number behind it. Scores by ``metric``, differences oriented so that positive is better.

    The fields from ``forgetting`` on are copies of the files of the same stages, added when the report is written.
    """

    metric: str = Field(description="The metric that the verdict is about.")
    tuned: float = Field(description="Test score of the tuned arm.")
    comparator: Comparator = Field(description="The untrained arm that it is compared with.")
    arms: dict[str, ArmResult] = Field(description="Every arm on the same test rows, by family.")
    groups: tuple[int, ...] = Field(
        description="For each test row, the number of its group: the first row that it is a near-duplicate of."
    )
    verdict: RunVerdict = Field(
        description="BETTER also requires that every untrained arm is beaten, and, of free text, that the reference "
        "answers are likelier after their own question; BETTER and WORSE, that the difference exceeds the re-run "
        "noise. WORSE also if another untrained arm than the comparator is shown to be better. HACKED: better by the "
        "reward, and shown to be worse by reward.check."
    )
    difference: float = Field(description="tuned - comparator.")
    interval: Interval = Field(description="Its interval, at 1 - alpha.")
    p_value: float = Field(description="Two-sided p-value of the difference.")
    test: str = Field(description="Methods of the interval and of the test.")
    clusters: int = Field(description="How many different groups the test rows belong to.")
    only_tuned: int = Field(description="Test rows on which the tuned arm scored higher.")
    only_comparator: int = Field(description="Test rows on which the comparator scored higher.")
    margin: float = Field(description="Differences within it are practically equal.")
    alpha: float = Field(description="1 - coverage of the intervals, 0 to 1.")
    rows_needed: int | None = Field(
        description="If the verdict is CANNOT TELL, test rows needed to decide with power 0.8; null if more rows would "
        "not help, because of re-run noise or because an untrained arm is as good."
    )
    n: int = Field(description="Test rows.")
    unbeaten: tuple[str, ...] = Field(description="Untrained arms that the tuned arm is not shown to beat.")
    better: tuple[str, ...] | None = Field(
        None, description="Untrained arms that are shown to beat the tuned arm; absent in runs of earlier versions."
    )
    variants_on_dev: dict[str, float] = Field(
        description="Dev score of every untrained variant; empty if dev did not choose."
    )
    rerun: Rerun | None = Field(None, description="Evaluation noise; absent for prove.evidence=plain.")
    overlap: Overlap | None = Field(description="Without overlapping test rows; null if none or all overlap.")
    corpus: CorpusComparison = Field(description="The comparison by a metric of all rows together.")
    fields: tuple[FieldErrors, ...] | None = Field(
        None, description="Errors by field, the most frequent first; structured answers and tool calls only."
    )
    topic: TopicContrast | None = Field(None, description="Free text only, judged by chrF or reference_bits.")
    voice: Voice | None = Field(None, description="Free text only, unless prove.evidence=plain.")
    reward_check: RewardCheck | None = Field(None, description="By reward.check, if it is set.")
    calibration: Calibration | None = Field(None, description="Label tasks only, unless prove.evidence=plain.")
    task: str = Field(
        description="label, label_set, number, entities, tags, json, yaml, xml, csv, tool_calls, generation, text, "
        "retrieval, rewards or ranking."
    )
    max_new_tokens: int = Field(description="Longest answer, in tokens.")
    test_reads: int = Field(description="How often the run has read its test rows.")
    dev_rows: int = Field(description="Dev rows used to choose.")
    protocol: str = Field(description="sha256 of the protocol.")
    forgetting: Measured[Forgetting] | None = Field(None, description="Copy of forgetting.json.")
    mitigation: Measured[Mitigation] | None = Field(None, description="Copy of mitigation.json.")
    pairs: Measured[Pairs | Ratings] | None = Field(None, description="Copy of pairs.json.")
    rewards: Measured[Rewards] | None = Field(None, description="Copy of rewards.json.")
    distillation: Measured[Distillation] | None = Field(None, description="Copy of distillation.json.")
    crossfit: AnyCrossfit | None = Field(None, description="Copy of crossfit.json.")
    cleaning: AnyCleaning | None = Field(None, description="Copy of cleaning.json.")
    prompt_distillation: Measured[PromptDistillation] | None = Field(
        None, description="Copy of prompt_distillation.json."
    )
    learning_curve: AnyCurve | None = Field(None, description="Copy of learning_curve.json.")
    cost: Measured[Cost] | None = Field(None, description="Copy of cost.json.")

    @property
    def is_better(self) -> bool:
        """Whether the verdict is BETTER, as `--gate` requires."""
        return self.verdict == "BETTER"

    @property
    def confidence(self) -> float:
        """Coverage of the intervals, 0 to 1."""
        return 1 - self.alpha

    @property
    def beats_comparator(self) -> bool:
        """Whether the comparison alone is BETTER."""
        return self.interval.low > 0 and self.comparator.name not in self.unbeaten

    @property
    def doubts(self) -> tuple[str, ...]:
        """Untrained arms that prevent BETTER although the comparator is beaten."""
        return self.unbeaten if self.beats_comparator else ()

    @property
    def within_rerun_noise(self) -> bool:
        """Whether re-run noise prevents BETTER or WORSE although the interval excludes 0."""
        excludes_zero = self.interval.low > 0 or self.interval.high < 0
        return self.rerun is not None and excludes_zero and abs(self.difference) <= self.rerun.floor

    @property
    def off_topic(self) -> bool:
        """Whether BETTER is prevented because the reference answers are not shown to be likelier after their own
        question."""
        return self.topic is not None and self.beats_comparator and not self.topic.depends_on_question

    @property
    def untrained_arms(self) -> tuple[str, ...]:
        """The arms that could be the comparator."""
        return tuple(name for name, arm in self.arms.items() if not arm.trained)

    @property
    def comparator_arm(self) -> ArmResult:
        """The comparator as an arm."""
        return self.arms[self.comparator.name]

    @property
    def tuned_arm(self) -> ArmResult:
        """The tuned model as an arm."""
        return self.arms["tuned"]
