"""Messages: singular and plural, one line for one cause."""

from __future__ import annotations

from tunewright.core.errors import DataError, Problem
from tunewright.core.words import counted, on_one_line


def test_one_is_singular() -> None:
    assert [counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert counted(2, "loss", "losses") == "2 losses"


def test_problems_of_one_cause_are_one_line() -> None:
    same = [Problem("DATA_FIELD_TYPE", "it is a list.", f"a.jsonl:{i}", "write a text.") for i in range(1, 41)]
    other = Problem("DATA_FIELD_TYPE", "it is a number.", "a.jsonl:50", "write a text.")
    text = str(DataError([*same, other]))
    assert text.splitlines() == [
        "[DATA_FIELD_TYPE] a.jsonl:1: it is a list (and in 39 more rows: a.jsonl:2, a.jsonl:3, a.jsonl:4, ...). "
        "Fix: write a text.",
        "[DATA_FIELD_TYPE] a.jsonl:50: it is a number. Fix: write a text.",
    ]
    different = [Problem("DATA_LABEL", f"label {'abcdefghijklmnopqrstuvwxyzäöüß'[i]}.", f"a:{i}") for i in range(30)]
    numbers = [Problem("DATA_LABEL", f"'a' is {n / 7} ({n}).", f"a:{n}") for n in range(1, 30)]
    assert len(str(DataError(numbers)).splitlines()) == 1, "values of rows make no difference"
    assert str(DataError([*different, *same])).endswith("... and 50 more (use --json to see them all)")


def test_a_text_of_a_user_stays_on_one_line() -> None:
    assert on_one_line("a\nb\u202e\x1b[31m é 日本 👩‍🚀") == r"a\nb\u202e\x1b[31m é 日本 👩‍🚀"
    assert "\n" not in str(DataError([Problem("DATA_LABEL", "a\nerror[FAKE] x", "a:1")]))
