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
    for kind in EXPORTS:
        if own := [check for check in checks if check.kind == kind]:
            write_atomic(run.path / kind / "README.md", text(run, own))


def text(run: Run, checks: Sequence[ExportCheck]) -> str:
    """The card of one kind of export. ``checks``: one for its folder, or one for each file."""
    receipt, kind = records.read(run.receipt, Receipt), checks[0].kind
    consumer_checks = records.existing(run.verify, CONSUMER_CHECKS) or ()
    return render(
        "card.md",
        name=run.name,
        kind=kind,
        library=EXPORTS[kind].library,
        snippet=EXPORTS[kind].snippet(receipt.model.name, Path(checks[0].path).name),
        command=without_folders(receipt.command),
        base=base_name(receipt.model.name),
        chat=records.read(run.audit, Audit).task.kind != "text",
        checks=checks,
        consumer_checks=consumer_checks,
        verdict=records.read(run.verdict, Verdict),
        receipt=receipt,
        plan=records.read(run.plan, Plan),
        training=records.read(run.training, Training),
        forgetting=records.read(run.forgetting, FORGETTING),
    )
