"""Two structured values, field by field.

A field is a scalar with its path: ``address.city``, ``items[].price``. Objects are compared key by key. The items of
two lists are matched one to one, so that as many fields as possible are equal: fields of different items never count
as right together. An empty object or list has no fields.

Two scalars are equal if their texts are, apart from case and white space: true = "true", null = "null". A number is
equal to each of its spellings, 1 = 1.0 = "1" = "1.0", but two strings are not equal as numbers: "1.10" and "1.1" may be
versions. Only a schema tells a number from its text. ``null`` is a value: a field that is null is not an absent field.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal, TypeAlias

import numpy as np

from tunewright.data.messages import Json
from tunewright.data.structure.matching import Ints, Pairs, best_pairs
from tunewright.data.structure.values import Container, Scalar
from tunewright.data.text import as_answer

MAX_PAIRS = 250_000  # of items of two lists: 500 x 500. Beyond, items are matched by position, and the score is lower


@dataclass(frozen=True)
class Rules:
    """When values are equal. ``ordered``: whether the order of lists counts; ``tolerance``: the largest relative
    difference of two equal numbers."""

    ordered: bool = False
    tolerance: float = 0.0


@dataclass(frozen=True)
class FieldCounts:
    """Numbers of fields that are right, wrong (in the answer only) and missed (in the target only)."""

    right: int
    wrong: int
    missed: int

    @property
    def f1(self) -> float:
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else 1.0


PLAIN = Rules()
Field: TypeAlias = tuple[str, Scalar]


@dataclass(frozen=True)
class Comparison:
    """The fields of a target and an answer. A value that differs is both wrong and missed."""

    right: tuple[Field, ...] = ()
    wrong: tuple[Field, ...] = ()
    missed: tuple[Field, ...] = ()

    @property
    def counts(self) -> FieldCounts:
        return FieldCounts(right=len(self.right), wrong=len(self.wrong), missed=len(self.missed))

    @property
    def equal(self) -> bool:
        return not self.wrong and not self.missed


EMPTY: Field = ("(no fields)", None)


def compare(target: Container, answer: Container | None, rules: Rules = PLAIN) -> Comparison:
    """``answer`` is None if the answer could not be read. A target without fields counts as one field, EMPTY, so that
    an answer that cannot be read is wrong."""
    expected, given = list(_fields(target, "")), [] if answer is None else list(_fields(answer, ""))
    if answer is None:
        return Comparison(missed=tuple(expected or [EMPTY]))
    if not expected:
        right = not given and type(answer) is type(target)
        return Comparison(right=(EMPTY,)) if right else Comparison(wrong=tuple(given), missed=(EMPTY,))
    parts: dict[_Part, list[Field]] = {"right": [], "wrong": [], "missed": []}
    for part, field in _compared(target, answer, "", rules):
        parts[part].append(field)
    return Comparison(**{part: tuple(fields) for part, fields in parts.items()})


_Part = Literal["right", "wrong", "missed"]


def _compared(target: Json, answer: Json, path: str, rules: Rules) -> Iterator[tuple[_Part, Field]]:
    if isinstance(target, dict) and isinstance(answer, dict):
        for key in target:
            if key in answer:
                yield from _compared(target[key], answer[key], _within(path, key), rules)
        only_target: Json = {k: v for k, v in target.items() if k not in answer}
        only_answer: Json = {k: v for k, v in answer.items() if k not in target}
    elif isinstance(target, list) and isinstance(answer, list):
        pairs = _pairs(target, answer, rules)
        for n, m in pairs:
            yield from _compared(target[n], answer[m], f"{path}[]", rules)
        paired = [set(side) for side in zip(*pairs, strict=True)] or [set(), set()]
        only_target = [v for n, v in enumerate(target) if n not in paired[0]]
        only_answer = [v for m, v in enumerate(answer) if m not in paired[1]]
    elif not isinstance(target, dict | list) and not isinstance(answer, dict | list) and _equal(target, answer, rules):
        yield "right", (path, target)
        return
    else:
        only_target, only_answer = target, answer
    for field in _fields(only_target, path):
        yield "missed", field
    for field in _fields(only_answer, path):
        yield "wrong", field


def _within(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _fields(value: Json, path: str) -> Iterator[Field]:
    if isinstance(value, dict):
        for key, v in value.items():
            yield from _fields(v, _within(path, key))
    elif isinstance(value, list):
        for v in value:
            yield from _fields(v, f"{path}[]")
    else:
        yield path, value


def _equal_fields(target: Json, answer: Json, rules: Rules) -> int:
    return sum(part == "right" for part, _ in _compared(target, answer, "x", rules))


# -- lists


def _pairs(targets: Sequence[Json], answers: Sequence[Json], rules: Rules) -> Pairs:
    """Items that belong together. Equal items are matched first: that is never worse than another matching, since with
    each field equal to at most one other, the distance of items obeys the triangle inequality. (Where order counts,
    numbers have a tolerance, or "1.0" and "1" are both equal to 1, it does not hold.)"""
    respelled = _respelled(targets, answers)
    rest: tuple[list[int], list[int]] = (list(range(len(targets))), list(range(len(answers))))
    pairs: Pairs = []
    few = len(targets) * len(answers) <= MAX_PAIRS
    if not rules.ordered and not rules.tolerance and not (respelled and few):
        pairs, rest = _identical(targets, answers)
    if len(rest[0]) * len(rest[1]) > MAX_PAIRS:
        return sorted([*pairs, *zip(*rest, strict=False)])
    by_text = not rules.tolerance and not respelled
    weights_NM = _weights([targets[n] for n in rest[0]], [answers[m] for m in rest[1]], rules, by_text)
    return sorted([*pairs, *((rest[0][n], rest[1][m]) for n, m in best_pairs(weights_NM, rules.ordered))])


def _identical(targets: Sequence[Json], answers: Sequence[Json]) -> tuple[Pairs, tuple[list[int], list[int]]]:
    """Pairs of equal items, and the items that have no equal."""
    free: dict[Hashable, list[int]] = {}
    for m in reversed(range(len(answers))):
        free.setdefault(_identity(answers[m]), []).append(m)
    pairs = [(n, same.pop()) for n, t in enumerate(targets) if (same := free.get(_identity(t)))]
    paired = {n for n, _ in pairs}
    return pairs, ([n for n in range(len(targets)) if n not in paired], sorted(m for ms in free.values() for m in ms))


def _identity(value: Json) -> Hashable:
    """Equal for values all of whose fields are equal, whatever the order of lists."""
    if isinstance(value, dict):
        return frozenset((k, _identity(v)) for k, v in value.items())
    if isinstance(value, list):
        return "list", frozenset(Counter(map(_identity, value)).items())
    return "scalar", scalar_text(value)


def _respelled(targets: Sequence[Json], answers: Sequence[Json]) -> bool:
    """Whether a number in the items is also in them as a string of another text, such as 1 and "1.0"."""
    scalars = [v for item in (*targets, *answers) for _, v in _fields(item, "")]
    texts: dict[Decimal, set[str]] = {}
    for v in scalars:
        if isinstance(v, str) and (exact := _exact(v)) is not None:
            texts.setdefault(exact, set()).add(scalar_text(v))
    numbers = [v for v in scalars if texts and not isinstance(v, str)]
    return any((exact := _exact(v)) is not None and texts.get(exact, set()) - {scalar_text(v)} for v in numbers)


def _weights(targets: Sequence[Json], answers: Sequence[Json], rules: Rules, by_text: bool) -> Ints:
    """The number of equal fields of every target with every answer; ``by_text``: fields of one text are equal, and no
    others."""
    if not by_text or any(_has_list(v) for v in (*targets, *answers)):
        weights = [[_equal_fields(t, a, rules) for a in answers] for t in targets]
    else:
        wanted, given = ([{(p, scalar_text(v)) for p, v in _fields(x, "x")} for x in s] for s in (targets, answers))
        weights = [[len(t & a) for a in given] for t in wanted]
    return np.array(weights, np.int64).reshape(len(targets), len(answers))


def _has_list(value: Json) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and any(map(_has_list, value.values())))


# -- scalars


def scalar_text(value: Scalar) -> str:
    """Equal for scalars that count as equal."""
    if isinstance(value, str):
        return as_answer(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else json.dumps(value)


def _equal(target: Scalar, answer: Scalar, rules: Rules) -> bool:
    if scalar_text(target) == scalar_text(answer):
        return True
    strings = isinstance(target, str) + isinstance(answer, str)
    if strings == 2:
        return False
    if strings == 1 and (exact := _exact(target)) is not None and exact == _exact(answer):
        return True
    first, second = (_number(v) if rules.tolerance else None for v in (target, answer))
    return first is not None and second is not None and math.isclose(first, second, rel_tol=rules.tolerance)


_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")


def _exact(value: Scalar) -> Decimal | None:
    """A number, or the text of one as JSON writes it, to the last digit: long ids are numbers too."""
    text = value.strip() if isinstance(value, str) else json.dumps(value)
    try:
        return Decimal(text) if _NUMBER.fullmatch(text) else None
    except InvalidOperation:  # an exponent of many digits
        return None


def _number(value: Scalar) -> float | None:
    """The same as a float. Two texts have no tolerance: postal codes look like numbers."""
    exact = _exact(value)
    value = math.inf if exact is None else float(exact)
    return value if math.isfinite(value) else None
