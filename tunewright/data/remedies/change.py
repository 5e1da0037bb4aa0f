"""A change of a row that a setting asked for, and changes counted for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.core.errors import Problem
from tunewright.core.pii import masked
from tunewright.core.words import counted


@dataclass(frozen=True)
class Change:
    """``setting``: the one that asked for it, such as data.control=strip; ``code``: of the error or finding that it
    avoids; ``message``: what was wrong, or what was done; ``dropped``: whether the row was left out."""

    where: str
    code: str
    setting: str
    message: str
    dropped: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", masked(self.message))  # messages quote rows

    def to_json(self) -> dict[str, object]:
        return {
            "where": self.where,
            "code": self.code,
            "setting": self.setting,
            "action": "dropped" if self.dropped else "changed",
            "message": self.message,
        }


def dropped(problem: Problem, setting: str) -> Change:
    """The row of a problem is left out."""
    return Change(problem.where, problem.code, setting, problem.message, dropped=True)


@dataclass(frozen=True)
class Summary:
    """All changes of one kind: how many rows, in order of their places, and the message of the first."""

    code: str
    setting: str
    dropped: bool
    places: tuple[str, ...]
    message: str

    @property
    def text(self) -> str:
        example = self.message.rstrip(".")
        rows = counted(len(self.places), "row")
        return f"{rows} {'dropped' if self.dropped else 'changed'} by {self.setting}, e.g. {example}"

    def to_json(self, shown: int = 20) -> dict[str, object]:
        return {
            "code": self.code,
            "setting": self.setting,
            "action": "dropped" if self.dropped else "changed",
            "rows": len(self.places),
            "message": self.message,
            "where": list(self.places[:shown]),
        }


def summaries(changes: Sequence[Change]) -> tuple[Summary, ...]:
    """The changes by kind; the kinds in which rows were dropped come first, the largest first."""
    kinds: dict[tuple[str, str, bool], list[Change]] = {}
    for change in changes:
        kinds.setdefault((change.code, change.setting, change.dropped), []).append(change)
    made = [
        Summary(code, setting, dropped, tuple(dict.fromkeys(c.where for c in same)), same[0].message)
        for (code, setting, dropped), same in kinds.items()
    ]
    return tuple(sorted(made, key=lambda s: (not s.dropped, -len(s.places), s.code)))


def counts(changes: Sequence[Change]) -> tuple[int, int]:
    """The number of rows that were dropped, and of rows that were changed and kept."""
    dropped = {c.where for c in changes if c.dropped}
    return len(dropped), len({c.where for c in changes} - dropped)


def changed_rows(changes: Sequence[Change]) -> str:
    """What follows the number of rows in a line about a data set."""
    dropped, changed = counts(changes)
    parts = [f"{n} {what}" for n, what in ((dropped, "dropped"), (changed, "changed")) if n]
    return f" ({', '.join(parts)})" if parts else ""
