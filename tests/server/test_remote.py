"""`serve --engine URL`: jobs, names and templates of ours before a small server with vLLM's endpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from build import write_chat_rows
from server_running import SHORT_JOB, Running, finished, running
from small_vllm import SmallVllm, serving

from tunewright.core.errors import TunewrightError
from tunewright.core.run_folder import Run
from tunewright.runtime import chat as runtime
from tunewright.server.engine import vllm
from tunewright.server.engine.generation import Begun, Ended, Generation, NewToken
from tunewright.server.engine.grammar import GAP
from tunewright.server.engine.remote import RemoteEngine
from tunewright.server.engine.vllm import Refused, Remote, name_of
from tunewright.server.service import Settings, open_service

HELLO: list[Any] = [{"role": "user", "content": "item 3: red by the dog"}]


@pytest.fixture(scope="module")
def small(model_folder: Callable[[str], Path]) -> SmallVllm:
    return SmallVllm(model_folder("llama"), context=640)  # shorter than the long prompt of a check


@pytest.fixture(scope="module")
def remote(small: SmallVllm) -> Iterator[Remote]:
    with serving(small) as url:
        yield Remote(url, dtype="float32")


@pytest.fixture(scope="module")
def front(settings: Settings, remote: Remote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(replace(settings, home=tmp_path_factory.mktemp("front") / "home", engine=remote)) as started:
        yield started


def job(front: Running, folder: Path, seed: int = 0, **more: Any) -> Any:
    client = front.client()
    uploaded = client.files.create(file=write_chat_rows(folder / "rows.jsonl", 60), purpose="fine-tune")
    settings = {**SHORT_JOB, **more}
    return client.fine_tuning.jobs.create(
        model=front.model, training_file=uploaded.id, seed=seed, extra_body={"tunewright": settings}
    )


@pytest.fixture(scope="module")
def tuned(front: Running, tmp_path_factory: pytest.TempPathFactory) -> Any:
    done = finished(front.client(), job(front, tmp_path_factory.mktemp("rows")).id)
    assert done.status == "succeeded", done.error
    return done


def text_of(completion: Any) -> str:
    return str(completion.choices[0].message.content)


def run_of(front: Running, done: Any) -> Run:
    return Run(front.service.workshop.folder / done.id)


def test_the_adapter_is_registered_verified_and_answers_as_chat(front: Running, small: SmallVllm, tuned: Any) -> None:
    client, run = front.client(), run_of(front, tuned)
    sha256 = json.loads(run.training.read_text())["weights_sha256"]
    assert list(small.adapters) == [name_of(sha256, 1.0)]  # and no preliminary name
    (check,) = json.loads(run.verify.read_text())
    assert (check["consumer"], check["cause"]) == ("vLLM", None)
    assert check["largest_difference"] < 1e-3 < check["base_difference"]
    loaded = runtime.load_run(run)
    for text in ("item 1: red by the tree", "item 2: stone by the cat"):
        asked: Any = {"messages": [{"role": "user", "content": text}], "max_tokens": 30}
        answer = client.chat.completions.create(model=tuned.fine_tuned_model, **asked)
        assert text_of(answer) == runtime.answer(loaded, text, max_new_tokens=30)
        assert text_of(client.chat.completions.create(model=front.model, **asked)) != text_of(answer)
    assert answer.system_fingerprint == f"fp_{sha256[:12]}"
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    events = [e.message for e in client.fine_tuning.jobs.list_events(tuned.id)]
    assert events[0] == "The job has successfully completed"


def test_it_answers_as_our_own_engine(front: Running, server: Running) -> None:
    """The same requests to the base, by both engines."""
    one, other = front.client().chat.completions, server.client().chat.completions
    for more in (
        {"stop": ["e"]},
        {"logit_bias": {"5": 30, "9": 31}},
        {"extra_body": {"repetition_penalty": 1.3}},
    ):
        asked: Any = {"messages": HELLO, "max_tokens": 12, **more}
        theirs, ours = one.create(model=front.model, **asked), other.create(model=server.model, **asked)
        assert text_of(theirs) == text_of(ours), more
        assert theirs.choices[0].finish_reason == ours.choices[0].finish_reason
    asked = {"messages": HELLO, "max_tokens": 8, "logprobs": True, "top_logprobs": 3}
    pairs = zip(
        one.create(model=front.model, **asked).choices[0].logprobs.content,  # type: ignore[union-attr, arg-type]
        other.create(model=server.model, **asked).choices[0].logprobs.content,  # type: ignore[union-attr, arg-type]
        strict=True,
    )
    for a, b in pairs:
        assert (a.token, [t.token for t in a.top_logprobs]) == (b.token, [t.token for t in b.top_logprobs])
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    assert [t.logprob for t in a.top_logprobs] == pytest.approx([t.logprob for t in b.top_logprobs], abs=1e-4)


def test_no_default_of_theirs_decides(front: Running, small: SmallVllm) -> None:
    """What a request does not say is not left to the defaults of the other program; tenants share no prompts there."""
    front.service.tokens.add("second")
    for tenant in ("default", "second"):
        front.client(tenant).chat.completions.create(model=front.model, messages=HELLO, max_tokens=2)
    first, second = small.seen[-2:]
    assert (first["temperature"], first["top_k"], first["min_p"], first["top_p"]) == (0.0, 0, 0.0, 1.0)
    assert (first["repetition_penalty"], first["presence_penalty"], first["frequency_penalty"]) == (1.0, 0.0, 0.0)
    assert first["cache_salt"] != second["cache_salt"]
    assert first["prompt"] == second["prompt"]


def test_schemas_are_enforced_there_and_checked_here(front: Running, small: SmallVllm) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["colour", "n"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    given = {"model": front.model, "messages": HELLO, "max_tokens": 500}
    answer = front.client().chat.completions.create(**given, response_format=form)
    jsonschema.validate(json.loads(text_of(answer)), schema)
    sent = small.seen[-1]["structured_outputs"]["json"]
    assert {k: v for k, v in sent.items() if k != "x-guidance"} == schema
    assert sent["x-guidance"]["whitespace_pattern"] == GAP


def test_a_stream_and_a_client_that_goes(front: Running, small: SmallVllm) -> None:
    client = front.client()
    given: Any = {"model": front.model, "messages": HELLO, "max_tokens": 30}
    whole = text_of(client.chat.completions.create(**given))
    chunks = list(client.chat.completions.create(**given, stream=True))
    assert len(chunks) > 5
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
    small.slow, before = 0.05, small.cancelled
    try:
        with client.chat.completions.create(**{**given, "max_tokens": 300}, stream=True, logit_bias={"2": -100}) as s:
            next(iter(s))
        engine = front.service.bases[front.model].engine
        for _ in range(200):
            if small.cancelled > before and engine.stats().active == 0:
                break
            time.sleep(0.02)
    finally:
        small.slow = 0.0
    assert small.cancelled == before + 1
    assert engine.stats().active == 0


@pytest.mark.slow
def test_an_engine_that_was_started_again_gets_its_adapters_back(front: Running, small: SmallVllm, tuned: Any) -> None:
    client, given = front.client(), {"messages": HELLO, "max_tokens": 10}
    before = text_of(client.chat.completions.create(model=tuned.fine_tuned_model, **given))  # type: ignore[call-overload]
    names = list(small.adapters)
    small.adapters.clear()
    assert text_of(client.chat.completions.create(model=tuned.fine_tuned_model, **given)) == before  # type: ignore[call-overload]
    assert list(small.adapters) == names


def test_what_it_cannot_serve_is_refused(front: Running, tuned: Any) -> None:
    client = front.client()
    for name, why in (("@0.5", "cannot be scaled"), (":ckpt-step-3", "not checkpoints")):
        with pytest.raises(openai.BadRequestError, match=why):
            client.chat.completions.create(model=f"{tuned.fine_tuned_model}{name}", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model=front.model, messages=HELLO, max_tokens=5000)


@pytest.mark.slow
def test_an_adapter_that_answers_differently_gets_no_name(front: Running, small: SmallVllm, tmp_path: Path) -> None:
    names, small.mistaken = list(small.adapters), 0.5
    try:
        done = finished(front.client(), job(front, tmp_path, **{"adapter.rank": 2}).id)
    finally:
        small.mistaken = 1.0
    assert (done.status, done.error.code) == ("failed", "CONSUMER_DIFFERS")
    assert "multiplied by 0.5" in done.error.message
    assert done.fine_tuned_model is None
    assert list(small.adapters) == names


@pytest.mark.slow
def test_a_rank_that_it_does_not_take_ends_the_job(front: Running, small: SmallVllm, tmp_path: Path) -> None:
    """It is not repeated, as if vLLM were away: other jobs wait behind it."""
    small.rank = 3
    try:
        done = finished(front.client(), job(front, tmp_path, seed=5).id)
    finally:
        small.rank = 64
    assert (done.status, done.error.code) == ("failed", "REMOTE_FAILED")
    assert "max-lora-rank" in done.error.message


@pytest.mark.slow
def test_rows_are_not_needed_to_publish_again(front: Running, small: SmallVllm, tuned: Any) -> None:
    client, given = front.client(), {"messages": HELLO, "max_tokens": 10}
    client.files.delete(tuned.training_file)
    small.adapters.clear()
    assert client.chat.completions.create(model=tuned.fine_tuned_model, **given).choices  # type: ignore[call-overload]
    sha256 = json.loads(run_of(front, tuned).training.read_text())["weights_sha256"]
    assert list(small.adapters) == [name_of(sha256, 1.0)]


@pytest.mark.parametrize("adapter", [{"adapter.kind": "dora"}, {"adapter.rank_pattern": {"q_proj": 2}}])
def test_an_adapter_that_it_cannot_load_is_refused_before_it_is_trained(
    front: Running, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError, match="vLLM") as refused:
        job(front, tmp_path, **adapter)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tunewright")


def test_a_name_is_of_weights_and_scale() -> None:
    assert len({name_of("a", 1.0), name_of("a", 0.5), name_of("b", 1.0)}) == 3


def test_what_its_stream_says() -> None:
    asked = Generation(prompt=(1, 2), max_tokens=4, stop=frozenset({9}))

    def read(**choice: Any) -> list[Any]:
        return list(vllm.events(f"data: {json.dumps({'choices': [choice]})}", asked))

    assert read(token_ids=[5, 6]) == [NewToken(5), NewToken(6)]
    assert read(token_ids=[5, 9], finish_reason="stop") == [NewToken(5), Ended("stop")]
    assert read(token_ids=[5], finish_reason="length") == [NewToken(5), Ended("length")]
    for reason in ("abort", "error", "repetition"):
        with pytest.raises(Refused, match=reason):
            read(token_ids=[5], finish_reason=reason)
    with pytest.raises(Refused, match="token ids"):
        read(text="hello")
    with pytest.raises(Refused, match="too hot"):
        list(vllm.events('data: {"error": {"message": "too hot"}}', asked))
    usage = {"prompt_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    assert list(vllm.events(f"data: {json.dumps({'choices': [], 'usage': usage})}", asked)) == [Begun(1)]
    assert list(vllm.events("data: [DONE]", asked)) == list(vllm.events("", asked)) == []


def test_another_base_is_refused_before_it_is_served(
    settings: Settings, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    other = SmallVllm(model_folder("llama"))
    with serving(other) as url:
        elsewhere = Remote(f"{url}/elsewhere", dtype="float32")
        with pytest.raises(TunewrightError, match="--engine is for vLLM"):
            open_service(replace(settings, home=tmp_path / "a", engine=elsewhere))
        other.base.model.layers[0].mlp.down_proj.weight.data *= 1.05
        with pytest.raises(TunewrightError, match="does not give the answers of"):
            open_service(replace(settings, home=tmp_path / "b", engine=Remote(url, dtype="float32")))


@pytest.mark.slow
def test_a_job_waits_for_an_engine_that_is_away(
    settings: Settings, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    small = SmallVllm(model_folder("llama"))
    with serving(small) as url:
        front = running(replace(settings, home=tmp_path / "home", engine=Remote(url, dtype="float32")))
        started = front.__enter__()
    try:
        client, port = started.client(), int(url.rpartition(":")[2])
        with pytest.raises(openai.InternalServerError, match="does not answer") as failed:
            client.chat.completions.create(model=started.model, messages=HELLO)
        assert failed.value.status_code == 503
        made = job(started, tmp_path)
        for _ in range(1500):
            if any("cannot be reached" in e.message for e in client.fine_tuning.jobs.list_events(made.id)):
                break
            time.sleep(0.1)
        else:
            raise AssertionError("no event")
        assert client.fine_tuning.jobs.retrieve(made.id).status == "running"
        with serving(small, port):
            done = finished(client, made.id)
            assert done.status == "succeeded"
            answer = client.chat.completions.create(model=done.fine_tuned_model, messages=HELLO, max_tokens=5)
            assert answer.choices
    finally:
        front.__exit__(None, None, None)
    assert isinstance(started.service.bases[started.model].engine, RemoteEngine)
