"""What becomes of an engine's tokens, whatever it writes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
from build import byte_tokenizer

from tunewright.data.messages import Tool
from tunewright.server.chat import answers
from tunewright.server.chat.answers import Answer
from tunewright.server.chat.prompt import Asked
from tunewright.server.engine.generation import Begun, Emit, Ended, Generation, NewToken
from tunewright.server.engine.requests import Ticket
from tunewright.server.models import Served
from tunewright.tokens.template import Template

TEMPLATE = Template(byte_tokenizer())
FUNCTIONS: tuple[Tool, ...] = ({"type": "function", "function": {"name": "f"}},)
CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


def asked(text: str, reason: Literal["stop", "length"], tools: tuple[Tool, ...] = ()) -> Asked:
    """A request that an engine answers with this text."""

    def submit(_: Generation, emit: Emit) -> Ticket:
        tokens = TEMPLATE.tokenizer(text, add_special_tokens=False)["input_ids"]
        for event in (Begun(0), *map(NewToken, tokens), Ended(reason)):
            emit(event)
        return Ticket(lambda: None)

    base = cast(Any, SimpleNamespace(engine=SimpleNamespace(submit=submit)))
    return Asked(Served("m", base, TEMPLATE), (Generation((1,), 999, frozenset()),), (), tools)


def answered(request: Asked) -> Answer:
    (answer,) = asyncio.run(answers.complete(request))
    return answer


@pytest.mark.parametrize(
    ("more", "reason", "expected"),
    [("", "stop", "tool_calls"), (CALL[:30], "length", "length"), (CALL, "length", "length")],
)
def test_an_answer_that_was_cut_says_so_even_if_it_has_a_call(
    more: str, reason: Literal["stop", "length"], expected: str
) -> None:
    """Others may have followed, and such an answer is no row to train on."""
    answer = answered(asked(CALL + more, reason, FUNCTIONS))
    assert {call.name for call in answer.message.tool_calls} == {"f"}
    assert answer.reason == expected


async def streamed(request: Asked) -> list[str]:
    return [piece.text async for piece in answers.pieces(request, 0) if piece.text]


@pytest.mark.parametrize(
    "text", ["<think>hm</think>yes", " <think>hm, no end", "<thin air>", "<", "yes <think>", "yes"]
)
def test_an_answer_with_thoughts_is_the_same_in_a_stream(text: str) -> None:
    """Of a model that was trained on thoughts, whose chat template has none."""
    answer, pieces = answered(asked(text, "stop")), asyncio.run(streamed(asked(text, "stop")))
    assert "".join(pieces) == answer.message.content
    assert (answer.message.reasoning, answer.message.content) == (("hm", "yes") if "</think>" in text else ("", text))
    assert len(pieces) > 1 or text[:2] in ("<", "<t", " <")
