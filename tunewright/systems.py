"""The arms: ways to answer a row with the same base model. A System is a value; what it needs is in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.examples import Chat, Message, content_hash, question
from tunewright.metrics import Task


@dataclass(frozen=True)
class System:
    """``shots`` are training rows shown before the question; ``adapter`` says whether the trained weights speak."""

    name: str
    description: str
    adapter: bool = False
    shots: tuple[Chat, ...] = ()


def prompt(system: System, example: Chat) -> tuple[Message, ...]:
    """What the arm says to the model: the row's own system message, the shots as earlier turns, the row's question."""
    own = example.prompt
    head, rest = (own[:1], own[1:]) if own and own[0].role == "system" else ((), own)
    shown = tuple(m for shot in system.shots for m in shot.messages if m.role != "system")
    return (*head, *shown, *rest)


def arms(task: Task, train: Sequence[Chat], shots: int) -> list[System]:
    """The arms of a run, the tuned one last. Raw text has no prompt, so it has no few-shot arm."""
    found = [System("zero_shot", "the base model with the row's own instruction")]
    if task.kind != "text" and shots:
        chosen = choose_shots(task, train, shots)
        found.append(System("few_shot", f"the base model, shown {len(chosen)} training rows first", shots=chosen))
    return [*found, System("tuned", "the base model with the trained weights, prompted as in training", adapter=True)]


def choose_shots(task: Task, train: Sequence[Chat], count: int) -> tuple[Chat, ...]:
    """Training rows in the order of their content hash (no choice is made by looking at them); for labels, one of each in turn."""
    ordered = sorted((e for e in train if len(e.messages) <= 3), key=lambda e: content_hash(question(e)))
    if task.kind != "label":
        return tuple(ordered[:count])
    of_label: dict[str, list[Chat]] = defaultdict(list)
    for example in ordered:
        of_label[example.target].append(example)
    chosen: list[Chat] = []
    for turn in range(count):
        for label in sorted(of_label):
            if turn < len(of_label[label]) and len(chosen) < max(count, len(of_label)):
                chosen.append(of_label[label][turn])
    return tuple(chosen)
