"""A reader of Modelfiles, written after the grammar of Ollama's own (its state machine, its treatment of quotes and of
characters that Go does not print). Not a copy: Ollama's rules, in Python."""

from __future__ import annotations

import unicodedata

COMMANDS = "from|license|template|system|adapter|draft|renderer|parser|parameter|message|requires"


class ModelfileError(Exception):
    pass


def parse(text: str) -> list[tuple[str, str]]:
    """(command, value) of every command; a parameter is a command of its own name, FROM is called model."""
    commands: list[tuple[str, str]] = []
    at, state, name, buffer = 0, "nothing", "", ""
    while at < len(text):
        c, at = text[at], at + 1
        space, newline = c in " \t", c in "\r\n"
        if state == "nothing":
            if c == "#":
                state = "comment"
            elif not (space or newline):
                state, buffer = "name", c if printed(c) else ""
        elif state == "comment":
            state = "nothing" if newline else state
        elif state == "name":
            if space:
                if buffer.lower() not in COMMANDS.split("|"):
                    raise ModelfileError(buffer)
                state = "parameter" if buffer.lower() == "parameter" else "value"
                name, buffer = {"from": "model"}.get(buffer.lower(), buffer.lower()), ""
            elif c.isascii() and c.isalpha():
                buffer += c
            else:
                raise ModelfileError(buffer + c)
        elif state == "parameter":
            if space:
                state, name, buffer = "value", buffer, ""
            elif c.isascii() and (c.isalnum() or c == "_"):
                buffer += c
            else:
                raise ModelfileError(buffer + c)
        elif space or newline:  # a value ends at a newline, unless it is in quotes that are open
            value = unquoted(buffer.strip())
            if value is None or space:
                buffer += c
            else:
                commands.append((name, value))
                state, buffer = "nothing", ""
        elif printed(c):
            buffer += c
    if state == "value" and (last := unquoted(buffer.strip())) is not None:
        commands.append((name, last))
    elif state != "nothing" and state != "comment":
        raise ModelfileError("unexpected end")
    return commands


def unquoted(text: str) -> str | None:
    for mark in ('"""', '"'):
        if text.startswith(mark):
            closed = len(text) >= 2 * len(mark) and text.endswith(mark)
            return text[len(mark) : -len(mark)] if closed else None
    return text


def printed(c: str) -> bool:
    """Go's strconv.IsPrint: letters, marks, numbers, punctuation, symbols, and the ASCII space."""
    return c == " " or unicodedata.category(c)[0] in "LMNPS"
