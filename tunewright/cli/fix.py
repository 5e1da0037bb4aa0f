"""`tunewright fix`: writes a repaired copy of the rows."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from tunewright.cli.runs import Json, Settings, Source, config_of, out
from tunewright.core.words import counted


def fix(
    source: Source,
    target: Annotated[Path, typer.Option("--out", "-o", help="File to write; it must not exist.", metavar="FILE")],
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Write a repaired copy of the rows, as JSON Lines, and the list of changes as FILE.changes.jsonl.

    By default: encoding guessed, control characters removed, rows that cannot be read or are empty dropped, turns put
    in order. Settings of data switch repairs off or on, e.g. data.invalid=error or data.duplicates=drop.
    """
    from tunewright.data.remedies import repaired
    from tunewright.data.remedies.change import changed_rows, counts, summaries

    config = config_of(source, [*repaired.DEFAULTS, *(settings or [])], None)
    repaired.check_output(config, target)
    result = repaired.repair(config)
    repaired.write(result, target)
    needed = repaired.still_needed(config)
    if as_json:
        dropped, changed = counts(result.changes)
        kinds = [summary.to_json() for summary in summaries(result.changes)]
        counts_of = {"rows": len(result.lines), "dropped": dropped, "changed": changed}
        out({"file": str(target), **counts_of, "settings": needed, "changes": kinds})
        return
    typer.echo(f"{target}: {counted(len(result.lines), 'row')}{changed_rows(result.changes)}")
    for summary in summaries(result.changes):
        typer.echo(f"  {summary.text}")
    typer.echo(f"every change: {repaired.changes_file(target)}")
    typer.echo(f"next: {shlex.join(['tunewright', 'check', str(target), *needed])}")
