"""The table of row forms in docs/guide-data.md: the samples of tests/data/formats/forms.json, as they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunewright.core.errors import DataError
from tunewright.data import formats
from tunewright.data.formats import RowSettings
from tunewright.data.sources import Row

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "tests" / "data" / "formats" / "forms.json"
NAMES = ("role", "from", "type")  # fields whose text the table shows
ITEMS = {"tools": 0, "functions": 0, "tool_calls": 1}  # field -> the number of items that the table shows
MESSAGES = 3  # the same, for other fields


def table() -> str:
    samples = json.loads(SAMPLES.read_text(encoding="utf-8"))
    refused = sum("refused" in s for s in samples)
    head = f"{len(samples)} forms; {len(samples) - refused} are read, {refused} are refused.\n\n"
    lines = ["| documented by | form | a row | read as |", "|---|---|---|---|"]
    lines += [f"| {s['source']} | {s['form']} | `{_cell(_short(s['row']))}` | {_outcome(s)} |" for s in samples]
    return head + "\n".join(lines) + "\n"


def _outcome(sample: dict[str, Any]) -> str:
    """The format, or the error, from the reader itself."""
    settings = sample.get("settings", {})
    try:
        parsed = formats.parse([Row(sample["row"], "")], RowSettings(**settings))
    except DataError as error:
        problem = error.problems[0]
        return _cell(f"refused, `{problem.code}`: {problem.message}")
    names = ", ".join(settings.get("label_names", ()))
    method = {
        "preference": "a preference method",
        "rewards": "`train.method=grpo`",
        "rated": "`train.method=kto`",
        "tags": "`train.method=tag`",
    }
    needed = [f"`data.label_names='[{names}]'`"] if names else []
    needed += [text for key, text in method.items() if settings.get(key)][:1]
    return f"`{parsed.format}`" + (f" with {' and '.join(needed)}" if needed else "")


def _short(value: Any, name: str = "") -> str:
    """The shape of a value: names of fields and roles, flags and numbers; texts as "…", JSON in texts as "{…}"."""
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{k}": {_short(v, k)}' for k, v in value.items()) + "}"
    if isinstance(value, list):
        count = ITEMS.get(name, MESSAGES)
        shown = [_short(v) for v in value[:count]] + (["…"] if len(value) > count else [])
        return "[" + ", ".join(shown) + "]"
    if isinstance(value, str) and name not in NAMES and value:
        return {"{": '"{…}"', "[": '"[…]"'}.get(value[0], '"<think>…</think>…"' if "</think>" in value else '"…"')
    return json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
