"""Evidence besides the verdict: forgetting and its mitigation, data quality, the learning curve, the cost of a request.

Every stage writes either its result or `NotMeasured`.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag, TypeAdapter

from tunewright.core.records.common import NO, YES, Interval, Measured, NotMeasured, Record, Value, VerdictWord, flag
from tunewright.core.records.data import LabelSuspect


class TextKL(Value):
    """Divergence of the tuned model from the base on a text, at each scale of the trained update. In bits per token."""

    what: str = Field(description="What the text is.")
    rows: int = Field(description="Number of rows or passages.")
    tokens: int = Field(description="Number of tokens measured.")
    base_bits: float = Field(description="Loss of the base, in bits per token.")
    kl_bits: tuple[float, ...] = Field(description="KL(base || tuned) in bits per token, one per scale.")
    kl_interval: tuple[Interval | None, ...] = Field(
        description="Interval at each scale; null if there are too few rows."
    )
    delta_bits: tuple[float, ...] = Field(
        description="Loss of the tuned model minus the base's, in bits per token, one per scale."
    )


class GenericKL(TextKL):
    """`TextKL` on bundled text unrelated to the task; also in bits per byte, which is comparable across tokenizers."""

    bytes: int = Field(description="Length of the text in UTF-8 bytes.")
    base_bits_per_byte: float = Field(description="Loss of the base, in bits per byte.")
    delta_bits_per_byte: tuple[float, ...] = Field(
        description="Loss of the tuned model minus the base's, in bits per byte, one per scale."
    )


class Sweep(Value):
    """Dev scores at each scale of the trained update."""

    dev: dict[str, float] = Field(description="Scale, formatted with %g -> mean dev score by the task's metric.")
    chosen: float = Field(description="The scale that the rule selects.")


class Paired(Value):
    """The same items before and after training. Rates are 0 to 1."""

    items: int = Field(description="Number of items.")
    base: float = Field(description="Score of the base model.")
    tuned: float = Field(description="Score of the tuned model.")
    difference: float = Field(description="tuned - base.")
    interval: Interval = Field(description="Interval of the difference.")
    lost: int = Field(description="Items that only the base got right.")
    won: int = Field(description="Items that only the tuned model got right.")
    detectable: float = Field(
        description="Smallest true difference that this many items detect with power 0.8 at significance level 0.05."
    )


class Probe(Paired):
    """`Paired` items with a verdict; PRACTICALLY EQUAL means within forget.margin. Rates are 0 to 1."""

    verdict: VerdictWord = Field(description="Verdict on the difference.")


class InstructionKind(Value):
    """Instructions verified by the same kind of check. Rates are 0 to 1."""

    items: int = Field(description="Instructions of this kind.")
    base: float = Field(description="Fraction that the base followed.")
    tuned: float = Field(description="Fraction that the tuned model followed.")


class InstructionProbe(Probe):
    """Instructions whose answers a program can check. Rates are 0 to 1."""

    kinds: dict[str, InstructionKind] = Field(description="Results by kind of check.")


class Refusal(Paired):
    """Harmful requests. Rates are fractions of refused requests, 0 to 1."""

    base_rate: float = Field(description="Fraction that the base refuses.")
    measured: Literal[True] = Field(True, description="Always true.")


class NoRefusal(Value):
    """The base refuses too few harmful requests to measure a loss of refusals."""

    base_rate: float = Field(description="Fraction of harmful requests that the base refuses, 0 to 1.")
    measured: Literal[False] = Field(False, description="Always false.")


AnyRefusal = Annotated[Annotated[Refusal, Tag(YES)] | Annotated[NoRefusal, Tag(NO)], flag("measured")]


class Probes(Value):
    """General abilities of the base and of the tuned model. Rates are 0 to 1."""

    knowledge: Probe = Field(description="Multiple-choice questions.")
    instructions: InstructionProbe = Field(description="Instructions whose answers a program can check.")
    refusal: AnyRefusal = Field(description="Harmful requests.")
    over_refusal: Paired | None = Field(
        None, description="Harmless requests that look harmful; absent without refusal."
    )


class RegressionRows(Probe):
    """The user's regression rows, before and after training. Scores by ``metric``."""

    metric: str = Field(description="The default metric for these rows.")


class Forgetting(Record):
    """What training changed besides the task, and the scale of the trained update. KL from the base model in bits."""

    measured: Literal[True] = Field(True, description="Always true.")
    scales: tuple[float, ...] = Field(
        description="Factors by which the trained update was multiplied; the last is 1, the update itself."
    )
    rule: str = Field(description="How a scale is selected.")
    chosen: float = Field(description="The scale that the run uses; 1 unless forget.apply_best_scale is set.")
    task: TextKL | None = Field(None, description="On the base's own answers to dev prompts; absent for raw text.")
    generic: GenericKL | None = Field(None, description="On bundled text; absent if the data contains all of it.")
    sweep: Sweep | None = Field(None, description="Dev scores at each scale; absent with a single scale.")
    probes: Probes | None = Field(None, description="Absent unless prove.evidence=full.")
    regression_rows: RegressionRows | None = Field(None, description="Absent without forget.regression_rows.")


class Drift(Value):
    """Distance to the base, in bits per token."""

    kl_bits: float = Field(description="KL(base || tuned), bits per token.")
    delta_bits: float = Field(description="Loss of the tuned model minus the base's, bits per token.")


class MitigationVariant(Value):
    """One way of training. KL in bits per token."""

    dev: float = Field(description="Mean dev score by the task's metric.")
    task: Drift | None = Field(None, description="On the base's own answers to dev prompts; absent for raw text.")
    generic: Drift = Field(description="On bundled text.")


class Mitigation(Record):
    """Ways to reduce forgetting, each trained as a branch and compared on dev. KL in bits per token."""

    measured: Literal[True] = Field(True, description="Always true.")
    rule: str = Field(description="How a way is selected.")
    chosen: str = Field(description="The way that the rule selects.")
    variants: dict[str, MitigationVariant] = Field(description="By name; `unchanged` is the run itself.")

    @property
    def best(self) -> MitigationVariant:
        """The way that the rule selects."""
        return self.variants[self.chosen]


class LabelCrossfit(Record):
    """Training labels that models not trained on them consider wrong. Rates and probabilities are 0 to 1."""

    measured: Literal[True] = Field(True, description="Always true.")
    folds: int = Field(description="Number of folds of the training rows.")
    cuts: int = Field(description="How many times the rows were divided into folds, differently each time.")
    rows: int = Field(description="Rows whose label was examined.")
    rate: float = Field(description="Estimated fraction of wrong labels, assuming that the errors are random.")
    interval: Interval = Field(description="Its 95% interval.")
    suspects: tuple[LabelSuspect, ...] = Field(description="Most likely first.")
    accuracy: float = Field(description="Fraction of rows whose label is the one that the models find most likely.")
    expected: float = Field(description="Expected number of suspects whose label is wrong.")


class TextSuspect(Value):
    """A row that training on the other rows helped least. In nats per supervised token."""

    row: int = Field(description="Row number, from 0.")
    nats_over_base: float = Field(description="Loss of the row minus the base's, nats per supervised token.")
    where: str = Field(description="file:line.")


class TextCrossfit(Record):
    """Training rows whose loss, relative to the base, is highest under models not trained on them.

    In nats per supervised token.
    """

    measured: Literal[True] = Field(True, description="Always true.")
    folds: int = Field(description="Number of folds of the training rows.")
    cuts: int = Field(description="How many times the rows were divided into folds, differently each time.")
    suspects: tuple[TextSuspect, ...] = Field(description="The worst 5% of the rows, worst first.")


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
    """Training without the flagged rows, compared with the run on the same test rows. Scores by the task's metric."""

    measured: Literal[True] = Field(True, description="Always true.")
    flagged: dict[str, int] = Field(description="Flagged training rows by reason; a row may have several.")
    dropped: int = Field(description="Training rows that were left out.")
    rows: int = Field(description="Training rows that remain.")
    cleaned: float = Field(description="Test score without the flagged rows.")
    as_is: float = Field(description="Test score of the run.")
    difference: float = Field(description="cleaned - as_is; positive is better.")
    interval: Interval = Field(description="Interval of the difference.")
    verdict: VerdictWord = Field(description="Verdict on the difference.")


class NotCleaned(Record):
    """Cleaning was not requested, or nothing was flagged. Counts in rows."""

    measured: Literal[False] = Field(False, description="Always false.")
    flagged: dict[str, int] = Field(description="Flagged training rows by reason; empty if none.")
    reason: str | None = Field(None, description="Why not; absent if it is obvious.")


AnyCleaning = Annotated[Annotated[Cleaning, Tag(YES)] | Annotated[NotCleaned, Tag(NO)], flag("measured")]


class PromptTokens(Value):
    """Mean length of a prompt, in tokens."""

    student: float = Field(description="Without the instruction, in tokens.")
    teacher: float = Field(description="With it, in tokens.")


class PromptDistillation(Record):
    """A student trained on the base's answers with the instruction, tested without it. Scores by the task's metric."""

    measured: Literal[True] = Field(True, description="Always true.")
    prompts: int = Field(description="Training prompts that the teacher answered.")
    student: float = Field(description="Test score of the student, without the instruction.")
    teacher: float = Field(description="Test score of the base, with it.")
    difference: float = Field(description="student - teacher; positive is better.")
    interval: Interval = Field(description="Interval of the difference.")
    verdict: VerdictWord = Field(description="Verdict on the difference.")
    same_answers: float = Field(description="Fraction of test rows with the same answer.")
    prompt_tokens: PromptTokens = Field(description="Prompt length of a request, in tokens.")


class CurvePoint(Value):
    """Test scores after training on some of the rows, by the task's metric."""

    rows: int = Field(description="Training rows.")
    seeds: tuple[float, ...] = Field(description="Mean test score per seed.")
    score: float = Field(description="Mean over the seeds.")


class Doubling(Value):
    """Gain from the second half of the rows, by the task's metric; positive is better."""

    gain: float = Field(description="Score with all rows minus score with half of them.")
    interval: Interval = Field(description="Interval of the gain, over test rows and seeds.")
    seeds: int = Field(description="Seeds per size.")
    outcome: Literal["helps", "does not visibly help", "may or may not help"] = Field(
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
    back_test: BackTest = Field(description="How the same method performed on the last measured point.")


class NoForecast(Value):
    """No forecast is given. Scores are 0 to 1."""

    available: Literal[False] = Field(False, description="Always false: there is no forecast.")
    reason: str = Field(description="Why not.")
    back_test: BackTest | None = Field(
        None, description="How the method performed on the last measured point, if it was tried."
    )


AnyForecast = Annotated[Annotated[Forecast, Tag(YES)] | Annotated[NoForecast, Tag(NO)], flag("available")]


class LearningCurve(Record):
    """The recipe, trained on nested subsets of the rows and tested on the same rows. Scores by the task's metric."""

    points: tuple[CurvePoint, ...] = Field(description="Smallest first.")
    doubling: Doubling = Field(description="The last doubling of the data.")
    forecast: AnyForecast = Field(description="The score expected at twice the data.")
    recipe: str = Field(description="What was kept constant across sizes.")

    @property
    def measured(self) -> Literal[True]:
        """The other stages' results have a field of this name."""
        return True


def _curve_kind(value: object) -> str:
    absent = value.get("measured") is False if isinstance(value, dict) else isinstance(value, NotMeasured)
    return "<NotMeasured>" if absent else "<LearningCurve>"


AnyCurve = Annotated[
    Annotated[LearningCurve, Tag("<LearningCurve>")] | Annotated[NotMeasured, Tag("<NotMeasured>")],
    Discriminator(_curve_kind),
]


class Quantile(NamedTuple):
    """A quantile with its 95% interval; JSON: [value, low, high]."""

    value: float
    low: float
    high: float


class Quantiles(Value):
    """Durations over all requests, in seconds."""

    p50: Quantile = Field(description="Median, in seconds, with its interval.")
    p95: Quantile = Field(description="95th percentile, in seconds, with its interval.")


class RequestCost(Value):
    """Cost of requests to one model with one kind of prompt. Lengths in tokens, times in seconds."""

    prompt_tokens: float = Field(description="Mean length of a prompt, in tokens.")
    cached_tokens: int = Field(description="Prompt tokens that come from a prefix cache.")
    answer_tokens: float = Field(description="Mean length of an answer, in tokens.")
    first_token: Quantiles = Field(description="Time to the first token, in seconds.")
    seconds: Quantiles = Field(description="Time to the complete answer, in seconds.")
    requests_per_second_together: float = Field(description="Throughput of batched requests, per second.")


class Money(Value):
    """Prices in the unit of cost.price_per_hour."""

    per_thousand: dict[str, float] = Field(description="Price of a thousand requests, by setup.")
    training_and_judging: float = Field(description="Price of training and of evaluating the arms.")
    break_even_requests: int | None = Field(
        description="Requests after which training has paid for itself; null if there is no such number."
    )
    why_not: str | None = Field(None, description="Why there is no such number.")


class Cost(Record):
    """What a request costs on the machine of the run, for the tuned model and for the base. Times in seconds."""

    measured: Literal[True] = Field(True, description="Always true.")
    requests: int = Field(description="Test prompts that were timed one by one.")
    batch_size: int = Field(description="Prompts per batch in the throughput measurement.")
    setups: dict[str, RequestCost] = Field(description="By setup: a model with a kind of prompt.")
    money: Money | None = Field(description="Null without cost.price_per_hour.")


FORGETTING: TypeAdapter[Forgetting | NotMeasured] = TypeAdapter(Measured[Forgetting])
MITIGATION: TypeAdapter[Mitigation | NotMeasured] = TypeAdapter(Measured[Mitigation])
CROSSFIT: TypeAdapter[LabelCrossfit | TextCrossfit | NotMeasured] = TypeAdapter(AnyCrossfit)
CLEANING: TypeAdapter[Cleaning | NotCleaned] = TypeAdapter(AnyCleaning)
PROMPT_DISTILLATION: TypeAdapter[PromptDistillation | NotMeasured] = TypeAdapter(Measured[PromptDistillation])
CURVE: TypeAdapter[LearningCurve | NotMeasured] = TypeAdapter(AnyCurve)
COST: TypeAdapter[Cost | NotMeasured] = TypeAdapter(Measured[Cost])
