"""Text as it is compared: in a normal form, and as a hash of that form."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from tunewright.data.tool_calls import THOUGHTS


def normalised(text: str) -> str:
    """``text`` in Unicode compatibility form, case and white space folded: equal for texts that read the same."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def content_hash(text: str) -> str:
    return hashlib.sha256(normalised(text).encode("utf-8", "surrogatepass")).hexdigest()


def without_thoughts(answer: str, target: str) -> str:
    """An answer without the thoughts before it, unless the target has some too; empty if the thoughts do not end."""
    if "</think>" in target:
        return answer
    rest = THOUGHTS.sub("", answer)
    if rest == answer:
        return "" if re.match(r"\s*<think>", answer) else answer
    return rest.lstrip()
