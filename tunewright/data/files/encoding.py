"""Bytes -> text, by the encoding that is set, or, if it is "auto", by the one that a file seems to have."""

from __future__ import annotations

import re
from contextlib import suppress

from tunewright.core.errors import data_error
from tunewright.core.pii import excerpt
from tunewright.data.files.rows import AUTO, FileSettings
from tunewright.data.remedies.change import Change

BOM = "\ufeff"
NEWLINE = b"\n"
WESTERN = "cp1252"
# Western European text has few letters outside ASCII; more of them are another alphabet, or no text.
MOST_WESTERN = 0.15


def decode(raw: bytearray, name: str, how: FileSettings) -> tuple[str, list[Change]]:
    """The text of a file, and what "auto" made of its lines. Raises DATA_ENCODING with the line and the setting."""
    codec = "utf-8" if how.encoding == AUTO else how.encoding
    wide = codec == "utf-8" and _wide(raw)  # UTF-16 of ASCII is also valid UTF-8
    try:
        if not wide:
            return raw.decode(codec), []
        at = 0
    except UnicodeError as error:
        at = error.start if isinstance(error, UnicodeDecodeError) else 0
    if how.encoding == AUTO and (repaired := _repaired(raw, name)):
        return repaired
    message, fix = _advice(raw, codec, at)
    raise data_error("DATA_ENCODING", message, where=f"{name}:{raw.count(NEWLINE, 0, at) + 1}", fix=fix)


def _advice(raw: bytearray, codec: str, at: int) -> tuple[str, str]:
    """What is wrong at byte ``at``, and the setting that may solve it."""
    message, guess = f"byte {at} is not valid {codec.upper()}", _guess(raw)
    if not guess or guess == codec:
        return f"{message}.", "set data.encoding=... to the encoding of the file."
    if guess == WESTERN:  # other lines, and other files, may be UTF-8
        message = f"the line is not valid {codec.upper()}; it looks like {guess}."
        return message, f"set data.encoding={AUTO}, which decides line by line."
    return f"the file looks like {guess.upper()}.", f"set data.encoding={guess}."


def _wide(raw: bytearray) -> str:
    """The codec of a text whose characters seem to have two bytes; empty for others."""
    head = bytes(raw[:4000])
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    zeros = [head[k::2].count(0) for k in (0, 1)]
    if len(head) < 16 or max(zeros) <= max(len(head) / 4, 4 * min(zeros)):
        return ""
    return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"


def _guess(raw: bytearray) -> str:
    """The codec that a text seems to have; empty if it is none that can be recognised."""
    if wide := _wide(raw):
        return wide
    with suppress(UnicodeDecodeError):
        return raw.decode("utf-8") and "utf-8"
    high = len(re.findall(rb"[\x80-\xff]", raw))
    return WESTERN if high <= MOST_WESTERN * len(raw) and 0 not in raw[:4000] else ""


def _repaired(raw: bytearray, name: str) -> tuple[str, list[Change]] | None:
    """UTF-16, or UTF-8 of which some lines, or all, are Windows-1252; None if it is neither."""
    guess = _guess(raw)
    if guess.startswith("utf-16"):
        try:
            text = raw.decode(guess)
        except UnicodeError:
            return None
        return text, [_change(f"{name}:1", f"read as {guess.upper()}")]
    if not guess:
        return None
    lines: list[str] = []
    changes: list[Change] = []
    for number, line in enumerate(raw.split(NEWLINE), 1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            # Five bytes have no character in Windows-1252; latin-1 makes control characters of them.
            lines.append("".join(_western(byte) for byte in line))
            around = excerpt(lines[-1], error.start)
            changes.append(_change(f"{name}:{number}", f"read as Windows-1252: `{around}`"))
    return "\n".join(lines), changes


def _western(byte: int) -> str:
    return bytes([byte]).decode(WESTERN, "ignore") or chr(byte)


def _change(where: str, message: str) -> Change:
    return Change(where, "DATA_ENCODING", f"data.encoding={AUTO}", message, dropped=False)
