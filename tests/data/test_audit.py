"""The audit flags rows with reasons and shows nothing private."""

from __future__ import annotations

import json
from pathlib import Path

from tunewright.core import config, pii
from tunewright.data import dataset


def test_the_audit_flags_with_rows_and_reasons(tmp_path: Path) -> None:
    rows = [{"text": f"a text about number {i * 7919} and {i}", "label": ("good", "bad")[i % 2]} for i in range(60)]
    rows += [
        rows[3],
        {**rows[4], "label": "bad"},
        {"text": "write to someone@example.org now", "label": "Good"},
        {"text": "card 4111 1111 1111 1111 is mine", "label": "good"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    audited = dataset.load(config.load(None, data__train=str(path))).audit_json()
    codes = {f["code"]: f for f in audited["findings"]}
    assert {"DUPLICATES", "CONTRADICTIONS", "LABELS_RARE", "LABELS_NEAR_DUPLICATE", "PRIVATE_DATA"} <= set(codes)
    assert codes["CONTRADICTIONS"]["rows"] == (4, 61)
    assert codes["CONTRADICTIONS"]["where"][0].endswith("rows.jsonl:5")
    assert "4111" not in json.dumps(audited), "what may be private is not shown"
    assert "someone@" not in json.dumps(audited)


def audited_codes(tmp_path: Path, rows: list[dict[str, object]], *settings: str) -> dict[str, list[int]]:
    """The rows of each finding."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    audited = dataset.load(config.load(None, list(settings), data__train=str(path))).findings()
    return {f.code: list(f.rows) for f in audited}


def test_texts_that_were_rendered_or_garbled_are_flagged(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"{n} of {n * 7919}", "completion": "café naïve € 日本 ÉTÉ Ça, À “la” – [x] <b>"} for n in range(40)
    ]
    assert not {"TEMPLATE_MARKS", "MOJIBAKE"} & set(audited_codes(tmp_path, rows))
    rows[3]["prompt"] = "<|im_start|>user\nhello<|im_end|>"
    rows[4]["prompt"] = "<s>[INST] hello [/INST]"
    rows[5]["completion"] = "café naïve €".encode().decode("cp1252")
    codes = audited_codes(tmp_path, rows)
    assert codes["TEMPLATE_MARKS"] == [3, 4]
    assert codes["MOJIBAKE"] == [5]


def test_answers_that_are_not_json_among_those_that_are(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"{n} of {n * 7919}", "completion": json.dumps({"n": n})} for n in range(40)
    ]
    assert "ANSWERS_NOT_JSON" not in audited_codes(tmp_path, rows)
    rows[7]["completion"] = '{"n": 7,}'
    assert audited_codes(tmp_path, rows)["ANSWERS_NOT_JSON"] == [7], "the task is still JSON"
    for i in (8, 9, 10):
        rows[i]["completion"] = "{'n': 8}"
    assert audited_codes(tmp_path, rows)["ANSWERS_NOT_JSON"] == [7, 8, 9, 10], "it no longer is"
    words: list[dict[str, object]] = [
        {"prompt": f"{n} of {n * 7919}", "completion": f"[{n}] is one of {n * 3} words"} for n in range(40)
    ]
    assert "ANSWERS_NOT_JSON" not in audited_codes(tmp_path, words)


def test_decimals_and_times_are_no_card_numbers() -> None:
    for text in ("1.1428571428571428", "0.4111111111111111", "4111111111111111.5", "1700000000006", "at 1699999999992"):
        assert "card number" not in pii.kinds(text), text
    for text in ("4111111111111111", "4111 1111 1111 1111.", "card 5500-0000-0000-0004", "378282246310005"):
        assert "card number" in pii.kinds(text), text


def test_a_label_cannot_forge_a_line(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"{n} of {n * 7919}", "label": ("a", "b")[n % 2]} for n in range(40)]
    rows[3]["label"] = "c\nwarning FAKE: x \u202e"
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    messages = [f.message for f in dataset.load(config.load(None, data__train=str(path))).findings()]
    assert any(r"c\nwarning FAKE: x \u202e" in m for m in messages)
    assert not any("\n" in m or "\u202e" in m for m in messages)
