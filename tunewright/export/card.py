"""The model card of each export, from the run's own files: what it is, what was proven about it, how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import CONSUMER_CHECKS, FORGETTING, Audit, ExportCheck, Receipt, Training, Verdict
from tunewright.core.run_folder import Run, write_atomic
from tunewright.export import EXPORTS
from tunewright.export.portable import base_name, without_folders
from tunewright.export.templating import render


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
        "consumer_checks": records.existing(run.verify, CONSUMER_CHECKS) or (),
    }
    for kind, row in EXPORTS.items():
        written = [check for check in checks if check.kind == kind]
        if not written:
            continue
        snippet = row.snippet(receipt.model.name, Path(written[0].path).name)
        text = render("card.md", **facts, checks=written, snippet=snippet, kind=kind, library=row.library)
        write_atomic(run.path / row.kind / "README.md", text)
