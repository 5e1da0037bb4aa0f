"""What people preferred, of two answers whose authors they did not know."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunewright.core.records.common import Interval, Line, Value

Side = Literal["left", "right", "tie"]


class Choice(Line):
    """One line of people.jsonl: a person's choice between two answers to a test row. The last line of a row counts."""

    row: int = Field(description="Row number, from 0.")
    against: str = Field(description="The arm whose answer the tuned model's is compared with.")
    key: str = Field(description="Hash of both answers; a choice between other answers does not count.")
    left: Literal["tuned", "other"] = Field(description="Whose answer was on the left.")
    chosen: Side | None = Field(description="The better answer; null if the choice was taken back.")
    time: str = Field(description="ISO 8601, UTC, to the second.")


class WinRate(Value):
    """How often the tuned model's answer is preferred, a tie counting half."""

    rate: float = Field(description="0 to 1; 0.5 if neither is preferred.")
    interval: Interval = Field(description="Its interval.")
    rows: int = Field(description="Rows compared.")
    won: int = Field(description="Rows on which the tuned answer was preferred.")
    tied: int = Field(description="Ties, rows with the same answer included.")
    same: int = Field(description="Of the ties, rows with the same answer, which nobody was asked about.")
    lost: int = Field(description="Rows on which the other answer was preferred.")


class Preferences(Value):
    """What people preferred so far."""

    against: str = Field(description="The arm whose answers the tuned model's are compared with.")
    asked: int = Field(description="Rows that people are asked about, those with the same answer included.")
    people: WinRate | None = Field(description="Null before the first choice.")
