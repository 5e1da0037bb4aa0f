"""`tunewright push`: an export of a run, as a repository of the Hugging Face Hub."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tunewright.cli.runs import RUNS, Root, RunName

Repo = Annotated[str, typer.Argument(help="Repository to push to; created if need be.", metavar="OWNER/NAME")]
Kind = Annotated[Literal["adapter", "merged", "gguf"], typer.Option(help="The export to push.")]
Private = Annotated[bool, typer.Option("--private", help="Create a private repository.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Push nothing; print the files and the card's metadata.")]
Base = Annotated[str | None, typer.Option(help="Id of the base model on the Hub, if the run used a local copy.")]
License = Annotated[str | None, typer.Option(help="License for the card, such as apache-2.0; default: none.")]
Allow = Annotated[bool, typer.Option("--allow-private", help="Push even if private data or local paths are found.")]


def push(
    run: RunName,
    repo: Repo,
    kind: Kind = "adapter",
    private: Private = False,
    dry_run: DryRun = False,
    base: Base = None,
    license: License = None,
    allow_private: Allow = False,
    root: Root = RUNS,
) -> None:
    """Push an export of a run to the Hugging Face Hub, after a search for private data.

    Only the files of the export are pushed, never rows or scores.
    """
    from tunewright.core import run_folder
    from tunewright.export import hub

    hub.require_name(repo)
    with hub.staged(run_folder.find(root, run), kind, repo, base, license) as folder:
        if not allow_private:
            hub.require_public(folder)
        if not dry_run:
            typer.echo(hub.upload(folder, repo, kind, private))
            return
        for file in sorted(folder.iterdir()):
            typer.echo(f"{file.stat().st_size:>14,}  {file.name}")
        typer.echo((folder / "README.md").read_text(encoding="utf-8").split("\n---\n")[0] + "\n---")
