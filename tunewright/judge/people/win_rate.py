"""The rate at which the tuned answers win. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunewright.core.records import WinRate
from tunewright.core.records.common import Interval
from tunewright.core.records.people import Side
from tunewright.judge.people.pairs import Pair
from tunewright.judge.statistics import clustered_interval


def win_rate(
    pairs: Sequence[Pair], chosen: Mapping[int, Side], clusters: Mapping[int, int], alpha: float, shown: int
) -> WinRate | None:
    """Over the pairs that were compared. A tie counts half, and so does a pair of equal answers. None before the first
    choice. ``clusters``: the group of near-duplicates of each row; ``shown``: people are asked about so many pairs."""
    places = [place for place, pair in enumerate(pairs) if not pair.same and pair.row in chosen]
    if not places:
        return None
    # Pairs are shown in an order that does not depend on their content. Equal ones count up to the next question, and
    # all that are shown once there is none; up to the last choice alone, a session would end with a pair that differs.
    waiting = (place for place, pair in enumerate(pairs[:shown]) if not pair.same and pair.row not in chosen)
    end = max(places[-1] + 1, next(waiting, shown))
    counted = [pair for pair in pairs[:end] if pair.same or pair.row in chosen]
    return rate_of(counted, {pairs[p].row: pairs[p].value(chosen[pairs[p].row]) for p in places}, clusters, alpha)


def rate_of(pairs: Sequence[Pair], value: Mapping[int, float], clusters: Mapping[int, int], alpha: float) -> WinRate:
    """``value``: of each row whose answers differ, from 0 (lost) to 1 (won)."""
    values = [0.5 if pair.same else value[pair.row] for pair in pairs]
    low, high, _ = clustered_interval([v - 0.5 for v in values], [clusters[pair.row] for pair in pairs], alpha, 0.5)
    return WinRate(
        rate=sum(values) / len(values),
        interval=Interval(0.5 + low, 0.5 + high),
        rows=len(pairs),
        won=sum(v > 0.5 for v in values),
        tied=values.count(0.5),
        same=sum(pair.same for pair in pairs),
        lost=sum(v < 0.5 for v in values),
    )


def sentence(rate: WinRate, against: str) -> str:
    """One line."""
    return f"by people, {rate_text(rate, against)}"


def rate_text(rate: WinRate, against: str) -> str:
    same = f" ({rate.same} with the same answer)" if rate.same else ""
    return (
        f"the win rate of tuned over {against.replace('_', ' ')} is {rate.rate:.1%} {percent(rate.interval)}, a tie "
        f"counting half; {rate.rows} rows: {rate.won} won, {rate.tied} tied{same}, {rate.lost} lost"
    )


def percent(ends: Interval) -> str:
    return f"[{ends.low:.1%}, {ends.high:.1%}]"
