"""A model that grades: what it is asked, how its replies are read; nothing is asked twice. The server is real."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from endpoints import endpoint

from tunewright.core.errors import ConfigError, TrainError
from tunewright.data.endpoints import openai_endpoint
from tunewright.data.graders import graders
from tunewright.data.graders.grade import Output
from tunewright.data.graders.graders import Graded
from tunewright.data.graders.score_model import ScoreModel

INPUT: list[Any] = [
    {"role": "developer", "content": "You grade answers to {{ item.question }}."},
    {"role": "user", "content": [{"type": "input_text", "text": "Answer: {{ sample.output_text }}"}]},
]
ITEM = {"question": "why"}


def spec(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "score_model", "name": "n", "model": "m", "url": url, "input": INPUT, **more}


def graded(url: str, texts: list[str], store: Path | None = None, **more: Any) -> list[Graded]:
    grader = graders.of(spec(url, **more), "reward.grader")
    grader = graders.stored_in(grader, store) if store else grader
    return graders.grade_all(grader, [(ITEM, Output(text)) for text in texts])


def answer_of(question: str) -> str:
    return question.partition("Answer: ")[2].partition("\n")[0]


def test_it_is_asked_as_openais_grader_is() -> None:
    sampling = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "reasoning_effort": "low", "max_completions_tokens": 9}
    with endpoint(lambda asked: "7.5") as (url, seen):
        (one,) = graded(url, ["because"], range=[5, 10], sampling_params=sampling)
    assert one == Graded(0.5)
    (body,) = seen
    assert body["messages"] == [
        {"role": "system", "content": "You grade answers to why."},
        {
            "role": "user",
            "content": "Answer: because\n\nReply with a number from 5 to 10, and nothing else.",
        },
    ]
    asked = {"model": "m", "max_tokens": 9, **{k: v for k, v in sampling.items() if not k.startswith("max")}}
    assert {key: body[key] for key in asked} == asked
    with endpoint(lambda asked: "1") as (url, seen):
        assert graded(url, ["because"]) == [Graded(1.0)]
    assert (seen[0]["temperature"], seen[0]["max_tokens"]) == (0, 512)


@pytest.mark.parametrize(
    ("reply", "reward"),
    [
        ("0.25", 0.25),
        (" 1\n", 1.0),
        ("+.5", 0.5),
        ('{"result": 0.5, "steps": []}', 0.5),
        ('{"result": "0.5"}', 0.5),
        ("<think>it is 0</think>1", 1.0),
        ("1.5", None),
        ("-1", None),
        ("0.5/1", None),
        ("Score: 1", None),
        ("**1**", None),
        ("1e-1", None),
        ("nan", None),
        ("true", None),
        ('{"result": true}', None),
        ('{"score": 1}', None),
        ('{"result": {}}', None),
        ("[1]", None),
        ("0 or 1", None),
        ("\u0661", None),
        ("", None),
    ],
)
def test_a_reply_is_a_number_and_nothing_else(reply: str, reward: float | None) -> None:
    with endpoint(lambda asked: reply) as (url, _):
        (one,) = graded(url, ["because"])
    assert one.reward == reward
    assert reward is not None or "which is not a number from 0 to 1" in one.problem


def test_what_the_endpoint_replied_is_in_the_error() -> None:
    with endpoint(lambda asked: "It is a fine answer.") as (url, _):
        failed = graded(url, ["a", "b", "c"])
    with pytest.raises(TrainError, match=r"REWARD_FAILED.*3 of 3 answers.*replied 'It is a fine answer\.'"):
        graders.require_scored(failed, "reward.grader")
    cut = json.dumps({"choices": [{"message": {"content": "1"}, "finish_reason": "length"}]}).encode()
    with endpoint(lambda asked: cut) as (url, _):
        assert "cut off after 512 tokens" in graded(url, ["a"])[0].problem


def test_no_question_is_asked_twice(tmp_path: Path) -> None:
    store, texts = tmp_path / "rollouts" / "grades.jsonl", ["a", "b", "a", "c"]
    lot = iter(["0.1", "0.2", "0.3", "0.4"])
    with endpoint(lambda asked: next(lot)) as (url, seen):
        first = graded(url, texts, store)
        assert len(seen) == 3, "equal answers are one question"
        assert first[0] == first[2]
        assert graded(url, texts, store) == first
        assert len(seen) == 3
        assert len(store.read_text().splitlines()) == 3
        other = graded(url, ["a"], store, model="other")
    assert len(seen) == 4, "another model is asked"
    assert other == [Graded(0.4)]


def test_replies_that_cannot_be_read_are_not_kept(tmp_path: Path) -> None:
    """A server that was set up wrongly must not decide the rest of the run."""
    store = tmp_path / "grades.jsonl"
    with endpoint(lambda asked: "hello") as (url, _):
        port = int(url.rpartition(":")[2].partition("/")[0])
        assert graded(url, ["a"], store)[0].reward is None
    with endpoint(lambda asked: "1", port=port) as (url, _):
        assert graded(url, ["a"], store) == [Graded(1.0)]


def test_an_endpoint_that_is_away_fails_and_what_it_scored_is_kept(tmp_path: Path) -> None:
    store, texts = tmp_path / "grades.jsonl", [f"answer {n}" for n in range(10)]
    how = {"concurrency": 1}
    with endpoint(lambda asked: f"0.{zlib.crc32(asked.encode()) % 10}") as (url, _):
        straight = graded(url, texts)
        port = int(url.rpartition(":")[2].partition("/")[0])
    with (
        endpoint(lambda asked: f"0.{zlib.crc32(asked.encode()) % 10}", fail_after=4, port=port) as (url, _),
        pytest.raises(TrainError, match=r"REWARD_FAILED.*status 401.*the same command continues"),
    ):
        graded(url, texts, store, **how)
    with endpoint(lambda asked: f"0.{zlib.crc32(asked.encode()) % 10}", port=port) as (url, seen):
        assert graded(url, texts, store, **how) == straight
    assert sorted(answer_of(body["messages"][-1]["content"]) for body in seen) == texts[4:]


def test_an_endpoint_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_endpoint, "ATTEMPTS", 1)
    with pytest.raises(TrainError, match=r"REWARD_FAILED.*Connect"):
        graded("http://127.0.0.1:9/v1", ["a"])
    with endpoint(lambda asked: 503) as (url, _), pytest.raises(TrainError, match=r"REWARD_FAILED.*status 503"):
        graded(url, ["a"])


def test_limits_of_requests_are_waited_for_and_refusals_are_unscored() -> None:
    sent: list[str | int] = [429, "1", 400]
    with endpoint(lambda asked: sent.pop(0)) as (url, _):
        first, second = graded(url, ["a", "b"], concurrency=1)
    assert first == Graded(1.0)
    assert second.reward is None
    assert "status 400" in second.problem


def test_keys_are_read_from_the_environment_and_stored_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    with endpoint(lambda asked: "1") as (url, seen):
        graded(url, ["a"], tmp_path / "grades.jsonl", api_key_env="JUDGE_KEY")
    assert seen[0]["authorization"] == "Bearer sk-1"
    grader = graders.of(spec("http://host/v1", api_key_env="JUDGE_KEY"), "reward.grader")
    assert "sk-1" not in repr(grader) + (tmp_path / "grades.jsonl").read_text()


def test_its_repr_says_what_scores_depend_on() -> None:
    """It is part of the hash that a resumed run must match."""
    plain = repr(graders.of(spec("http://host/v1"), "reward.grader"))
    for more in (
        {"model": "x"},
        {"range": [0, 2]},
        {"sampling_params": {"seed": 1}},
        {"input": INPUT[:1]},
        {"sampling_params": {"max_completions_tokens": 4}},
    ):
        assert repr(graders.of({**spec("http://host/v1"), **more}, "reward.grader")) != plain
    assert repr(graders.of(spec("http://other/v1"), "reward.grader")) != plain
    assert repr(graders.of(spec("http://host/v1", concurrency=2), "reward.check")) == plain


def test_a_part_that_an_answer_lacks_earns_0_unasked() -> None:
    given = [{"role": "user", "content": "{{ sample.output_json.name }} of {{ item.kind }}"}]
    with endpoint(lambda asked: "1") as (url, seen):
        grader = graders.of(spec(url, input=given), "reward.grader")
        assert grader.fields == {"kind"}
        texts = ['{"name": "x"}', "{}", "no JSON"]
        rewards = [g.reward for g in graders.grade_all(grader, [({"kind": "y"}, Output(t)) for t in texts])]
    assert rewards == [1.0, 0.0, 0.0]
    assert len(seen) == 1


def test_one_of_several_graders() -> None:
    like = {"type": "string_check", "input": "{{ sample.output_text }}", "reference": "a", "operation": "like"}
    with endpoint(lambda asked: "4") as (url, seen):
        parts = {"judge": spec(url, range=[0, 10]), "like": like}
        both = {"type": "multi", "graders": parts, "calculate_output": "0.5 * judge + 0.5 * like"}
        grader = graders.of(both, "reward.grader")
        rewards = [g.reward for g in graders.grade_all(grader, [(ITEM, Output("a")), (ITEM, Output("b"))])]
    assert rewards == [pytest.approx(0.7), pytest.approx(0.2)]
    assert len(seen) == 2
    assert grader.fields == {"question"}


@pytest.mark.parametrize(
    "more",
    [
        {"url": ""},
        {"url": "host"},
        {"url": "http://me:secret@host/v1"},
        {"model": 3},
        {"input": []},
        {"input": "text"},
        {"input": [{"role": "tool", "content": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": [{"role": "user", "content": "{{ sample.text }}"}]},
        {"range": [1, 0]},
        {"range": [0, 1, 2]},
        {"range": ["0", "1"]},
        {"range": [False, True]},
        {"sampling_params": {"top_k": 3}},
        {"sampling_params": {"temperature": -1}},
        {"sampling_params": {"max_completions_tokens": 0}},
        {"sampling_params": []},
        {"concurrency": 0},
        {"pass_threshold": 0.5},
    ],
)
def test_what_is_not_supported_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"CONFIG_RANGE|CONFIG_UNKNOWN_KEY"):
        graders.of({**spec("http://host/v1"), **more}, "reward.grader")
    with pytest.raises(ConfigError, match="needs the key 'url'"):
        graders.of({k: v for k, v in spec("u").items() if k != "url"}, "reward.grader")


def test_one_answer_alone_is_asked_about_when_it_is_graded() -> None:
    with endpoint(lambda asked: "1") as (url, seen):
        grader = graders.of(spec(url), "reward.grader")
        assert isinstance(grader, ScoreModel)
        assert grader.grade(ITEM, Output("x")) == 1.0
    assert len(seen) == 1
