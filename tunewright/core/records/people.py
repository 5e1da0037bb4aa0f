"""What people preferred, of two answers whose authors they did not know."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunewright.core.records.common import Interval, Line, Record, Value

Side = Literal["left", "right", "tie"]


class Choice(Line):
    """One line of people.jsonl: a person's choice between two answers to a test row. The last line of a row counts."""

    row: int = Field(description="Row number, from 0.")
    against: str = Field(description="The arm whose answer the tuned model's is compared with.")
    key: str = Field(description="Hash of both answers; a choice between other answers does not count.")
    left: Literal["tuned", "other"] = Field(description="Whose answer was on the left.")
    chosen: Side | None = Field(description="The better answer; null if the choice was taken back.")
    time: str = Field(description="ISO 8601, UTC, to the second.")
    rubric: str = Field("", description="Which answer is better, in the words of --rubric.")


class WinRate(Value):
    """How often the tuned model's answer is preferred, a tie counting half."""

    rate: float = Field(description="0 to 1; 0.5 if neither is preferred.")
    interval: Interval = Field(description="Its interval.")
    rows: int = Field(description="Rows compared.")
    won: int = Field(description="Rows on which the tuned answer was preferred.")
    tied: int = Field(description="Ties, rows with the same answer included.")
    same: int = Field(description="Of the ties, rows with the same answer, which nobody was asked about.")
    lost: int = Field(description="Rows on which the other answer was preferred.")


class JudgeLine(Line):
    """One line of judge.jsonl: a judge model's choice between two answers to a test row, in one order."""

    row: int = Field(description="Row number, from 0.")
    against: str = Field(description="The arm whose answer the tuned model's is compared with.")
    key: str = Field(description="Hash of both answers, of what was asked, and of the judge's name and address.")
    first: Literal["tuned", "other"] = Field(description="Whose answer came first.")
    chosen: Literal["first", "second", "tie"] | None = Field(description="Null if the reply names none.")
    reply: str = Field(description="What the judge wrote, or why there is no reply; at most 500 characters.")


class Agreement(Value):
    """How often a judge and people prefer the same answer, where both prefer one."""

    rate: float = Field(description="0 to 1.")
    interval: Interval = Field(description="Its interval.")
    rows: int = Field(description="Rows on which both prefer an answer.")
    expected: float | None = Field(
        None, description="The rate by chance, if each prefers the tuned answer as often as it does."
    )
    beyond: Interval | None = Field(None, description="Interval of the rate minus the rate by chance.")

    @property
    def above_chance(self) -> bool:
        """Whether they are shown to agree more often than by chance."""
        return self.beyond is not None and self.beyond.low > 0


class JudgeResult(Value):
    """What a judge model preferred. Fractions are 0 to 1."""

    model: str = Field(description="Name of the judge.")
    url: str = Field("", description="Address of its endpoint.")
    rubric: str = Field("", description="Which answer is better, as it was asked.")
    alone: WinRate = Field(description="The win rate by the judge, both orders averaged.")
    asked: int = Field(0, description="Rows that it was asked about: those whose answers differ.")
    contradicted: float = Field(description="Fraction of these rows on which its choice depends on the order.")
    first: float = Field(description="Fraction of its choices for the answer that came first.")
    longer: float | None = Field(description="Fraction of its choices for the longer answer; null if there are none.")
    unreadable: int = Field(description="Replies that name no answer, or several; they count as ties.")
    usable: bool = Field(
        True,
        description="Whether at most a tenth of its replies are such, and its choice depends on the order on at most "
        "half of the rows.",
    )
    agreement: Agreement | None = Field(description="With people; null without common choices.")
    corrected: Interval | None = Field(
        description="Interval of the win rate by people, from people's choices and the judge's on all rows (PPI++); "
        "null for fewer than 20 rows by people."
    )
    corrected_rate: float | None = Field(description="The win rate that it is about.")
    weight: float | None = Field(description="How much the judge's choices count in it, 0 to 1.")


class Preferred(Value):
    """What people, and a judge model, preferred so far: the tuned model's answers, or another arm's."""

    against: str = Field(description="The arm whose answers the tuned model's are compared with.")
    asked: int = Field(description="Rows that people are asked about, those with the same answer included.")
    rubric: str = Field("", description="Which answer is better, as people were asked; empty for the default.")
    people: WinRate | None = Field(description="Null before the first choice.")
    judge: JudgeResult | None = Field(description="Null unless a judge was asked.")


class Preferences(Record):
    """What people, and judge models, preferred so far."""

    comparisons: tuple[Preferred, ...] = Field(description="With each arm that was compared, the last one first.")
