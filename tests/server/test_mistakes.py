"""What goes wrong at clients and on the machine, and must cost nobody else anything."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from build import write_chat_rows
from server_running import SHORT_JOB, Running, finished, finished_batch, running

from tunewright.core.config import load
from tunewright.core.run_folder import Run
from tunewright.server import care
from tunewright.server.chat import batches
from tunewright.server.chat import schema as schemas
from tunewright.server.chat.responses import ResponseRequest
from tunewright.server.errors import ApiError
from tunewright.server.jobs import work
from tunewright.server.jobs.request import JobRequest, allowed_settings, refused
from tunewright.server.service import Settings

HELLO: list[Any] = [{"role": "user", "content": "x"}]


def batch_of(server: Running, lines: list[bytes]) -> Any:
    """A batch of these lines, when it has ended."""
    client = server.client()
    file = client.files.create(file=("b.jsonl", b"\n".join(lines)), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    return finished_batch(client, made.id)


def line(name: str, **body: Any) -> bytes:
    whole = {"model": "m", "messages": HELLO, "max_tokens": 2, **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": whole}).encode()


@pytest.mark.parametrize(
    "bad",
    [line("\ud800"), line("a", temperature=float("nan")), b"[" * 5000],
    ids=["custom_id", "NaN", "nested"],
)
def test_a_line_that_cannot_be_stored_fails_its_batch_with_its_number(server: Running, bad: bytes) -> None:
    batch = batch_of(server, [line("fine", model=server.model), bad])
    assert batch.status == "failed"
    assert [error.line for error in batch.errors.data] == [2]


def test_a_line_whose_answer_cannot_be_stored_fails_alone(server: Running) -> None:
    client = server.client()
    bodies = [{"model": server.model, "input": "x", "max_output_tokens": 2, "text": {"x": x}} for x in ("\ud800", "y")]
    lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/responses", "body": b} for n, b in enumerate(bodies)]
    file = client.files.create(file=("b.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    batch = finished_batch(client, made.id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 1, 1)


def test_a_batch_does_not_wait_for_another_and_its_file_is_kept(server: Running) -> None:
    client = server.client()
    long = [line(str(n), model=server.model, max_tokens=40) for n in range(60)]
    file = client.files.create(file=("b.jsonl", b"\n".join(long)), purpose="batch")
    first = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    second = batch_of(server, [line("one", model=server.model)])
    assert second.request_counts.completed == 1
    with server.http() as http:
        response = http.delete(f"/v1/files/{file.id}")
    unfinished = client.batches.retrieve(first.id).status in ("validating", "in_progress")
    assert (response.status_code == 400) == unfinished
    client.batches.cancel(first.id)


def test_many_batches_of_a_tenant_take_turns(server: Running) -> None:
    """They held their rows in memory at the same time, and their lines filled the engine's queue: others got 429."""
    client = server.client()
    lines = [line(str(n), model=server.model, max_tokens=30) for n in range(20)]
    file = client.files.create(file=("b.jsonl", b"\n".join(lines)), purpose="batch")
    made = [
        client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id
        for _ in range(5)
    ]
    assert client.batches.cancel(made[-1]).status == "cancelling"
    assert finished_batch(client, made[-1]).request_counts.total == 0
    most = 1
    while unfinished := server.service.batches.unfinished():
        most = max(most, sum(batch.status == "in_progress" for batch in unfinished))
        threading.Event().wait(0.01)
    assert most == batches.BATCHES
    assert {client.batches.retrieve(name).request_counts.completed for name in made[:-1]} == {20}


def test_a_batch_that_ends_over_the_quota_keeps_its_answers(settings: Settings, tmp_path: Path) -> None:
    rows = line("one", max_tokens=4)
    with running(replace(settings, home=tmp_path / "home", quota=len(rows) + 60)) as small:
        batch = batch_of(small, [line("one", model=small.model, max_tokens=4)])
        assert batch.status == "completed"
        assert json.loads(small.client().files.content(batch.output_file_id).text)["custom_id"] == "one"


@pytest.mark.parametrize("schema", [1, [], "http://["])
def test_a_schema_of_an_unknown_kind_is_refused(server: Running, schema: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"$schema": schema, "type": "object"}}}
    with server.http() as http:
        body = {"model": server.model, "messages": HELLO, "response_format": form}
        response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400, response.text


PAIR: dict[str, Any] = {"items": {"$ref": "#/$defs/pair"}}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^((a+)+c|a{40}b)$"}, "a" * 40 + "b"),
        ({"$defs": {"pair": {"anyOf": [{**PAIR, "type": "object"}, PAIR]}}, **PAIR}, json.loads("[" * 60 + "]" * 60)),
    ],
    ids=["pattern", "references"],
)
def test_a_schema_that_takes_forever_stops_nobody_else(
    schema: dict[str, Any], value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(schemas.check({"const": 1}, "1"))
    with pytest.raises(ApiError, match="does not match the schema"):
        asyncio.run(schemas.check({"const": 1}, "2"))
    monkeypatch.setattr(schemas, "SECONDS", 0.5)
    beats: list[float] = []

    async def beside() -> None:
        checking = asyncio.create_task(schemas.check(schema, json.dumps(value)))
        while not checking.done():
            await asyncio.sleep(0.02)
            beats.append(0.02)
        await checking

    with pytest.raises(ApiError, match="took longer than"):
        asyncio.run(beside())
    assert len(beats) > 5


def test_half_a_character_is_refused_wherever_it_is(server: Running) -> None:
    with server.http() as http:
        for path, body in (
            ("/tunewright/files/from_completions", {"model": "\ud800"}),
            ("/v1/fine_tuning/jobs", {"model": server.model, "training_file": "\ud800"}),
        ):
            headers = {"content-type": "application/json"}
            response = http.post(path, content=json.dumps(body).encode(), headers=headers)
            assert response.status_code == 400, response.text


def test_a_login_is_small(server: Running) -> None:
    with server.http() as http:
        assert http.post("/login", files={"token": b"x" * (1 << 20)}).status_code == 413
        response = http.post("/v1/chat/completions", files={"x": b"x" * (9 << 20)})
        assert response.status_code == 413, "only a file may be larger"


def test_metrics_are_the_default_tenants(server: Running) -> None:
    with server.http() as own, server.http("other") as other:
        assert (own.get("/metrics").status_code, other.get("/metrics").status_code) == (200, 404)


def test_an_unexpected_error_has_the_name_of_its_request(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(server.service.jobs, "page", broken)
    with server.http() as http:
        response = http.get("/v1/fine_tuning/jobs")
    assert response.status_code == 500
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["x-content-type-options"] == "nosniff"


def test_calls_of_one_turn_stay_one_turn() -> None:
    def call(name: str) -> dict[str, Any]:
        return {"type": "function_call", "call_id": name, "name": f"f_{name}", "arguments": "{}"}

    results = [{"type": "function_call_output", "call_id": name, "output": f"of {name}"} for name in "ab"]
    before = {"role": "assistant", "content": "I look"}
    request = ResponseRequest(
        model="m", input=[{"role": "user", "content": "x"}, before, call("a"), call("b"), *results]
    )
    roles = [message["role"] for message in request.as_chat().messages]
    assert roles == ["user", "assistant", "tool", "tool"]
    calls: Any = request.as_chat().messages[1]["tool_calls"]
    assert [c["id"] for c in calls] == ["a", "b"]
    forced = ResponseRequest(model="m", input="x", tool_choice={"type": "function", "name": "f"}).as_chat()
    assert forced.tool_choice == {"type": "function", "function": {"name": "f"}}


def test_a_stored_chat_has_its_tools_and_a_cut_answer_is_no_target(server: Running) -> None:
    client, mark = server.client(), {"kind": "cut"}
    for limit in (2, 400):
        client.chat.completions.create(
            model=server.model, messages=HELLO, max_tokens=limit, store=True, metadata=mark, stop=["\n", "a", "e", " "]
        )
    with server.http() as http:
        stored = http.get("/v1/chat/completions", params={"metadata[kind]": "cut"}).json()["data"]
        cut = sum(c["choices"][0]["finish_reason"] == "length" for c in stored)
        made = http.post("/tunewright/files/from_completions", json={"metadata": mark})
    assert made.status_code == (400 if cut == 2 else 200)
    if cut < 2:
        assert made.json()["tunewright"] == {"rows": 2 - cut, "cut_answers_left_out": cut}


@pytest.fixture(scope="module")
def small(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with less room than a run takes."""
    with running(replace(settings, home=tmp_path_factory.mktemp("small") / "home", quota=90_000)) as started:
        yield started


@pytest.fixture(scope="module")
def unstarted(small: Running, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A job, as it was when its process could not be started."""
    opened = subprocess.Popen

    def refused(command: Any, *more: Any, **others: Any) -> Any:
        if "tunewright.server.jobs.work" in command:
            raise OSError(24, "Too many open files")
        return opened(command, *more, **others)

    client, rows_file = small.client(), write_chat_rows(tmp_path_factory.mktemp("rows") / "r.jsonl", 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", refused)
        file = client.files.create(file=rows_file, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=small.model, training_file=file.id, extra_body={"tunewright": SHORT_JOB}
        )
        for _ in range(100):
            now: Any = client.fine_tuning.jobs.retrieve(job.id)
            if now.to_dict()["tunewright"]["paused"]:
                break
            threading.Event().wait(0.1)
    return now


@pytest.fixture(scope="module")
def resumed(small: Running, unstarted: Any) -> Any:
    """The same job at its end."""
    client = small.client()
    client.fine_tuning.jobs.resume(unstarted.id)
    with pytest.raises(openai.BadRequestError):
        client.models.delete(unstarted.id)
    return finished(client, unstarted.id)


def test_a_job_whose_process_cannot_be_started_is_paused(unstarted: Any, resumed: Any) -> None:
    assert (unstarted.status, unstarted.to_dict()["tunewright"]["paused"]) == ("queued", True)
    assert resumed.status == "succeeded"


def job_bytes(server: Running, job_id: str) -> int:
    """What counts of its run folder."""
    job = server.service.jobs.get("default", job_id)
    assert job is not None
    return job.run_bytes


def test_a_deleted_model_cannot_be_asked_and_takes_no_room(small: Running, resumed: Any) -> None:
    client, name, home = small.client(), resumed.fine_tuned_model, small.service.settings.home
    client.chat.completions.create(model=name, messages=HELLO, max_tokens=3)
    with pytest.raises(openai.APIStatusError, match="delete files or models"):  # the run is larger than the quota
        client.fine_tuning.jobs.create(model=small.model, training_file=resumed.training_file)
    before = job_bytes(small, resumed.id)
    assert client.models.delete(name).deleted
    assert 0 < job_bytes(small, resumed.id) < before
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=name, messages=HELLO, max_tokens=3)
    assert client.fine_tuning.jobs.retrieve(resumed.id).fine_tuned_model is None
    run = home / "runs" / resumed.id
    assert (run / "report.html").exists()
    assert not (run / "checkpoints").exists()
    assert care.checked(home).startswith(f"{home}: 2 files, 0 trained models")


def test_a_run_folder_that_was_only_begun_is_begun_again(tmp_path: Path, model_folder: Any) -> None:
    rows = write_chat_rows(tmp_path / "r.jsonl", 60)
    words = [f"data.train={rows}", f"model={model_folder('llama')}"]
    run = Run(tmp_path / "runs" / "job")
    (run.path / "data").mkdir(parents=True)
    context = work.open_run(load(None, words), run)
    assert context.run.path == run.path
    assert run.config.is_file()


def test_a_copy_of_what_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint disappears while it is copied."""
    for step in ("step-1", "step-2"):
        (tmp_path / "from" / step).mkdir(parents=True)
        (tmp_path / "from" / step / "weights").write_text(step)
    copy2 = shutil.copy2

    def racing(source: Path, target: Path) -> Any:
        shutil.rmtree(tmp_path / "from" / "step-2", ignore_errors=True)
        return copy2(source, target)

    monkeypatch.setattr(shutil, "copy2", racing)
    care._copy(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to" / "step-1" / "weights").exists() or (tmp_path / "to" / "step-2").exists()


def test_a_job_cannot_name_files_of_the_server() -> None:
    named = {"adapter.start", "forget.regression_rows", "data.train", "data.dev", "data.test", "data.answer_schema"}
    assert not named & allowed_settings()


def test_hyperparameters_of_another_method_are_refused() -> None:
    """They would be ignored."""
    given = {"model": "m", "training_file": "file-1"}
    epochs = {"hyperparameters": {"n_epochs": 3}}
    for method, param in (("dpo", "supervised"), ("supervised", "dpo")):
        assert refused(JobRequest.model_validate({**given, "method": {"type": method, method: epochs}})) is None
        asked = JobRequest.model_validate({**given, "method": {"type": method, param: epochs}})
        assert (refused(asked) or ("", ""))[0] == f"method.{param}"
