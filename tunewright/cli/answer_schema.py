"""The schema of structured answers, as `tunewright check` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from tunewright.core.records import AnswerSchema

SHOWN = 30  # fields


def lines(schema: AnswerSchema) -> Iterator[str]:
    satisfied = ", ".join(f"{fraction:.1%} of {side}" for side, fraction in schema.satisfied.items())
    source = "inferred from the training answers" if schema.source == "inferred" else schema.source
    yield f"schema of the answers: {source}; satisfied by {satisfied} (--json shows it)"
    for path, description in list(schema.fields.items())[:SHOWN]:
        yield f"  {path or 'answer'}: {description}"
    if len(schema.fields) > SHOWN:
        yield f"  ... and {len(schema.fields) - SHOWN} more fields"
