"""Inference with a finished run."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from build import QUICK, Folder, byte_tokenizer, cli, read, tiny_lm
from transformers import AutoTokenizer

from tunewright import api
from tunewright.core import run_folder
from tunewright.core.config import load
from tunewright.data import dataset
from tunewright.data.messages import Chat, Message, ToolCall, question
from tunewright.runtime import chat
from tunewright.tokens import rendering
from tunewright.tokens.template import Template

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CITIES = ["Linz", "Basel", "Oslo", "Bern", "Graz", "Brno", "Lyon", "Turin", "Porto", "Gent"]


def test_chat_serves_what_was_trained(labelled: api.Result) -> None:
    """The prompt of `chat` is the prefix of the training sequence, and the tuned model answers with a label."""
    config = load(labelled.path / "config.yaml")
    template = chat.load_run(run_folder.Run(labelled.path)).template
    first = next(e for e in dataset.load(config).examples if not isinstance(e, rendering.Text))
    (sequence,) = rendering.for_training(template, first)
    asked = question(first.prompt.messages[-1].content, config.data.instruction)
    prompt = rendering.for_generation(template, asked)
    assert list(sequence.ids[: len(prompt)]) == prompt
    assert labelled.chat("lot 5 of fire and flame", max_new_tokens=6) == "warm"
    assert labelled.chat("lot 5 of ice and snow", max_new_tokens=6) == "cold"


def by_generate(model: chat.TunedModel, turns: list[Message], new: int) -> str:
    """The reply of transformers' own `generate` to the prompt of `chat`."""
    ids = torch.tensor([rendering.for_generation(model.template, chat.prompt_of(model, turns))])
    out = model.model.module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, use_cache=True
    )[0, ids.shape[1] :].tolist()
    stop = model.template.eos
    return rendering.read_answer(model.template, out[: out.index(stop)] if stop in out else out).text


def test_a_conversation_is_that_of_the_modules(labelled: api.Result) -> None:
    """Several turns, each after the model's own replies: by steps without modules, by modules, by `generate`."""
    model = chat.load_run(run_folder.Run(labelled.path))
    assert model.model.decoding == "vector"
    modules = replace(model, model=replace(model.model, decoding="modules"))
    turns: list[Message] = []
    for text in ("lot 5 of fire", "what of ice?", "and now?", "x" * 90):
        turns.append(Message("user", text))
        answer = chat.reply(model, turns, max_new_tokens=80)
        assert answer == chat.reply(modules, turns, max_new_tokens=80)
        assert answer.text == by_generate(model, turns, 80)
        turns.append(answer)


def test_a_conversation_longer_than_the_sliding_window() -> None:
    model = chat.TunedModel(tiny_lm("gemma3_text"), Template(byte_tokenizer()), None, (), packable=True, window=16)
    turns = [Message("user", "a text that is longer than the window of the model")]
    assert chat.reply(model, turns, max_new_tokens=20).text == by_generate(model, turns, 20)


@pytest.fixture(scope="module")
def with_tools(tmp_path_factory: pytest.TempPathFactory, model_folder: Folder) -> api.Result:
    """A finished run on rows that end with a tool call, or with an answer after one; with thoughts."""
    root = tmp_path_factory.mktemp("tools")
    rows = []
    for i in range(60):
        city = CITIES[i % 10]
        call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": f"{i * 37 % 101}: is it raining in {city}, {CITIES[(i * 7 + i // 10) % 10]}?"},
            {"role": "assistant", "content": None, "reasoning_content": "I must look.", "tool_calls": [call]},
        ]
        if i % 3 == 0:
            messages += [{"role": "tool", "content": "dry"}, {"role": "assistant", "content": f"{city} is dry."}]
        rows.append({"messages": messages, "tools": [WEATHER]})
    (root / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = {**QUICK, "prove__evidence": "plain", "prove__max_new_tokens": 40}
    return api.run(
        root / "rows.jsonl",
        model=str(model_folder("llama")),
        root=root / "runs",
        name="r",
        template="chatml-tools",
        train__max_length=1024,
        **settings,
    )


def test_chat_serves_the_tools_that_were_trained(with_tools: api.Result) -> None:
    """At every turn of a conversation, the prompt of `chat` is the prefix of the training sequence."""
    data = dataset.load(load(with_tools.path / "config.yaml"))
    model = chat.load_run(run_folder.Run(with_tools.path))
    assert model.tools == (WEATHER,)
    assert read(with_tools.path, "receipt")["tools"] == [WEATHER]
    row = next(e for e in data.examples if isinstance(e, Chat) and len(e.messages) == 4)
    for sequence, k in zip(rendering.for_training(model.template, row), (1, 3), strict=True):
        prompt = rendering.for_generation(model.template, chat.prompt_of(model, row.messages[:k]))
        assert list(sequence.ids[: len(prompt)]) == prompt
        assert sequence.weights[len(prompt)] == 1


def test_a_conversation_asks_for_the_results_of_calls(with_tools: api.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tunewright chat` shows a call and reads its result; both are in the next prompt, as in training."""
    replies = iter(
        [
            Message("assistant", "", (ToolCall("get_weather", {"city": "Linz"}, "call00001"),)),
            Message("assistant", "Linz is dry."),
        ]
    )
    entered, seen = iter(["Rain in Linz?", "dry", ""]), []

    def reply(model: chat.TunedModel, turns: list[Message], **_: Any) -> Message:
        seen.append(chat.prompt_of(model, tuple(turns)))
        return next(replies)

    monkeypatch.setattr(chat, "reply", reply)
    monkeypatch.setattr(builtins, "input", lambda prompt="": next(entered))
    done = cli("chat", str(with_tools.path), cwd=with_tools.path.parent)
    assert done.returncode == 0, done.stderr
    assert "tools: get_weather" in done.stderr
    assert done.stdout.splitlines() == ['{"name": "get_weather", "arguments": {"city": "Linz"}}', "Linz is dry."]
    assert [m.role for m in seen[1].messages] == ["user", "assistant", "tool"]
    assert seen[1].messages[2] == Message("tool", "dry", name="get_weather", call_id="call00001")
    assert seen[1].tools == (WEATHER,)


def test_a_reply_of_the_model_is_a_message(with_tools: api.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    model = chat.load_run(run_folder.Run(with_tools.path))
    assert isinstance(with_tools.chat("Rain in Linz?", max_new_tokens=4), str)
    called = '{"name": "get_weather", "arguments": {"city": "Linz"}}'
    written = f"<think>\nHm.\n</think>\n\nI look.\n<tool_call>\n{called}\n</tool_call>"
    ids = model.template.tokenizer(written, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(chat, "complete", lambda *_: [ids])
    message = chat.reply(model, [Message("user", "Rain in Linz?")])
    call = ToolCall("get_weather", {"city": "Linz"}, "call00001")
    assert message == Message("assistant", "I look.", (call,), reasoning="Hm.")


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_template_of_the_run_is_exported(with_tools: api.Result, kind: str, model_folder: Folder) -> None:
    """A server that loads the export renders the prompt that was trained."""
    model = chat.load_run(run_folder.Run(with_tools.path))
    tokenizer = AutoTokenizer.from_pretrained(with_tools.path / kind)
    asked = [{"role": "user", "content": "Rain in Linz?"}]
    served = tokenizer.apply_chat_template(asked, tools=[WEATHER], add_generation_prompt=True)["input_ids"]
    assert served == rendering.for_generation(model.template, chat.prompt_of(model, [Message("user", "Rain in Linz?")]))
    own = AutoTokenizer.from_pretrained(model_folder("llama"))
    assert own.chat_template != tokenizer.chat_template == model.template.tokenizer.chat_template
    card = (with_tools.path / kind / "README.md").read_text(encoding="utf-8")
    assert 'tokenizer = AutoTokenizer.from_pretrained(".")' in card
