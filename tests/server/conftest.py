"""A server on a tiny model, a finished job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from build import write_chat_rows
from server_running import SHORT_JOB, Running, finished, running

from tunewright.server.engine.requests import Limits
from tunewright.server.service import Settings


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> Settings:
    """Of a server on a tiny model, with a home of its own."""
    return Settings(
        home=tmp_path_factory.mktemp("server") / "home",
        models=(str(model_folder("llama")),),
        dtype="float32",
        limits=Limits(rows=8, context=1024),
    )


@pytest.fixture(scope="session")
def server(settings: Settings) -> Iterator[Running]:
    with running(settings) as started:
        for tenant in ("other",):
            started.service.tokens.add(tenant)
        yield started


@pytest.fixture
def fresh(settings: Settings, tmp_path: Path) -> Settings:
    """Settings of another server."""
    return replace(settings, home=tmp_path / "home")


@pytest.fixture(scope="session")
def trained(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished job."""
    client = server.client()
    file = write_chat_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 60)
    uploaded = client.files.create(file=file, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=server.model,
        training_file=uploaded.id,
        suffix="tiny",
        seed=3,
        metadata={"team": "a"},
        extra_body={"tunewright": SHORT_JOB},
    )
    done = finished(client, job.id)
    assert done.status == "succeeded", done.error
    return done
