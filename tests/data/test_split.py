"""The split: by content, clusters kept together, no leaks."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.data import near_duplicates, split, text
from tunewright.data.messages import Chat, Message


def chat(question: str, answer: str) -> Chat:
    return Chat((Message("user", question), Message("assistant", answer)), "x:1")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**9))
def test_a_rows_side_does_not_depend_on_the_order_or_on_other_rows(seed: int) -> None:
    random = Random(seed)
    questions = {f"{random.random()} and {random.random()}" for _ in range(60)}
    chats = [Chat((Message("user", q), Message("assistant", "a")), "x") for q in sorted(questions)]

    def sides(some: list[Chat]) -> dict[str, str]:
        held = split.hold_out(some, range(len(some)), 0.2, 0.3)
        return {
            some[i].prompt.messages[0].content: name for name in ("train", "dev", "test") for i in getattr(held, name)
        }

    before = sides(chats)
    assert set(before) == questions
    shuffled = list(chats)
    random.shuffle(shuffled)
    assert sides(shuffled) == before
    assert all(before[k] == v for k, v in sides(chats[:-10]).items())


def test_near_duplicates_stay_together() -> None:
    base = "The quick brown fox jumps over the lazy dog near the old mill by the river number"
    rows = [
        f"{base} {i // 2}{'!' * (i % 2)}" if i < 20 else f"{i * 7919} quite different words {i * 104729} here {i}"
        for i in range(60)
    ]
    cluster = near_duplicates.cluster([text.normalised(r) for r in rows], 0.8).cluster
    chats = [Chat((Message("user", q), Message("assistant", "a")), f"x:{i}") for i, q in enumerate(rows)]
    held = split.hold_out(chats, cluster, 0.2, 0.2)
    side = {i: name for name in ("train", "dev", "test") for i in getattr(held, name)}
    for i in range(0, 20, 2):
        assert cluster[i] == cluster[i + 1]
        assert side[i] == side[i + 1]
    assert sorted(side) == list(range(60))


def test_clusters_of_any_size_are_equally_likely_in_test() -> None:
    for size in (1, 2, 6):
        chats = [
            Chat((Message("user", f"{size} of question {i}"), Message("assistant", "a")), f"x:{i}")
            for i in range(600 * size)
        ]
        held = split.hold_out(chats, [i // size * size for i in range(600 * size)], 0.1, 0.2)
        assert len(held.test) / len(chats) == pytest.approx(0.2, abs=0.05)
        assert len(held.dev) / len(chats) == pytest.approx(0.1, abs=0.04)


def test_a_cluster_of_many_rows_is_never_most_of_test() -> None:
    chats = [
        Chat((Message("user", f"question {max(0, i - 30)}"), Message("assistant", "a")), f"x:{i}") for i in range(100)
    ]
    cluster = [0 if i <= 30 else i for i in range(100)]
    for fraction in (0.2, 0.5, 0.8):
        held = split.hold_out(chats, cluster, 0.05, fraction)
        assert set(range(31)) <= set(held.train)


def test_a_long_run_of_words_across_sides_is_an_overlap() -> None:
    long = " ".join(f"w{i}" for i in range(20))
    rows = [chat(f"{long} {i}" if i in (0, 9) else f"short question {i}", f"answer {i}") for i in range(10)]
    assert split.overlaps(rows, range(8), [8, 9]) == (9,)
    template = [chat(f"{long} number {i}", "x") for i in range(10)]
    assert split.overlaps(template, range(8), [8, 9]) == ()  # many rows have it: a template
