"""Evidence beside the verdict: forgetting and its mitigation, data quality, the learning curve, the cost of a request.

Every stage writes either its result or `NotMeasured`.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag, TypeAdapter

from tunewright.core.records.common import NO, YES, Interval, Measured, NotMeasured, Record, Value, Word, flag
from tunewright.core.records.data import LabelSuspect


class TextKL(Value):
    """How far the tuned model is from the base on some text, at each adapter scale. In bits per token."""

    what: str = Field(description="Which text.")
    rows: int = Field(description="Rows or passages.")
    tokens: int = Field(description="Tokens measured.")
    base_bits: float = Field(description="What the base needs for a token, in bits.")
    kl_bits: tuple[float, ...] = Field(description="KL(base || tuned) in bits per token, one per scale.")
    kl_interval: tuple[Interval | None, ...] = Field(description="Its intervals; null where the rows are too few.")
    delta_bits: tuple[float, ...] = Field(
        description="What the tuned model needs more than the base, in bits per token, per scale."
    )


class GenericKL(TextKL):
    """`TextKL` on bundled text unrelated to the task; also in bits per byte, which compares across tokenizers."""

    bytes: int = Field(description="Length of the text in UTF-8 bytes.")
    base_bits_per_byte: float = Field(description="What the base needs for a byte, in bits.")
    delta_bits_per_byte: tuple[float, ...] = Field(
        description="What the tuned model needs more, in bits per byte, per scale."
    )


class Sweep(Value):
    """Dev scores at each adapter scale."""

    dev: dict[str, float] = Field(description="Mean dev score by scale, as %g; by the task's metric.")
    chosen: float = Field(description="The scale that the rule selects.")


class Paired(Value):
    """The same items before and after training. Rates are 0 to 1."""

    items: int = Field(description="Items asked.")
    base: float = Field(description="Score of the base model.")
    tuned: float = Field(description="Score of the tuned model.")
    difference: float = Field(description="tuned - base.")
    interval: Interval = Field(description="Interval of the difference.")
    lost: int = Field(description="Items that only the base got right.")
    won: int = Field(description="Items that only the tuned model got right.")
    detectable: float = Field(description="Smallest true difference that so many items show with power 0.8.")


class Probe(Paired):
    """`Paired` items with a verdict; PRACTICALLY EQUAL means within forget.margin. Rates are 0 to 1."""

    verdict: Word = Field(description="Verdict on the difference.")


class InstructionKind(Value):
    """Instructions that one kind of check decides. Rates are 0 to 1."""

    items: int = Field(description="Instructions of this kind.")
    base: float = Field(description="Fraction that the base followed.")
    tuned: float = Field(description="Fraction that the tuned model followed.")


class InstructionProbe(Probe):
    """Instructions whose fulfilment a program checks. Rates are 0 to 1."""

    kinds: dict[str, InstructionKind] = Field(description="By what the program looks for.")


class Refusal(Paired):
    """Harmful requests. Rates are fractions of refused requests, 0 to 1."""

    base_rate: float = Field(description="Fraction that the base refuses.")
    measured: Literal[True] = Field(True, description="Always true.")


class NoRefusal(Value):
    """The base refuses too few harmful requests for refusal to be lost."""

    base_rate: float = Field(description="Fraction of harmful requests that the base refuses, 0 to 1.")
    measured: Literal[False] = Field(False, description="Always false.")


AnyRefusal = Annotated[Annotated[Refusal, Tag(YES)] | Annotated[NoRefusal, Tag(NO)], flag("measured")]


class Probes(Value):
    """General abilities, asked of the base and of the tuned model. Rates are 0 to 1."""

    knowledge: Probe = Field(description="Multiple-choice questions.")
    instructions: InstructionProbe = Field(description="Instructions that a program checks.")
    refusal: AnyRefusal = Field(description="Harmful requests.")
    over_refusal: Paired | None = Field(
        None, description="Harmless requests that look harmful; absent without refusal."
    )


class RegressionRows(Probe):
    """The user's own rows that must still work, before and after. Scores by ``metric``."""

    metric: str = Field(description="The metric that these rows' answers call for.")


class Forgetting(Record):
    """What training changed beside the task, and the choice of adapter scale. KL to the base in bits."""

    measured: Literal[True] = Field(True, description="Always true.")
    scales: tuple[float, ...] = Field(
        description="Adapter scales that were measured; the last is 1, the trained update itself."
    )
    rule: str = Field(description="How a scale is selected.")
    chosen: float = Field(
        description="The scale that the run's weights are used with; 1 unless forget.apply_best_scale."
    )
    task: TextKL | None = Field(None, description="On the base's own answers to dev prompts; absent for raw text.")
    generic: GenericKL | None = Field(None, description="On bundled text; absent if training contained all of it.")
    sweep: Sweep | None = Field(None, description="Dev scores at each scale; absent with a single scale.")
    probes: Probes | None = Field(None, description="Absent unless prove.evidence=full.")
    keep: RegressionRows | None = Field(None, description="Absent without forget.regression_rows.")


class Drift(Value):
    """Distance to the base, in bits per token."""

    kl_bits: float = Field(description="KL(base || tuned), bits per token.")
    delta_bits: float = Field(description="What the tuned model needs more than the base, bits per token.")


class MitigationWay(Value):
    """One way to train. KL in bits per token."""

    dev: float = Field(description="Mean dev score by the task's metric.")
    task: Drift | None = Field(None, description="On the base's own answers to dev prompts; absent for raw text.")
    generic: Drift = Field(description="On bundled text.")


class Mitigation(Record):
    """Ways to forget less, trained beside the run and compared on dev. KL in bits per token."""

    measured: Literal[True] = Field(True, description="Always true.")
    rule: str = Field(description="How a way is selected.")
    chosen: str = Field(description="The way that the rule selects.")
    ways: dict[str, MitigationWay] = Field(description="By name; `as it is` is the run itself.")

    @property
    def best(self) -> MitigationWay:
        """The way that the rule selects."""
        return self.ways[self.chosen]


class LabelCrossfit(Record):
    """Training labels that are probably wrong, by models not trained on them. Rates and probabilities are 0 to 1."""

    measured: Literal[True] = Field(True, description="Always true.")
    folds: int = Field(description="Parts that the training rows were cut into.")
    cuts: int = Field(description="How often they were cut, differently each time.")
    rows: int = Field(description="Rows judged.")
    rate: float = Field(description="Estimated fraction of wrong labels, if wrong labels fall at random.")
    interval: Interval = Field(description="Its 95 % interval.")
    suspects: tuple[LabelSuspect, ...] = Field(description="Likeliest first.")
    accuracy: float = Field(description="Fraction of rows whose label is the models' first choice.")
    expected: float = Field(description="How many of the suspects are expected to be wrong.")


class TextSuspect(Value):
    """A row that training on the other rows helped least. In nats per supervised token."""

    row: int = Field(description="Row number, from 0.")
    nats_over_base: float = Field(description="Loss of the row minus the base's, nats per supervised token.")
    where: str = Field(description="file:line.")


class TextCrossfit(Record):
    """Training rows that models not trained on them find least likely, compared with the base.

    In nats per supervised token.
    """

    measured: Literal[True] = Field(True, description="Always true.")
    folds: int = Field(description="Parts that the training rows were cut into.")
    cuts: int = Field(description="How often they were cut, differently each time.")
    suspects: tuple[TextSuspect, ...] = Field(description="The least likely twentieth of the rows, worst first.")


def _crossfit_kind(value: object) -> str:
    if isinstance(value, dict):
        labels, measured = "rate" in value, value.get("measured", True)
    else:
        labels, measured = hasattr(value, "rate"), getattr(value, "measured", True)
    return "<NotMeasured>" if measured is False else "<LabelCrossfit>" if labels else "<TextCrossfit>"


AnyCrossfit = Annotated[
    Annotated[LabelCrossfit, Tag("<LabelCrossfit>")]
    | Annotated[TextCrossfit, Tag("<TextCrossfit>")]
    | Annotated[NotMeasured, Tag("<NotMeasured>")],
    Discriminator(_crossfit_kind),
]


class Cleaning(Record):
    """The run without its flagged rows against the run as it is, on the same test rows. Scores by the task's metric."""

    measured: Literal[True] = Field(True, description="Always true.")
    flagged: dict[str, int] = Field(description="Flagged training rows by reason.")
    rows: int = Field(description="Training rows that are left.")
    cleaned: float = Field(description="Test score without the flagged rows.")
    as_is: float = Field(description="Test score of the run.")
    difference: float = Field(description="cleaned - as_is; positive is better.")
    interval: Interval = Field(description="Interval of the difference.")
    verdict: Word = Field(description="Verdict on the difference.")


class NotCleaned(Record):
    """Cleaning was not asked for, or nothing was flagged. Counts in rows."""

    measured: Literal[False] = Field(False, description="Always false.")
    flagged: dict[str, int] = Field(description="Flagged training rows by reason; empty if none.")
    reason: str | None = Field(None, description="Why not, where that needs saying.")


AnyCleaning = Annotated[Annotated[Cleaning, Tag(YES)] | Annotated[NotCleaned, Tag(NO)], flag("measured")]


class PromptTokens(Value):
    """Mean length of a prompt, in tokens."""

    student: float = Field(description="Without the instruction, in tokens.")
    teacher: float = Field(description="With it, in tokens.")


class PromptDistillation(Record):
    """A student trained on the base's answers under the instruction, asked without it. Scores by the task's metric."""

    measured: Literal[True] = Field(True, description="Always true.")
    prompts: int = Field(description="Training prompts that the teacher answered.")
    student: float = Field(description="Test score of the student, without the instruction.")
    teacher: float = Field(description="Test score of the base, with it.")
    difference: float = Field(description="student - teacher; positive is better.")
    interval: Interval = Field(description="Interval of the difference.")
    verdict: Word = Field(description="Verdict on the difference.")
    same_answers: float = Field(description="Fraction of test rows with the same answer.")
    prompt_tokens: PromptTokens = Field(description="What a request costs, in prompt tokens.")


class CurvePoint(Value):
    """Test scores after training on some of the rows, by the task's metric."""

    rows: int = Field(description="Training rows.")
    seeds: tuple[float, ...] = Field(description="Mean test score per seed.")
    score: float = Field(description="Mean over the seeds.")


class Doubling(Value):
    """What the second half of the rows gained, by the task's metric; positive is better."""

    gain: float = Field(description="Score with all rows - score with half of them.")
    interval: Interval = Field(description="Interval of the gain, over test rows and seeds.")
    seeds: int = Field(description="Trainings per size.")
    word: Literal["helps", "does not visibly help", "may or may not help"] = Field(
        description="Whether more data helps."
    )


class BackTest(Value):
    """The last measured point, forecast from those before it. Scores are 0 to 1."""

    predicted: float = Field(description="Forecast score.")
    interval: Interval = Field(description="Its interval.")
    measured: float = Field(description="Measured score.")


class Forecast(Value):
    """Score at twice the data. Scores are 0 to 1."""

    available: Literal[True] = Field(True, description="Always true: there is a forecast.")
    rows: int = Field(description="Training rows.")
    score: float = Field(description="Forecast score.")
    interval: Interval = Field(description="Its interval, at 1 - alpha.")
    alpha: float = Field(description="1 - coverage of the interval.")
    back_test: BackTest = Field(description="How the same method did on the last measured point.")


class NoForecast(Value):
    """A forecast is withheld. Scores are 0 to 1."""

    available: Literal[False] = Field(False, description="Always false: there is no forecast.")
    reason: str = Field(description="Why not.")
    back_test: BackTest | None = Field(
        None, description="How the method did on the last measured point, if it was tried."
    )


AnyForecast = Annotated[Annotated[Forecast, Tag(YES)] | Annotated[NoForecast, Tag(NO)], flag("available")]


class LearningCurve(Record):
    """The recipe on nested parts of the training rows, judged on the same test rows. Scores by the task's metric."""

    points: tuple[CurvePoint, ...] = Field(description="Smallest first.")
    doubling: Doubling = Field(description="The last doubling of the data.")
    forecast: AnyForecast = Field(description="Twice the data.")
    recipe: str = Field(description="What was kept the same at every size.")

    @property
    def measured(self) -> Literal[True]:
        """As the other stages' results have it as a field."""
        return True


def _curve_kind(value: object) -> str:
    absent = value.get("measured") is False if isinstance(value, dict) else isinstance(value, NotMeasured)
    return "<NotMeasured>" if absent else "<LearningCurve>"


AnyCurve = Annotated[
    Annotated[LearningCurve, Tag("<LearningCurve>")] | Annotated[NotMeasured, Tag("<NotMeasured>")],
    Discriminator(_curve_kind),
]


class Quantile(NamedTuple):
    """A quantile with its 95 % interval; JSON: [value, low, high]."""

    value: float
    low: float
    high: float


class Quantiles(Value):
    """Durations over all requests, in seconds."""

    p50: Quantile = Field(description="Median, in seconds, with its interval.")
    p95: Quantile = Field(description="95th percentile, in seconds, with its interval.")


class RequestCost(Value):
    """What requests to one model with one kind of prompt cost. Lengths in tokens, times in seconds."""

    prompt_tokens: float = Field(description="Mean length of a prompt, in tokens.")
    cached_tokens: int = Field(description="Tokens of the prompt in a prefix cache.")
    answer_tokens: float = Field(description="Mean length of an answer, in tokens.")
    first_token: Quantiles = Field(description="Time to the first token, in seconds.")
    seconds: Quantiles = Field(description="Time to the whole answer, in seconds.")
    requests_per_second_together: float = Field(description="Throughput of batched requests, per second.")


class Money(Value):
    """Prices in the unit of cost.price_per_hour."""

    per_thousand: dict[str, float] = Field(description="Price of a thousand requests, by way to answer.")
    training_and_judging: float = Field(description="Price of the training and of judging the arms.")
    break_even_requests: int | None = Field(
        description="Requests after which training is paid for; null if there is no such number."
    )
    why_not: str | None = Field(None, description="Why there is no such number.")


class Cost(Record):
    """What a request costs on the machine of the run, for the tuned model and for the base. Times in seconds."""

    measured: Literal[True] = Field(True, description="Always true.")
    requests: int = Field(description="Test prompts that were timed one by one.")
    together: int = Field(description="Prompts per batch for the throughput.")
    ways: dict[str, RequestCost] = Field(description="By way to answer.")
    money: Money | None = Field(description="Null without cost.price_per_hour.")


FORGETTING: TypeAdapter[Forgetting | NotMeasured] = TypeAdapter(Measured[Forgetting])
MITIGATION: TypeAdapter[Mitigation | NotMeasured] = TypeAdapter(Measured[Mitigation])
CROSSFIT: TypeAdapter[LabelCrossfit | TextCrossfit | NotMeasured] = TypeAdapter(AnyCrossfit)
CLEANING: TypeAdapter[Cleaning | NotCleaned] = TypeAdapter(AnyCleaning)
PROMPT_DISTILLATION: TypeAdapter[PromptDistillation | NotMeasured] = TypeAdapter(Measured[PromptDistillation])
CURVE: TypeAdapter[LearningCurve | NotMeasured] = TypeAdapter(AnyCurve)
COST: TypeAdapter[Cost | NotMeasured] = TypeAdapter(Measured[Cost])
