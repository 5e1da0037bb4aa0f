"""Secrets and personal data: detected by pattern and checksum, counted by row, masked wherever rows are shown.

Matches are reported; their absence proves nothing, because the recall of such patterns is unknown. Every repetition in
a pattern is bounded, so that no text takes long to match.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

_PATTERNS = {
    "private key": re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\w+/=\s]{0,8000}"),
    "access key": re.compile(
        r"\b(?:AKIA[0-9A-Z]{16}|AIza[\w-]{35}|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}|glpat-[\w-]{20,64}|hf_[A-Za-z0-9]{30,64}"
        r"|npm_[A-Za-z0-9]{36}|pypi-[\w-]{40,255}|sk-[\w-]{20,255}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,255}|xox[abeprs]-[A-Za-z0-9-]{10,255}"
        r"|eyJ[\w-]{8,4000}\.eyJ[\w-]{8,4000}\.[\w-]{8,4000})"
    ),
    "password": re.compile(
        r"(?i)\b(?:password|passwd|passphrase|secret|api[ _-]?key|access[ _-]?token)"
        r"[\"']?\s{0,3}[:=]\s{0,3}[\"']?([^\s\"',;]{8,200})"
    ),
    "e-mail address": re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b"),
    "card number": re.compile(r"\b(?<!\d\.)[2-6](?:[ -]?\d){12,18}\b(?!\.\d)"),
    "bank account (IBAN)": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "phone number": re.compile(
        r"(?<![\w+])\+\d{1,3}(?:[ .()/-]{0,2}\d){7,12}(?!\d)|(?<![\w-])(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?![\w-])"
    ),
    "social security number": re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"),
}


def kinds(text: str) -> set[str]:
    """The kinds of private data that occur in a text."""
    return {name for name, _, _ in _matches(text)}


def masked(text: str, *, in_place: bool = False) -> str:
    """The text with every match replaced by ``[kind]``, or, if ``in_place``, by stars that preserve offsets."""
    parts, at = [], 0
    for name, start, end in sorted(_matches(text), key=lambda f: (f[1], -f[2])):
        if start >= at:
            parts += [text[at:start], "*" * (end - start) if in_place else f"[{name}]"]
        elif in_place and end > at:
            parts.append("*" * (end - at))
        at = max(at, end)
    return "".join([*parts, text[at:]])


def excerpt(text: str, at: int, width: int = 20) -> str:
    """What is around a place in a text, masked, on one line."""
    start = max(0, at - 500)  # far enough back to recognise private data that the excerpt cuts off
    around = masked(text[start : at + 500], in_place=True)
    return " ".join(around[max(0, at - start - width) : at - start + width].split())


def _matches(text: str) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end) of every match; its checksum, if its kind has one, must be valid."""
    for name, pattern in _PATTERNS.items():
        for m in pattern.finditer(text):
            group = pattern.groups
            if _VALIDATORS.get(name, bool)(m[group]):
                yield name, m.start(group), m.end(group)


def _card(text: str) -> bool:
    """The check of Luhn; of 13 digits, such as times in milliseconds, only those that Visa had are cards."""
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d * 2 - 9 * (d > 4) if i % 2 else d for i, d in enumerate(reversed(digits))]
    return len(set(digits)) > 1 and sum(doubled) % 10 == 0 and (len(digits) > 13 or digits[0] == 4)


def _iban(text: str) -> bool:
    """The ISO 13616 check: move the first four characters to the end, read letters as numbers; modulo 97 must be 1."""
    plain = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _looks_random(text: str) -> bool:
    """Letters mixed with digits, with more Shannon entropy per character than ordinary words usually have."""
    frequencies = [n / len(text) for n in Counter(text).values()]
    bits = -sum(p * math.log2(p) for p in frequencies)
    return bits >= 2.5 and any(c.isdigit() for c in text) and any(c.isalpha() for c in text)


_VALIDATORS: dict[str, Callable[[str], bool]] = {
    "card number": _card,
    "bank account (IBAN)": _iban,
    "password": _looks_random,
}
