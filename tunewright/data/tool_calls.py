"""Tool calls in text: what a chat template or a model wrote, read back.

Models write calls in notations of their own. Each entry of `NOTATIONS` recognises one by the mark before a call, and
reads the call after the mark; the notation of the first valid call decides. Text that is no valid call remains content.
The text may be decoded with special tokens or, where a notation does not need them, without.

<tool_call>{"name": ..., "arguments": {...}}</tool_call>             Hermes, Qwen
{"name": ..., "parameters": {...}}, or a list of such objects        Llama 3.1, Mistral, and `Message.text`
<function=NAME>{...}</function>                                      Llama 3.1
<function=NAME><parameter=KEY>VALUE</parameter></function>           Qwen3-Coder, Nemotron 3
<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>    GLM 4
<invoke name="NAME"><parameter name="KEY">VALUE</parameter>          MiniMax and others, with any prefix of the tags
to=functions.NAME<|channel|>commentary json<|message|>{...}          gpt-oss
NAME{...} after a special token                                      DeepSeek V3, Kimi K2, Mistral
call:NAME{KEY:<|"|>TEXT<|"|>}                                        Gemma 4
[NAME(KEY=VALUE)]                                                    LFM 2, Llama 3.2, after a special token or alone
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence

from tunewright.data.messages import Json, Tool, ToolCall, properties

# Of every tool, the types that its parameters may have, by parameter.
Types = Mapping[str, Mapping[str, frozenset[str]]]
# Reads the calls after a mark: the calls, and where they end. Raises ValueError if there is no valid call.
Read = Callable[[str, "re.Match[str]", Types], tuple[list[ToolCall], int]]

NAME = r"(?P<name>[\w./:-]+)"
CALL_KEYS = {"name", "tool_name", "arguments", "parameters", "type", "id", "tool_call_id"}


def parse(text: str, tools: Sequence[Tool] = ()) -> tuple[str, tuple[ToolCall, ...]]:
    """(content, calls) of an assistant's text, without its thoughts.

    Some notations write a text and a number alike; there, the type that ``tools`` declares decides, and without one a
    value that is valid JSON is read as JSON.
    """
    answer, types = split_thoughts(text)[1], _types(tools)
    scans = [_scan(answer, mark, read, types) for mark, read in NOTATIONS]
    first = min((s for s in scans if s[1]), key=lambda s: s[2], default=None)
    content, calls = first[:2] if first else _bare(answer)
    return without_marks(content), tuple(calls)


def split_thoughts(text: str) -> tuple[str, str]:
    """(thoughts, the rest) of an assistant's text."""
    thoughts = [TAGS.sub("", match[0]).strip() for match in THOUGHTS.finditer(text)]
    return "\n\n".join(filter(None, thoughts)), THOUGHTS.sub("", text)


def without_marks(text: str) -> str:
    """A content without what notations put around it."""
    return MARKS.sub("", text).strip()


def same(a: Sequence[ToolCall], b: Sequence[ToolCall]) -> bool:
    """Whether these are the same calls. Their ids do not matter, nor whether a number is a number or a text: notations
    with tags write both alike."""
    return [(c.name, _plain(c.arguments)) for c in a] == [(c.name, _plain(c.arguments)) for c in b]


def _plain(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str) else json.dumps(value)


def _scan(text: str, mark: re.Pattern[str], read: Read, types: Types) -> tuple[str, list[ToolCall], int]:
    """The text without the calls that begin with ``mark``, these calls, and where the first begins."""
    rest: list[str] = []
    calls: list[ToolCall] = []
    at, first = 0, len(text)
    while (match := mark.search(text, at)) is not None:
        rest.append(text[at : match.start()])
        try:
            next_calls, at = read(text, match, types)
            calls += next_calls
            first = min(first, match.start())
        except (ValueError, RecursionError):
            rest.append(match[0])
            at = match.end()
    return "".join([*rest, text[at:]]), calls, first


# -- calls as JSON


def _json(text: str, at: int) -> tuple[Json, int]:
    """The JSON value at a place, and where it ends."""
    return _DECODER.raw_decode(text, _after(r"\s*", text, at))


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


_DECODER = json.JSONDecoder(strict=False, parse_float=_finite, parse_constant=_finite)


def _after(pattern: str, text: str, at: int) -> int:
    """The end of the pattern at a place, or that place if the pattern is not there."""
    match = re.compile(pattern).match(text, at)
    return match.end() if match else at


def _arguments(value: Json) -> dict[str, Json]:
    """An object, or the text of one."""
    value = _json(value, 0)[0] if isinstance(value, str) and value.strip() else value or {}
    if not isinstance(value, dict):
        raise ValueError
    return value


def _call(value: Json) -> ToolCall:
    """The call that an object describes, with or without OpenAI's wrapping."""
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not set(function) <= CALL_KEYS:
        raise ValueError
    name = function.get("name", function.get("tool_name"))
    if not isinstance(name, str) or not name.strip():
        raise ValueError
    return ToolCall(name.strip(), _arguments(function.get("arguments", function.get("parameters"))))


def _listed(end: str) -> Read:
    """Calls as JSON objects, or as one list of them, up to the mark ``end``."""

    def read(text: str, match: re.Match[str], types: Types) -> tuple[list[ToolCall], int]:
        value, at = _json(text, match.end())
        calls = [_call(item) for item in (value if isinstance(value, list) else [value])]
        while (following := re.compile(r"\s*[;,\n]\s*(?=\{)").match(text, at)) is not None:
            value, at = _json(text, following.end())
            calls.append(_call(value))
        return calls, _after(rf"\s*(?:{end})", text, at)

    return read


def _named(end: str) -> Read:
    """One call, whose name the mark contains and whose arguments are a JSON object, up to the mark ``end``."""

    def read(text: str, match: re.Match[str], types: Types) -> tuple[list[ToolCall], int]:
        value, at = _json(text, match.end())
        return [ToolCall(match["name"], _arguments(value))], _after(rf"\s*(?:{end})", text, at)

    return read


def _bare(text: str) -> tuple[str, list[ToolCall]]:
    """Calls without a mark: the text is a list or an object of calls, or ends with lines that are."""
    bare = text.strip()
    if len(bare) > 6 and bare.startswith("```") and bare.endswith("```"):
        bare = bare[3:-3].removeprefix("json").strip()
    for read in (_json_calls, _python_calls):
        with contextlib.suppress(ValueError, RecursionError):
            calls, end = read(bare, 0)
            if end == len(bare):
                return "", calls
    return _last_lines(text.rstrip())


def _json_calls(text: str, at: int) -> tuple[list[ToolCall], int]:
    """A call, or a list of calls. Without a mark, a call is an object with a name and arguments, and nothing else."""
    value, end = _json(text, at)
    values = value if isinstance(value, list) else [value]
    if not values or not all(map(_has_arguments, values)):
        raise ValueError
    return [_call(v) for v in values], end


def _has_arguments(value: Json) -> bool:
    function = value.get("function", value) if isinstance(value, dict) else None
    return isinstance(function, dict) and ("arguments" in function or "parameters" in function)


def _last_lines(text: str) -> tuple[str, list[ToolCall]]:
    lines, calls = text.split("\n"), list[ToolCall]()
    with contextlib.suppress(ValueError, RecursionError):
        while lines:
            line = lines[-1].strip().rstrip(";")
            last, end = _json_calls(line, 0)
            if end != len(line):
                break
            calls = [*last, *calls]
            lines.pop()
    return "\n".join(lines), calls


# -- calls with arguments in tags


def _types(tools: Sequence[Tool]) -> Types:
    functions = [t["function"] for t in tools]
    return {f["name"]: {k: _types_of(v) for k, v in properties(f.get("parameters")).items()} for f in functions}


def _types_of(schema: Json) -> frozenset[str]:
    """The types that a JSON schema allows; empty if it does not say."""
    if not isinstance(schema, dict):
        return frozenset()
    given, choices = schema.get("type"), [schema.get(key) for key in ("anyOf", "oneOf")]
    own = [t for t in (given if isinstance(given, list) else [given]) if isinstance(t, str)]
    inner = [_types_of(s) for choice in choices if isinstance(choice, list) for s in choice]
    return frozenset(own).union(*inner)


def _value(text: str, types: frozenset[str]) -> Json:
    """The value of a text between tags."""
    bare = text.strip()
    if types == {"string"} or ("string" in types and bare not in ("null", "None")):
        return text
    if bare in PYTHON_WORDS:
        return PYTHON_WORDS[bare]
    try:
        value, end = _json(bare, 0)
    except (ValueError, RecursionError):
        return text
    return value if end == len(bare) and not isinstance(value, str) else text


PYTHON_WORDS = {"None": None, "True": True, "False": False}


def _tagged(pair: str, end: str) -> Read:
    """One call, whose name the mark contains and whose arguments are pairs of key and value in tags, up to ``end``."""
    pairs, ends = re.compile(rf"\s*(?:{pair})", re.S), re.compile(rf"\s*(?:{end})")

    def read(text: str, match: re.Match[str], types: Types) -> tuple[list[ToolCall], int]:
        arguments: dict[str, Json] = {}
        declared, at = types.get(match["name"], {}), match.end()
        while (argument := pairs.match(text, at)) is not None:
            key = argument["key"].strip()
            arguments[key] = _value(argument["value"], declared.get(key, frozenset()))
            at = argument.end()
        closing = ends.match(text, at)
        if closing is None:
            raise ValueError
        return [ToolCall(match["name"], arguments)], closing.end()

    return read


# -- calls as in Python, and in Gemma's notation


def _literal(text: str, at: int) -> tuple[Json, int]:
    """The value at a place, as JSON, Python or Gemma write it: keys may be bare, quotes are " or ' or <|"|>."""
    at = _after(r"\s*", text, at)
    if text.startswith(GEMMA_QUOTE, at):
        end = text.index(GEMMA_QUOTE, at + len(GEMMA_QUOTE))
        return text[at + len(GEMMA_QUOTE) : end], end + len(GEMMA_QUOTE)
    if text[at : at + 1] == "{":
        return _object(text, at)
    if text[at : at + 1] == "[":
        return _list(text, at)
    if text[at : at + 1] == '"':
        return _json(text, at)
    if text[at : at + 1] == "'":
        return _single_quoted(text, at)
    word = re.compile(r"[^\s,:(){}\[\]]+").match(text, at)
    if word is None:
        raise ValueError
    return PYTHON_WORDS[word[0]] if word[0] in PYTHON_WORDS else _DECODER.decode(word[0]), word.end()


GEMMA_QUOTE = '<|"|>'


def _list(text: str, at: int) -> tuple[list[Json], int]:
    items: list[Json] = []
    at = _after(r"\s*", text, at + 1)
    while text[at : at + 1] != "]":
        value, at = _literal(text, at)
        items.append(value)
        at = _expect(r"\s*,\s*|\s*(?=\])", text, at)
    return items, at + 1


def _object(text: str, at: int) -> tuple[dict[str, Json], int]:
    items: dict[str, Json] = {}
    at = _after(r"\s*", text, at + 1)
    while text[at : at + 1] != "}":
        bare = re.compile(r"[^\s:'\"<{}\[\],]+(?=\s*:)").match(text, at)
        key, at = (bare[0], bare.end()) if bare else _literal(text, at)
        if not isinstance(key, str):
            raise ValueError
        items[key], at = _literal(text, _expect(r"\s*:", text, at))
        at = _expect(r"\s*,\s*|\s*(?=\})", text, at)
    return items, at + 1


def _expect(pattern: str, text: str, at: int) -> int:
    match = re.compile(pattern).match(text, at)
    if match is None:
        raise ValueError
    return match.end()


def _single_quoted(text: str, at: int) -> tuple[str, int]:
    """A text in single quotes. LFM's template writes an apostrophe in it as it is: only a quote before a comma or a
    bracket ends the text."""
    match = re.compile(r"'((?:[^'\\]|\\.|'(?!\s*[,)\]}]))*)'", re.S).match(text, at)
    if match is None:
        raise ValueError
    escaped = re.sub(r'(?<!\\)((?:\\\\)*)"', r'\1\\"', match[1]).replace("\\'", "'")
    return str(_DECODER.decode(f'"{escaped}"')), match.end()


def _gemma(text: str, match: re.Match[str], types: Types) -> tuple[list[ToolCall], int]:
    arguments, at = _object(text, match.end())
    return [ToolCall(match["name"], arguments)], _after(r"\s*<tool_call\|>", text, at)


def _python(text: str, match: re.Match[str], types: Types) -> tuple[list[ToolCall], int]:
    calls, at = _python_calls(text, match.end())
    return calls, _after(r"\s*<\|tool_call_end\|>", text, at)


def _python_calls(text: str, at: int) -> tuple[list[ToolCall], int]:
    """``[NAME(KEY=VALUE, ...), ...]``"""
    calls: list[ToolCall] = []
    at = _expect(r"\s*\[\s*", text, at)
    while text[at : at + 1] != "]":
        name = re.compile(rf"{NAME}\(\s*").match(text, at)
        if name is None:
            raise ValueError
        arguments, at = dict[str, Json](), name.end()
        while text[at : at + 1] != ")":
            key = re.compile(r"([^\s=(),'\"]+)\s*=").match(text, at)
            if key is None:
                raise ValueError
            arguments[key[1]], at = _literal(text, key.end())
            at = _expect(r"\s*,\s*|\s*(?=\))", text, at)
        calls.append(ToolCall(name["name"], arguments))
        at = _expect(r"\s*,\s*|\s*(?=\])", text, at + 1)
    if not calls:
        raise ValueError
    return calls, at + 1


# -- the notations

# White space is looked for from its beginning only: from each of its places would take quadratic time.
_SPACE = r"(?<!\s)\s*"
_HARMONY = rf"(?:<\|start\|>assistant)?(?:<\|channel\|>commentary)?{_SPACE}to=(?:functions\.)?"
_ATEM = rf"(?:(?:<\|start\|>assistant)?{_SPACE}to=[\w.-]+<\|message\|>)?"
_DEEPSEEK = r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?"
NOTATIONS: tuple[tuple[re.Pattern[str], Read], ...] = (
    (
        re.compile(rf"(?:<tool_call>\s*)?<function={NAME}>(?=\s*(?:<parameter=|</function>))"),
        _tagged(r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>", r"</function>(?:\s*</tool_call>)?|$"),
    ),
    (re.compile(rf"<function={NAME}>"), _named("</function>")),
    (
        re.compile(rf"<tool_call>\s*{NAME}(?=\s*(?:<arg_key>|</tool_call>))"),
        _tagged(r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>", r"</tool_call>|$"),
    ),
    (re.compile(r"<\|?tool_call\|?>(?!\s*call:)"), _listed(r"</tool_call>|<\|/tool_call\|>")),
    (
        re.compile(
            rf'{_ATEM}(?:<[\w:｜]*(?:function_calls|tool_call)>)?{_SPACE}<[\w:｜]*invoke name="(?P<name>[^"\n]+)">'
        ),
        _tagged(
            r'<[\w:｜]*parameter name="(?P<key>[^"\n]+)"[^>]*>(?P<value>.*?)</[\w:｜]*parameter>',
            r"</[\w:｜]*invoke>(?:\s*</[\w:｜]*(?:function_calls|tool_call)>)?|$",
        ),
    ),
    (re.compile(rf"{_HARMONY}{NAME}\s*(?:<\|\w+\|>[\w ]*)*<\|message\|>"), _named(r"<\|call\|>")),
    (re.compile(rf"{_DEEPSEEK}{NAME}(?:\s*```json|<｜tool▁sep｜>)"), _named(r"(?:```)?\s*<｜tool▁call▁end｜>")),
    (
        re.compile(r"<\|tool_call_begin\|>(?:functions\.)?(?P<name>[\w./-]+)(?::\d+)?<\|tool_call_argument_begin\|>"),
        _named(r"<\|tool_call_end\|>"),
    ),
    (re.compile(rf"\[TOOL_CALLS\]\s*{NAME}(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?(?=\s*\{{)"), _named("")),
    (re.compile(r"\[TOOL_CALLS\]|<\|python_tag\|>|<\|START_ACTION\|>"), _listed(r"<\|END_ACTION\|>")),
    (re.compile(rf"(?:<\|tool_call>)?call:{NAME}(?=\{{)"), _gemma),
    (re.compile(r"<\|tool_call_start\|>"), _python),
)
# Thoughts before an answer, in tags or in a channel. Where the prompt opens the thought, the text has only its end.
_OPEN = (
    rf"<\|channel\|>analysis<\|message\|>|(?:<\|start\|>assistant)?{_SPACE}to=self<\|message\|>|<\|channel>thought\n"
)
_CLOSE = r"<\|end\|>|<\|eom\|>|<channel\|>"
THOUGHTS = re.compile(rf"^.*?</think>|(?:{_OPEN})(?:(?!{_OPEN}).)*?(?:{_CLOSE})", re.S)
TAGS = re.compile(rf"</?think>|{_OPEN}|{_CLOSE}")
# What surrounds calls and contents without being part of them.
MARKS = re.compile(
    r"<｜tool▁calls▁(?:begin|end)｜>|<\|tool_calls_section_(?:begin|end)\|>"
    rf"|(?:<\|start\|>assistant)?(?:{_SPACE}to=user)?(?:<\|channel\|>(?:final|commentary))?<\|message\|>|<\|e(?:om|nd)\|>"
)
