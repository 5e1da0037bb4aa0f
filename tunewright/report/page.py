"""Renders templates to pages: one environment that escapes everything, and the formats of numbers. Pages contain no
scripts and load nothing from the network."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined, Undefined

from tunewright.core.pii import masked
from tunewright.data.metrics import METRICS


def render(template: str, **values: object) -> str:
    """``template`` rendered with ``values``. A name missing from them is an error, never an empty string."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Environment:
    return environment(PackageLoader("tunewright.report"))


def environment(loader: BaseLoader) -> Environment:
    """Of pages that have these formats of numbers."""
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": fixed,
        "signed": signed,
        "interval": interval,
        "percent": percent,
        "p_value": p_value,
        "spaced": spaced,
        "metric": metric,
        "line": line,
        "masked": masked,
    }
    environment.tests["given"] = given
    return environment


def given(value: object) -> bool:
    """Whether an optional value is present."""
    return value is not None and not isinstance(value, Undefined)


def fixed(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}"


def interval(ends: Sequence[float], digits: int = 3, sign: bool = False) -> str:
    low, high = (signed(x, digits) if sign else fixed(x, digits) for x in ends)
    return f"{low} to {high}"


def percent(fraction: float, digits: int = 0) -> str:
    return f"{100 * fraction:.{digits}f}%"


def p_value(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def spaced(name: str) -> str:
    return name.replace("_", " ")


def metric(name: str) -> str:
    """A metric's title."""
    return METRICS[name].title


def line(where: str) -> str:
    """``file:line`` without the folders."""
    return where.rsplit("/", 1)[-1] or where
