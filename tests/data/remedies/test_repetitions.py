"""Duplicates, contradictions and leaks, against pandas."""

from __future__ import annotations

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.data import near_duplicates, split
from tunewright.data.messages import Chat, Message
from tunewright.data.remedies import repetitions
from tunewright.data.text import normalised

PAIRS = st.lists(
    st.tuples(st.sampled_from(["q", "Q ", "r", "s t"]), st.sampled_from(["x", "X", "y", "z"])), max_size=14
)


def rows(pairs: list[tuple[str, str]], file: str = "a") -> tuple[Chat, ...]:
    return tuple(
        Chat((Message("user", q), Message("assistant", a)), f"{file}:{i + 1}") for i, (q, a) in enumerate(pairs)
    )


def table(pairs: list[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame([(normalised(q), normalised(a)) for q, a in pairs], columns=["q", "a"])


def places(examples: tuple[Chat, ...]) -> list[int]:
    return [int(e.where.split(":")[1]) - 1 for e in examples]


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_duplicates_are_those_of_pandas(pairs: list[tuple[str, str]]) -> None:
    examples = rows(pairs)
    kept, changes = repetitions.drop_duplicates(examples)
    assert places(kept) == list(table(pairs).drop_duplicates().index)  # type: ignore[arg-type]
    assert len(kept) + len(changes) == len(examples)
    assert all(c.dropped for c in changes)
    assert repetitions.drop_duplicates(kept) == (kept, [])


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_the_most_frequent_answer_is_kept(pairs: list[tuple[str, str]]) -> None:
    kept, changes = repetitions.drop_contradictions(rows(pairs))
    expected = []
    for i, row in table(pairs).iterrows():
        answers = table(pairs).query("q == @row.q").a.value_counts()
        modes = set(answers[answers == answers.max()].index)
        expected += [i] if modes == {row.a} else []
    assert places(kept) == expected  # type: ignore[arg-type]
    assert len(kept) + len(changes) == len(pairs)
    left = {normalised(e.question): normalised(e.target) for e in kept}
    assert all(left[normalised(e.question)] == normalised(e.target) for e in kept), "no contradiction is left"


SIDE = st.lists(st.integers(0, 6), max_size=6)


@settings(max_examples=200, deadline=None)
@given(SIDE, SIDE, SIDE)
def test_leaks_are_dropped_from_the_side_that_matters_less(train: list[int], dev: list[int], test: list[int]) -> None:
    sides = {
        side: rows([(f"{'abcdefg'[n] * 30} {n}", "x") for n in numbers], side)
        for side, numbers in (("train", train), ("dev", dev), ("test", test))
    }

    def cluster(sides: dict[str, tuple[Chat, ...]]) -> tuple[int, ...]:
        return near_duplicates.cluster([normalised(e.question) for s in sides.values() for e in s], 0.8).cluster

    kept, changes = repetitions.drop_leaks(sides, cluster(sides))  # type: ignore[arg-type]
    assert kept["test"] == sides["test"], "test is never changed"
    assert {side: places(examples) for side, examples in kept.items()} == {  # type: ignore[arg-type]
        "train": [i for i, n in enumerate(train) if n not in {*dev, *test}],
        "dev": [i for i, n in enumerate(dev) if n not in test],
        "test": list(range(len(test))),
    }
    assert len(changes) == sum(map(len, sides.values())) - sum(map(len, kept.values()))
    everything = [e for examples in kept.values() for e in examples]
    split.check_leaks(everything, [s for s in kept for _ in kept[s]], cluster(kept))  # type: ignore[arg-type]
