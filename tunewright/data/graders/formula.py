"""OpenAI's multi: several graders, and a formula of their rewards."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from tunewright.core.errors import ConfigError
from tunewright.core.words import counted
from tunewright.data.graders.grade import Grader, Item, Output, Unscored

LONGEST, LARGEST_POWER = 500, 10.0  # characters of a formula; exponents, which could make numbers of any size
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
# A function, and how many arguments it takes: at least, at most.
_CALLS: dict[str, tuple[Callable[..., float], int, int]] = {
    "min": (min, 2, LONGEST),
    "max": (max, 2, LONGEST),
    "abs": (abs, 1, 1),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "exp": (math.exp, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "log": (math.log, 1, 2),
}


@dataclass(frozen=True)
class Multi:
    """``graders`` by the names that ``formula`` uses."""

    graders: tuple[tuple[str, Grader], ...]
    formula: str

    @property
    def fields(self) -> frozenset[str]:
        return frozenset[str]().union(*(grader.fields for _, grader in self.graders))

    def grade(self, item: Item, output: Output) -> float:
        values = {name: grader.grade(item, output) for name, grader in self.graders}
        if strange := [name for name, value in values.items() if not math.isfinite(value)]:
            raise Unscored(f"{strange[0]} is {values[strange[0]]}")  # of which min and max would make a number
        try:
            value = float(_value(ast.parse(self.formula, mode="eval").body, values))
        except (ArithmeticError, ValueError, TypeError) as error:
            raise Unscored(f"{self.formula}: {error}") from None
        return value


def check(formula: str, names: Collection[str], where: str) -> None:
    """Raises CONFIG_RANGE unless the formula is arithmetic of these names."""
    fix = f"use {', '.join(sorted(names))}, numbers, + - * / **, and {', '.join(_CALLS)}."
    try:
        tree = ast.parse(formula, mode="eval").body if len(formula) <= LONGEST else None
        unknown = "it is too long" if tree is None else _unknown(tree, names)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        unknown = "it is not an expression"
    if unknown:
        raise ConfigError("CONFIG_RANGE", f"calculate_output is {formula[:80]!r}: {unknown}.", where=where, fix=fix)


def _unknown(node: ast.expr, names: Collection[str]) -> str:
    """What an expression has that a formula cannot have; empty if nothing."""
    match node:
        case ast.Constant(value=bool() | None):
            return f"{node.value!r} is no number"
        case ast.Constant(value=int() | float()):
            return ""
        case ast.Name(id=name):
            return "" if name in names else f"there is no grader {name!r}"
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _unknown(operand, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _unknown(left, names) or _unknown(right, names)
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in _CALLS:
            _, least, most = _CALLS[name]
            if not least <= len(given) <= most:
                return f"{name} takes {'at least ' if most > least else ''}{counted(least, 'argument')}"
            return next(filter(None, (_unknown(each, names) for each in given)), "")
    return f"{ast.unparse(node)[:40]!r} is not allowed"


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=op, operand=operand):
            return -_value(operand, values) if isinstance(op, ast.USub) else _value(operand, values)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, values), _value(right, values)
            if isinstance(op, ast.Pow) and abs(b) > LARGEST_POWER:
                raise ValueError(f"an exponent of {b}")
            return float(_BINARY[type(op)](a, b))
        case ast.Call(func=ast.Name(id=name), args=given):
            return float(_CALLS[name][0](*(_value(each, values) for each in given)))
    raise AssertionError("`check` has refused it")
