"""Text as it is compared: in a normal form, and as a hash of that form."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from tunewright.data.tool_calls import split_thoughts

# In compatibility form, a raised digit is an ordinary one: 5² becomes 52, and ㎡ becomes m2.
_POWER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_UNITS = {0x339F + i: unit for i, unit in enumerate(("mm²", "cm²", "m²", "km²", "mm³", "cm³", "m³", "km³"))}


def normalised(text: str) -> str:
    """``text`` in Unicode compatibility form, case and white space folded: equal for texts that read nearly the
    same, and belong on one side of the split."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def as_answer(text: str) -> str:
    """`normalised`, with powers: equal for answers that count as the same, as 5² and 5^2, but not 52."""
    return normalised(_POWER.sub(lambda power: "^" + power[0].replace("⁻", "-"), text.translate(_UNITS)))


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
