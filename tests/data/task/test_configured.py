"""Settings of structured answers: they reach the task, or are rejected where they have no effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunewright.core import config
from tunewright.core.errors import DataError
from tunewright.core.records import Audit
from tunewright.data import dataset
from tunewright.data.dataset import Dataset
from tunewright.data.structure.comparison import Rules

NOUNS = [
    "apples",
    "boats",
    "clouds",
    "drums",
    "eagles",
    "forests",
    "gates",
    "hills",
    "islands",
    "jars",
    "kites",
    "lakes",
]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 20}, "kind": {"enum": ["a", "b"]}},
    "required": ["n"],
}


def rows(file: Path, answers: list[Any]) -> Path:
    lines = [
        json.dumps({"prompt": f"{NOUNS[i % 12]} and {NOUNS[i // 12]}, number {i * 37 % 101}", "completion": a})
        for i, a in enumerate(answers)
    ]
    file.write_text("\n".join(lines))
    return file


def objects(folder: Path, count: int = 40) -> Path:
    return rows(folder / "a.jsonl", [json.dumps({"n": i, "kind": "ab"[i % 2]}) for i in range(count)])


def load(file: Path, **settings: Any) -> Dataset:
    return dataset.load(config.load(None, data__train=str(file), **settings))


def test_rules_reach_the_task(tmp_path: Path) -> None:
    data = load(objects(tmp_path), prove__list_order="counted", prove__number_tolerance=0.05)
    assert data.task.rules == Rules(ordered=True, tolerance=0.05)
    assert load(objects(tmp_path)).task.rules == Rules()


def test_a_schema_is_inferred_from_the_training_answers(tmp_path: Path) -> None:
    data = load(objects(tmp_path, 60))
    shown = data.answer_schema
    assert shown is not None
    assert (shown.source, shown.satisfied) == ("inferred", {"dev": 1.0, "test": 1.0})
    assert shown.fields == {"n": "integer, always present", "kind": "text, one of: a, b, always present"}
    assert not [f for f in data.findings() if f.code == "SCHEMA_VIOLATED"]
    Audit.model_validate(data.audit_json(), strict=False)


def test_answers_that_violate_the_users_schema_are_a_finding_with_their_rows(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    data = load(objects(tmp_path), data__answer_schema=str(tmp_path / "s.json"))
    (finding,) = [f for f in data.findings() if f.code == "SCHEMA_VIOLATED"]
    assert finding.rows == tuple(range(21, 40))
    assert finding.message == "19 answers do not satisfy data.answer_schema; the first: $.n: maximum 20"
    assert data.answer_schema is not None
    assert data.answer_schema.source.endswith("s.json")
    assert data.answer_schema.satisfied["train"] < 0.9
    where = Audit.model_validate(data.audit_json(), strict=False).findings[0].where
    assert where[0].endswith("a.jsonl:22")


@pytest.mark.parametrize("key", ["prove__list_order", "prove__number_tolerance", "data__answer_schema"])
def test_a_setting_without_effect_is_an_error(tmp_path: Path, key: str) -> None:
    value = {"prove__list_order": "counted", "prove__number_tolerance": 0.1, "data__answer_schema": "s.json"}[key]
    file = rows(tmp_path / "a.jsonl", ["yes", "no"] * 20)
    with pytest.raises(DataError, match=r"DATA_FORMAT_MISMATCH.*has no effect for a label task") as caught:
        load(file, **{key: value})
    assert caught.value.where == key.replace("__", ".")


def test_a_schema_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="DATA_SCHEMA"):
        load(objects(tmp_path), data__answer_schema=str(tmp_path / "none.json"))


def test_a_relative_schema_file_is_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    objects(tmp_path)
    (tmp_path / "c.yaml").write_text("data:\n  train: a.jsonl\n  answer_schema: s.json\n")
    assert dataset.load(config.load(tmp_path / "c.yaml")).answer_schema is not None


def test_calls_that_rows_do_not_allow_are_findings(tmp_path: Path) -> None:
    def line(i: int, name: str, arguments: dict[str, Any], parameters: dict[str, Any]) -> str:
        call = {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        user = {"role": "user", "content": f"{NOUNS[i]} number {i * 37 % 101}"}
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        return json.dumps(
            {"messages": [user, {"role": "assistant", "content": None, "tool_calls": [call]}], "tools": [tool]}
        )

    good = {"type": "object", "properties": {"n": {"type": "integer"}}}
    lines = [line(i, "f", {"n": i}, good) for i in range(9)]
    lines += [line(9, "g", {}, good), line(10, "f", {"n": "x"}, good), line(11, "f", {}, {"type": "dict"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    data = load(tmp_path / "a.jsonl")
    assert data.task.kind.name == "tool_calls"
    findings = {f.code: f for f in data.findings()}
    assert findings["CALLS_INVALID"].rows == (9, 10)
    assert "the tool 'g' is not declared" in findings["CALLS_INVALID"].message
    assert findings["TOOLS_INVALID"].rows == (11,)
    assert findings["TOOLS_INVALID"].message.startswith("1 row declares a tool")


def test_targets_that_differ_in_the_order_of_keys_do_not_contradict_each_other(tmp_path: Path) -> None:
    answers = [json.dumps({"n": i, "kind": "a"}) for i in range(20)]
    file = rows(tmp_path / "a.jsonl", answers)
    prompt = json.loads(file.read_text().splitlines()[0])["prompt"]
    with file.open("a") as out:
        out.write("\n" + json.dumps({"prompt": prompt, "completion": '{"kind":"a",\n "n":0}'}))
        out.write("\n" + json.dumps({"prompt": prompt, "completion": '{"kind":"a",\n "n":1}'}))
    findings = {f.code: f for f in load(file).findings()}
    assert findings["DUPLICATES"].rows == (0, 20)
    assert findings["CONTRADICTIONS"].rows == (0, 20, 21)
