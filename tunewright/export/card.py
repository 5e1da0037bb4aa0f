"""The model card of each export, from the run's own files: what it is, what was proven about it, how to load it."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import ASKED, FORGETTING, Audit, ExportCheck, Receipt, Training, Verdict
from tunewright.core.run_folder import Run, write_atomic
from tunewright.export import EXPORTS
from tunewright.export.portable import base_name, without_folders


def write(run: Run, checks: Sequence[ExportCheck]) -> None:
    """Write README.md into the folder of every export."""
    receipt = records.read(run.receipt, Receipt)
    facts = {
        "name": run.name,
        "command": without_folders(receipt.command),
        "base": base_name(receipt.model.name),
        "chat": records.read(run.audit, Audit).task.kind != "text",
        "verdict": records.read(run.verdict, Verdict),
        "receipt": receipt,
        "plan": records.read(run.plan, Plan),
        "training": records.read(run.training, Training),
        "forgetting": records.read(run.forgetting, FORGETTING),
    }
    asked = records.existing(run.verify, ASKED) or ()
    for kind, row in EXPORTS.items():
        written = [check for check in checks if check.kind == kind]
        if not written:
            continue
        snippet = row.snippet(receipt.model.name, Path(written[0].path).name)
        of_kind = [a for a in asked if a.kind == kind]
        text = render(**facts, kind=kind, checks=written, asked=of_kind, library=row.library, snippet=snippet)
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
    environment.filters["quoted"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.filters["python"] = repr
    environment.tests["given"] = lambda value: value is not None and not isinstance(value, Undefined)
    return environment
