"""Duplicates, contradictions and leaks, against pandas."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.data import audit, formats, near_duplicates, split
from tunewright.data.formats import RowSettings
from tunewright.data.messages import Chat, Message, ToolCall
from tunewright.data.remedies import repetitions
from tunewright.data.sources import Row
from tunewright.data.task import JSON, TOOL_CALLS, detect_task
from tunewright.data.task.kind import canonical_text
from tunewright.data.text import normalised

PAIRS = st.lists(
    st.tuples(st.sampled_from(["q", "Q ", "r", "s t"]), st.sampled_from(["x", "X", "y", "z"])), max_size=14
)


def rows(pairs: list[tuple[str, str]], file: str = "a") -> tuple[Chat, ...]:
    return tuple(
        Chat((Message("user", q), Message("assistant", a)), f"{file}:{i + 1}") for i, (q, a) in enumerate(pairs)
    )


def table(pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """Letter case counts in answers alone."""
    return pd.DataFrame([(normalised(q), a, normalised(a)) for q, a in pairs], columns=["q", "a", "folded"])


def places(examples: tuple[Chat, ...]) -> list[int]:
    return [int(e.where.split(":")[1]) - 1 for e in examples]


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_duplicates_are_those_of_pandas(pairs: list[tuple[str, str]]) -> None:
    examples = rows(pairs)
    kept, changes = repetitions.drop_duplicates(examples, canonical_text)
    assert places(kept) == list(table(pairs).drop_duplicates().index)  # type: ignore[arg-type]
    assert len(kept) + len(changes) == len(examples)
    assert all(c.dropped for c in changes)
    assert repetitions.drop_duplicates(kept, canonical_text) == (kept, [])


@settings(max_examples=80, deadline=None)
@given(PAIRS)
def test_the_most_frequent_answer_is_kept(pairs: list[tuple[str, str]]) -> None:
    kept, changes = repetitions.drop_contradictions(rows(pairs), canonical_text)
    expected = []
    for i, row in table(pairs).iterrows():
        same = table(pairs).query("q == @row.q")
        answers = same.folded.value_counts()
        written = same[same.folded == row.folded].a
        most = max(dict.fromkeys(written), key=lambda a: int((written == a).sum()))  # the first of equals
        modes = set(answers[answers == answers.max()].index)
        expected += [i] if modes == {row.folded} and row.a == most else []
    assert places(kept) == expected  # type: ignore[arg-type]
    assert len(kept) + len(changes) == len(pairs)
    left = {normalised(e.question): e.target for e in kept}
    assert all(left[normalised(e.question)] == e.target for e in kept), "no contradiction is left"


@pytest.mark.parametrize(("one", "other"), [("x²", "x2"), ("Polish", "polish"), ("10⁻³ m", "10-3 m")])
def test_answers_that_only_look_alike_when_folded_contradict_each_other(one: str, other: str) -> None:
    texts = [*((f"question {i * 7919}", NAMES[i % 5]) for i in range(20)), ("what is it", one), ("what is it", other)]
    (finding,) = repeated(rows(texts))
    assert finding.startswith("2 rows give different answers to 1 question")


def test_questions_with_other_powers_do_not_contradict_each_other() -> None:
    texts = [*((f"question {i * 7919}", NAMES[i % 5]) for i in range(20)), ("what is 3²", "9"), ("what is 32", "32")]
    assert repeated(rows(texts)) == []


def test_capitals_of_tagged_words_are_no_accident() -> None:
    """The word us is a pronoun and US a country: neither a contradiction nor, with equal tags, a duplicate."""
    given = [(["US", "law"], ["B-LOC", "O"]), (["us", "law"], ["O", "O"]), (["us", "Law"], ["O", "O"])]
    raw = [Row({"tokens": words, "tags": tags}, f"a:{i}") for i, (words, tags) in enumerate(given)]
    tagged = formats.parse(raw, RowSettings(tags=True)).examples
    for remedy in (repetitions.drop_contradictions, repetitions.drop_duplicates):
        assert remedy(tagged, canonical_text) == (tagged, [])
    assert repetitions.drop_contradictions([*tagged, *rows([("q", "x"), ("Q", "y")])], canonical_text)[1]


NAMES = ["Anna", "Bert", "Cleo", "Dora", "Emil"]


def in_two_orders(calls: bool) -> list[Chat]:
    """30 questions, each answered twice: by objects, or by calls, whose keys are in different orders."""
    examples = []
    for i, turned in itertools.product(range(30), (False, True)):
        items = [("name", f"{NAMES[i % 5]} {i}"), ("n", i)]
        given = dict(items[::-1] if turned else items)
        answer = (
            Message("assistant", "", (ToolCall("store", given),)) if calls else Message("assistant", json.dumps(given))
        )
        examples.append(
            Chat((Message("user", f"question {i * 7919} of {NAMES[i % 5]}"), answer), f"a:{len(examples) + 1}")
        )
    return examples


def repeated(examples: Sequence[Chat]) -> list[str]:
    """What the audit says of rows that repeat or contradict others."""
    clusters = near_duplicates.cluster([normalised(e.question) for e in examples], 0.8)
    findings = audit.audit(examples, clusters).findings
    return [f.message for f in findings if f.code in ("DUPLICATES", "CONTRADICTIONS")]


@pytest.mark.parametrize("calls", [False, True])
def test_answers_that_say_the_same_are_duplicates_and_no_contradictions(calls: bool) -> None:
    """As the audit counts them: the order of keys does not matter."""
    examples = in_two_orders(calls)
    kind = detect_task(examples).kind
    assert kind is (TOOL_CALLS if calls else JSON)
    (finding,) = repeated(examples)
    assert finding.startswith("30 of 60 rows repeat an earlier row")
    assert repetitions.drop_contradictions(examples, kind.canonical) == (tuple(examples), [])
    kept, _ = repetitions.drop_duplicates(examples, kind.canonical)
    assert places(kept) == list(range(0, 60, 2))  # type: ignore[arg-type]
    assert not repeated(kept)


def test_rows_that_differ_in_thoughts_or_weights_are_no_duplicates() -> None:
    answer = Message("assistant", "4")
    ends = [
        answer,
        *(replace(answer, reasoning=r) for r in ("add", "count")),
        replace(answer, content="<think>a</think>4"),
    ]
    examples = [
        Chat((Message("user", "1"), first, Message("user", "2 + 2"), end), f"a:{i}")
        for i, (first, end) in enumerate(itertools.product((answer, replace(answer, trained=False)), ends))
    ]
    assert repetitions.drop_duplicates(examples, canonical_text) == (tuple(examples), [])
    again = [*examples, *(replace(e, where="b:1") for e in examples)]
    assert repetitions.drop_duplicates(again, canonical_text)[0] == tuple(examples)
    assert "8 of 16 rows repeat an earlier row" in repeated(again)[0]


SIDE = st.lists(st.integers(0, 6), max_size=6)


@settings(max_examples=80, deadline=None)
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


def pair(chosen: str, rejected: str, question: str = "q") -> Chat:
    messages = (Message("user", question), Message("assistant", chosen))
    return Chat(messages, f"x:{chosen}{rejected}", rejected=Message("assistant", rejected))


def test_pairs_repeat_only_equal_pairs_and_contradict_only_reversed_ones() -> None:
    """One prompt may have several rejected answers, and an answer that is chosen here may be rejected there."""
    ranked = [pair("a", "b"), pair("a", "c"), pair("b", "c"), pair("a", "b", "other")]
    for remedy in (repetitions.drop_duplicates, repetitions.drop_contradictions):
        assert remedy(ranked, canonical_text) == (tuple(ranked), [])
    kept, changes = repetitions.drop_duplicates([*ranked, pair("a", "b")], canonical_text)
    assert (len(kept), len(changes)) == (4, 1)
    kept, changes = repetitions.drop_contradictions([*ranked, pair("b", "a")], canonical_text)
    assert [(e.target, e.question) for e in kept] == [("a", "q"), ("b", "q"), ("a", "other")]
    assert len(changes) == 2
