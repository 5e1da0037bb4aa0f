"""Runs whose answers are arrays, and runs whose answers call tools: errors by field, validity, schema, report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build import read

from tunewright import api

NAMES = ["Ann", "Bob", "Cid", "Dee", "Eve", "Flo", "Gus"]
PLAIN: dict[str, Any] = {
    "threads": 1,
    "train__steps": 2,
    "train__batch_size": 4,
    "train__dtype": "float32",
    "prove__evidence": "plain",
    "prove__few_shot": [1],
    "prove__max_new_tokens": 24,
    "prove__max_test_rows": 6,
    "prove__max_dev_rows": 3,
    "export__to": ["adapter"],
}


def run(folder: Path, rows: list[dict[str, Any]], model: Path, **settings: Any) -> api.Result:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return api.run(folder / "rows.jsonl", model=str(model), name="r", root=folder, **{**PLAIN, **settings})


def question(i: int) -> str:
    return f"{NAMES[i % 7]} met {NAMES[i // 7]} at number {i * 37 % 101}"


def test_a_run_on_arrays(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    people = [[{"name": NAMES[i % 7], "at": i % 3}, {"name": NAMES[i // 7], "at": 1}] for i in range(48)]
    rows = [{"prompt": question(i), "completion": json.dumps(p)} for i, p in enumerate(people)]
    done = run(tmp_path, rows, model_folder("llama"), prove__list_order="counted", prove__number_tolerance=0.01)
    verdict = done.verdict
    assert (verdict["task"], verdict["metric"]) == ("json", "field_f1")
    assert set(verdict["arms"]["tuned"]["summary"]) >= {"field_micro_f1", "valid_json", "schema_valid", "exact_match"}
    by_path = {field["path"]: field for field in verdict["fields"]}
    assert {"[].name", "[].at"} <= set(by_path)
    assert sum(sum(by_path["[].name"][arm][i] for i in (0, 2)) for arm in ("tuned", "comparator")) == 2 * 2 * 6
    assert by_path["[].name"]["example"]["where"].endswith(tuple(f"rows.jsonl:{n}" for n in range(1, 49)))
    protocol = read(done.path, "protocol")
    assert (protocol["list_order"], protocol["number_tolerance"]) == ("counted", 0.01)
    schema = read(done.path, "data/audit")["answer_schema"]["json_schema"]
    assert schema["items"]["required"] == ["name", "at"]
    page = re.sub(r"<[^>]+>", " ", done.report.read_text())
    assert "Which fields are wrong?" in page
    assert "The order of lists is counted." in page
    assert "differ by at most 1.00%" in page


def test_a_run_on_tool_calls(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    parameters = {"type": "object", "properties": {"who": {"type": "string"}}, "required": ["who"]}
    tools = [{"type": "function", "function": {"name": "find", "description": "Find.", "parameters": parameters}}]

    def answer(i: int) -> dict[str, Any]:
        if i % 4 == 0:
            return {"role": "assistant", "content": f"I know no {NAMES[i % 7]}."}
        call = {"name": "find", "arguments": json.dumps({"who": NAMES[i % 7]})}
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}

    rows = [{"messages": [{"role": "user", "content": question(i)}, answer(i)], "tools": tools} for i in range(48)]
    done = run(tmp_path, rows, model_folder("llama"), template="chatml-tools")
    verdict = done.verdict
    assert (verdict["task"], verdict["metric"]) == ("tool_calls", "field_f1")
    assert set(verdict["arms"]["tuned"]["summary"]) >= {"field_micro_f1", "valid_calls", "exact_match"}
    assert {"find()", "find().who", "(no call)"} >= {field["path"] for field in verdict["fields"]}
    assert "find()" in {field["path"] for field in verdict["fields"]}
    assert "answer_schema" not in read(done.path, "data/audit")
    assert verdict["arms"]["tuned"]["score"] == pytest.approx(
        sum(json.loads(x)["score"] for x in (done.path / "scores" / "tuned.jsonl").read_text().splitlines()) / 6
    )
