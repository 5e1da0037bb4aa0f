"""`tunewright check`: audits and splits the data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewright.cli.runs import Json, Settings, Source, config_of, out
from tunewright.core.words import listed_fields

if TYPE_CHECKING:
    from tunewright.core.records import AnswerSchema, Audit
    from tunewright.data.dataset import Dataset

SHOWN_FIELDS = 30


def check(
    source: Source,
    settings: Settings = None,
    as_json: Json = False,
    page: Annotated[Path | None, typer.Option("--html", help="Also write the audit as an HTML page.")] = None,
) -> None:
    """Audit and split the data, without loading a model."""
    from tunewright.core.records import Audit
    from tunewright.data import dataset

    if page is not None:
        _check_page(page)
    data = dataset.load(config_of(source, settings, None))
    if data.task.labels and not as_json:
        time = "takes seconds for thousands of rows, minutes for tens of thousands"
        typer.secho(f"looking for wrong labels ({time}) ...", dim=True, err=True)
    audit = data.audit_json()
    record = Audit.model_validate(audit, strict=False)
    if as_json:
        out(audit)
    else:
        _print(record, data)
    if page is not None:
        _write_page(page, record, source)
        typer.echo(f"page: {page}", err=as_json)


def _check_page(page: Path) -> None:
    """Raises DATA_EXISTS unless the page would be a new file, or replaces an earlier page."""
    from tunewright.core.errors import data_error
    from tunewright.core.small_files import read_bytes
    from tunewright.report.build import AUDIT_MARK

    if not os.path.lexists(page):
        return
    try:
        ours = AUDIT_MARK.encode() in read_bytes(page, 1000)
    except OSError:
        ours = False
    if not ours:
        message = "the file exists and is not a page of `tunewright check`; it is not overwritten."
        raise data_error("DATA_EXISTS", message, where=str(page), fix="choose another name.")


def _write_page(page: Path, audit: Audit, source: str) -> None:
    from tunewright.core import run_folder
    from tunewright.core.locations import title
    from tunewright.report import build

    run_folder.write_atomic(page, build.audit_page(audit, title(source)))


def _print(audit: Audit, data: Dataset) -> None:
    from tunewright.data.remedies.change import changed_rows, summaries

    rows = f"{audit.rows} rows{changed_rows(data.changes)}"
    typer.echo(f"{rows}, format {audit.format}, task {audit.task.kind}: {audit.task.reason}")
    typer.echo("split: " + ", ".join(f"{n} {s}" for s, n in audit.sides.items()))
    for notice in audit.notices:
        typer.echo(f"notice: {notice}")
    for summary in summaries(data.changes):
        typer.secho(summary.text, fg="yellow")
        typer.echo("  " + _places(summary.places))
    if audit.unused:
        typer.echo(f"unused fields: {listed_fields(audit.unused)}")
    for line in _schema_lines(data.answer_schema) if data.answer_schema else ():
        typer.echo(line)
    for finding in audit.findings:
        colour = {"error": "red", "warning": "yellow"}.get(finding.level)
        typer.secho(f"{finding.level} {finding.code}: {finding.message}", fg=colour)
        typer.echo("  " + _places(finding.where))
    for s in audit.suspects[:10]:
        where = s.where.rsplit("/", 1)[-1]
        probability = f"probability of being wrong: {s.prob_wrong:.0%}"
        typer.echo(f"  {where}: {s.given!r}, more likely {s.predicted!r} ({probability})")
    if not audit.findings:
        typer.echo("nothing flagged; this does not prove that the data is correct")


def _places(where: Sequence[str]) -> str:
    return ", ".join(where[:8]) + (" ..." if len(where) > 8 else "")


def _schema_lines(schema: AnswerSchema) -> Iterator[str]:
    satisfied = ", ".join(f"{fraction:.1%} of {side}" for side, fraction in schema.satisfied.items())
    source = "inferred from the training answers" if schema.source == "inferred" else schema.source
    yield f"schema of the answers: {source}; satisfied by {satisfied} (--json shows it)"
    for path, description in list(schema.fields.items())[:SHOWN_FIELDS]:
        yield f"  {path or 'answer'}: {description}"
    if len(schema.fields) > SHOWN_FIELDS:
        yield f"  ... and {len(schema.fields) - SHOWN_FIELDS} more fields"
