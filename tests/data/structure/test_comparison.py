"""Fields of structured answers: flat objects score as they always did; fields of different items never add up."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from tunewright.data.structure import comparison
from tunewright.data.structure.comparison import Comparison, FieldCounts, Rules, compare
from tunewright.data.structure.matching import best_pairs
from tunewright.data.text import normalised

QUICK = settings(max_examples=200, deadline=None)


def f1(target: Any, answer: Any, **rules: Any) -> float:
    return compare(target, answer, Rules(**rules)).counts.f1


# -- flat objects: the score of version 0.1


def multiset_of_leaves(value: Any, prefix: str = "") -> Counter[tuple[str, str]]:
    """Field F1 of version 0.1 counted these, whichever item they were in."""
    if isinstance(value, dict):
        return sum((multiset_of_leaves(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()), Counter())
    if isinstance(value, list):
        return sum((multiset_of_leaves(v, f"{prefix}[]") for v in value), Counter())
    return Counter({(prefix, normalised(value if isinstance(value, str) else json.dumps(value))): 1})


WORDS = st.sampled_from(["a", "A ", "b", "1", "true", "null", "New  York", "new york"])
SCALARS = st.one_of(WORDS, st.integers(-3, 3), st.booleans(), st.none(), st.sampled_from([0.5, 2.25]))
KEYS = st.sampled_from("abcd")
FLAT = st.dictionaries(KEYS, st.one_of(SCALARS, st.lists(SCALARS, max_size=4)), max_size=4)


@QUICK
@given(FLAT, FLAT)
def test_flat_objects_score_as_they_always_did(target: dict[str, Any], answer: dict[str, Any]) -> None:
    expected, actual = multiset_of_leaves(target), multiset_of_leaves(answer)
    right = (expected & actual).total()
    old = FieldCounts(right, actual.total() - right, expected.total() - right)
    new = compare(target, answer).counts
    if expected:
        assert new == old
    else:  # that nothing is there is now a field, which is right or missed
        assert new == (FieldCounts(1, 0, 0) if not actual else FieldCounts(0, old.wrong, 1))
    assert new.f1 == old.f1
    assert compare(target, answer).equal == (expected == actual)


# -- items of lists


ENTITIES = [{"name": "A", "type": "X"}, {"name": "B", "type": "Y"}]


def test_fields_of_different_items_do_not_count_as_right_together() -> None:
    swapped = [{"name": "A", "type": "Y"}, {"name": "B", "type": "X"}]
    assert f1(ENTITIES, swapped) == 0.5
    assert f1(ENTITIES, ENTITIES[::-1]) == 1.0
    assert f1(ENTITIES, ENTITIES[::-1], ordered=True) == 0.5
    assert f1(ENTITIES, ENTITIES[:1]) == pytest.approx(2 * 2 / (2 * 2 + 2))
    assert f1({"of": ENTITIES}, {"of": swapped}) == 0.5


def test_where_order_counts_a_missing_item_costs_only_itself() -> None:
    assert compare(list("abcd"), list("bcd"), Rules(ordered=True)).counts == FieldCounts(3, 0, 1)
    assert compare(list("abcd"), list("bacd"), Rules(ordered=True)).counts == FieldCounts(3, 1, 1)
    assert compare(list("abcd"), list("bacd")).counts == FieldCounts(4, 0, 0)


ITEMS = st.lists(st.one_of(FLAT, SCALARS, st.fixed_dictionaries({"of": st.lists(FLAT, max_size=3)})), max_size=4)


def by_brute_force(targets: list[Any], answers: list[Any], ordered: bool) -> int:
    """The largest number of equal fields over all matchings of two short lists."""
    choose = itertools.combinations if ordered else itertools.permutations
    return max(
        sum(equal(t, a, ordered) for t, a in zip(some, others, strict=True))
        for size in range(min(len(targets), len(answers)) + 1)
        for some in itertools.combinations(targets, size)
        for others in choose(answers, size)
    )


def equal(a: Any, b: Any, ordered: bool) -> int:
    if isinstance(a, dict) and isinstance(b, dict):
        return sum(equal(a[k], b[k], ordered) for k in a.keys() & b.keys())
    if isinstance(a, list) and isinstance(b, list):
        return by_brute_force(a, b, ordered)
    return int(
        not isinstance(a, dict | list)
        and not isinstance(b, dict | list)
        and multiset_of_leaves(a) == multiset_of_leaves(b)
    )


@QUICK
@given(ITEMS, ITEMS, st.booleans())
def test_no_matching_of_items_has_more_equal_fields(targets: list[Any], answers: list[Any], ordered: bool) -> None:
    actual = compare({"list": targets}, {"list": answers}, Rules(ordered=ordered))
    if multiset_of_leaves(targets):
        assert actual.counts.right == by_brute_force(targets, answers, ordered)


@QUICK
@given(ITEMS, ITEMS)
def test_a_tolerance_below_every_difference_changes_nothing(targets: list[Any], answers: list[Any]) -> None:
    """Without a tolerance, equal items are matched first; with one, all are assigned together."""
    assert compare(targets, answers).counts == compare(targets, answers, Rules(tolerance=1e-9)).counts


@QUICK
@given(ITEMS, ITEMS, st.booleans())
def test_counts_add_up_and_are_symmetric(targets: list[Any], answers: list[Any], ordered: bool) -> None:
    rules = Rules(ordered=ordered)
    first, second = compare(targets, answers, rules), compare(answers, targets, rules)
    if multiset_of_leaves(targets) and multiset_of_leaves(answers):
        assert first.counts.f1 == second.counts.f1
        assert len(first.right) + len(first.missed) == multiset_of_leaves(targets).total()
        assert len(first.right) + len(first.wrong) == multiset_of_leaves(answers).total()
    assert compare(targets, targets, rules).counts.f1 == 1.0
    assert compare(targets, targets, rules).equal


@QUICK
@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 2**32 - 1))
def test_matching_is_that_of_scipy_or_in_order_of_brute_force(rows: int, columns: int, seed: int) -> None:
    weights = np.random.default_rng(seed).integers(0, 4, (rows, columns))
    free = best_pairs(weights, ordered=False)
    n, m = linear_sum_assignment(-weights)
    assert sum(weights[p] for p in free) == weights[n, m].sum()
    ordered = best_pairs(weights, ordered=True)
    assert ordered == sorted(ordered)
    assert all(len({p[side] for p in ordered}) == len(ordered) for side in (0, 1))
    table = np.zeros((rows + 1, columns + 1), int)
    for i, j in itertools.product(range(rows), range(columns)):
        table[i + 1, j + 1] = max(table[i, j + 1], table[i + 1, j], table[i, j] + weights[i, j])
    assert sum(weights[p] for p in ordered) == table[-1, -1]


def test_hundreds_of_items_take_about_a_second() -> None:
    draw = np.random.default_rng(0).integers
    items = [[{"a": int(draw(9)), "b": int(draw(99)), "c": int(draw(999))} for _ in range(400)] for _ in range(2)]
    started = time.monotonic()
    counts = compare(*items).counts
    assert time.monotonic() - started < 10
    assert counts.right > 500


def test_above_the_limit_items_are_matched_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "MAX_PAIRS", 3)
    assert f1(ENTITIES, ENTITIES[::-1]) == 1.0, "equal items are matched first"
    assert f1(ENTITIES, [{"name": "A", "type": "Z"}, {"name": "B", "type": "Z"}]) == 0.5
    assert f1(ENTITIES, [{"name": "B", "type": "Z"}, {"name": "A", "type": "Z"}]) == 0.0


# -- scalars


@pytest.mark.parametrize(
    ("target", "answer", "tolerance", "same"),
    [
        (1, 1.0, 0.0, True),
        (1, "1", 0.0, True),
        (1.5, "1.5", 0.0, True),
        (1e22, 10**22, 0.0, True),
        ("07", "7", 0.0, False),
        ("1", "1.0", 0.0, False),
        ("1.10", "1.1", 0.0, False),
        (1.0, "1.0", 0.0, True),
        (2.5, " 2.50", 0.0, True),
        (100000, "1e5", 0.0, True),
        (7, "07", 0.0, False),
        (True, "1.0", 0.0, False),
        (2, "2.0001", 0.0, False),
        (12345678901234567891, "12345678901234567890", 0.0, False),
        (12345678901234567890, "12345678901234567890.0", 0.0, True),
        (1, "1e99999999999999999999", 0.0, False),
        (True, "true", 0.0, True),
        (True, 1, 0.0, False),
        (None, "null", 0.0, True),
        (None, "", 0.0, False),
        (100, 101, 0.0, False),
        (100, 101, 0.01, True),
        (100, 101, 0.009, False),
        (100, "101", 0.01, True),
        ("100", "101", 0.01, False),
        (100, "$101", 0.01, False),
        (0, 1e-9, 0.5, False),
        (10**400, 10**400 + 1, 0.1, False),
        (True, 1, 0.5, False),
    ],
)
def test_equality_of_scalars(target: Any, answer: Any, tolerance: float, same: bool) -> None:
    assert compare({"a": target}, {"a": answer}, Rules(tolerance=tolerance)).equal == same
    assert compare([answer], [target], Rules(tolerance=tolerance)).equal == same


SPELLED = st.sampled_from([1, 1.0, "1", "1.0", "1.00", 2, "2.0", "2", "x"])
SPELLED_ITEMS = st.lists(st.dictionaries(st.sampled_from("ab"), SPELLED, min_size=1) | SPELLED, min_size=1, max_size=4)


@QUICK
@given(SPELLED_ITEMS, SPELLED_ITEMS)
def test_no_matching_of_numbers_in_other_spellings_has_more_equal_fields(
    targets: list[Any], answers: list[Any]
) -> None:
    """1 is equal to "1" and "1.0", which are not equal: to match equal items first could lose a field."""

    def right(target: Any, answer: Any) -> int:
        if isinstance(target, dict) and isinstance(answer, dict):
            return sum(right(target[k], answer[k]) for k in target.keys() & answer.keys())
        if isinstance(target, dict) or isinstance(answer, dict):
            return 0
        strings = isinstance(target, str) and isinstance(answer, str)
        return int(target == answer if strings or "x" in (target, answer) else float(target) == float(answer))

    shorter, longer = sorted((targets, answers), key=len)
    best = max(sum(map(right, shorter, some)) for some in itertools.permutations(longer, len(shorter)))
    assert compare(targets, answers).counts.right == best
    assert compare({"of": targets}, {"of": targets}).equal


def test_null_is_not_absent() -> None:
    assert compare({"a": 1, "b": None}, {"a": 1}).missed == (("b", None),)
    assert compare({"a": 1}, {"a": 1, "b": None}).wrong == (("b", None),)


# -- nothing


def test_an_answer_to_a_target_without_fields_is_right_only_if_it_has_none() -> None:
    assert f1([], []) == f1({}, {}) == f1([{}], []) == 1.0
    assert f1([], [1]) == f1([], {"a": 1}) == f1({}, None) == f1([], None) == f1([], {}) == 0.0
    assert f1([1], []) == f1({"a": 1}, {}) == f1([1], None) == 0.0


def test_paths_name_the_fields() -> None:
    target = {"id": 1, "items": [{"price": 2, "tags": ["x"]}, {"price": 3}]}
    answer = {"id": 2, "items": [{"price": 3}, {"price": 2, "tags": ["y"]}, {"price": 5}]}
    assert compare(target, answer) == Comparison(
        right=(("items[].price", 2), ("items[].price", 3)),
        wrong=(("id", 2), ("items[].tags[]", "y"), ("items[].price", 5)),
        missed=(("id", 1), ("items[].tags[]", "x")),
    )
