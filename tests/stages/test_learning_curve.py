"""Nested fractions of the training rows."""

from __future__ import annotations

import itertools

import pytest

from tunewright.stages import learning_curve


def test_nested_fractions_are_nested_stratified_and_keep_groups_together() -> None:
    rows = list(range(200))
    clusters = [i // 2 for i in rows]
    labels = ["a" if (i // 2) % 4 else "b" for i in rows]
    taken = [set(learning_curve.nested(rows, clusters, labels, fraction, 5)) for fraction in (1 / 8, 1 / 4, 1 / 2, 1.0)]
    assert all(a < b for a, b in itertools.pairwise(taken))
    assert taken[-1] == set(rows)
    for fraction, chosen in zip((1 / 8, 1 / 4, 1 / 2), taken, strict=False):
        assert len(chosen) == pytest.approx(200 * fraction, abs=4)
        assert sum(labels[i] == "b" for i in chosen) == pytest.approx(50 * fraction, abs=2)
        assert all((i ^ 1) in chosen for i in chosen)  # a pair of near-duplicates is never divided
    assert set(learning_curve.nested(rows, clusters, labels, 0.5, 6)) != taken[2]
