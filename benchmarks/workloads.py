"""The rows on which every system is timed: token ids and labels, written once, read by all.

The text is Python's own reference (`pydoc_data.topics`, part of every Python): each row is an instruction and a passage
cut from it, and the answer is the name of the passage's topic. Lengths are exact, to the token.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Workload:
    """Each row has ``shared`` tokens that all rows begin with, then ``own`` tokens of its own (a range, for mixed
    lengths); the last ``labelled`` tokens are targets (None: the last third of its own)."""

    name: str
    description: str
    shared: int
    own: tuple[int, int]
    labelled: int | None
    batch: int
    target: float


WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            "classify-200", "classify: instruction of 200, message of 45, label of 1 to 3", 200, (48, 48), 3, 16, 15.0
        ),
        Workload("classify-850", "the same, instruction of 850", 850, (48, 48), 3, 16, 30.0),
        Workload("classify-850-32", "the same, larger steps", 850, (48, 48), 3, 32, 30.0),
        Workload("tools-1500", "tool schema of 1,500, turn of 200", 1500, (200, 200), 60, 8, 6.0),
        Workload("chat-300", "chat: system prompt of 300, turns of 150", 300, (150, 150), 60, 16, 5.0),
        Workload("diverse", "no common prefix, mixed lengths from 50 to 600", 0, (50, 600), None, 16, 2.0),
        Workload("equal", "no common prefix, equal lengths, every token a target", 0, (256, 256), 255, 16, 1.15),
    )
}
CURVE = Workload("curve", "loss curves: instruction of 60, message of 30, a label", 60, (33, 33), 3, 4, 0.0)


def rendered(chosen: list[dict[str, list[int]]]) -> list[Any]:
    """The rows in the form that tunewright's training loop takes."""
    from tunewright.tokens.sequences import TokenSequence

    return [
        TokenSequence(tuple(r["ids"]), tuple(float(x != -100) for x in r["labels"]), i) for i, r in enumerate(chosen)
    ]


def rows(workload: Workload, count: int, tokenizer: Any, seed: int = 0) -> list[dict[str, list[int]]]:
    """``count`` rows as {"ids", "labels"}; a label of -100 carries no loss."""
    from pydoc_data.topics import topics

    draw = random.Random(seed)
    pool = {
        name: tokenizer.encode(text, add_special_tokens=False)
        for name, text in sorted(topics.items())
        if len(text) > 6000
    }
    names = sorted(pool)
    instruction = [t for name in names[:3] for t in pool[name]][: workload.shared]
    assert len(instruction) == workload.shared
    results = []
    for _ in range(count):
        name = draw.choice(names[3:])
        length = draw.randint(*workload.own)
        answer = [*tokenizer.encode(f" {name}", add_special_tokens=False)[:2], tokenizer.eos_token_id]
        start = draw.randrange(len(pool[name]) - length)
        passage = pool[name][start : start + length - len(answer)]
        ids = instruction + passage + answer
        labelled = workload.labelled if workload.labelled is not None else length // 3
        results.append({"ids": ids, "labels": [-100] * (len(ids) - labelled) + ids[len(ids) - labelled :]})
    return results
