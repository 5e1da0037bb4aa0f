"""Exports that a run already has: not written again as long as they, and what they are made from, are unchanged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tunewright.core import records, run_folder
from tunewright.core.chosen import chosen_decoding, chosen_scale
from tunewright.core.errors import RunError
from tunewright.core.records import CONSUMER_CHECKS, ConsumerCheck, ExportCheck
from tunewright.core.records import EXPORTS as RECORDED
from tunewright.core.run_folder import Run
from tunewright.export.kind import Export, TrainedRun

CARD = "README.md"


def made_from(source: TrainedRun, prompts: Sequence[Sequence[int]], code: str) -> str:
    """Hash of what every export is made from and compared with. ``code``: of this package."""
    if not source.run.weights.exists():
        what, fix = "the trained weights are missing.", "restore them from a backup, or train again in a new run."
        raise RunError("RUN_DAMAGED", what, where=str(source.run.weights), fix=fix)
    settings = source.config.export.model_dump(mode="json", exclude={"to", "gguf"})
    facts = {
        "weights": run_folder.sha256(source.run.weights),
        "scale": chosen_scale(source.run),
        "decoding": chosen_decoding(source.run),
        "base": source.facts.sha256,
        "template": source.template.sha256,
        "adapter": source.plan.adapter.model_dump(mode="json"),
        "dtype": source.plan.dtype,
        "prompts": [list(p) for p in prompts],
        "settings": settings,
        "code": code,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def content(path: Path) -> str:
    """Hash of a file, or of the files of a folder, without the card."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file() and f.name != CARD)
    digest = hashlib.sha256()
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        digest.update(f"{name} {run_folder.sha256(file)}\n".encode())
    return digest.hexdigest()


def earlier(run: Run) -> Path:
    """The file that takes export.json's place while exports are written."""
    return run.path / ".exports.json"


def recorded(run: Run) -> list[ExportCheck]:
    """The exports that were written and checked, also by a command that did not finish."""
    file = run.export if run.export.exists() else earlier(run)
    exports: tuple[ExportCheck, ...] = records.read(file, RECORDED) if file.exists() else ()
    return list(exports)


def remember(run: Run, checks: Sequence[ExportCheck]) -> None:
    """Notes exports that are complete, for a command that may not finish."""
    kinds = {check.kind for check in checks}
    records.write(earlier(run), [*(c for c in recorded(run) if c.kind not in kinds), *checks])


def answered(run: Run, before: Sequence[ExportCheck], checks: Sequence[ExportCheck]) -> list[ConsumerCheck]:
    """What other programs answered with exports that are as they were ``before``."""
    content = {check.relative_path: check.content for check in before if check.content is not None}
    same = {check.relative_path for check in checks if content.get(check.relative_path) == check.content}
    return [c for c in records.existing(run.verify, CONSUMER_CHECKS) or () if c.path in same]


def kept(row: Export, source: TrainedRun, origin: str | None) -> list[ExportCheck]:
    """The checks of an export that need not be written again; empty if it must be."""
    before = {check.dtype: check for check in recorded(source.run) if check.kind == row.kind}
    wanted = list(row.dtypes(source))
    if origin is None or set(before) != set(wanted):
        return []
    checks = [before[dtype] for dtype in wanted]
    paths = [source.run.path / check.relative_path for check in checks]
    if any(check.made_from != origin or not path.exists() for check, path in zip(checks, paths, strict=True)):
        return []
    if any(content(path) != check.content for check, path in zip(checks, paths, strict=True)):
        return []
    return [check.model_copy(update={"path": str(path)}) for check, path in zip(checks, paths, strict=True)]
