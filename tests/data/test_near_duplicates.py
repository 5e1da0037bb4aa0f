"""Near-duplicates, compared with an exhaustive search."""

from __future__ import annotations

from random import Random

import pytest

from tunewright.data import near_duplicates, split, text
from tunewright.data.messages import Chat, Message


@pytest.mark.parametrize("many", [40, 150, 1200])
def test_shared_boilerplate_does_not_make_rows_near_duplicates(many: int) -> None:
    """The instruction is in every user message, and far longer than what differs."""
    boilerplate = (
        "Read the message of a customer of our shop and say which department answers it, "
        "billing, shipping or returns. Message: "
    )
    random = Random(many)
    fills = ["".join(random.choices("abcdefghij klmnop", k=60)) for _ in range(many)]
    rows = [boilerplate + fill for fill in fills] + [boilerplate + fills[0] + "!", boilerplate + fills[1].upper()]
    clusters = near_duplicates.cluster([text.normalised(r) for r in rows], 0.8)
    assert clusters.cluster == (*range(many), 0, 1)
    assert min(clusters.boilerplate) > 0.5
    chats = [Chat((Message("user", q), Message("assistant", "a")), f"x:{i}") for i, q in enumerate(rows)]
    held = split.hold_out(chats, clusters.cluster, 0.2, 0.2)
    assert len(held.train) > len(held.test) > 0


def test_near_duplicates_are_those_of_a_search_of_all_pairs() -> None:
    random = Random(2)
    alphabet = "abcdefghijklmnopqrstuvwxyz "
    texts = ["".join(random.choices(alphabet, k=80)) for _ in range(150)]
    for original in texts[:150]:  # copies with some characters changed: on both sides of the threshold
        copy = list(original)
        for at in random.sample(range(80), random.randint(1, 4)):
            copy[at] = random.choice(alphabet)
        texts.append("".join(copy))
    grams = [{t[i : i + 5] for i in range(len(t) - 4)} for t in texts]
    pairs = {(i, j) for j in range(300) for i in range(j) if len(grams[i] & grams[j]) >= 0.8 * len(grams[i] | grams[j])}
    cluster = near_duplicates.cluster(texts, 0.8).cluster
    assert 30 < len(pairs) < 140
    detected = {(i, j) for j in range(300) for i in range(j) if cluster[i] == cluster[j]}
    assert detected <= pairs
    assert len(detected) >= 0.98 * len(pairs)
