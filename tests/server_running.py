"""A server in a thread of this process, and the unmodified OpenAI client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from listening import listening

from tunewright.server.app import create_app
from tunewright.server.service import Service, Settings, open_service

# A job that takes seconds.
SHORT_JOB: dict[str, Any] = {
    "train.steps": 6,
    "train.batch_size": 8,
    "train.eval_every": 3,
    "checkpoint.every": 3,
    "prove.max_new_tokens": 6,
    "prove.few_shot": [],
    "prove.evidence": "plain",
    "adapter.rank": 4,
    "adapter.alpha": 8,
    "train.dtype": "float32",
}


@dataclass(frozen=True)
class Running:
    """``model``: the name of its base."""

    service: Service
    url: str
    model: str
    clients: list[openai.OpenAI] = field(default_factory=list)

    def token(self, tenant: str = "default") -> str:
        return self.service.tokens.token_of(tenant)

    def client(self, tenant: str = "default", **more: Any) -> openai.OpenAI:
        made = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.token(tenant), max_retries=0, **more)
        self.clients.append(made)
        return made

    def http(self, tenant: str = "default") -> httpx.Client:
        """For what the client would not send."""
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.token(tenant)}"}, timeout=60)


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    service = open_service(settings)
    try:
        with listening(create_app(service)) as url:
            started = Running(service, url, next(iter(service.bases)))
            yield started
            for client in started.clients:
                client.close()
    finally:
        service.close()


def finished_batch(client: openai.OpenAI, batch_id: str) -> Any:
    """The batch, when it has ended."""
    for _ in range(300):
        batch = client.batches.retrieve(batch_id)
        if batch.status in ("completed", "cancelled", "failed"):
            return batch
        threading.Event().wait(0.1)
    raise AssertionError(f"the batch is {batch.status}")


def finished(client: openai.OpenAI, job_id: str, seconds: float = 240) -> Any:
    """The job, when it has ended."""
    for _ in range(int(seconds / 0.2)):
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        threading.Event().wait(0.2)
    raise AssertionError(f"the job is {job.status}")
