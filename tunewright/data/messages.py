"""Messages, prompts and examples: the form that every row format is read into.

A message is what OpenAI's chat API calls one, tool calls and reasoning included. A Chat is a conversation to train on;
a Prompt is the beginning of one, to be answered. The chat template of the model decides how either becomes text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

# What JSON can express.
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
# A function that the model may call, as in OpenAI's API: {"type": "function", "function": {"name": ...}}.
Tool = dict[str, Any]
THOUGHT_END = "</think>"  # of thoughts that are written at the beginning of a content


def properties(schema: Json) -> dict[str, Json]:
    """The schemas of the properties that a JSON schema has, by name; of a tool's parameters, for example."""
    given = schema.get("properties") if isinstance(schema, dict) else None
    return given if isinstance(given, dict) else {}


@dataclass(frozen=True)
class ToolCall:
    """A call of a function. ``arguments`` keep the order of the row, because templates print it."""

    name: str
    arguments: dict[str, Json]
    id: str = ""

    @property
    def text(self) -> str:
        return json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)

    def to_json(self, text_arguments: bool = False) -> dict[str, Json]:
        arguments: Json = json.dumps(self.arguments, ensure_ascii=False) if text_arguments else self.arguments
        identity: dict[str, Json] = {"id": self.id} if self.id else {}
        return {"type": "function", **identity, "function": {"name": self.name, "arguments": arguments}}


@dataclass(frozen=True)
class Message:
    """``reasoning``: the thoughts before an assistant's answer. ``name`` and ``call_id``: of the function whose result
    a tool message contains. ``trained``: whether an assistant message is a target."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    name: str = ""
    call_id: str = ""
    trained: bool = True

    @property
    def text(self) -> str:
        """The content without thoughts, followed by the calls, each as a line of JSON. This is what an answer is
        compared with."""
        content = self.content
        if self.role == "assistant" and THOUGHT_END in content:
            content = content.partition(THOUGHT_END)[2].strip()
        return "\n".join(part for part in (content, *(c.text for c in self.tool_calls)) if part)

    def to_json(self, text_arguments: bool = False) -> dict[str, Any]:
        """The message as chat templates take it, without what it does not have. ``text_arguments``: the arguments of
        calls as text, as OpenAI's API and a few templates take them."""
        calls = [c.to_json(text_arguments) for c in self.tool_calls]
        more = {
            "reasoning_content": self.reasoning,
            "tool_calls": calls,
            "name": self.name,
            "tool_call_id": self.call_id,
        }
        return {"role": self.role, "content": self.content, **{k: v for k, v in more.items() if v}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Message:
        """The inverse of `to_json`; ``trained`` is not stored."""
        calls = tuple(
            ToolCall(c["function"]["name"], c["function"]["arguments"], c.get("id", ""))
            for c in data.get("tool_calls", ())
        )
        return cls(
            role=data["role"],
            content=data["content"],
            tool_calls=calls,
            reasoning=data.get("reasoning_content", ""),
            name=data.get("name", ""),
            call_id=data.get("tool_call_id", ""),
        )


@dataclass(frozen=True)
class Prompt:
    """The messages before an answer, and the tools that the answer may call."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()


def question(text: str, system: str | None = None) -> Prompt:
    """A prompt of one user message, after a system message if there is one."""
    head = (Message("system", system),) if system else ()
    return Prompt((*head, Message("user", text)))


def map_texts(prompt: Prompt, change: Callable[[str], str]) -> Prompt:
    """The prompt with every text in it changed: contents, thoughts, calls, names and ids of results, and tools."""

    def in_json(value: Json) -> Json:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, dict):
            return in_object(value)
        return [in_json(v) for v in value] if isinstance(value, list) else value

    def in_object(value: dict[str, Json]) -> dict[str, Json]:
        return {change(k): in_json(v) for k, v in value.items()}

    def call(c: ToolCall) -> ToolCall:
        return ToolCall(change(c.name), in_object(c.arguments), change(c.id))

    def message(m: Message) -> Message:
        return Message(
            role=m.role,
            content=change(m.content),
            tool_calls=tuple(map(call, m.tool_calls)),
            reasoning=change(m.reasoning),
            name=change(m.name),
            call_id=change(m.call_id),
            trained=m.trained,
        )

    return Prompt(tuple(map(message, prompt.messages)), tuple(in_object(t) for t in prompt.tools))


@dataclass(frozen=True)
class Chat:
    """A valid conversation that ends with an assistant message to train on. ``where`` is the place of its row, as
    ``file:line``; ``rejected``: the other answer of a preference row, in which the last message is the chosen one;
    ``margin``: by how much the chosen one is better, if a row says so; ``desirable``: the rating of the last message;
    None if it has none. ``item``: the fields of a row without an answer, which graders read; its last message is then
    empty. ``negatives``: of a query and the document that answers it, as user and assistant: documents that do not;
    None if the row is a chat. ``tagged``: whether the answer is one tag for each word. ``same_question``: whether all
    rows ask the same, so that the rest of the prompt identifies each. ``author``: the model that wrote the answer, as
    the row says; empty if people wrote it, or nothing is known."""

    messages: tuple[Message, ...]
    where: str
    tools: tuple[Tool, ...] = ()
    rejected: Message | None = None
    desirable: bool | None = None
    item: dict[str, Json] | None = None
    margin: float | None = None
    negatives: tuple[str, ...] | None = None
    tagged: bool = False
    same_question: bool = False
    author: str = ""

    def before(self, k: int) -> Prompt:
        """Everything before message ``k``."""
        return Prompt(self.messages[:k], self.tools)

    @property
    def prompt(self) -> Prompt:
        """Everything before the final answer."""
        return self.before(len(self.messages) - 1)

    @property
    def target(self) -> str:
        """The final answer."""
        return self.messages[-1].text

    @property
    def question(self) -> str:
        """What identifies the row: the prompt without the (usually shared) system message and tools."""
        if self.same_question:
            return self.whole_prompt
        return "\n".join(m.text for m in self.messages[:-1] if m.role != "system")

    @property
    def whole_prompt(self) -> str:
        """All of the prompt as text. Rows with one question may have different answers if something else in their
        prompts differs: the system message, or the tools."""
        before = [m.text for m in self.messages[:-1]]
        return "\n".join([*before, *(json.dumps(tool, ensure_ascii=False) for tool in self.tools)])

    @property
    def text(self) -> str:
        """Everything in the row's messages, the system message and the thoughts included."""
        messages = (*self.messages, *([self.rejected] if self.rejected else []))
        parts = ((m.reasoning, m.content, *(c.text for c in m.tool_calls)) for m in messages)
        return "\n".join([*(part for group in parts for part in group if part), *(self.negatives or ())])


@dataclass(frozen=True)
class Text:
    """A document. Every token is trained on; there is no prompt and hence no answer. ``author``: as in `Chat`."""

    text: str
    where: str
    author: str = ""

    @property
    def messages(self) -> tuple[Message, ...]:
        return ()

    @property
    def prompt(self) -> Prompt:
        return Prompt()

    @property
    def target(self) -> str:
        return ""

    @property
    def question(self) -> str:
        return self.text

    @property
    def whole_prompt(self) -> str:
        return self.text


Example = Chat | Text


def to_json(example: Example) -> dict[str, Any]:
    """What supervised fine-tuning reads of a row, for `from_json`."""
    if isinstance(example, Text):
        return {"where": example.where, "text": example.text}
    messages = [{**m.to_json(), "trained": m.trained} for m in example.messages]
    return {"where": example.where, "messages": messages, "tools": list(example.tools)}


def from_json(data: dict[str, Any]) -> Example:
    if "text" in data:
        return Text(data["text"], data["where"])
    messages = (replace(Message.from_json(m), trained=m["trained"]) for m in data["messages"])
    return Chat(tuple(messages), data["where"], tuple(data["tools"]))


def is_reference(example: Example) -> bool:
    """Whether the answer is one to learn from and to compare with: it is not rated undesirable."""
    return not isinstance(example, Chat) or example.desirable is not False


def turns(messages: Sequence[Message]) -> list[int]:
    """The places of the assistant messages that are trained on."""
    return [k for k, m in enumerate(messages) if m.role == "assistant" and m.trained]
