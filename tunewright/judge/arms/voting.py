"""What models that write nothing are compared with: votes of similar training rows, a dictionary of tags. No torch."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from tunewright.data import baselines
from tunewright.data.baselines import Predict, Probs
from tunewright.data.messages import Chat
from tunewright.data.task import Task, tag_baselines
from tunewright.judge.arms import bm25
from tunewright.judge.arms.arm import Arm
from tunewright.judge.arms.bm25 import Index, Nearest
from tunewright.judge.arms.classifier import most_probable, texts


def nearest(
    task: Task, train: Sequence[Chat], counts: Sequence[int], indexer: Callable[[Sequence[str]], Index]
) -> list[Arm]:
    """Arms that give the answer of most of the similar rows, or the median of their numbers; none without a row of one
    turn."""
    if not counts or not any(map(bm25.single_turn, train)):
        return []
    near = bm25.nearest(train, max(counts), indexer)
    what, of = (
        ("the median", baselines.median) if task.numbers else ("the most frequent answer", baselines.most_frequent)
    )
    arms = []
    for k in counts:
        few = replace(near, count=k)
        if task.labels:
            voting = most_probable(functools.partial(votes, few, task.labels), task.labels)
        else:
            voting = texts(functools.partial(of_similar, few, of))
        arms.append(Arm("nearest", f"{what} of the {k} most similar training rows", voting, f"k{k}"))
    return arms


def votes(near: Nearest, labels: Sequence[str], chats: Sequence[Chat]) -> list[Probs]:
    """The fraction of the most similar training rows that have each label."""
    counted = [Counter(shot.target for shot in near.shots(chat)) for chat in chats]
    return [{label: counts[label] / max(1, counts.total()) for label in labels} for counts in counted]


def of_similar(near: Nearest, baseline: Callable[[Sequence[Chat]], Predict], chats: Sequence[Chat]) -> list[str]:
    """What a baseline that looks only at answers predicts from the most similar training rows."""
    return [baseline(near.shots(chat) or near.rows)([chat])[0] for chat in chats]


def of_words(train: Sequence[Chat], full: bool) -> dict[str, list[Arm]]:
    """Arms that tag each word by itself, or, unless ``full`` is False, by itself and its neighbours."""
    dictionary = texts(tag_baselines.dictionary(train))
    families = {"dictionary": [Arm("dictionary", "each word's most frequent tag in the training rows", dictionary)]}
    if full:
        title = "logistic regression on each word and its neighbours"
        families["classical"] = [Arm("classical", title, texts(tag_baselines.linear(train)), trained=True)]
    return families
