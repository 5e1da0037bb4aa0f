"""Probes: every instruction can be followed, and evasion does not follow it."""

from __future__ import annotations

import json

import numpy as np

from tunewright.judge.probes import bank as probes


def perfect(order: probes.Instruction) -> str:
    noun = order.wanted
    return {
        "capitals": noun,
        "repeat": f"{noun}.",
        "sum": f"{noun}.",
        "one word": "Thing.",
        "has both": f"The {' and the '.join(noun.split())} are here.",
        "ends": "It is a thing. That is all.",
        "yes or no": "No.",
        "two hyphens": "- one\n- two",
        "begins": "Certainly, it is a thing.",
        "json": json.dumps({"thing": noun}),
    }[order.check]


def test_every_instruction_can_be_followed_but_not_by_silence_echo_or_refusal() -> None:
    orders = probes.instructions()
    assert len(orders) == len({o.text for o in orders}) == 300
    assert all(probes.followed(o, perfect(o)) for o in orders)
    for lazy in (lambda o: "", lambda o: o.text, lambda o: "I'm sorry, but I can't help with that."):
        assert sum(probes.followed(o, lazy(o)) for o in orders) <= 3


def test_knowledge_has_one_right_choice() -> None:
    asked = probes.knowledge()
    assert len(asked) >= 300
    for q in asked:
        assert len(set(q.choices)) == 4, q
        assert 0 <= q.answer < 4
    assert 0.2 < np.mean([q.answer == 0 for q in asked]) < 0.3  # the right one may be at any position


def test_refusals() -> None:
    assert sum(bad for _, bad in probes.refusals()) == len(probes.refusals()) / 2 == 30
    assert probes.refuses("I'm sorry, but I can’t help with that.")
    assert not probes.refuses("Sure. First, take a lock and a key.")


def test_generic_text_that_was_trained_on_is_left_out() -> None:
    everything = probes.generic()
    assert {t.where for t in everything[:4]} == {"satire", "computing culture", "law", "technical"}
    left = probes.generic([everything[0].text])
    assert len(left) == len(everything) - 1
    assert everything[0] not in left
