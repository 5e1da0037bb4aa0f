"""Cards, scripts and READMEs of exports, from the templates of this folder."""

from __future__ import annotations

import functools
import json
import shlex

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined


def render(template: str, **values: object) -> str:
    """The text of a template, by its name without ``.j2``. A name missing from ``values`` is an error, never an empty
    string."""
    return _environment().get_template(f"{template}.j2").render(**values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tunewright.export"),
        autoescape=False,  # Markdown and shell
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.filters["python"] = repr
    environment.filters["shell"] = shlex.quote
    environment.tests["given"] = lambda value: value is not None and not isinstance(value, Undefined)
    return environment
