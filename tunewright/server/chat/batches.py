"""Answers batches, a few lines of each at a time. What a line was answered with is on disk before it counts,
so a server that is killed continues with the next line."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from tunewright.core.run_folder import append_line, make_folder, read_lines
from tunewright.server.chat import answers, endpoints
from tunewright.server.chat.endpoints import rendered
from tunewright.server.chat.request import ChatRequest, CompletionRequest
from tunewright.server.chat.responses import ResponseReply, ResponseRequest
from tunewright.server.errors import ApiError, bad, of_validation, unexpected
from tunewright.server.models import Catalogue
from tunewright.server.shapes import JsonObject
from tunewright.server.store.batches import Batch, Batches
from tunewright.server.store.database import new_id
from tunewright.server.store.files import Files

ENDPOINTS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
}
AT_ONCE = 8  # lines of a batch
BATCHES = 2  # of a tenant: a short one need not wait for a long one, and their lines do not fill the engine's queue
MOST_LINES = 50_000
MOST_ERRORS = 100
POLL_SECONDS = 0.5
BUSY_SECONDS = 2.0
AGAIN_SECONDS = 10.0  # after an error, say of a full disk
MOST_BYTES = 200 << 20  # of the file of requests, as in OpenAI's API: it is read as a whole
log = logging.getLogger(__name__)


class Invalid(Exception):
    """``errors``: as OpenAI's batch has them, with lines."""

    def __init__(self, errors: list[JsonObject]) -> None:
        super().__init__(errors[0]["message"])
        self.errors = errors


async def answered(catalogue: Catalogue, tenant: str, endpoint: str, body: JsonObject) -> JsonObject:
    """The answer of an endpoint to one body. Raises ApiError."""
    try:
        request = ENDPOINTS[endpoint].model_validate(body)
    except ValidationError as error:
        raise of_validation(error.errors()) from None
    if getattr(request, "stream", None):
        raise bad("unsupported_parameter", "stream: a batch is answered as a whole.", "stream")
    served = await asyncio.to_thread(catalogue.get, tenant, body["model"])
    if isinstance(request, ChatRequest):
        reply = await rendered(endpoints.chat, served, tenant, request)
        return reply.chat(await answers.complete(reply.asked))
    if isinstance(request, CompletionRequest):
        return await (await rendered(endpoints.completions, served, tenant, request)).complete()
    assert isinstance(request, ResponseRequest)
    return await ResponseReply.to(request, await rendered(endpoints.chat, served, tenant, request.as_chat())).complete()


@dataclass(frozen=True)
class BatchRunner:
    """``folder``: for answers of batches that are not finished."""

    batches: Batches
    files: Files
    catalogue: Catalogue
    folder: Path

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Within, batches are answered."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        make_folder(self.folder)
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                tasks = {batch_id: task for batch_id, task in tasks.items() if not task.done()}
                for batch in self._turns():
                    if batch.id not in tasks:
                        tasks[batch.id] = asyncio.create_task(self._tried(batch))
                await asyncio.sleep(POLL_SECONDS)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    def _turns(self) -> list[Batch]:
        """Those that are to be answered now: of each tenant the oldest, and those that only have to end."""
        before, turns = Counter[str](), list[Batch]()
        for batch in self.batches.unfinished():
            before[batch.tenant] += 1
            if before[batch.tenant] <= BATCHES or batch.status == "cancelling":
                turns.append(batch)
        return turns

    async def _tried(self, batch: Batch) -> None:
        try:
            await self._answer(batch)
        except Exception:  # a full disk, for example: it is tried again
            log.exception("the batch %s stopped", batch.id)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _answer(self, batch: Batch) -> None:
        out, failed = self.folder / f"{batch.id}.out", self.folder / f"{batch.id}.err"
        if batch.status == "cancelling":
            await asyncio.to_thread(self._finish, batch, out, failed)
            return
        try:
            lines = await asyncio.to_thread(self._lines, batch)
        except Invalid as error:
            self.batches.become(batch, "failed", errors=json.dumps(error.errors))
            return
        self.batches.become(batch, "in_progress")
        done = [{str(line["custom_id"]) for line in read_lines(file)} for file in (out, failed)]
        todo = [line for line in lines if line["custom_id"] not in done[0] | done[1]]
        counts = [len(d) for d in done]
        self.batches.count(batch, len(lines), *counts)
        places, writing = asyncio.Semaphore(AT_ONCE), asyncio.Lock()

        async def one(line: JsonObject) -> None:
            async with places:
                if self._cancelling(batch):
                    return
                result = await self._result(batch, line)
                file = out if result["response"]["status_code"] == 200 else failed
                async with writing:
                    try:
                        await asyncio.to_thread(append_line, file, result)
                    except ValueError:  # it repeats a part of the line that is not text
                        error, file = bad("invalid_value", "The line has half of a surrogate pair.", None), failed
                        result["response"] |= {"status_code": error.status, "body": error.body()}
                        await asyncio.to_thread(append_line, file, result)
                counts[file is failed] += 1
                self.batches.count(batch, len(lines), *counts)

        async with asyncio.TaskGroup() as group:
            for line in todo:
                group.create_task(one(line))
        await asyncio.to_thread(self._finish, batch, out, failed)

    def _cancelling(self, batch: Batch) -> bool:
        now = self.batches.get(batch.tenant, batch.id)
        return now is None or now.status == "cancelling"

    async def _result(self, batch: Batch, line: JsonObject) -> JsonObject:
        while True:
            try:
                endpoint = batch.request["endpoint"]
                status, body = 200, await answered(self.catalogue, batch.tenant, endpoint, line["body"])
            except ApiError as error:
                if error.status in (429, 503):  # people come first
                    await asyncio.sleep(BUSY_SECONDS)
                    continue
                status, body = error.status, error.body()
            except Exception as error:  # of this line, and of no other
                log.exception("a line of the batch %s failed", batch.id)
                status, body = 500, unexpected(error).body()
            response = {"status_code": status, "request_id": new_id("req_"), "body": body}
            return {"id": new_id("batch_req_"), "custom_id": line["custom_id"], "response": response, "error": None}

    def _finish(self, batch: Batch, out: Path, failed: Path) -> None:
        """The answers become files of the tenant, even if they exceed its quota: it was asked before the batch."""
        ids = {name: self._stored(batch, name, file) for name, file in (("output_file", out), ("error_file", failed))}
        if any(self.batches.become(batch, status, **ids) for status in ("completed", "cancelled")):
            for file in (out, failed):
                file.unlink(missing_ok=True)

    def _stored(self, batch: Batch, name: str, file: Path) -> str | None:
        if not file.exists():
            return None
        with open(file, "rb") as content:
            name = f"{batch.id}_{name}.jsonl"
            return self.files.add_beyond_quota(batch.tenant, name, "batch_output", content, batch.id).id

    def _lines(self, batch: Batch) -> list[JsonObject]:
        """Raises Invalid with what is wrong."""
        file = self.files.get(batch.tenant, batch.request["input_file_id"])
        if file is None:
            raise Invalid([_error("file_not_found", "The file has been deleted.", None)])
        lines: list[JsonObject] = []
        errors: list[JsonObject] = []
        seen: set[str] = set()
        if file.bytes > MOST_BYTES:
            message = f"The file of a batch has at most {MOST_BYTES >> 20} MiB."
            raise Invalid([_error("file_too_large", message, None)])
        for number, text in enumerate(self.files.path(file).read_bytes().split(b"\n"), 1):
            if text.strip():
                problem, line = _line(text, batch.request["endpoint"], seen)
                if problem:
                    errors.append(_error("invalid_line", problem, number))
                else:
                    lines.append(line)
        if not lines and not errors:
            errors.append(_error("empty_file", "The file has no lines.", None))
        if len(lines) > MOST_LINES:
            errors.append(_error("too_many_lines", f"A batch has at most {MOST_LINES} lines.", None))
        if errors:
            raise Invalid(errors[:MOST_ERRORS])
        return lines


def _line(text: bytes, endpoint: str, seen: set[str]) -> tuple[str, JsonObject]:
    """What is wrong with a line of a batch; empty if nothing is; and the line."""
    try:
        line = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return f"not valid JSON: {error}", {}
    if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str) or not line["custom_id"]:
        return "there is no custom_id", {}
    if not line["custom_id"].isprintable():
        return "the custom_id has characters that cannot be printed", {}
    if line["custom_id"] in seen:
        return f"the custom_id {line['custom_id'][:80]!r} occurs twice", {}
    seen.add(line["custom_id"])
    if line.get("method") != "POST" or line.get("url") != endpoint:
        return f"method and url must be POST {endpoint}", {}
    return ("", line) if isinstance(line.get("body"), dict) else ("there is no body", {})


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _error(code: str, message: str, line: int | None) -> JsonObject:
    return {"code": code, "message": message, "line": line, "param": None}
