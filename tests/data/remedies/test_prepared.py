"""A setting does to the rows what its user would have done to the files by hand, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import chat

from tunewright.core import config, records
from tunewright.core.errors import DataError
from tunewright.core.records import Audit
from tunewright.data import dataset
from tunewright.data.dataset import Dataset

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]


def row(i: int, **more: object) -> str:
    text = f"{WORDS[i % 8]} {i * 104729} has {WORDS[i * 5 % 7]} of {i * 7919} in {WORDS[i // 8 % 8]}"
    return json.dumps({"text": text, "label": ("yes", "no")[i % 3 == 0], **more})


GOOD = [row(i) for i in range(48)]
LABEL = {"text": json.loads(GOOD[1])["text"]}
TALK = [
    chat(("user", f"{json.loads(g)['text']}?"), ("assistant", f"It has {i * 7919} things.")) for i, g in enumerate(GOOD)
]

# What is wrong in the file, what it is by hand, the setting, and the place and code of each change.
CASES: dict[str, tuple[list[str], list[str], str, list[tuple[int, str]]]] = {
    "control, strip": (
        [*GOOD, '{"text": "x\\u001b y", "label": "yes"}'],
        [*GOOD, '{"text": "x y", "label": "yes"}'],
        "data.control=strip",
        [(49, "DATA_CONTROL_CHAR")],
    ),
    "control, space": (
        [*GOOD, '{"text": "x\\u001b\\ud800y", "label": "yes"}'],
        [*GOOD, '{"text": "x  y", "label": "yes"}'],
        "data.control=space",
        [(49, "DATA_CONTROL_CHAR"), (49, "DATA_UNICODE")],
    ),
    "control in JSON in a string, strip": (
        [
            *TALK,
            json.dumps({"messages": json.dumps(json.loads(chat(("user", "a\x1b"), ("assistant", "b")))["messages"])}),
        ],
        [*TALK, chat(("user", "a"), ("assistant", "b"))],
        "data.control=strip",
        [(49, "DATA_CONTROL_CHAR")],
    ),
    "empty": ([GOOD[0], row(99, label=" "), *GOOD[1:]], GOOD, "data.empty=drop", [(2, "DATA_EMPTY_TARGET")]),
    "invalid": (
        [*GOOD[:2], "{oops", *GOOD[2:], '{"text": NaN, "label": "yes"}', "[]", '{"label": "yes"}', row(98, label=0.5)],
        GOOD,
        "data.invalid=drop",
        [
            (3, "DATA_JSON_INVALID"),
            (50, "DATA_NUMBER_NOT_FINITE"),
            (51, "DATA_ROW_NOT_OBJECT"),
            (52, "DATA_FIELD_MISSING"),
            (53, "DATA_LABEL"),
        ],
    ),
    "turns": (
        [*TALK, chat(("user", "a"), ("user", "b"), ("assistant", "c"))],
        [*TALK, chat(("user", "a\n\nb"), ("assistant", "c"))],
        "data.turns=fix",
        [(49, "DATA_TURN_ORDER")],
    ),
    "duplicates": (
        [*GOOD[:9], GOOD[3].replace("of", "OF "), *GOOD[9:], GOOD[4]],
        GOOD,
        "data.duplicates=drop",
        [(10, "DUPLICATES"), (50, "DUPLICATES")],
    ),
    "contradictions": (
        [*GOOD, GOOD[1], json.dumps({**LABEL, "label": "no"})],
        [*GOOD, GOOD[1]],
        "data.contradictions=drop",
        [(50, "CONTRADICTIONS")],
    ),
    "labels": (
        [*GOOD, row(60, label="Yes."), row(61, label="NO")],
        [*GOOD, row(60, label="yes"), row(61, label="no")],
        "data.labels=merge",
        [(49, "LABELS_NEAR_DUPLICATE"), (50, "LABELS_NEAR_DUPLICATE")],
    ),
}


def load(file: Path, lines: list[str], *settings: str, **more: Any) -> Dataset:
    file.write_text("".join(line + "\n" for line in lines))
    return dataset.load(config.load(None, settings, data__train=str(file), **more))


def content(data: Dataset) -> list[Any]:
    """All that training and judging depend on, but for the places of rows."""
    parts = zip(data.examples, data.sides, data.cluster, strict=True)
    rows = [(type(e), e.messages or e.question, side, c) for e, side, c in parts]
    return [rows, data.task.to_json(), data.format, data.audit.labels, data.audit.ceiling]


def test_rows_that_all_ask_the_same_are_identified_by_the_rest_of_the_prompt(tmp_path: Path) -> None:
    def asked(about: str, i: int) -> str:
        return chat(("system", about), ("user", "Answer."), ("assistant", f"It has {i * 7919} things."))

    lines = [asked(json.loads(good)["text"], i) for i, good in enumerate(GOOD)]
    data = load(tmp_path / "a.jsonl", [*lines, asked(json.loads(GOOD[0])["text"], 99)])
    assert data.cluster == (*range(len(lines)), 0), "rows with one whole prompt depend on each other"
    assert {*data.sides} == {"train", "dev", "test"}
    with pytest.raises(DataError, match="DATA_TOO_FEW"):
        load(tmp_path / "b.jsonl", [asked("Be brief.", i) for i in range(48)])
    other = chat(("system", json.loads(GOOD[0])["text"]), ("user", "And why?"), ("assistant", "It is so."))
    data = load(tmp_path / "c.jsonl", [*TALK, other, other.replace(json.loads(GOOD[0])["text"], "Be brief.")])
    assert data.cluster[-1] == data.cluster[-2], "the system message is usually shared"


@pytest.mark.parametrize("name", CASES)
def test_a_setting_does_what_one_would_do_by_hand(name: str, tmp_path: Path) -> None:
    wrong, right, setting, expected = CASES[name]
    by_hand = load(tmp_path / "b.jsonl", right)
    by_setting = load(tmp_path / "a.jsonl", wrong, setting)
    assert content(by_setting) == content(by_hand)
    assert not by_hand.changes
    assert sorted((int(c.where.split(":")[1]), c.code) for c in by_setting.changes) == expected
    assert {c.setting for c in by_setting.changes} == {setting}
    untouched = load(tmp_path / "b.jsonl", right, setting)
    assert content(untouched) == content(by_hand)
    assert not untouched.changes, "nothing to change, nothing reported"


@pytest.mark.parametrize("name", CASES)
def test_without_the_setting_the_rows_are_refused_or_stay_as_they_are(name: str, tmp_path: Path) -> None:
    wrong, _, setting, expected = CASES[name]
    if name not in ("duplicates", "contradictions", "labels"):
        with pytest.raises(DataError) as caught:
            load(tmp_path / "a.jsonl", wrong)
        assert setting.partition("=")[0] in str(caught.value), "the message names the setting"
        assert {p.code for p in caught.value.problems} <= {code for _, code in expected}
        return
    data = load(tmp_path / "a.jsonl", wrong)
    assert len(data.examples) == len(wrong)
    assert not data.changes
    assert any(setting in f.message for f in data.findings()), "the finding names the setting"


def leaked(folder: Path) -> dict[str, str]:
    (folder / "dev.jsonl").write_text("".join(row(i) + "\n" for i in (60, 61, 3)))
    (folder / "test.jsonl").write_text("".join(row(i) + "\n" for i in (61, 70, 5)))
    return {f"data__{side}": str(folder / f"{side}.jsonl") for side in ("dev", "test")}


def test_leaks_by_setting_and_by_hand(tmp_path: Path) -> None:
    files = leaked(tmp_path)
    with pytest.raises(DataError, match=r"SPLIT_LEAK.*data\.leaks=drop"):
        load(tmp_path / "a.jsonl", GOOD, **files)
    by_setting = load(tmp_path / "a.jsonl", GOOD, "data.leaks=drop", **files)
    assert [(Path(c.where).name, c.code) for c in by_setting.changes] == [
        ("a.jsonl:4", "SPLIT_LEAK"),
        ("a.jsonl:6", "SPLIT_LEAK"),
        ("dev.jsonl:2", "SPLIT_LEAK"),
    ]
    (tmp_path / "dev.jsonl").write_text("".join(row(i) + "\n" for i in (60, 3)))
    by_hand = load(tmp_path / "a.jsonl", [g for i, g in enumerate(GOOD) if i not in (3, 5)], **files)
    assert content(by_setting) == content(by_hand)


def test_unseen_labels_by_setting_and_by_hand(tmp_path: Path) -> None:
    test = {"data__test": str(tmp_path / "test.jsonl")}
    lines = [row(70), row(71, label="maybe"), row(72, label="Yes")]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"data\.unseen_labels=drop"):
        load(tmp_path / "a.jsonl", GOOD, **test)
    by_setting = load(tmp_path / "a.jsonl", GOOD, "data.unseen_labels=drop", "data.labels=merge", **test)
    assert [c.message for c in by_setting.changes] == [
        "the label 'Yes' is read as 'yes'",
        "no row of data.train has the label 'maybe'",
    ]
    (tmp_path / "test.jsonl").write_text("\n".join([lines[0], row(72, label="yes")]))
    assert content(by_setting) == content(load(tmp_path / "a.jsonl", GOOD, **test))


def test_several_settings_at_once(tmp_path: Path) -> None:
    """Contradictions are counted before duplicates are dropped: two rows outvote one."""
    wrong = [*GOOD, GOOD[1], json.dumps({**LABEL, "label": "no"}), row(80, label="YES"), "oops"]
    settings = ["data.contradictions=drop", "data.duplicates=drop", "data.labels=merge", "data.invalid=drop"]
    by_setting = load(tmp_path / "a.jsonl", wrong, *settings)
    assert content(by_setting) == content(load(tmp_path / "b.jsonl", [*GOOD, row(80, label="yes")]))
    assert len(by_setting.changes) == 4


def test_encodings(tmp_path: Path) -> None:
    rows = [*GOOD, '{"text": "Größe", "label": "yes"}']
    by_hand = load(tmp_path / "b.jsonl", rows)
    file = tmp_path / "a.jsonl"
    for codec, setting in (("utf-16", "utf-16"), ("cp1252", "latin-1"), ("cp1252", "auto"), ("utf-16", "auto")):
        file.write_bytes("\n".join(rows).encode(codec))
        data = dataset.load(config.load(None, [f"data.encoding={setting}"], data__train=str(file)))
        assert content(data) == content(by_hand), (codec, setting)
        assert bool(data.changes) == (setting == "auto")


def test_what_was_changed_is_in_the_audit(tmp_path: Path) -> None:
    wrong = [*GOOD, *(f'{{"text": "x\\u001b{i}", "label": "yes"}}' for i in range(30)), "oops", "{"]
    data = load(tmp_path / "a.jsonl", wrong, "data.control=strip", "data.invalid=drop")
    audit = Audit.model_validate(data.audit_json(), strict=False)
    assert audit.changes is not None
    dropped, changed = audit.changes
    assert (dropped.action, dropped.rows, dropped.setting) == ("dropped", 2, "data.invalid=drop")
    assert (changed.action, changed.rows, len(changed.where)) == ("changed", 30, 20)
    assert dropped.where == (f"{tmp_path}/a.jsonl:79:1", f"{tmp_path}/a.jsonl:80:2")
    records.write(tmp_path / "audit.json", audit)
    assert records.read(tmp_path / "audit.json", Audit) == audit


@pytest.mark.parametrize("drop", ["data.invalid=drop", "data.empty=drop"])
def test_when_all_rows_are_dropped_the_first_reason_is_shown(drop: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"DATA_EMPTY.*none of 20 rows can be read; the first: 'label' is empty"):
        load(tmp_path / "a.jsonl", [row(i, label="") for i in range(20)], drop)


@pytest.mark.parametrize("name", CASES)
def test_a_setting_changes_nothing_that_another_one_is_for(name: str, tmp_path: Path) -> None:
    wrong, _, setting, _ = CASES[name]
    others = {s for _, _, s, _ in CASES.values()} - {setting, "data.invalid=drop"}
    for other in others:
        if other.split("=")[0] == setting.split("=")[0]:
            continue
        try:
            data = load(tmp_path / "a.jsonl", wrong, other)
        except DataError:
            continue
        expected = {"data.duplicates=drop"} if name == "contradictions" else set()  # its rows also repeat one
        assert {c.setting for c in data.changes} <= expected, other
