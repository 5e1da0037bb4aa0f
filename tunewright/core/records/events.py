"""events.jsonl: what happened in the run, in order; only ever appended to."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ConfigDict, Field, JsonValue

from tunewright.core.records.common import Line, Side, Value


class Event(Line):
    """One event. ``time`` is UTC, to the second; every kind of event has additional keys."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    time: str = Field(description="ISO 8601, UTC, to the second.")
    event: str = Field(description="What happened, such as train_finished.")

    @property
    def facts(self) -> dict[str, JsonValue]:
        """All keys but time, event and version."""
        return self.__pydantic_extra__


class Judged(Value):
    """Facts of the event ``judged``: an arm answered rows. Time in seconds."""

    arm: str = Field(description="Name of the arm, its variant included.")
    side: Side = Field(description="Which rows.")
    branch: str = Field(description="The branch that answered; empty for the run itself.")
    file: str = Field("", description="Where the scores are, within the run.")
    rows: int = Field(description="Number of rows.")
    seconds: float = Field(description="How long it took, in seconds; of arms decoded together, an equal part.")


def judged(events: Iterable[Event]) -> list[Judged]:
    """All events ``judged`` of the run itself, without those of its branches."""
    every = [Judged.model_validate(e.facts) for e in events if e.event == "judged"]
    return [j for j in every if not j.branch]


AGREED = "agreed"  # somebody agreed that the run takes hours


def count_test_reads(events: Iterable[Event]) -> int:
    """How often the run has read its test rows."""
    return sum(e.event == "test_read" for e in events)
