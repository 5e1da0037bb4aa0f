"""Labels that differ only in how they are written, and labels that no training row has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tunewright.core.records.common import Side
from tunewright.data.messages import Chat, Example, is_reference
from tunewright.data.remedies.change import Change
from tunewright.data.task import detect_task
from tunewright.data.text import as_answer
from tunewright.data.tool_calls import split_thoughts

Sides = Mapping[Side, tuple[Example, ...]]
# Between words, unless both are numbers: 1-2 is not 12.
_SEPARATORS = re.compile(r"(?<=[^\W\d])[\s/-]+(?=\w)|(?<=\d)[\s/-]+(?=[^\W\d])")
_ENDS = " \t.,:;!?\"'`()[]"


def key(label: str) -> str:
    """Equal for labels that differ only in case, space and punctuation around or between words. Signs that change the
    meaning are kept: C++ is not C, and -1 is not 1."""
    text = as_answer(label).replace("_", " ").strip(_ENDS)
    return _SEPARATORS.sub("", text) or as_answer(label)


def spellings(labels: Iterable[str]) -> dict[str, str]:
    """Key -> its most frequent spelling; of equally frequent ones, the first."""
    chosen: dict[str, str] = {}
    for label, _ in Counter(labels).most_common():
        chosen.setdefault(key(label), label)
    return chosen


def merge(sides: Sides) -> tuple[Sides, list[Change]]:
    """The rows with every label in its most frequent spelling in train; unchanged if that is not a label task."""
    chosen = spellings(e.target for e in sides["train"] if is_reference(e))
    merged = {side: tuple(_spelt(e, chosen) for e in examples) for side, examples in sides.items()}
    if not detect_task([e for e in merged["train"] if is_reference(e)]).labels:
        return sides, []
    pairs = [pair for side in sides for pair in zip(sides[side], merged[side], strict=True)]
    changes = [
        Change(
            old.where,
            "LABELS_NEAR_DUPLICATE",
            "data.labels=merge",
            f"the label {old.target!r} is read as {new.target!r}",
            dropped=False,
        )
        for old, new in pairs
        if old.target != new.target
    ]
    return merged, changes


def _spelt(example: Example, chosen: Mapping[str, str]) -> Example:
    if not isinstance(example, Chat) or example.messages[-1].tool_calls:
        return example
    target = chosen.get(key(example.target), example.target)
    if target == example.target:
        return example
    message = replace(example.messages[-1], content=respelt(example.messages[-1].content, target))
    return replace(example, messages=(*example.messages[:-1], message))


def respelt(content: str, label: str) -> str:
    """An answer with another label; its thoughts stay."""
    thoughts, rest = split_thoughts(content)
    return content[: content.rfind(rest.strip())] + label if thoughts else label


def drop_unseen(sides: Sides) -> tuple[Sides, list[Change]]:
    """Without the rows of dev and test whose label no row of train has."""
    known = set(detect_task([e for e in sides["train"] if is_reference(e)]).labels)
    if not known:
        return sides, []

    def unseen(example: Example) -> bool:
        return is_reference(example) and example.target not in known

    changes = [
        Change(
            e.where,
            "DATA_FORMAT_MISMATCH",
            "data.unseen_labels=drop",
            f"no row of data.train has the label {e.target!r}",
            dropped=True,
        )
        for side in sides
        for e in sides[side]
        if unseen(e)
    ]
    return {side: tuple(e for e in rows if not unseen(e)) for side, rows in sides.items()}, changes
