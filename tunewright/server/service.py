"""All parts of a running server, made once from its settings; routes are functions of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunewright.core.config import Config
from tunewright.core.errors import ConfigError, ModelError, RunError
from tunewright.core.run_folder import make_folder
from tunewright.server.access import Tokens
from tunewright.server.chat.batches import BatchRunner
from tunewright.server.engine import base
from tunewright.server.engine.base import Base, Dtype
from tunewright.server.engine.requests import Limits
from tunewright.server.engine.vllm import Remote
from tunewright.server.jobs.request import JobRequest, config_of
from tunewright.server.jobs.supervisor import Supervisor, Workshop
from tunewright.server.models import Catalogue
from tunewright.server.rows import Reader, ReadingLimits
from tunewright.server.store.batches import Batches
from tunewright.server.store.completions import Completions
from tunewright.server.store.database import Database
from tunewright.server.store.files import Files
from tunewright.server.store.jobs import Job, Jobs

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """``home``: where the server keeps everything. ``models``: bases, as `model` of a config names them. ``runs``: the
    folder of `tunewright run`, whose runs the default tenant can ask. ``hosts``: names under which the server may be
    reached, besides those of this machine. ``quota``: bytes that a tenant may store; ``largest``: of a request.
    ``engine``: another program that answers for the model; ``reading``: what one file of rows may take."""

    home: Path
    models: tuple[str, ...] = ("smollm2-135m",)
    runs: Path | None = None
    dtype: Dtype = "auto"
    limits: Limits = field(default_factory=Limits)
    hosts: tuple[str, ...] = ()
    quota: int = 50_000_000_000
    largest: int = 512 << 20
    jobs_at_once: int | None = None
    engine: Remote | None = None
    reading: ReadingLimits = field(default_factory=ReadingLimits)


@dataclass(frozen=True)
class Service:
    settings: Settings
    database: Database
    tokens: Tokens
    files: Files
    jobs: Jobs
    completions: Completions
    batches: Batches
    batch_runner: BatchRunner
    bases: Mapping[str, Base]
    catalogue: Catalogue
    workshop: Workshop
    supervisor: Supervisor
    reader: Reader
    lock: object

    def close(self) -> None:
        """Jobs save and stop, requests that are not finished fail."""
        self.supervisor.close()
        self.reader.close()
        for each in self.bases.values():
            each.engine.close()
        self.database.close()
        self.lock.release()  # type: ignore[attr-defined]


def open_service(settings: Settings) -> Service:
    """Loads the bases and continues the jobs. Raises RUN_LOCKED while another server has this home, MODEL_*."""
    make_folder(settings.home)
    lock = _locked(settings.home)
    database = Database(settings.home / "server.db")
    files, jobs = Files(database, settings.home / "files", settings.quota), Jobs(database)
    files.remove_leftovers()
    bases: dict[str, Base] = {}
    for setting in settings.models:
        name = base.name_of(setting)
        if name in bases:
            message, fix = f"two models would have the name {name}.", "rename the folder of one."
            raise ConfigError("CONFIG_CONFLICT", message, where="--model", fix=fix)
        bases[name] = (
            base.load(setting, settings.dtype, settings.limits)
            if settings.engine is None
            else base.load_remote(setting, settings.engine, settings.limits)
        )

    def config(job: Job) -> Config:
        return config_of_job(job.tenant, JobRequest.model_validate(job.request), files, bases)

    arguments = settings.engine.arguments() if settings.engine is not None else ()
    reader = Reader(settings.reading)
    workshop = Workshop(settings.home / "runs", jobs, files, config, reader.submit, arguments)
    catalogue = Catalogue(bases, jobs, workshop.folder, settings.runs)
    supervisor = Supervisor(workshop, settings.jobs_at_once)
    tokens = Tokens(settings.home / "tokens")
    supervisor.start()
    batches = Batches(database)
    return Service(
        settings=settings,
        database=database,
        tokens=tokens,
        files=files,
        jobs=jobs,
        completions=Completions(database),
        batches=batches,
        batch_runner=BatchRunner(batches, files, catalogue, settings.home / "batches"),
        bases=bases,
        catalogue=catalogue,
        workshop=workshop,
        supervisor=supervisor,
        reader=reader,
        lock=lock,
    )


def config_of_job(tenant: str, request: JobRequest, files: Files, bases: Mapping[str, Base]) -> Config:
    """Raises ConfigError, and RUN_NOT_FOUND if a file of the job has been removed."""
    paths: list[Path | None] = []
    for file_id in (request.training_file, request.validation_file):
        file = files.get(tenant, file_id) if file_id is not None else None
        if file_id is not None and file is None:
            raise RunError("RUN_NOT_FOUND", f"there is no file {file_id}.", where=file_id, fix="upload it again.")
        paths.append(files.path(file) if file is not None else None)
    training, validation = paths
    assert training is not None
    if request.model not in bases:
        message, fix = f"the server has no model {request.model} any more.", f"start it with --model {request.model}."
        raise ModelError("MODEL_NOT_FOUND", message, where="model", fix=fix)
    return config_of(request, bases[request.model].setting, training, validation)


def _locked(home: Path) -> object:
    """One server for each home. The lock ends with the process, however it ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(home / ".lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = home / ".owner"
        who = f"process {owner.read_text(encoding='utf-8')}" if owner.exists() else "another process"
        fix = "stop it, or choose another --home."
        raise RunError("RUN_LOCKED", f"{who} serves this folder.", where=str(home), fix=fix) from None
    (home / ".owner").write_text(str(os.getpid()), encoding="utf-8")
    return lock
