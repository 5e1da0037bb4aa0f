"""`tunewright push`: an export of a run, as a repository of the Hugging Face Hub."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from tunewright.cli.runs import RUNS, Root, RunName


class Kind(StrEnum):
    adapter = "adapter"
    merged = "merged"
    gguf = "gguf"


def push(
    run: RunName,
    repo: Annotated[str, typer.Argument(help="Repository to push to; created if need be.", metavar="OWNER/NAME")],
    kind: Annotated[Kind, typer.Option(help="The export to push.")] = Kind.adapter,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Push nothing; print the files and the card's metadata.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="Id of the base model on the Hub, if the run used a local copy.")
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="License for the card, such as apache-2.0; default: none.")
    ] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Push even if private data or local paths are found.")
    ] = False,
    root: Root = RUNS,
) -> None:
    """Push an export of a run to the Hugging Face Hub, after a search for private data.

    Only the files of the export are pushed, never rows or scores.
    """
    from tunewright.core import run_folder
    from tunewright.export import hub

    folder = run_folder.find(root, run)
    wanted = hub.Push(repo, kind.value, base, license_, private, allow_private)
    if not dry_run:
        typer.echo(hub.push(folder, wanted))
        return
    with hub.staged(folder, wanted) as files:
        for file in sorted(files.iterdir()):
            typer.echo(f"{file.stat().st_size:>14,}  {file.name}")
        typer.echo((files / "README.md").read_text(encoding="utf-8").split("\n---\n")[0] + "\n---")
