"""A model's tokenizer and chat template: loading them, and the one call that renders messages, within limits.

Nothing here knows a model's name.
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

from tunewright.core import small_files
from tunewright.core.config.schema import TEMPLATES
from tunewright.core.errors import ConfigError, ModelError
from tunewright.data import tool_calls
from tunewright.data.messages import Example, Message, Prompt, ToolCall
from tunewright.tokens import encoder_text

MAX_CHARACTERS = 256 * 1024  # of a template, and of what it adds to the messages
SECONDS = 5.0  # processor time of rendering one conversation
BUILT_IN = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Template:
    """A tokenizer, and the arguments its chat template is called with.

    ``tokenizer``: a transformers fast tokenizer. ``reason``: why ``kwargs`` are not empty. ``source``: the file, folder
    or name of the template, for messages. ``day``: the date that replaces today's in the template, the same throughout
    a run. ``text_arguments``: the template takes the arguments of a tool call as the text of a JSON object.
    ``ends_hashed``: whether the hash covers the tokens EOS and BOS, as it does not in runs of earlier versions.
    ``prefixes``: of a query and of a document, in rows that are embedded (`texts`).
    ``encoder``: there is no template: prompts become texts as in `encoder_text`, as encoders read them; and decoders
    that tag words.
    """

    tokenizer: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    source: str = ""
    day: datetime.date | None = None
    text_arguments: bool = False
    ends_hashed: bool = True
    prefixes: tuple[str, str] = ("", "")
    encoder: bool = False

    @property
    def eos(self) -> int:
        """The token that ends a text."""
        of_encoder = self.encoder and self.tokenizer.sep_token_id is not None
        token = self.tokenizer.sep_token_id if of_encoder else self.tokenizer.eos_token_id
        assert isinstance(token, int)
        return token

    @property
    def bos(self) -> int | None:
        token = self.tokenizer.bos_token_id
        return token if isinstance(token, int) else None

    @property
    def sha256(self) -> str:
        """Of everything that decides token ids: template, its arguments, vocabulary, merges, EOS and BOS."""
        vocabulary = self.tokenizer.backend_tokenizer.to_str()
        more = "\x00text arguments" if self.text_arguments else ""
        more += f"\x00prefixes {self.prefixes}" if any(self.prefixes) else ""
        if self.encoder:
            return hashlib.sha256(f"{encoder_text.RULE}\x00{vocabulary}{more}".encode()).hexdigest()
        more += f"\x00{self.tokenizer.eos_token_id} {self.tokenizer.bos_token_id}" if self.ends_hashed else ""
        parts = f"{self.tokenizer.chat_template}\x00{sorted(self.kwargs.items())}\x00{vocabulary}{more}"
        return hashlib.sha256(parts.encode()).hexdigest()


def hashed_as(template: Template, sha256: str) -> Template:
    """The template with the hash that an earlier version gave it, if it is this one."""
    before = replace(template, ends_hashed=False)
    return before if before.sha256 == sha256 else template


def load_template(folder: Path, name: str | None = None, date: str = "auto") -> Template:
    """Tokenizer of a model folder, with the chat template ``name`` where one is given: one of ours, or a file.
    ``date``: YYYY-MM-DD, or auto for today. An encoder reads neither.

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
    encoder = encoder_text.is_encoder_folder(folder)
    end = "sep_token" if encoder else "eos_token"
    if getattr(tokenizer, f"{end}_id") is None:
        raise ModelError(
            "TOKENIZER_NO_EOS",
            "the tokenizer has no end-of-sequence token.",
            where=str(folder),
            fix=f'set "{end}" in tokenizer_config.json.',
        )
    if name is not None:
        tokenizer.chat_template = _template_text(name)
    if len(tokenizer.chat_template or "") > MAX_CHARACTERS:
        raise ModelError(
            "TEMPLATE_UNSAFE",
            f"a chat template of {len(tokenizer.chat_template)} characters; the limit is {MAX_CHARACTERS}.",
            where=str(name or folder),
            fix="use another template (template=FILE).",
        )
    # Rows are cut by our own rule, with a count; the tokenizer's warning about its length limit would only repeat it.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    if encoder:
        return Template(tokenizer, source=str(folder), encoder=True)
    template = Template(tokenizer, source=str(name or folder))
    if "strftime_now" in (tokenizer.chat_template or ""):
        template = _dated(template, datetime.date.today() if date == "auto" else datetime.date.fromisoformat(date))
    return fitted(template) if tokenizer.chat_template else template


def _template_text(name: str) -> str:
    file = BUILT_IN / f"{name}.jinja" if name in TEMPLATES else Path(name)
    try:
        return small_files.read_bytes(file, 4 * MAX_CHARACTERS).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = f"check the path, or use {' or '.join(TEMPLATES)}."
        raise ConfigError("CONFIG_NOT_FOUND", f"{name} cannot be read: {error}.", where="template", fix=fix) from None


def _dated(template: Template, day: datetime.date) -> Template:
    """With ``day`` in place of today's date: otherwise the prompts served tomorrow would differ from those trained
    on."""
    text = re.sub(
        r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""",
        lambda m: json.dumps(day.strftime(m[2])),
        template.tokenizer.chat_template,
    )
    template.tokenizer.chat_template = text
    return replace(template, day=day)


def for_method(template: Template, method: str) -> Template:
    """The template as a training method uses it: words are tagged in their text, without a chat template."""
    return replace(template, kwargs={}, reason="", encoder=True) if method == "tag" else template


def has_thoughts(examples: Sequence[Example]) -> bool:
    answers = (m for e in examples for m in e.messages if m.role == "assistant")
    return any(m.reasoning or "</think>" in m.content for m in answers)


def for_rows(template: Template, thoughts: bool) -> Template:
    """The template as it is used for rows with or without thoughts: a prompt may open the thought of every answer."""
    if template.encoder or not template.tokenizer.chat_template or not thoughts:
        return template
    return fitted(template, thoughts=True)


def fitted(template: Template, thoughts: bool = False) -> Template:
    """The template with the arguments under which a served prompt is the beginning of a trained turn, and tool calls
    can be read back. ``thoughts``: whether the rows have thoughts."""
    turn = Prompt((PING, Message("assistant", "Pong.", reasoning="Hm." if thoughts else "")))
    plain = replace(template, kwargs={}, reason="", text_arguments=False)
    switches = (True, False) if thoughts else (False,)
    switched = [replace(plain, kwargs={"enable_thinking": on}, reason=THINKING[on]) for on in switches]
    chosen = next((t for t in (plain, *switched) if _prefix_holds(t, turn)), plain)
    as_text = replace(chosen, text_arguments=True)
    return as_text if not _reads_back(chosen) and _reads_back(as_text) else chosen


THINKING = {
    False: "the served prompt opens a thought that the rows lack; rendered with enable_thinking=False",
    True: "the served prompt excludes the thoughts that the rows have; rendered with enable_thinking=True",
}
PING = Message("user", "Ping?")
CALL = ToolCall("ping", {"host": "localhost"}, "call00001")


def _prefix_holds(template: Template, turn: Prompt) -> bool:
    return render(template, turn, False).startswith(render(template, replace(turn, messages=turn.messages[:-1]), True))


def _reads_back(template: Template) -> bool:
    """Whether the template writes a tool call such that it can be read back."""
    tool = {"type": "function", "function": {"name": CALL.name, "description": "", "parameters": {"type": "object"}}}
    try:
        turn = Prompt((PING, Message("assistant", "", (CALL,))), (tool,))
        prompt = render(template, replace(turn, messages=turn.messages[:-1]), True)
        written = render(template, turn, False).removeprefix(prompt)
    except ModelError:
        return False
    return tool_calls.same(tool_calls.parse(written, turn.tools)[1], (CALL,))


def require_template(template: Template) -> None:
    if not template.tokenizer.chat_template:
        raise ModelError(
            "TEMPLATE_MISSING",
            "the model has no chat template, and the rows are chats.",
            where=template.source,
            fix="choose an instruct model, or name a template: template=chatml-tools, or template=FILE.",
        )


def render(template: Template, conversation: Prompt, open_turn: bool) -> str:
    """The conversation, with its tools, as text; ``open_turn`` adds the generation prompt. The only call of the model's
    template, in training and serving: in transformers' immutable Jinja sandbox, within limits of time and size.

    Raises TEMPLATE_UNSAFE, TEMPLATE_TIMEOUT and TEMPLATE_LOSES_CONTENT.
    """
    from jinja2.exceptions import SecurityError

    listed = [m.to_json(template.text_arguments) for m in conversation.messages]
    tools = list(conversation.tools) or None
    at, fix = template.source, "use another template (template=FILE)."
    try:
        with _limited(SECONDS):
            text = str(
                template.tokenizer.apply_chat_template(
                    listed, tools=tools, tokenize=False, add_generation_prompt=open_turn, **template.kwargs
                )
            )
    except SecurityError as error:
        raise ModelError(
            "TEMPLATE_UNSAFE", f"the sandbox refuses the chat template: {error}", where=at, fix=fix
        ) from None
    except (OverflowError, MemoryError, RecursionError) as error:
        what = f"the chat template exceeds a limit: {type(error).__name__} {error}"
        raise ModelError("TEMPLATE_UNSAFE", what, where=at, fix=fix) from None
    except _TooLong:
        what = f"the chat template takes more than {SECONDS:g} s on one row."
        raise ModelError("TEMPLATE_TIMEOUT", what, where=at, fix=fix) from None
    except Exception as error:  # a template computes: it may divide by zero, or look up what is not there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            "TEMPLATE_LOSES_CONTENT",
            f"the chat template refuses this conversation: {reason}",
            where=at,
            fix="use a template that has tools: template=chatml-tools."
            if tools or any("tool_calls" in m or m["role"] == "tool" for m in listed)
            else "check the roles and their order against the template, or use another: template=chatml-tools.",
        ) from None
    given = len(json.dumps([listed, tools]))
    if len(text) > MAX_CHARACTERS + 20 * given:
        raise ModelError(
            "TEMPLATE_UNSAFE", f"the chat template turns {given} characters into {len(text)}.", where=at, fix=fix
        )
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
