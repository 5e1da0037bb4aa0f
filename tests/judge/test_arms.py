"""Arms: which ones a run has, their prompts, and how each kind answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from endpoints import endpoint as endpoint_of

from tunewright.core.config import ProveConfig
from tunewright.core.errors import RunError
from tunewright.core.records.score import ScoreLine
from tunewright.data.endpoints import openai_endpoint
from tunewright.data.endpoints.openai_endpoint import Endpoint
from tunewright.data.messages import Chat, Example, Message, Prompt, Text, ToolCall
from tunewright.data.metrics import METRICS
from tunewright.data.scores import Answer, LabelProbs, Likelihood, Score, Written
from tunewright.data.task import GENERATION, LABEL, TEXT, Task, detect_task
from tunewright.judge import chat_model, evaluate
from tunewright.judge.arms import families
from tunewright.judge.arms.arm import Arm, Progress, Writing, silent
from tunewright.judge.arms.families import ArmInputs
from tunewright.judge.arms.label_scored import LabelScored
from tunewright.judge.arms.remote import Remote
from tunewright.judge.chat_model import ChatModel
from tunewright.model.decoding.generate import Decoding


def chat(question: str, answer: str) -> Chat:
    return Chat((Message("user", question), Message("assistant", answer)), "x:1")


def test_shots_come_from_train_and_cover_the_labels() -> None:
    train = [
        Chat((Message("system", "s"), Message("user", f"q{i}"), Message("assistant", ("a", "b", "c")[i % 3])), "x")
        for i in range(30)
    ]
    task = detect_task(train)
    arms = families.arms(task, ArmInputs(tuple(train)), ProveConfig(few_shot=[3]), 8)
    assert list(arms) == ["zero_shot", "few_shot", "nearest", "constant", "classical", "tuned"]
    (few,) = arms["few_shot"]
    assert isinstance(few.responder, LabelScored)
    assert isinstance(few.responder.recipe.shots, tuple)
    assert {s.target for s in few.responder.recipe.shots} == {"a", "b", "c"}
    prompt = few.prompt(train[0]).messages
    assert [m.role for m in prompt] == ["system", *["user", "assistant"] * 3, "user"]
    assert prompt[-1].content == "q0"
    near = arms["nearest"][0].prompt(train[0]).messages
    assert len(near) == len(prompt)
    assert "q0" not in [m.content for m in near[:-1]]  # a row is not its own neighbour
    heads = [arm.prompt(train[0]).messages[0].content for arm in arms["zero_shot"]]
    assert heads[0] == "s"
    assert "a, b, c" in heads[1]
    assert heads[2].startswith("s\n")


class Scripted:
    """A language model that answers with its prompt's last word, and prefers the last label."""

    def generate(self, writings: Sequence[Writing], progress: Progress = silent) -> list[list[Answer]]:
        return [
            [Answer(p.messages[-1].content.split()[-1], Written(1, False), p.messages, 3) for p in writing.prompts]
            for writing in writings
        ]

    def choose_label(
        self, prompts: Sequence[Prompt], labels: Sequence[str], progress: Progress = silent
    ) -> list[Answer]:
        return [
            Answer(labels[-1], LabelProbs({x: float(x == labels[-1]) for x in labels}), p.messages, 3) for p in prompts
        ]

    def likelihoods(self, prompts: Sequence[Prompt], answers: Sequence[Message]) -> list[Likelihood]:
        return [Likelihood(len(a.text), 2.0) for a in answers]

    def likelihood(self, documents: Sequence[Example], progress: Progress = silent) -> list[Answer]:
        return [Answer("", Likelihood(len(d.text), 2.0)) for d in documents]


def test_the_model_is_asked_as_the_task_requires() -> None:
    rows, model = [chat("say yes", "yes"), chat("say no", "no")], Scripted()
    free = Task(GENERATION, METRICS["exact_match"], "")
    assert [s.score for s in evaluate.score_arm(families.tuned(free), rows, free, model)] == [1.0, 1.0]
    labels = Task(LABEL, METRICS["accuracy"], "", ("no", "yes"))
    assert [s.score for s in evaluate.score_arm(families.tuned(labels), rows, labels, model)] == [1.0, 0.0]
    written = Task(LABEL, METRICS["exact_match"], "", ("no", "yes"))  # with this metric, labels are generated
    assert [s.score for s in evaluate.score_arm(families.tuned(written), rows, written, model)] == [1.0, 1.0]
    text = Task(TEXT, METRICS["bits_per_byte"], "")
    (score,) = evaluate.score_arm(families.tuned(text), [Text("abcd", "d")], text, model)
    assert (score.target, score.score) == ("abcd", pytest.approx(2.0 / 0.6931471805599453 / 4))


def test_every_kind_of_score_survives_its_json_line() -> None:
    rows, model = [chat("say yes", "yes"), chat('say {"a":1}', '{"a":1}')], Scripted()
    free, labels = Task(GENERATION, METRICS["chrf"], ""), Task(LABEL, METRICS["accuracy"], "", ("no", "yes"))
    objects, documents = detect_task([rows[1]]), detect_task([Text("abcd", "d")])
    for task, row in ((free, rows[0]), (labels, rows[0]), (objects, rows[1]), (documents, Text("abcd", "d"))):
        (score,) = evaluate.score_arm(families.tuned(task), [row], task, model)
        text = json.dumps(replace(score, row=0, key="k").to_json())
        ScoreLine.model_validate_json(text)  # the schema of the run folder
        line = json.loads(text)
        assert Score.from_json(line) == replace(score, row=0, key="k")
        assert list(Score.from_json(line).to_json().items()) == list(line.items())


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[Any]]]:
    """A real chat completions server that reports overload on the first attempt of every request."""
    seen: list[Any] = []
    tried: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            question = body["messages"][-1]["content"]
            status = 200
            if question == "secret" and self.headers.get("authorization") != "Bearer key":
                status = 401
            elif question not in tried:
                tried.add(question)
                status = 503
            seen.append(body)
            reply = {
                "choices": [{"message": {"content": question.upper()}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3},
            }
            raw = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()
    server.server_close()


def asked(text: str) -> Prompt:
    return Prompt((Message("user", text),))


def test_a_remote_arm(endpoint: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_endpoint.time, "sleep", lambda _: None)
    url, seen = endpoint
    replies = openai_endpoint.ask(Endpoint(url, "m"), [asked(x) for x in ("one", "two", "three")], 7)
    assert [r.text for r in replies] == ["ONE", "TWO", "THREE"]
    assert {body["max_tokens"] for body in seen} == {7}
    assert all(body["temperature"] == 0 for body in seen)
    with pytest.raises(RunError, match=r"REMOTE_FAILED.*401"):
        openai_endpoint.ask(Endpoint(url, "m"), [asked("secret")], 7)
    with pytest.raises(RunError, match=r"REMOTE_FAILED"):
        openai_endpoint.ask(Endpoint("http://127.0.0.1:9/v1", "m"), [asked("x")], 7)
    assert "s3cret" not in repr(Endpoint(url, "m", "s3cret"))


def test_a_key_of_openai_goes_to_openai_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    monkeypatch.setenv("OTHER", "another")
    keys = [openai_endpoint.api_key(url, "") for url in ("https://api.openai.com/v1", "http://api.openai.com.evil.org")]
    assert keys == ["s3cret", ""]
    assert openai_endpoint.api_key("http://localhost:8000/v1", "OTHER") == "another"


def test_a_question_that_the_endpoint_refuses_is_a_wrong_answer() -> None:
    """As a content filter does it, with status 400. If it refuses all of them, that is an error."""
    rows, task = [chat(f"q{i}", "yes") for i in range(4)], Task(GENERATION, METRICS["exact_match"], "")

    def asked(url: str, count: int) -> list[Score]:
        return evaluate.score_arm(Arm("remote", "", Remote(Endpoint(url, "m"), 7)), rows * count, task, None)

    with endpoint_of(lambda question: 400 if question == "q2" else "yes") as (url, _):
        scores = asked(url, 1)
    assert [s.score for s in scores] == [1.0, 1.0, 0.0, 1.0]
    refused = scores[2].answer.output
    assert isinstance(refused, Written)
    assert "status 400" in refused.refused
    assert task.summary(scores)["refused_answers"] == 0.25
    assert Score.from_json(scores[2].to_json()).answer.output == refused
    with endpoint_of(lambda question: 400) as (url, seen), pytest.raises(RunError, match="REMOTE_FAILED"):
        asked(url, 10)
    assert len(seen) <= openai_endpoint.MOST_REFUSED + 8


def test_a_request_is_reworded_for_models_that_refuse_its_parameters() -> None:
    """As OpenAI's reasoning models say it."""
    body: dict[str, object] = {"model": "m", "temperature": 0, "max_tokens": 7}
    refusal = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    second = openai_endpoint._accepted(body, refusal)
    assert second == {"model": "m", "temperature": 0, "max_completion_tokens": 7}
    assert second is not None
    refusal = "Unsupported value: 'temperature' does not support 0 with this model."
    assert openai_endpoint._accepted(second, refusal) == {"model": "m", "max_completion_tokens": 7}
    assert openai_endpoint._accepted(body, "no such model") is None


def test_a_remote_arm_gets_tools_and_its_calls_are_text() -> None:
    """Arguments are sent as text; the reply's calls become what `Message.text` writes, even if they cannot be made."""
    call = ToolCall("f", {"x": 1}, "c1")
    assert Message("assistant", "", (call,)).to_json(text_arguments=True)["tool_calls"] == [
        {"type": "function", "id": "c1", "function": {"name": "f", "arguments": '{"x": 1}'}}
    ]
    for arguments, expected in (('{"x": 1}', {"x": 1}), ("{broken", {"": "{broken"}), ("[1]", {"": [1]}), ("", {})):
        reply = {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        assert openai_endpoint._text(reply) == ToolCall("f", expected).text
    with pytest.raises(ValueError, match=r"^$"):
        openai_endpoint._text({"tool_calls": [{"function": {}}]})


def test_a_label_is_read_from_a_remote_answer(endpoint: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_endpoint.time, "sleep", lambda _: None)
    arm = Arm("remote", "", Remote(Endpoint(endpoint[0], "m"), 7, ("spam", "offer")))
    answers = arm.answer([chat("an offer it is", "offer"), chat("who knows", "spam")], None)
    assert [a.text for a in answers] == ["offer", "WHO KNOWS"]
    assert all(isinstance(a.output, Written) and a.output.seconds is not None for a in answers)
    assert not arm.needs_model


def test_a_broken_generator_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    template = type("T", (), {"eos": 0})()
    monkeypatch.setattr(chat_model.rendering, "for_generation", lambda *_: [1, 2])
    monkeypatch.setattr(chat_model, "complete_all", lambda *_: [[]])  # no answers and no error
    rows, task = [chat("q", "a"), chat("r", "b")], Task(GENERATION, METRICS["exact_match"], "")
    with pytest.raises(ValueError, match="shorter"):
        evaluate.score_arm(families.tuned(task), rows, task, ChatModel(None, template, Decoding(1, ()), None))  # type: ignore[arg-type]


def test_conversations_of_several_turns_have_no_arms_with_examples() -> None:
    """Their prompts would show a whole conversation as one example; indexing none of them used to fail."""
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    train = tuple(Chat(turns, f"x:{i}") for i in range(12))
    arms = families.arms(detect_task(train), ArmInputs(train), ProveConfig(), 8)
    assert set(arms) == {"zero_shot", "tuned"} or set(arms) == {"zero_shot", "constant", "classical", "tuned"}


def test_every_prompt_is_also_asked_of_a_base_that_is_not_quantised() -> None:
    train = [chat(f"q{i}", ("a", "b")[i % 2]) for i in range(12)]
    task = detect_task(train)
    arms = families.arms(task, ArmInputs(tuple(train), full_precision=True), ProveConfig(), 8)
    (own, *others), asked = arms["zero_shot"], arms["full_precision"]
    assert all(arm.full_precision and arm.can_be_comparator for arm in asked)
    assert not any(
        arm.full_precision for family, variants in arms.items() if family != "full_precision" for arm in variants
    )
    prompts = [arm for f in ("zero_shot", "few_shot", "nearest") for arm in arms[f]]
    assert [arm.responder for arm in asked] == [arm.responder for arm in prompts]
    assert (
        len({arm.name for arm in asked})
        == len(asked)
        == len([own, *others]) + len(arms["few_shot"]) + len(arms["nearest"])
    )
    assert "full_precision" not in families.arms(task, ArmInputs(tuple(train)), ProveConfig(), 8)
