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
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunewright.core.errors import DataError, ModelError, data_error
from tunewright.data import tool_calls
from tunewright.data.messages import Chat, Example, Message, Prompt, Text, Tool, map_texts, turns
from tunewright.tokens import encoder_text, written
from tunewright.tokens.sequences import TokenSequence
from tunewright.tokens.template import Template, render, require_template


def for_training(
    template: Template, example: Example, row: int = 0, max_length: int | None = None
) -> list[TokenSequence]:
    """The training sequences of one example.

    A Chat gives one sequence, or one for each assistant turn; the weight is 1 on what the model would have written, end
    of turn included, and 0 elsewhere. A Text gives pieces of at most ``max_length`` tokens, all weights 1 but the
    first. Raises DataError (TEMPLATE_NOT_PREFIX, TEMPLATE_LOSES_CONTENT, TEMPLATE_TOOL_CALLS, DATA_SPECIAL_TOKEN_TEXT)
    or ModelError.
    """
    if isinstance(example, Text):
        return _text(template, example, row, max_length)
    require_template(template)
    try:
        if example.tools:
            _check_tools(template, example)
        rendered = [_turn(template, example, k) for k in turns(example.messages)]
    except ModelError as error:
        if error.code != "TEMPLATE_LOSES_CONTENT":
            raise
        problem = error.problems[0]  # the template refuses this row; it may accept others
        raise data_error(problem.code, problem.message, where=example.where, fix=problem.fix) from None
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
    if template.encoder:
        return encoder_text.ids(template.tokenizer, prompt)
    require_template(template)
    return _ids(template, *_render_escaped(template, prompt, True))


def completion_ids(template: Template, prompt: Prompt, answer: Message | str) -> list[int]:
    """Token ids that the model would have to write to give ``answer`` to ``prompt``, end of turn included."""
    message = Message("assistant", answer) if isinstance(answer, str) else answer
    chat = Chat((*prompt.messages, message), "", prompt.tools)
    turn = _turn(template, chat, len(prompt.messages))
    return turn.ids[turn.start : turn.end]


def decode(template: Template, ids: Sequence[int], special: bool = False) -> str:
    """Generated ids as text, with special tokens or without."""
    how = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
    return str(template.tokenizer.decode(list(ids), **how))


def read_answer(template: Template, ids: Sequence[int], tools: Sequence[Tool] = ()) -> Message:
    """The message that generated ids are: content, thoughts and, if there are ``tools``, calls.

    Notations of thoughts and calls may use special tokens, so the text is read with them.
    """
    thoughts, rest = tool_calls.split_thoughts(_without_end(template, decode(template, ids, special=True)))
    content, calls = tool_calls.parse(rest, tools) if tools else ("", ())
    if not calls and not thoughts:
        return Message("assistant", decode(template, ids))
    if not calls:
        content = tool_calls.without_marks(_special(template).sub("", tool_calls.without_marks(rest)))
    return Message("assistant", content, calls, reasoning=thoughts)


def read_text(text: str, tools: Sequence[Tool] = ()) -> Message:
    """The same of a text that ends in the middle, at a stop string."""
    thoughts, rest = tool_calls.split_thoughts(text)
    content, calls = tool_calls.parse(rest, tools) if tools else ("", ())
    return Message("assistant", content if calls else rest if thoughts else text, calls, reasoning=thoughts)


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
    prompt, pieces = _render_escaped(template, example.before(k), True)
    full, full_pieces = _render_escaped(template, example.before(k + 1), False)
    if not full.startswith(prompt):
        at = next(
            (i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), min(len(prompt), len(full))
        )
        served, trained = prompt[max(0, at - 20) :][:50], full[max(0, at - 20) :][:50]
        raise data_error(
            "TEMPLATE_NOT_PREFIX",
            f"turn {k}: the inference prompt has `...{served!r}` where the training text has `...{trained!r}`.",
            where=example.where,
            fix="use a template whose generation prompt begins the answer: template=chatml-tools, or template=FILE.",
        )
    turn = full[len(prompt) :]
    written.check_turn(example, k, prompt, turn)
    written.check_calls(example, k, _without_end(template, turn))
    prompt_ids, ids = _ids(template, prompt, pieces), _ids(template, full, full_pieces)
    if ids[: len(prompt_ids)] != prompt_ids:
        # A token of the full text spans the end of the prompt; serving splits there, so training must too.
        rest, *others = full_pieces[len(pieces) - 1 :]
        tail_pieces = [rest.removeprefix(pieces[-1]), *others]
        assert "".join(tail_pieces) == turn
        ids = prompt_ids + _ids(template, turn, tail_pieces)
    end = _end_of_turn(template, ids, len(prompt_ids))
    if end is None:
        ids, end = [*ids, template.eos], len(ids) + 1
    return RenderedTurn(ids, len(prompt_ids), end)


def _check_tools(template: Template, example: Chat) -> None:
    """Raises TEMPLATE_LOSES_CONTENT unless the prompt of the first answer contains the tools."""
    first = next(k for k, m in enumerate(example.messages) if m.role == "assistant")
    prompt = example.before(first)
    with_tools, without = (_render_escaped(template, p, True)[0] for p in (prompt, replace(prompt, tools=())))
    written.check_tools(example, with_tools, without)


def _without_end(template: Template, turn: str) -> str:
    """A turn as a model would have written it: without the tokens that end it."""
    bare, special = turn.rstrip(), template.tokenizer.all_special_tokens
    while (end := next((s for s in special if s and bare.endswith(s)), None)) is not None:
        bare = bare.removesuffix(end).rstrip()
    return bare


def _special(template: Template) -> re.Pattern[str]:
    """The special tokens as they are spelled, the longest first."""
    spelled = sorted(template.tokenizer.all_special_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spelled)) or "(?!)")


def _cuts(template: Template) -> re.Pattern[str]:
    """The places after the first character of a special token: a text that is cut there spells none."""
    rests: dict[str, list[str]] = {}
    for token in template.tokenizer.all_special_tokens:
        if len(token) > 1:
            rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return re.compile("|".join(f"(?<={re.escape(c)})(?={'|'.join(r)})" for c, r in rests.items()) or "(?!)")


def _end_of_turn(template: Template, ids: list[int], start: int) -> int | None:
    """One past the special token that ends the turn: where the model should have stopped. None: the template ends no
    turn. A special token that text follows is a mark in the answer, of a thought or a call, so the end is always behind
    all that the message contains."""
    special = set(template.tokenizer.all_special_ids)
    end = next((t + 1 for t in range(len(ids) - 1, start - 1, -1) if ids[t] in special), None)
    return end if end is not None and not decode(template, ids[end:]).strip() else None


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
    cuts, mark = _cuts(template), _mark(conversation)

    def escaped(text: str) -> str:
        return cuts.sub(mark, text)

    safe = map_texts(conversation, escaped)
    text = render(template, safe, open_turn)
    if json.dumps(mark)[1:-1] in text:
        raise _special_token_text()
    return (text.replace(mark, ""), text.split(mark)) if safe != conversation else (text, [text])


def _ids(template: Template, text: str, pieces: list[str]) -> list[int]:
    ids = [i for piece in pieces for i in template.tokenizer(piece, add_special_tokens=False)["input_ids"]]
    if len(pieces) > 1:
        back = template.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if back != text:
            raise _special_token_text()
    return ids


def _special_token_text() -> DataError:
    message = "a message spells a special token, and this tokenizer or template cannot write it as plain text."
    return data_error("DATA_SPECIAL_TOKEN_TEXT", message, fix="remove it from the message.")


def _text(template: Template, example: Text, row: int, max_length: int | None) -> list[TokenSequence]:
    body = _ids(template, example.text, _cuts(template).split(example.text))
    start = template.tokenizer("", add_special_tokens=True)["input_ids"][:1]
    ids = [*(start if start == [template.bos] else []), *body, template.eos]
    size = max_length or len(ids)
    # Pieces overlap by one token, so that the first token of a piece is predicted at the end of the one before.
    starts = range(0, max(1, len(ids) - 1), max(1, size - 1))
    parts = [ids[s : s + size] for s in starts]
    return [TokenSequence(tuple(p), (0.0, *[1.0] * (len(p) - 1)), row) for p in parts if len(p) > 1]
