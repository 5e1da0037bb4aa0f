"""Messages -> token ids, in one way for training, evaluation and serving.

The model's own chat template decides; nothing here knows a model's name. For a row with assistant turns k, let P_k be
the prompt as it is served before turn k (generation prompt included) and F_k the conversation up to and including turn
k.

- every P_k is a prefix of F_k, and every F_k of the whole row: one sequence trains all turns;
- every P_k is a prefix of F_k, but later turns rewrite history (by dropping thoughts, say): one sequence per turn;
- some P_k is not a prefix of F_k: training would differ from serving. Refused (after trying `enable_thinking=False`).

All comparisons are made on token ids, because equal strings may be split into different tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.core.errors import ModelError, data_error
from tunewright.data.messages import Chat, Example, Message, Prompt, Text, map_texts, turns
from tunewright.tokens.sequences import Rendered
from tunewright.tokens.template import Template, render, require_template


def for_training(template: Template, example: Example, row: int = 0, max_length: int | None = None) -> list[Rendered]:
    """The training sequences of one example.

    A Chat gives one sequence, or one for each assistant turn; the weight is 1 on what the model would have written, end
    of turn included, and 0 elsewhere. A Text gives pieces of at most ``max_length`` tokens, all weights 1 but the
    first. Raises DataError (TEMPLATE_NOT_PREFIX, TEMPLATE_LOSES_CONTENT, DATA_SPECIAL_TOKEN_TEXT) or ModelError.
    """
    if isinstance(example, Text):
        return _text(template, example, row, max_length)
    require_template(template)
    rendered = [_turn(template, example, k) for k in turns(example.messages)]
    whole = rendered[-1].ids
    if all(whole[: len(t.ids)] == t.ids for t in rendered):
        weights = [0.0] * len(whole)
        for t in rendered:
            weights[t.start : t.end] = [1.0] * (t.end - t.start)
        return [_rendered(template, whole, weights, row, example)]
    return [
        _rendered(template, t.ids, [float(t.start <= i < t.end) for i in range(len(t.ids))], row, example)
        for t in rendered
    ]


def for_generation(template: Template, prompt: Prompt) -> list[int]:
    """Token ids of the prompt before the next assistant turn: exactly the prefix that training sees."""
    require_template(template)
    return _ids(template, *_render_escaped(template, prompt, True))


def completion_ids(template: Template, prompt: Prompt, answer: str) -> list[int]:
    """Token ids that the model would have to write to give ``answer`` to ``prompt``, end of turn included."""
    chat = Chat((*prompt.messages, Message("assistant", answer)), "", prompt.tools)
    turn = _turn(template, chat, len(prompt.messages))
    return turn.ids[turn.start : turn.end]


def decode(template: Template, ids: Sequence[int]) -> str:
    """Generated ids as text, without special tokens."""
    return str(template.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _rendered(template: Template, ids: list[int], weights: list[float], row: int, example: Chat) -> Rendered:
    if template.bos is not None and ids[:2] == [template.bos] * 2:
        raise ModelError(
            "TOKENIZER_DOUBLE_BOS",
            "the sequence begins with two BOS tokens.",
            where=example.where,
            fix="remove the BOS from the chat template.",
        )
    assert any(weights[1:]), "an answer is never empty, so something is supervised"
    return Rendered(tuple(ids), tuple(weights), row)


@dataclass(frozen=True)
class Turn:
    """Token ids up to and including an assistant turn, whose supervised part is ``start``..``end``."""

    ids: list[int]
    start: int
    end: int


def _turn(template: Template, example: Chat, k: int) -> Turn:
    """Assistant turn k. Raises TEMPLATE_NOT_PREFIX and TEMPLATE_LOSES_CONTENT."""
    prompt, pieces = _render_escaped(template, example.before(k), True)
    full, full_pieces = _render_escaped(template, example.before(k + 1), False)
    if not full.startswith(prompt):
        at = next(
            (i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), min(len(prompt), len(full))
        )
        served, trained = prompt[max(0, at - 20) :][:50], full[max(0, at - 20) :][:50]
        raise data_error(
            "TEMPLATE_NOT_PREFIX",
            f"turn {k}: the template serves `...{served!r}` but a finished turn reads `...{trained!r}`.",
            where=example.where,
            fix="use a template whose generation prompt begins the answer (template=FILE).",
        )
    _check_content(example, k, full, full[len(prompt) :])
    prompt_ids, ids = _ids(template, prompt, pieces), _ids(template, full, full_pieces)
    if ids[: len(prompt_ids)] != prompt_ids:
        # A token of the full text spans the end of the prompt; serving splits there, so training must too.
        tail, tail_pieces = full[len(prompt) :], full_pieces[len(pieces) :]
        ids = prompt_ids + _ids(template, tail, tail_pieces)
    end = _end_of_turn(template, ids, len(prompt_ids))
    if end is None:
        ids, end = [*ids, template.eos], len(ids) + 1
    return Turn(ids, len(prompt_ids), end)


def _end_of_turn(template: Template, ids: list[int], start: int) -> int | None:
    """One past the last special token of the turn: where the model should have stopped. None: the template ends no
    turn."""
    special = set(template.tokenizer.all_special_ids)
    for t in range(len(ids) - 1, start - 1, -1):
        if ids[t] in special:
            return t + 1
    return None


def _check_content(example: Chat, k: int, full: str, tail: str) -> None:
    """Raises TEMPLATE_LOSES_CONTENT unless ``full`` contains the tools and every message before turn k, and ``tail``
    the turn itself."""
    mark = _mark(example.before(k + 1))
    before, answer = _Written(full.replace(mark, "")), _Written(tail.replace(mark, ""))
    turn = example.messages[k]
    lost = next((i for i, m in enumerate(example.messages[:k]) if m.role != "assistant" and not before.has(m)), None)
    tool = next((t["function"]["name"] for t in example.tools if t["function"]["name"] not in before.text), None)
    if tool is not None:
        what, fix = f"does not print the tool {tool!r}", "use a template with tools: template=chatml-tools."
    elif lost is not None:
        what = f"drops or changes messages[{lost}] ({example.messages[lost].role})"
        fix = "put that text into the first user message, or use another template."
    elif not answer.has(turn):
        what = f"changes messages[{k}] (assistant)"
        fix = "use another template." if not turn.tool_calls else "use a template with tools: template=chatml-tools."
    else:
        return
    raise data_error("TEMPLATE_LOSES_CONTENT", f"the chat template {what}.", where=example.where, fix=fix)


@dataclass(frozen=True)
class _Written:
    """A rendered text, which contains a message if it has its content, and the name and every argument of its calls."""

    text: str

    def has(self, message: Message) -> bool:
        content = message.content.split("</think>")[-1].strip()
        return content in self.text and all(
            call.name in self.text and all(map(self._has_value, _leaves(call.arguments))) for call in message.tool_calls
        )

    def _has_value(self, value: str) -> bool:
        """As it is, or as JSON, with or without escapes of other alphabets."""
        forms = (value, json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(value)[1:-1])
        return any(form in self.text for form in forms)


def _leaves(value: Any) -> Iterator[str]:
    """Every key and every text in a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value


def _mark(conversation: Prompt) -> str:
    """A private-use character that no text of the conversation contains."""
    text = json.dumps([[m.to_json() for m in conversation.messages], conversation.tools], ensure_ascii=False)
    return next(chr(c) for c in range(0xE000, 0xF8FF) if chr(c) not in text)


def _render_escaped(template: Template, conversation: Prompt, open_turn: bool) -> tuple[str, list[str]]:
    """(text, pieces): the pieces are tokenized separately, so that a special token spelled in a message stays plain
    text.

    Every such spelling is split: a mark goes after its first character, the template renders the mark like any
    character, and the rendered string is split at the marks.
    """
    special = [s for s in template.tokenizer.all_special_tokens if len(s) > 1]
    pattern = re.compile("|".join(re.escape(s) for s in sorted(special, key=len, reverse=True)) or "(?!)")
    mark = _mark(conversation)

    def escaped(text: str) -> str:
        return pattern.sub(lambda match: match[0][0] + mark + match[0][1:], text)

    safe = map_texts(conversation, escaped)
    text = render(template, safe, open_turn)
    return (text.replace(mark, ""), text.split(mark)) if safe != conversation else (text, [text])


def _ids(template: Template, text: str, pieces: list[str]) -> list[int]:
    ids = [i for piece in pieces for i in template.tokenizer(piece, add_special_tokens=False)["input_ids"]]
    if len(pieces) > 1:
        back = template.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if back != text:
            raise data_error(
                "DATA_SPECIAL_TOKEN_TEXT",
                "a message spells a special token, and this tokenizer cannot encode it as plain text.",
                fix="remove it from the message.",
            )
    return ids


def _text(template: Template, example: Text, row: int, max_length: int | None) -> list[Rendered]:
    special = [s for s in template.tokenizer.all_special_tokens if len(s) > 1]
    pattern = re.compile(
        "|".join(f"(?<={re.escape(s[0])})(?={re.escape(s[1:])})" for s in sorted(special, key=len, reverse=True))
        or "(?!)"
    )
    pieces = pattern.split(example.text) if any(s in example.text for s in special) else [example.text]
    body = _ids(template, example.text, pieces)
    start = template.tokenizer("", add_special_tokens=True)["input_ids"][:1]
    ids = [*(start if start == [template.bos] else []), *body, template.eos]
    size = max_length or len(ids)
    # Pieces overlap by one token, so that the first token of a piece is predicted at the end of the one before.
    starts = range(0, max(1, len(ids) - 1), max(1, size - 1))
    parts = [ids[s : s + size] for s in starts]
    return [Rendered(tuple(p), (0.0, *[1.0] * (len(p) - 1)), row) for p in parts if len(p) > 1]
