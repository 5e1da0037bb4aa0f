"""The model card of each export, from the run's own files: what it is, what was proven about it, how to load it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import CONSUMER_CHECKS, FORGETTING, Audit, ExportCheck, Receipt, Training, Verdict
from tunewright.core.run_folder import Run, write_atomic
from tunewright.export import EXPORTS, encoder_folder, tagger
from tunewright.export.bundles import serve
from tunewright.export.kind import Place, sampling, served_context
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
    consumer_checks = records.existing(run.verify, CONSUMER_CHECKS)
    return render(
        "card.md",
        **_loading(run, checks),
        name=run.name,
        kind=kind,
        command=without_folders(receipt.command),
        base=base_name(receipt.model.name),
        checks=checks,
        consumer_checks=consumer_checks or (),
        verdict=records.read(run.verdict, Verdict),
        training=records.read(run.training, Training),
        forgetting=records.read(run.forgetting, FORGETTING),
    )


def for_hub(run: Run, checks: Sequence[ExportCheck], card: str, base: str, repo: str) -> str:
    """A card whose section Load is for those who have only the Hub. ``base``, ``repo``: ids on the Hub."""
    section = render("load.md", **_loading(run, checks, base, repo))
    return re.sub(r"^## Load\n.*?(?=^## |\Z)", lambda _: section, card, count=1, flags=re.DOTALL | re.MULTILINE)


def _loading(
    run: Run, checks: Sequence[ExportCheck], base: str | None = None, repo: str | None = None
) -> dict[str, object]:
    """What the section Load is rendered from."""
    receipt, row, plan = records.read(run.receipt, Receipt), EXPORTS[checks[0].kind], records.read(run.plan, Plan)
    how, in_modules = sampling(run), (Path(checks[0].path) / encoder_folder.MODULES).is_file()
    place = Place(
        base or receipt.model.name,
        Path(checks[0].path).name,
        served_context(run),
        how,
        repo,
        receipt.model.packed == "nf4",
        plan.labels,
        plan.embed is not None,
    )
    code = tagger.snippet(place.folder) if plan.method == "tag" else []
    if receipt.model.encoder and not code and not plan.embed:
        code = encoder_folder.snippet(place.folder, in_modules, plan)
    return {
        "library": "sentence-transformers" if in_modules else row.library,
        "snippet": (code if code else row.snippet(place)),
        "uses_head": bool(code),
        "server": row.llama_server and shlex.join(serve.llama_server(row.llama_server(place), how, place.context)),
        "choosing": how.llama_cpp if row.library == "gguf" else how.generation_config,
        "folder": place.folder,
        "chat": records.read(run.audit, Audit).task.kind != "text",
        "receipt": receipt,
        "plan": plan,
    }
