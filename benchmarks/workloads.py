"""The rows that every system is timed on: token ids and labels, written once, read by all.

The text is Python's own reference (`pydoc_data.topics`, in every Python): an instruction cut from it comes before each
passage, and the answer is the name of the topic that the passage is from. Lengths are what the workload says, to the
token.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Workload:
    """``shared`` tokens before each row, ``own`` of its own (a range, if lengths are mixed), of which ``labelled`` are
    the last."""

    name: str
    says: str
    shared: int
    own: tuple[int, int]
    labelled: int | None
    batch: int
    target: float


WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            "classify-200", "classification: instruction 200, message 45, label 1 to 3", 200, (48, 48), 3, 16, 15.0
        ),
        Workload("classify-850", "the same with an 850-token instruction", 850, (48, 48), 3, 16, 30.0),
        Workload("classify-850-32", "the same, 32 rows a step", 850, (48, 48), 3, 32, 30.0),
        Workload("tools-1500", "tool schema of 1,500 tokens, 200-token turn", 1500, (200, 200), 60, 8, 6.0),
        Workload("chat-300", "chat: system prompt 300, 150-token turns", 300, (150, 150), 60, 16, 5.0),
        Workload("diverse", "no common beginning, mixed lengths 50 to 600", 0, (50, 600), None, 16, 2.0),
        Workload("equal", "equal lengths, no common beginning, every token labelled", 0, (256, 256), 255, 16, 1.15),
    )
}
CURVE = Workload("curve", "the loss curves: instruction 60, message 30, a label", 60, (33, 33), 3, 4, 0.0)


def rendered(chosen: list[dict[str, list[int]]]) -> list[Any]:
    """The rows as tunewright's own loop takes them."""
    from tunewright.tokens.sequences import Rendered

    return [Rendered(tuple(r["ids"]), tuple(float(x != -100) for x in r["labels"]), i) for i, r in enumerate(chosen)]


def rows(workload: Workload, count: int, tokenizer: Any, seed: int = 0) -> list[dict[str, list[int]]]:
    """``count`` rows as {"ids", "labels"}; a label of -100 carries no loss. ``labelled`` None: the last third of each
    row."""
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
