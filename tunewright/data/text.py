"""Text as it is compared: in a normal form, and as a hash of that form."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from tunewright.data.tool_calls import split_thoughts


def normalised(text: str) -> str:
    """``text`` in Unicode compatibility form, case and white space folded: equal for texts that read the same."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def exact(text: str) -> str:
    """``text`` with white space folded, and otherwise as it is: x² is not x2, and Polish is not polish."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def content_hash(text: str) -> str:
    return hashlib.sha256(normalised(text).encode("utf-8", "surrogatepass")).hexdigest()


def without_thoughts(answer: str) -> str:
    """A generated answer without the thoughts before it; empty if they do not end. Targets have none."""
    rest = split_thoughts(answer)[1]
    if rest == answer:
        return "" if re.match(r"\s*<think>", answer) else answer
    return rest.lstrip()
