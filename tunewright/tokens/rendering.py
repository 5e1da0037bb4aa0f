"""Messages -> token ids, in one way for training, judging and serving.

A model's own chat template decides; nothing here knows a model's name. For a row with assistant turns k, let P_k be the
prompt as it is served before turn k (generation prompt included) and F_k the conversation up to and including turn k.

- every P_k begins F_k, and every F_k begins the whole row: one sequence trains all turns;
- every P_k begins F_k, but later turns rewrite history (thoughts are dropped, say): one sequence per turn;
- some P_k does not begin F_k: what is served is not what would be trained. Refused (after trying `enable_thinking=False`).

All comparisons are made on token ids, because two equal strings may be cut into different tokens.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunewright.core.errors import ConfigError, DataError, ModelError, Problem
from tunewright.data.examples import Chat, Example, Message, Text

LARGEST = 256 * 1024  # characters of a template, and of what it adds to the messages
SECONDS = 5.0


@dataclass(frozen=True)
class Template:
    """A tokenizer and how its chat template is called. ``tokenizer`` is a transformers fast tokenizer; ``source`` is where the template
    stands, for messages; ``day`` is what stands in it instead of today's date, always the same one in a run."""

    tokenizer: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    source: str = ""
    day: datetime.date | None = None

    @property
    def eos(self) -> int:
        found = self.tokenizer.eos_token_id
        assert isinstance(found, int)
        return found

    @property
    def bos(self) -> int | None:
        found = self.tokenizer.bos_token_id
        return found if isinstance(found, int) else None

    @property
    def sha256(self) -> str:
        """Of everything that decides token ids: template, its arguments, vocabulary and merges."""
        parts = f"{self.tokenizer.chat_template}\x00{sorted(self.kwargs.items())}\x00{self.tokenizer.backend_tokenizer.to_str()}"
        return hashlib.sha256(parts.encode()).hexdigest()


@dataclass(frozen=True)
class Rendered:
    """Token ids of one training sequence; ``weights[t]`` is the loss weight of predicting ``ids[t]`` (``weights[0]`` is 0)."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    row: int

    @property
    def supervised(self) -> int:
        return sum(w > 0 for w in self.weights)


def load_template(folder: Path, file: str | None = None, date: str = "auto") -> Template:
    """Tokenizer of a model folder, with the chat template of ``file`` where one is given. ``date``: YYYY-MM-DD, or auto for today.

    Raises TOKENIZER_NO_EOS, MODEL_FILE_MISSING, TEMPLATE_UNSAFE, or CONFIG_NOT_FOUND for the file.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise ModelError(
            "MODEL_FILE_MISSING",
            "no tokenizer.json or tokenizer_config.json.",
            where=str(folder),
            fix="copy the tokenizer files beside the weights.",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            "MODEL_CORRUPT", f"the tokenizer cannot be read: {str(error).splitlines()[0]}", where=str(folder)
        ) from None
    if not tokenizer.is_fast:
        raise ModelError(
            "MODEL_UNSUPPORTED",
            "the tokenizer has no tokenizer.json form.",
            where=str(folder),
            fix="convert it with transformers and save it again.",
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "TOKENIZER_NO_EOS",
            "the tokenizer has no end-of-sequence token.",
            where=str(folder),
            fix='set "eos_token" in tokenizer_config.json.',
        )
    if file is not None:
        try:
            tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "CONFIG_NOT_FOUND", f"{file} cannot be read: {error}.", where="template", fix="check the path."
            ) from None
    if len(tokenizer.chat_template or "") > LARGEST:
        raise ModelError(
            "TEMPLATE_UNSAFE",
            f"a chat template of {len(tokenizer.chat_template)} characters; the limit is {LARGEST}.",
            where=str(file or folder),
            fix="use another template (template=FILE).",
        )
    # Rows are cut by our own rule, with a count; the tokenizer's warning about its length limit would only repeat it.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    found = Template(tokenizer, source=str(file or folder))
    if "strftime_now" in (tokenizer.chat_template or ""):
        found = _dated(found, datetime.date.today() if date == "auto" else datetime.date.fromisoformat(date))
    return _choose_kwargs(found) if tokenizer.chat_template else found


def _dated(template: Template, day: datetime.date) -> Template:
    """With ``day`` where the template writes today's date: else what is served tomorrow is not what was trained."""
    text = re.sub(
        r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""", lambda m: json.dumps(day.strftime(m[2])), template.tokenizer.chat_template
    )
    template.tokenizer.chat_template = text
    return replace(template, day=day)


def _choose_kwargs(template: Template) -> Template:
    probe = [Message("user", "Ping?"), Message("assistant", "Pong.")]
    if _prefix_holds(template, probe):
        return template
    calm = replace(
        template,
        kwargs={"enable_thinking": False},
        reason="the served prompt opens a thought that the rows lack; rendered with enable_thinking=False",
    )
    return calm if _prefix_holds(calm, probe) else template


def _prefix_holds(template: Template, messages: Sequence[Message]) -> bool:
    return _string(template, messages, False).startswith(_string(template, messages[:-1], True))


def for_training(template: Template, example: Example, row: int = 0, max_length: int | None = None) -> list[Rendered]:
    """The training sequences of one example.

    A Chat gives one sequence, or one for each assistant turn; the weight is 1 on what the model would have written, end of
    turn included, and 0 elsewhere. A Text gives pieces of at most ``max_length`` tokens, all weights 1 but the first.
    Raises DataError (TEMPLATE_NOT_PREFIX, TEMPLATE_LOSES_CONTENT, DATA_SPECIAL_TOKEN_TEXT) or ModelError.
    """
    if isinstance(example, Text):
        return _text(template, example, row, max_length)
    _need_template(template)
    turns = [k for k, m in enumerate(example.messages) if m.role == "assistant"]
    spans = [_turn(template, example, k) for k in turns]
    whole = spans[-1][0]
    weights = [0.0] * len(whole)
    one = True
    for ids, start, end in spans:
        one = one and whole[: len(ids)] == ids
        if one:
            weights[start:end] = [1.0] * (end - start)
    if one:
        return [_rendered(template, whole, weights, row, example)]
    return [
        _rendered(template, ids, [float(start <= t < end) for t in range(len(ids))], row, example) for ids, start, end in spans
    ]


def check_ids(rows: Sequence[Rendered], vocabulary: int, folder: str) -> None:
    """Raises TOKENIZER_MISMATCH where a row holds a token for which the model has no embedding."""
    highest = max((max(r.ids) for r in rows), default=0)
    if highest >= vocabulary:
        raise ModelError(
            "TOKENIZER_MISMATCH",
            f"a row holds token {highest}; the model has embeddings for {vocabulary}.",
            where=folder,
            fix="use the tokenizer that belongs to these weights.",
        )


def for_generation(template: Template, messages: Sequence[Message]) -> list[int]:
    """Token ids of the prompt before the next assistant turn: the very prefix that training saw."""
    _need_template(template)
    return _ids(template, *_render_escaped(template, messages, True))


def completion_ids(template: Template, messages: Sequence[Message], answer: str) -> list[int]:
    """Token ids that the model would have to write to give ``answer`` after ``messages``, end of turn included."""
    chat = Chat((*messages, Message("assistant", answer)), "")
    ids, start, end = _turn(template, chat, len(messages))
    return ids[start:end]


def after(prompt: Sequence[int], answer: Sequence[int], row: int) -> Rendered:
    """``answer``, learned or judged, after ``prompt``."""
    return Rendered((*prompt, *answer), (*[0.0] * len(prompt), *[1.0] * len(answer)), row)


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


def _turn(template: Template, example: Chat, k: int) -> tuple[list[int], int, int]:
    """(ids up to and including assistant turn k, where its supervised part starts, where it ends)."""
    prompt, pieces = _render_escaped(template, example.messages[:k], True)
    full, full_pieces = _render_escaped(template, example.messages[: k + 1], False)
    if not full.startswith(prompt):
        at = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), min(len(prompt), len(full)))
        raise DataError(
            [
                Problem(
                    "TEMPLATE_NOT_PREFIX",
                    f"turn {k}: the template serves `...{prompt[max(0, at - 20) :][:50]!r}` but a finished turn reads `...{full[max(0, at - 20) :][:50]!r}`.",
                    example.where,
                    "use a template whose generation prompt begins the answer (template=FILE).",
                )
            ]
        )
    _check_content(example, k, full, full[len(prompt) :])
    prompt_ids, ids = _ids(template, prompt, pieces), _ids(template, full, full_pieces)
    if ids[: len(prompt_ids)] != prompt_ids:
        # A token of the whole text spans the end of the prompt; serving cuts there, so training must too.
        tail, tail_pieces = full[len(prompt) :], full_pieces[len(pieces) :]
        ids = prompt_ids + _ids(template, tail, tail_pieces)
    end = _end_of_turn(template, ids, len(prompt_ids))
    if end is None:
        ids, end = [*ids, template.eos], len(ids) + 1
    return ids, len(prompt_ids), end


def _end_of_turn(template: Template, ids: list[int], start: int) -> int | None:
    """One past the last special token of the turn: where the model should have stopped. None: the template ends no turn."""
    special = set(template.tokenizer.all_special_ids)
    for t in range(len(ids) - 1, start - 1, -1):
        if ids[t] in special:
            return t + 1
    return None


def _check_content(example: Chat, k: int, full: str, tail: str) -> None:
    plain = full.replace(_mark(example.messages), "")
    for i, message in enumerate(example.messages[: k + 1]):
        if message.role != "assistant" and message.content.strip() not in plain:
            raise DataError(
                [
                    Problem(
                        "TEMPLATE_LOSES_CONTENT",
                        f"the chat template drops or changes messages[{i}] ({message.role}).",
                        example.where,
                        "put that text into the first user message, or use another template.",
                    )
                ]
            )
    answer = example.messages[k].content.split("</think>")[-1].strip()
    if answer not in tail.replace(_mark(example.messages), ""):
        raise DataError(
            [
                Problem(
                    "TEMPLATE_LOSES_CONTENT",
                    f"the chat template changes messages[{k}] (assistant).",
                    example.where,
                    "use another template.",
                )
            ]
        )


def _string(template: Template, messages: Sequence[Message], open_turn: bool) -> str:
    """The one call of the model's template, in both directions; transformers runs it in Jinja's immutable sandbox, and here it has
    a limit of time and of size."""
    from jinja2.exceptions import SecurityError, TemplateError

    listed = [{"role": m.role, "content": m.content} for m in messages]
    at, fix = template.source, "use another template (template=FILE)."
    try:
        with _limited(SECONDS):
            text = str(
                template.tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=open_turn, **template.kwargs)
            )
    except SecurityError as error:
        raise ModelError("TEMPLATE_UNSAFE", f"the sandbox refuses the chat template: {error}", where=at, fix=fix) from None
    except (OverflowError, MemoryError, RecursionError) as error:
        told = f"the chat template runs wild: {type(error).__name__} {error}"
        raise ModelError("TEMPLATE_UNSAFE", told, where=at, fix=fix) from None
    except _TooLong:
        told = f"the chat template runs for more than {SECONDS:g} s on one row."
        raise ModelError("TEMPLATE_TIMEOUT", told, where=at, fix=fix) from None
    except (TemplateError, TypeError, ValueError) as error:
        raise ModelError(
            "TEMPLATE_LOSES_CONTENT",
            f"the chat template refuses this conversation: {str(error).splitlines()[0]}",
            where=at,
            fix="check the roles and their order against the template.",
        ) from None
    said = sum(len(m.content) for m in messages)
    if len(text) > LARGEST + 20 * said:
        raise ModelError("TEMPLATE_UNSAFE", f"the chat template makes {len(text)} characters of {said}.", where=at, fix=fix)
    return text


class _TooLong(BaseException):
    """Not an Exception: a template may not catch it."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Within, at most that much processor time. Only a main thread can be interrupted; in others there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


def _mark(messages: Sequence[Message]) -> str:
    """A private-use character that no message holds."""
    text = "".join(m.content for m in messages)
    return next(chr(c) for c in range(0xE000, 0xF8FF) if chr(c) not in text)


def _render_escaped(template: Template, messages: Sequence[Message], open_turn: bool) -> tuple[str, list[str]]:
    """(text, pieces): the pieces are tokenized apart, so that a special token spelled in a message stays plain text.

    The text is cut inside every such spelling: a mark is put after its first character, the template renders it like any
    character, and the rendered string is cut where the marks are.
    """
    special = [s for s in template.tokenizer.all_special_tokens if len(s) > 1]
    if not any(s in m.content for s in special for m in messages):
        text = _string(template, messages, open_turn)
        return text, [text]
    mark = _mark(messages)
    pattern = re.compile("|".join(re.escape(s) for s in sorted(special, key=len, reverse=True)))
    safe = [Message(m.role, pattern.sub(lambda found: found[0][0] + mark + found[0][1:], m.content)) for m in messages]
    marked = _string(template, safe, open_turn)
    return marked.replace(mark, ""), marked.split(mark)


def _ids(template: Template, text: str, pieces: list[str]) -> list[int]:
    ids = [i for piece in pieces for i in template.tokenizer(piece, add_special_tokens=False)["input_ids"]]
    if len(pieces) > 1:
        back = template.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if back != text:
            raise DataError(
                [
                    Problem(
                        "DATA_SPECIAL_TOKEN_TEXT",
                        "a message spells a special token, and this tokenizer cannot write it as plain text.",
                        "",
                        "remove it from the message.",
                    )
                ]
            )
    return ids


def _text(template: Template, example: Text, row: int, max_length: int | None) -> list[Rendered]:
    special = [s for s in template.tokenizer.all_special_tokens if len(s) > 1]
    pattern = re.compile(
        "|".join(f"(?<={re.escape(s[0])})(?={re.escape(s[1:])})" for s in sorted(special, key=len, reverse=True)) or "(?!)"
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


def _need_template(template: Template) -> None:
    if not template.tokenizer.chat_template:
        raise ModelError(
            "TEMPLATE_MISSING",
            "the model has no chat template, and the rows are chats.",
            where=template.source,
            fix="choose an instruct model, or name a Jinja file: template=FILE.",
        )


def render_rows(
    template: Template, examples: Sequence[Example], rows: Sequence[int], limit: int, drop_long: bool
) -> tuple[list[Rendered], list[int]]:
    """(sequences of the rows, rows left out as too long). Raises DataError with every problem of every row at once."""
    problems: list[Problem] = []
    found: list[Rendered] = []
    dropped: list[int] = []
    for i in rows:
        try:
            sequences = for_training(template, examples[i], i, limit)
        except DataError as error:
            problems += [p if p.where else Problem(p.code, p.message, examples[i].where, p.fix) for p in error.problems]
            continue
        longest = max((len(s.ids) for s in sequences), default=0)
        if longest <= limit:
            found += sequences
        elif drop_long:
            dropped.append(i)
        else:
            problems.append(
                Problem(
                    "DATA_TOO_LONG",
                    f"{longest} tokens; the limit is {limit}.",
                    examples[i].where,
                    "shorten it, raise train.max_length, or say data.too_long=drop.",
                )
            )
    if problems:
        raise DataError(problems)
    return found, dropped
