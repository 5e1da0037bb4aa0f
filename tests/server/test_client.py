"""The unmodified OpenAI client, from the upload to answers of the tuned model."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from build import write_chat_rows
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from server_running import SHORT_JOB, Running, finished, finished_batch, running

from tunewright.core.run_folder import Run
from tunewright.runtime import chat as runtime
from tunewright.server import care
from tunewright.server.engine.text import AnswerText
from tunewright.server.service import Settings
from tunewright.tokens.template import BUILT_IN, Template

BAD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "string", "description": 5}}}
# An answer that ends: a cut one is no row to train on.
YES: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"const": "yes"}}}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
JSON = {"content-type": "application/json"}
HELLO: list[Any] = [{"role": "user", "content": "item 3: red by the dog"}]


def text_of(completion: Any) -> str:
    return str(completion.choices[0].message.content)


def test_models(server: Running, trained: Any) -> None:
    client = server.client()
    names = [m.id for m in client.models.list()]
    assert set(names) == {server.model, trained.fine_tuned_model}
    assert client.models.retrieve(server.model).owned_by == "tunewright"
    tuned = client.models.retrieve(trained.fine_tuned_model)
    assert tuned.to_dict()["tunewright"]["base"] == server.model  # type: ignore[index]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_files(server: Running, tmp_path: Path) -> None:
    client, content = server.client(), b'{"prompt": "a", "completion": "b"}\n' * 3
    made = client.files.create(
        file=("rows.jsonl", content), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert (made.bytes, made.filename, made.purpose) == (len(content), "rows.jsonl", "fine-tune")
    assert made.expires_at == made.created_at + 7200
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == content
    others = [client.files.create(file=(f"{n}.jsonl", b"x"), purpose="user_data") for n in range(5)]
    listed = [f.id for f in client.files.list(purpose="user_data", limit=2, order="asc")]  # several pages
    assert listed == [f.id for f in others]
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)


def test_uploads_in_parts(server: Running, tmp_path: Path) -> None:
    client = server.client()
    file = write_chat_rows(tmp_path / "rows.jsonl", 400)
    done = client.uploads.upload_file_chunked(
        file=file, mime_type="application/jsonl", purpose="fine-tune", part_size=5000
    )
    assert done.status == "completed"
    assert done.file is not None
    assert client.files.content(done.file.id).content == file.read_bytes()
    upload = client.uploads.create(bytes=10, filename="x.jsonl", mime_type="", purpose="batch")
    first, second = (client.uploads.parts.create(upload.id, data=io.BytesIO(b)) for b in (b"world", b"hello"))
    with pytest.raises(openai.BadRequestError, match="md5"):
        client.uploads.complete(upload.id, part_ids=[second.id, first.id], md5="0" * 32)
    completed = client.uploads.complete(upload.id, part_ids=[second.id, first.id])
    assert completed.file is not None
    assert client.files.content(completed.file.id).content == b"helloworld"
    cancelled = client.uploads.create(bytes=3, filename="y.jsonl", mime_type="", purpose="batch")
    assert client.uploads.cancel(cancelled.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.uploads.parts.create(cancelled.id, data=io.BytesIO(b"abc"))


def test_a_job_ends_with_a_model_its_metrics_and_its_verdict(server: Running, trained: Any) -> None:
    client = server.client()
    assert trained.fine_tuned_model == f"ft:{server.model}:default:tiny:{trained.id.removeprefix('ftjob-')[:8]}"
    assert trained.hyperparameters.batch_size == 8
    assert (trained.seed, trained.metadata, trained.error) == (3, {"team": "a"}, None)
    assert trained.trained_tokens > 0
    evidence = trained.to_dict()["tunewright"]
    assert evidence["verdict"]["verdict"] in ("BETTER", "WORSE", "PRACTICALLY EQUAL", "CANNOT TELL")
    events = list(client.fine_tuning.jobs.list_events(trained.id, limit=3))  # several pages, the newest first
    messages = [e.message for e in reversed(events)]
    assert messages[0].startswith("Created")
    assert messages[-1] == "The job has successfully completed"
    steps = [e for e in events if e.type == "metrics"]
    assert [e.data["step"] for e in reversed(steps)] == [1, 2, 3, 4, 5, 6]  # type: ignore[index]
    results = client.files.content(trained.result_files[0]).text.splitlines()
    assert results[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert [line.split(",")[0] for line in results[1:]] == ["1", "2", "3", "4", "5", "6"]
    assert [j.id for j in client.fine_tuning.jobs.list()][-1] == trained.id


def test_served_equals_chat(server: Running, trained: Any) -> None:
    """The tuned model answers as `tunewright chat` does; the base and other scales answer differently."""
    client, run = server.client(), Run(server.service.workshop.folder / trained.id)
    tuned = runtime.load_run(run)
    texts = [f"item {n}: {w} by the tree" for n, w in enumerate(("red", "cat", "stone", "river"))]
    for text in texts:
        messages: Any = [{"role": "user", "content": text}]
        answer = client.chat.completions.create(model=trained.fine_tuned_model, messages=messages, max_tokens=40)
        assert text_of(answer) == runtime.answer(tuned, text, max_new_tokens=40)
    given = {"messages": HELLO, "max_tokens": 40}
    name = trained.fine_tuned_model
    base, whole, none, half = (
        text_of(client.chat.completions.create(model=model, **given))
        for model in (server.model, name, f"{name}@0", f"{name}@0.5")
    )
    assert base == none != whole
    assert half not in (base, whole)
    fingerprint = client.chat.completions.create(model=trained.fine_tuned_model, **given).system_fingerprint
    assert fingerprint == f"fp_{json.loads(run.training.read_text())['weights_sha256'][:12]}"


def test_checkpoints_can_be_asked(server: Running, trained: Any) -> None:
    client = server.client()
    steps = client.fine_tuning.jobs.checkpoints.list(trained.id).data
    assert [c.step_number for c in steps] == [6, 3]
    assert steps[0].metrics.train_loss is not None
    names = [c.fine_tuned_model_checkpoint for c in steps]
    answers = [text_of(client.chat.completions.create(model=n, messages=HELLO, max_tokens=30)) for n in names]
    assert answers[0] == text_of(
        client.chat.completions.create(model=trained.fine_tuned_model, messages=HELLO, max_tokens=30)
    )
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=f"{trained.fine_tuned_model}:ckpt-step-4", messages=HELLO)


def test_a_stream_is_the_answer_in_pieces(server: Running) -> None:
    client = server.client()
    given: Any = {"model": server.model, "messages": HELLO, "max_tokens": 60, "n": 3, "temperature": 1.0, "seed": 7}
    at_once = client.chat.completions.create(**given, logprobs=True, top_logprobs=2)
    chunks = list(
        client.chat.completions.create(
            **given, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}
        )
    )
    texts, reasons, logprobs = ["", "", ""], ["", "", ""], [0, 0, 0]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] += choice.finish_reason or ""
        logprobs[choice.index] += len(choice.logprobs.content or ()) if choice.logprobs else 0
    assert texts == [c.message.content for c in at_once.choices]
    assert reasons == [c.finish_reason for c in at_once.choices]
    assert logprobs == [len(c.logprobs.content or ()) if c.logprobs else 0 for c in at_once.choices]
    assert len(set(texts)) == 3
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert at_once.usage is not None
    assert chunks[-1].usage.completion_tokens == at_once.usage.completion_tokens
    assert sum(logprobs) == at_once.usage.completion_tokens
    again = client.chat.completions.create(**given)
    assert [c.message.content for c in again.choices] == texts


def test_a_stop_string_ends_the_answer_before_it(server: Running) -> None:
    client = server.client()
    given: Any = {"model": server.model, "messages": HELLO, "max_tokens": 50}
    whole = text_of(client.chat.completions.create(**given))
    stop = whole[10:13]
    expected = whole[: whole.index(stop)]
    cut = client.chat.completions.create(**given, stop=[stop, "never"])
    assert (text_of(cut), cut.choices[0].finish_reason) == (expected, "stop")
    streamed = client.chat.completions.create(**given, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices) == expected


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "zip": {"type": "string", "pattern": "^[0-9]{3}$"}},
    "required": ["city", "zip"],
    "additionalProperties": False,
}


def test_a_schema_is_enforced_and_what_cannot_be_is_refused(server: Running, trained: Any) -> None:
    client = server.client()

    def form(schema: Any) -> Any:
        return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}

    for model in (server.model, trained.fine_tuned_model):
        given: Any = {"model": model, "messages": HELLO, "response_format": form(SCHEMA), "max_tokens": 200}
        answer = client.chat.completions.create(**given)
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(text_of(answer)), SCHEMA)
    bad = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=server.model, messages=HELLO, response_format=form(bad))
    assert caught.value.param == "response_format.json_schema.schema/properties/a/uniqueItems"
    loose: Any = {"response_format": {"type": "json_object"}, "max_tokens": 400, "temperature": 1, "seed": 1}
    free = client.chat.completions.create(model=server.model, messages=HELLO, **loose)
    assert free.choices[0].finish_reason == "length" or isinstance(json.loads(text_of(free)), dict)


def test_completions(server: Running) -> None:
    client = server.client()
    ids = server.service.bases[server.model].template.tokenizer("lot 7 of")["input_ids"]
    one = client.completions.create(model=server.model, prompt="lot 7 of", max_tokens=12, logprobs=2)
    same = client.completions.create(model=server.model, prompt=ids, max_tokens=12)
    assert one.choices[0].text == same.choices[0].text
    assert one.choices[0].logprobs is not None
    assert len(one.choices[0].logprobs.tokens or ()) == 12
    several = client.completions.create(
        model=server.model, prompt=["lot 7 of", "red"], max_tokens=12, n=2, temperature=1.0, seed=1, echo=True
    )
    assert [c.index for c in several.choices] == [0, 1, 2, 3]
    assert [c.text[:3] for c in several.choices] == ["lot", "lot", "red", "red"]
    streamed = list(client.completions.create(model=server.model, prompt="lot 7 of", max_tokens=12, stream=True))
    assert "".join(c.choices[0].text for c in streamed) == one.choices[0].text
    two: Any = {"model": server.model, "prompt": ["lot 7 of", "red"], "max_tokens": 5}
    *pieces, last = client.completions.create(**two, stream=True, stream_options={"include_usage": True})
    assert not any(piece.usage for piece in pieces)
    assert {c.index for piece in pieces for c in piece.choices} == {0, 1}
    whole = client.completions.create(**two)
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens > 10


def test_responses(server: Running) -> None:
    client = server.client()
    chat = text_of(client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=30))
    response = client.responses.create(model=server.model, input=HELLO[0]["content"], max_output_tokens=30)
    assert response.output_text == chat
    assert (response.status, response.store) == ("incomplete", False)
    turns: Any = [{"role": "user", "content": [{"type": "input_text", "text": HELLO[0]["content"]}]}]
    events = list(client.responses.create(model=server.model, input=turns, max_output_tokens=30, stream=True))
    assert [e.type for e in (events[0], events[-1])] == ["response.created", "response.incomplete"]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == chat
    form: Any = {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA, "strict": True}}
    structured = client.responses.create(model=server.model, input="a city", text=form, max_output_tokens=300)
    jsonschema.validate(json.loads(structured.output_text), SCHEMA)
    with client.responses.stream(model=server.model, input="a city", text=form, max_output_tokens=300) as stream:
        assert len([event for event in stream if event.type == "response.output_text.delta"]) > 3
        assert stream.get_final_response().output_text == structured.output_text
    with pytest.raises(openai.BadRequestError, match="whole conversation"):
        client.responses.create(model=server.model, input="x", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError, match="not stored"):
        client.responses.retrieve("resp_1")


def test_stored_chats_become_rows(server: Running) -> None:
    client = server.client()
    kept = client.chat.completions.create(
        model=server.model, messages=HELLO, response_format=YES, store=True, metadata={"kind": "keep"}
    )
    for chunk in client.chat.completions.create(
        model=server.model,
        messages=HELLO,
        response_format=YES,
        store=True,
        metadata={"kind": "streamed"},
        stream=True,
    ):
        streamed = chunk.id
    client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=9)
    stored = [c.id for c in client.chat.completions.list()]
    assert [c for c in stored if c in (kept.id, streamed)] == [kept.id, streamed]
    assert [c.id for c in client.chat.completions.list(metadata={"kind": "keep"})] == [kept.id]
    assert text_of(client.chat.completions.retrieve(streamed)) == text_of(kept)
    assert [m.content for m in client.chat.completions.messages.list(kept.id)] == [HELLO[0]["content"]]
    client.chat.completions.update(kept.id, metadata={"kind": "other"})
    assert not list(client.chat.completions.list(metadata={"kind": "keep"}))
    with server.http() as http:
        made = http.post("/tunewright/files/from_completions", json={"metadata": {"kind": "other"}}).json()
    (row,) = [json.loads(line) for line in client.files.content(made["id"]).text.splitlines()]
    assert row["messages"] == [*HELLO, {"role": "assistant", "content": text_of(kept)}]
    assert client.chat.completions.delete(kept.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(kept.id)


def test_a_stop_string_in_the_middle_of_a_token_loses_no_text() -> None:
    """Of a token that has something before the stop string, that is a part of the answer, streamed too."""
    words = ["foo", " x", ");", " more"]

    class Spelled:
        all_special_ids: tuple[int, ...] = ()

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(words[i] for i in ids)

    text = AnswerText(Template(Spelled()), [";"])
    pieces = [text.add(n) for n in range(3)]
    assert (pieces, text.stopped, text.text) == (["foo", " x", ")"], True, "foo x)")


def test_what_a_stream_and_an_answer_leave_out_is_the_same(server: Running) -> None:
    """For every string of two characters that occurs in an answer."""
    client = server.client()
    given: Any = {"model": server.model, "messages": HELLO, "max_tokens": 24}
    whole = text_of(client.chat.completions.create(**given))
    for at in range(2, len(whole) - 2, 3):
        stop = whole[at : at + 2]
        once = text_of(client.chat.completions.create(**given, stop=stop))
        streamed = client.chat.completions.create(**given, stop=stop, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in streamed) == once == whole[: whole.index(stop)]


def batch_lines(server: Running, count: int) -> bytes:
    url = "/v1/chat/completions"
    contents = ([{"role": "user", "content": f"lot {n}"}] for n in range(count))
    bodies = ({"model": server.model, "messages": messages, "max_tokens": 5} for messages in contents)
    lines = [{"custom_id": f"r{n}", "method": "POST", "url": url, "body": body} for n, body in enumerate(bodies)]
    lines[1]["body"] = {"model": "nothing", "messages": HELLO}
    return "\n".join(map(json.dumps, lines)).encode()


def test_a_batch(server: Running) -> None:
    client = server.client()
    file = client.files.create(file=("in.jsonl", batch_lines(server, 12)), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    for _ in range(300):
        batch = client.batches.retrieve(batch.id)
        if batch.status == "completed":
            break
        time.sleep(0.1)
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (12, 11, 1)
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    out = {x["custom_id"]: x for x in map(json.loads, client.files.content(batch.output_file_id).text.splitlines())}
    assert len(out) == 11
    messages: Any = [{"role": "user", "content": "lot 5"}]
    alone = client.chat.completions.create(model=server.model, messages=messages, max_tokens=5)
    assert out["r5"]["response"]["body"]["choices"][0]["message"]["content"] == text_of(alone)
    (error,) = map(json.loads, client.files.content(batch.error_file_id).text.splitlines())
    assert (error["custom_id"], error["response"]["status_code"]) == ("r1", 404)
    wrong = client.files.create(file=("in.jsonl", b'{"custom_id": "a"}\nnonsense\n'), purpose="batch")
    failed = client.batches.create(input_file_id=wrong.id, endpoint="/v1/chat/completions", completion_window="24h")
    for _ in range(100):
        failed = client.batches.retrieve(failed.id)
        if failed.status == "failed":
            break
        time.sleep(0.1)
    assert failed.errors is not None
    assert [e.line for e in failed.errors.data or ()] == [1, 2]


def test_a_batch_is_cancelled_and_a_line_that_fails_fails_alone(server: Running) -> None:
    client, url = server.client(), "/v1/chat/completions"

    def made(bodies: list[Any]) -> str:
        lines = [{"custom_id": f"r{n}", "method": "POST", "url": url, "body": body} for n, body in enumerate(bodies)]
        content = "\n".join(map(json.dumps, lines)).encode()
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        return batch.id

    good: dict[str, Any] = {"model": server.model, "messages": HELLO, "max_tokens": 300}
    odd = {**good, "messages": [{"role": "user", "content": "\ud800"}]}
    schema: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "string", "description": 5}}}
    long, waiting = made([good] * 60), made([good])
    assert client.batches.cancel(waiting).status == "cancelling"
    assert client.batches.cancel(long).status == "cancelling"
    counts = finished_batch(client, long).request_counts
    assert counts is not None
    assert counts.completed < 60
    second = finished_batch(client, waiting)
    assert (second.status, second.output_file_id) == ("cancelled", None)
    third = finished_batch(client, made([{**good, "max_tokens": 2}, odd, {**good, "response_format": schema}]))
    assert third.status == "completed"
    assert (third.request_counts.completed, third.request_counts.failed) == (1, 2)


def test_a_file_with_mistakes_fails_the_job_with_their_places(server: Running) -> None:
    client = server.client()
    rows = b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n' * 40
    file = client.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=server.model, training_file=file.id)
    done = finished(client, job.id)
    assert done.status == "failed"
    assert (done.error.code, done.error.param) == ("DATA_JSON_INVALID", "training_file")
    assert ":2" in done.error.message
    assert done.fine_tuned_model is None


def test_a_job_is_paused_resumed_and_cancelled(fresh: Settings, tmp_path: Path) -> None:
    with running(fresh) as server:
        client = server.client()
        file = client.files.create(file=write_chat_rows(tmp_path / "rows.jsonl", 60), purpose="fine-tune")
        more = {**SHORT_JOB, "train.steps": 400, "train.eval_every": 200, "checkpoint.every": 400}
        given: Any = {"model": server.model, "training_file": file.id, "extra_body": {"tunewright": more}}
        job, second = client.fine_tuning.jobs.create(**given), client.fine_tuning.jobs.create(**given)

        def messages(job_id: str) -> list[str]:
            return [e.message for e in client.fine_tuning.jobs.list_events(job_id, limit=100)]

        def until(condition: Callable[[], bool]) -> None:
            for _ in range(600):
                if condition():
                    return
                time.sleep(0.1)
            raise AssertionError(messages(job.id))

        until(lambda: any(m.startswith("Step") for m in messages(job.id)))
        paused = client.fine_tuning.jobs.pause(job.id)
        assert paused.to_dict()["tunewright"]["paused"]  # type: ignore[index]
        until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "queued")
        until(lambda: client.fine_tuning.jobs.retrieve(second.id).status == "running")
        assert client.fine_tuning.jobs.cancel(second.id).status == "running"
        until(lambda: client.fine_tuning.jobs.retrieve(second.id).status == "cancelled")
        with pytest.raises(openai.BadRequestError, match="file"):
            client.files.delete(file.id)
        client.fine_tuning.jobs.resume(job.id)
        until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "running")
        client.fine_tuning.jobs.cancel(job.id)
        until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "cancelled")
        with pytest.raises(openai.BadRequestError, match="ended"):
            client.fine_tuning.jobs.resume(job.id)
        assert client.files.delete(file.id).deleted


def test_a_create_that_the_client_repeats_makes_one_job(server: Running, tmp_path: Path) -> None:
    client = server.client()
    file = client.files.create(file=write_chat_rows(tmp_path / "rows.jsonl", 60), purpose="fine-tune")
    body = {"model": server.model, "training_file": file.id, "suffix": "once"}
    with server.http() as http:
        first, again, other = (
            http.post("/v1/fine_tuning/jobs", json=body, headers={"x-stainless-retry-count": count}).json()
            for count in ("0", "1", "0")
        )
    assert first["id"] == again["id"] != other["id"]
    for job_id in (first["id"], other["id"]):
        client.fine_tuning.jobs.cancel(job_id)
    batch = client.files.create(file=("b.jsonl", b"{}"), purpose="batch")
    body = {"input_file_id": batch.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    with server.http() as http:
        first, again, other = (
            http.post("/v1/batches", json=body, headers={"x-stainless-retry-count": count}).json()
            for count in ("0", "1", "0")
        )
    assert first["id"] == again["id"] != other["id"]


@pytest.mark.slow
def test_an_unfinished_job_continues_in_a_home_that_has_moved(fresh: Settings, tmp_path: Path) -> None:
    with running(fresh) as server:
        client = server.client()
        file = client.files.create(file=write_chat_rows(tmp_path / "rows.jsonl", 60), purpose="fine-tune")
        settings = {**SHORT_JOB, "train.steps": 40}
        job = client.fine_tuning.jobs.create(
            model=server.model, training_file=file.id, extra_body={"tunewright": settings}
        )
        for _ in range(600):
            if any(e.message.startswith("Step 6/") for e in client.fine_tuning.jobs.list_events(job.id)):
                break
            time.sleep(0.1)
    moved = tmp_path / "moved"
    care.backed_up(fresh.home, moved)
    shutil.rmtree(fresh.home)
    with running(replace(fresh, home=moved)) as server:
        client = server.client()
        done = finished(client, job.id)
        assert done.status == "succeeded", done.error
        steps = [e.data["step"] for e in client.fine_tuning.jobs.list_events(job.id) if e.type == "metrics"]  # type: ignore[index]
        assert sorted(steps) == list(range(1, 41))
    assert not fresh.home.exists()


def test_tools(settings: Settings, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Calls that the model writes are read, and those that `tool_choice` demands match the function's schema."""
    base = tmp_path / "with-tools"
    shutil.copytree(model_folder("llama"), base)
    shutil.copy(BUILT_IN / "chatml-tools.jinja", base / "chat_template.jinja")
    with running(replace(settings, home=tmp_path / "home", models=(str(base),))) as server:
        client = server.client()
        other = {"type": "function", "function": {"name": "clock"}}
        given: Any = {"model": server.model, "messages": HELLO, "max_tokens": 300, "tools": [WEATHER, other]}
        named: Any = {"type": "function", "function": {"name": "weather"}}
        by_choice = {}
        for choice in ("required", named):
            answered = client.chat.completions.create(**given, tool_choice=choice).choices[0]
            (call,) = answered.message.tool_calls or ()
            assert (answered.finish_reason, answered.message.content) == ("tool_calls", None)
            assert isinstance(call, ChatCompletionMessageFunctionToolCall)
            by_choice[str(choice)] = call.function
        assert by_choice["required"].name in ("weather", "clock")
        assert by_choice[str(named)].name == "weather"
        arguments = by_choice[str(named)].arguments
        jsonschema.validate(json.loads(arguments), WEATHER["function"]["parameters"])
        chunks = list(client.chat.completions.create(**given, tool_choice=named, stream=True))
        (streamed,) = (c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ())
        assert streamed.function is not None
        assert streamed.function.arguments == arguments
        cut = client.chat.completions.create(**{**given, "max_tokens": 4}, tool_choice=named).choices[0]
        assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)
        free = client.chat.completions.create(**{**given, "max_tokens": 8}).choices[0]
        assert free.message.tool_calls is None


def test_tenants_do_not_see_each_other(server: Running, trained: Any) -> None:
    mine, theirs = server.client(), server.client("other")
    file = mine.files.create(file=("x.jsonl", b"secret"), purpose="fine-tune")
    kept = mine.chat.completions.create(model=server.model, messages=HELLO, max_tokens=3, store=True)
    assert [m.id for m in theirs.models.list()] == [server.model]
    assert not list(theirs.files.list())
    assert not list(theirs.fine_tuning.jobs.list())
    assert not list(theirs.chat.completions.list())
    for call in (
        lambda: theirs.files.content(file.id),
        lambda: theirs.files.delete(file.id),
        lambda: theirs.fine_tuning.jobs.retrieve(trained.id),
        lambda: theirs.fine_tuning.jobs.list_events(trained.id),
        lambda: theirs.fine_tuning.jobs.checkpoints.list(trained.id),
        lambda: theirs.fine_tuning.jobs.cancel(trained.id),
        lambda: theirs.models.retrieve(trained.fine_tuned_model),
        lambda: theirs.models.delete(trained.fine_tuned_model),
        lambda: theirs.chat.completions.retrieve(kept.id),
        lambda: theirs.chat.completions.create(model=trained.fine_tuned_model, messages=HELLO),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    with pytest.raises(openai.BadRequestError, match="no file"):
        theirs.fine_tuning.jobs.create(model=server.model, training_file=file.id)
    mine.chat.completions.delete(kept.id)


def test_without_a_token_nothing(server: Running) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="tw-wrong", max_retries=0).models.list()
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 10**5}, "messages"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"stop": [""]}, "stop.0"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}, "tools": [WEATHER]}, "tool_choice"),
        ({"tools": [WEATHER]}, "tools"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"colour": "red"}, "colour"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"response_format": BAD_SCHEMA}, "response_format"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_what_cannot_be_met_is_refused_by_name(server: Running, change: dict[str, Any], param: str) -> None:
    body = {"model": server.model, "messages": HELLO, "max_tokens": 3, **change}
    with server.http() as http:
        response = http.post("/v1/chat/completions", content=json.dumps(body), headers=JSON)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["x-request-id"].startswith("req_")


def test_a_job_learns_from_preferences(server: Running, tmp_path: Path) -> None:
    """OpenAI's DPO: its rows, its hyperparameters."""
    client, file = server.client(), tmp_path / "pairs.jsonl"

    def answered(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"lot {i * 37 % 1009}"}]},
            "preferred_output": answered(f"it is {i}"),
            "non_preferred_output": answered(f"{i}"),
        }
        for i in range(60)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    uploaded = client.files.create(file=file, purpose="fine-tune")
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    job = client.fine_tuning.jobs.create(
        model=server.model, training_file=uploaded.id, method=method, extra_body={"tunewright": SHORT_JOB}
    )
    done = finished(client, job.id)
    assert done.status == "succeeded", done.error
    assert done.method is not None
    assert done.method.type == "dpo"
    assert done.method.dpo is not None
    assert done.method.dpo.hyperparameters is not None
    assert (done.method.dpo.hyperparameters.beta, done.method.dpo.hyperparameters.batch_size) == (0.2, 8)
    plan = json.loads((server.service.settings.home / "runs" / job.id / "plan.json").read_text())
    assert (plan["method"], plan["options"]) == ("dpo", {"beta": 0.2})


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"method": {"type": "reinforcement"}}, "method.type"),
        ({"method": {"type": "dpo"}, "hyperparameters": {"n_epochs": 2}}, "hyperparameters"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}}, "method.dpo.hyperparameters.beta"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"suffix": "a:b"}, "suffix"),
        ({"model": "gpt-4"}, "model"),
        ({"training_file": "file-1"}, "training_file"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"tunewright": {"data.train": "/etc/passwd"}}, "tunewright.data.train"),
        ({"tunewright": {"prove.remote.url": "http://x"}}, "tunewright.prove.remote.url"),
        ({"tunewright": {"train.lr": "fast"}}, "tunewright"),
        ({"tunewright": {"train.method": "classify"}}, "tunewright.train.method"),
        ({"tunewright": {"train.method": "grpo"}}, "tunewright.train.method"),
        ({"method": {"type": "dpo"}, "tunewright": {"train.method": "sft"}}, "tunewright.train.method"),
        ({"tunewright": {"forget": {"regression_rows": ["/etc/passwd"]}}}, "tunewright.forget"),
        ({"tunewright": {"forget.regression_rows ": ["/etc/passwd"]}}, "tunewright.forget.regression_rows "),
        ({"tunewright": {'forget.regression_rows=["/x"] #': 1}}, 'tunewright.forget.regression_rows=["/x"] #'),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"magic": True}, "magic"),
    ],
)
def test_jobs_that_cannot_be_are_refused_by_name(
    server: Running, tmp_path: Path, change: dict[str, Any], param: str
) -> None:
    file = server.client().files.create(file=write_chat_rows(tmp_path / "rows.jsonl", 60), purpose="fine-tune")
    body = {"model": server.model, "training_file": file.id, **change}
    with server.http() as http:
        response = http.post("/v1/fine_tuning/jobs", json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_other_hosts_origins_and_paths_are_refused(server: Running) -> None:
    with server.http() as http:
        assert http.get("/v1/models", headers={"host": "evil.example"}).status_code == 421
        assert http.get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 403
        assert http.get("/v1/models", headers={"origin": server.url}).status_code == 200
        assert http.get("/v1/evals").status_code == 501
        assert http.get("/v1/nothing").status_code == 404
        assert http.put("/v1/models").status_code == 405
        assert http.post("/v1/chat/completions", content=b"{", headers=JSON).json()["error"]["code"] == "invalid_json"
        metrics = http.get("/metrics").text
    assert 'tunewright_tokens_total{model="' in metrics
