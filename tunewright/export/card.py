"""The model card of each export, from the run's own files: what it is, what was proven about it, how to load it."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import FORGETTING, ExportCheck, Receipt, Training, Verdict
from tunewright.core.run_folder import Run, write_atomic
from tunewright.export import EXPORTS
from tunewright.export.templating import render


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
    for check in checks:
        row = EXPORTS[check.kind]
        snippet = row.snippet(check.path, receipt.model.path)
        text = render("card.md", **facts, check=check, library=row.library, snippet=snippet)
        write_atomic(run.path / row.kind / "README.md", text)
