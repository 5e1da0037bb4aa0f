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

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.core.errors import ModelError, data_error
from tunewright.data.examples import Chat, Example, Message, Text
from tunewright.tokens.sequences import TokenSequence
from tunewright.tokens.template import Template, render, require_template


def for_training(
    template: Template, example: Example, row: int = 0, max_length: int | None = None
) -> list[TokenSequence]:
    """The training sequences of one example.

    A Chat gives one sequence, or one for each assistant turn; the weight is 1 on what the model would have written, end
    of turn included, and 0 elsewhere. A Text gives pieces of at most ``max_length`` tokens, all weights 1 but the
    first. Raises DataError (TEMPLATE_NOT_PREFIX, TEMPLATE_LOSES_CONTENT, DATA_SPECIAL_TOKEN_TEXT) or ModelError.
    """
    if isinstance(example, Text):
        return _text(template, example, row, max_length)
    require_template(template)
    turns = [_turn(template, example, k) for k, m in enumerate(example.messages) if m.role == "assistant"]
    whole = turns[-1].ids
    if all(whole[: len(t.ids)] == t.ids for t in turns):
        weights = [0.0] * len(whole)
        for t in turns:
            weights[t.start : t.end] = [1.0] * (t.end - t.start)
        return [_rendered(template, whole, weights, row, example)]
    return [
        _rendered(template, t.ids, [float(t.start <= i < t.end) for i in range(len(t.ids))], row, example)
        for t in turns
    ]


def for_generation(template: Template, messages: Sequence[Message]) -> list[int]:
    """Token ids of the prompt before the next assistant turn: exactly the prefix that training sees."""
    require_template(template)
    return _ids(template, *_render_escaped(template, messages, True))


def completion_ids(template: Template, messages: Sequence[Message], answer: str) -> list[int]:
    """Token ids that the model would have to write to give ``answer`` after ``messages``, end of turn included."""
    chat = Chat((*messages, Message("assistant", answer)), "")
    turn = _turn(template, chat, len(messages))
    return turn.ids[turn.start : turn.end]


def decode(template: Template, ids: Sequence[int]) -> str:
    """Generated ids as text, without special tokens."""
    return str(template.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _rendered(template: Template, ids: list[int], weights: list[float], row: int, example: Chat) -> TokenSequence:
    if template.bos is not None and ids[:2] == [template.bos] * 2:
        raise ModelError(
            "TOKENIZER_DOUBLE_BOS",
            "the sequence begins with two BOS tokens.",
            where=example.where,
            fix="remove the BOS from the chat template.",
        )
    assert any(weights[1:]), "an answer is never empty, so something is supervised"
    return TokenSequence(tuple(ids), tuple(weights), row)


@dataclass(frozen=True)
class RenderedTurn:
    """Token ids up to and including an assistant turn, whose supervised part is ``start``..``end``."""

    ids: list[int]
    start: int
    end: int


def _turn(template: Template, example: Chat, k: int) -> RenderedTurn:
    """Assistant turn k. Raises TEMPLATE_NOT_PREFIX and TEMPLATE_LOSES_CONTENT."""
    prompt, pieces = _render_escaped(template, example.messages[:k], True)
    full, full_pieces = _render_escaped(template, example.messages[: k + 1], False)
    if not full.startswith(prompt):
        at = next(
            (i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), min(len(prompt), len(full))
        )
        served, trained = prompt[max(0, at - 20) :][:50], full[max(0, at - 20) :][:50]
        raise data_error(
            "TEMPLATE_NOT_PREFIX",
            f"turn {k}: the inference prompt has `...{served!r}` where the training text has `...{trained!r}`.",
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
    return RenderedTurn(ids, len(prompt_ids), end)


def _end_of_turn(template: Template, ids: list[int], start: int) -> int | None:
    """One past the last special token of the turn: where the model should have stopped. None: the template ends no
    turn."""
    special = set(template.tokenizer.all_special_ids)
    for t in range(len(ids) - 1, start - 1, -1):
        if ids[t] in special:
            return t + 1
    return None


def _check_content(example: Chat, k: int, full: str, tail: str) -> None:
    """Raises TEMPLATE_LOSES_CONTENT unless ``full`` holds every message before turn k, and ``tail`` the turn itself."""
    plain = full.replace(_mark(example.messages), "")
    for i, message in enumerate(example.messages[: k + 1]):
        if message.role != "assistant" and message.content.strip() not in plain:
            raise data_error(
                "TEMPLATE_LOSES_CONTENT",
                f"the chat template drops or changes messages[{i}] ({message.role}).",
                where=example.where,
                fix="put that text into the first user message, or use another template.",
            )
    answer = example.messages[k].content.split("</think>")[-1].strip()
    if answer not in tail.replace(_mark(example.messages), ""):
        raise data_error(
            "TEMPLATE_LOSES_CONTENT",
            f"the chat template changes messages[{k}] (assistant).",
            where=example.where,
            fix="use another template.",
        )


def _mark(messages: Sequence[Message]) -> str:
    """A private-use character that no message contains."""
    text = "".join(m.content for m in messages)
    return next(chr(c) for c in range(0xE000, 0xF8FF) if chr(c) not in text)


def _render_escaped(template: Template, messages: Sequence[Message], open_turn: bool) -> tuple[str, list[str]]:
    """(text, pieces): the pieces are tokenized separately, so that a special token spelled in a message stays plain
    text.

    Every such spelling is split: a mark goes after its first character, the template renders the mark like any
    character, and the rendered string is split at the marks.
    """
    special = [s for s in template.tokenizer.all_special_tokens if len(s) > 1]
    if not any(s in m.content for s in special for m in messages):
        text = render(template, messages, open_turn)
        return text, [text]
    mark = _mark(messages)
    pattern = re.compile("|".join(re.escape(s) for s in sorted(special, key=len, reverse=True)))
    safe = [Message(m.role, pattern.sub(lambda match: match[0][0] + mark + match[0][1:], m.content)) for m in messages]
    marked = render(template, safe, open_turn)
    return marked.replace(mark, ""), marked.split(mark)


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


def _text(template: Template, example: Text, row: int, max_length: int | None) -> list[TokenSequence]:
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
    return [TokenSequence(tuple(p), (0.0, *[1.0] * (len(p) - 1)), row) for p in parts if len(p) > 1]
