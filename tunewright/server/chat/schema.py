"""Compares answers with their JSON schemas in other processes: some schemas take forever, and hold all others up."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import jsonschema
from jsonschema_specifications import REGISTRY

from tunewright.server.errors import ApiError, bad
from tunewright.system.apart import Apart, GivenUp

SECONDS, MEMORY = 10.0, 2 << 30  # of one comparison; the first one also starts a process
THREADS = ThreadPoolExecutor(4, "schema")


@functools.cache
def _processes() -> Apart:
    return Apart(__name__, MEMORY)


async def check(schema: Mapping[str, object], text: str) -> None:
    """What the grammar has enforced, once more by another program. Raises ApiError."""
    request, loop = json.dumps([schema, text]).encode(), asyncio.get_running_loop()
    try:
        problem = await loop.run_in_executor(THREADS, lambda: _processes().ask(request, SECONDS))
    except GivenUp as error:
        raise bad("invalid_json_schema", f"Comparing the answer with the schema {error}.") from None
    if problem:
        raise ApiError(500, "schema_violated", f"The answer does not match the schema: {problem.decode()}")


def answer(request: bytes) -> bytes:
    """In another process: what is wrong, if anything is. References to the network are not followed."""
    schema, text = json.loads(request)
    try:
        jsonschema.validate(json.loads(text), schema, registry=REGISTRY)
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error).splitlines()[0].encode("utf-8", "replace")
    return b""
