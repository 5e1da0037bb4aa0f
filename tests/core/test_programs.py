"""A program that fails is reported with its last line."""

from __future__ import annotations

import sys

import pytest

from tunewright.core import programs


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", None),
        ("import sys; print('fine', file=sys.stderr)", None),
        ("import sys; print('out'); sys.exit('first\\nlast\\n\\n')", "last"),
        ("print('a'); print('b'); raise SystemExit(1)", "b"),
        ("raise SystemExit(3)", "no output"),
        ("import os; os.write(2, b'caf\\xe9'); os._exit(1)", "caf\N{REPLACEMENT CHARACTER}"),
        ("raise SystemExit('x' * 9000)", "x" * 300),
    ],
)
def test_the_last_line_says_why_it_failed(code: str, expected: str | None) -> None:
    assert programs.failure([sys.executable, "-c", code]) == expected
