"""The model card of each export, from the run's own files: what it is, what was proven about it, how to load it."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined

from tunewright.core.records import ExportCheck
from tunewright.core.run_folder import Run, read_json, write_atomic
from tunewright.export import EXPORTS
from tunewright.judge.verdict import doubts


def write(run: Run, checks: Sequence[ExportCheck]) -> None:
    """README.md in the folder of every export."""
    verdict, receipt = read_json(run.verdict), read_json(run.receipt)
    facts = {
        "name": run.name,
        "verdict": verdict,
        "unbeaten": doubts(verdict),
        "receipt": receipt,
        "plan": read_json(run.plan),
        "training": read_json(run.training),
        "forgetting": read_json(run.forgetting),
    }
    for check in checks:
        row = EXPORTS[check.kind]
        snippet = row.snippet(check.path, receipt["model"]["path"])
        text = render(**facts, check=check, library=row.library, snippet=snippet)
        write_atomic(row.folder(run) / "README.md", text)


def render(**values: object) -> str:
    """The card as Markdown. A name that is not among ``values`` is an error, never an empty string."""
    return _environment().get_template("card.md.j2").render(**values)


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("tunewright.export"),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["quoted"] = json.dumps
    made.tests["given"] = lambda value: value is not None and not isinstance(value, Undefined)
    return made
