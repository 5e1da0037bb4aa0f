"""A page of the rows of a file, as JSON: the audit, and a part of the rows, each with the reasons why it is flagged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tunewright.core.records import Audit
from tunewright.data.dataset import Dataset
from tunewright.data.messages import to_json
from tunewright.tokens.template import has_thoughts

MOST_EDITED = 32 << 20  # bytes of a file whose rows can be edited in a browser
MOST_CHARACTERS = 200_000  # of a row that is shown


@dataclass(frozen=True)
class Part:
    """Which rows are shown: ``count`` of them, from the ``start``-th of all or of those that are ``flagged``."""

    start: int
    count: int
    flagged: bool


def page(data: Dataset, file: Path, part: Part) -> dict[str, object]:
    audit = Audit.model_validate(data.audit_json(), strict=False)
    reasons, end = audit.reasons(), part.start + part.count
    chosen = sorted(reasons) if part.flagged else range(len(data.examples))
    return {
        "audit": audit.model_dump(mode="json"),
        "rows": [
            {
                "number": i,
                "side": data.sides[i],
                "reasons": reasons.get(i, []),
                "where": data.examples[i].where,
                "example": to_json(data.examples[i]) if len(data.examples[i].text) <= MOST_CHARACTERS else None,
            }
            for i in islice(chosen, part.start, end)
        ],
        "flags": len(reasons),
        "more": end if end < len(chosen) else None,
        "thoughts": has_thoughts(data.examples),
        "are_lines": _are_lines(file),
    }


def _are_lines(file: Path) -> bool:
    """Whether each row is a line, so that it can be edited."""
    if file.stat().st_size > MOST_EDITED:
        return False
    try:
        lines = file.read_bytes().split(b"\n")
        return all(isinstance(json.loads(line), dict) for line in lines if line.strip())
    except (ValueError, RecursionError):
        return False
