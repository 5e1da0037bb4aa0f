"""Checking and copying a server's home."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from tunewright.core import records, run_folder
from tunewright.core.errors import RunError
from tunewright.core.run_folder import Run, disk_errors, make_folder
from tunewright.core.words import counted
from tunewright.server.store.database import Database
from tunewright.server.store.files import Files, of_row
from tunewright.server.store.jobs import FINISHED, Jobs


def checked(home: Path) -> str:
    """What the home has, in a line. Raises RUN_NOT_FOUND, and RUN_DAMAGED with everything that is not as it was
    stored."""
    database = _opened(home)
    try:
        files, jobs, damaged = Files(database, home / "files", 1 << 62), Jobs(database), list[str]()
        stored = [of_row(row) for row in database.rows("SELECT * FROM files")]
        for file in stored:
            path = files.path(file)
            if not path.exists() or run_folder.sha256(path) != file.sha256:
                damaged.append(f"file {file.id}")
        done = [job for job in jobs.all_of() if job.status == "succeeded" and not job.model_deleted]
        for job in done:
            run = Run(home / "runs" / job.id)
            training = records.existing(run.training, records.Training)
            if (
                training is None
                or not run.weights.exists()
                or run_folder.sha256(run.weights) != training.weights_sha256
            ):
                damaged.append(f"the weights of job {job.id}")
        if damaged:
            fix = "restore them from a backup (--back-up)."
            raise RunError("RUN_DAMAGED", f"not as they were stored: {', '.join(damaged)}.", where=str(home), fix=fix)
        waiting = sum(job.status not in FINISHED for job in jobs.all_of())
        parts = (counted(len(stored), "file"), counted(len(done), "trained model"), counted(waiting, "unfinished job"))
        return f"{home}: {', '.join(parts)}; everything is as it was stored"
    finally:
        database.close()


def backed_up(home: Path, target: Path) -> str:
    """Copies the home to a new folder; the database as it is at one moment. Raises RUN_NOT_FOUND, RUN_EXISTS."""
    if target.exists():
        raise RunError("RUN_EXISTS", "the folder exists.", where=str(target), fix="choose another name.")
    database = _opened(home)
    try:
        with disk_errors(target):
            make_folder(target)
            database.back_up(target / "server.db")
            shutil.copy2(home / "tokens", target / "tokens")
            for name in ("files", "runs", "batches"):  # what the database names was written before it
                _copy(home / name, target / name)
    finally:
        database.close()
    return f"copied to {target}; serve it with --home {target}"


def _copy(source: Path, target: Path) -> None:
    """A job that is running may replace and remove its files; what it needs to continue is complete at any moment."""
    with suppress(FileNotFoundError):
        entries = [entry for entry in source.iterdir() if not entry.name.startswith(".")]
        make_folder(target)
        for entry in entries:
            if entry.is_dir():
                _copy(entry, target / entry.name)
            else:
                with suppress(FileNotFoundError):
                    shutil.copy2(entry, target / entry.name)


def _opened(home: Path) -> Database:
    if not (home / "server.db").is_file():
        raise RunError(
            "RUN_NOT_FOUND", "no server has been started in this folder.", where=str(home), fix="check --home."
        )
    return Database(home / "server.db")
