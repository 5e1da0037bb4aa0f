"""The model card of each export, from the run's own files: what it is, what was proven about it, how to load it."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import ASKED, FORGETTING, ExportCheck, Receipt, Training, Verdict
from tunewright.core.run_folder import Run, write_atomic
from tunewright.export import EXPORTS


def write(run: Run, checks: Sequence[ExportCheck]) -> None:
    """Write README.md into the folder of every export."""
    receipt = records.read(run.receipt, Receipt)
    facts = {
        "name": run.name,
        "verdict": records.read(run.verdict, Verdict),
        "receipt": receipt,
        "plan": records.read(run.plan, Plan),
        "training": records.read(run.training, Training),
        "forgetting": records.read(run.forgetting, FORGETTING),
    }
    asked = records.existing(run.verify, ASKED) or ()
    for check in checks:
        row = EXPORTS[check.kind]
        snippet = row.snippet(check.path, receipt.model.path)
        of_kind = [a for a in asked if a.kind == check.kind]
        text = render(**facts, check=check, asked=of_kind, library=row.library, snippet=snippet)
        write_atomic(run.path / row.kind / "README.md", text)


def render(**values: object) -> str:
    """The card as Markdown. A name missing from ``values`` is an error, never an empty string."""
    return _environment().get_template("card.md.j2").render(**values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tunewright.export"),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = json.dumps
    environment.tests["given"] = lambda value: value is not None and not isinstance(value, Undefined)
    return environment
