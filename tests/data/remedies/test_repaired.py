"""`tunewright fix`: the copy is clean, the original untouched, every change listed, a second fix changes nothing."""

from __future__ import annotations

import datetime
import glob
import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import DATA, GOOD, Case, ask, chat, chats, lines, nothing

from tunewright.core import config
from tunewright.data import dataset
from tunewright.data.remedies import repaired

# Wrong files that no setting repairs: the rows are not there, or what they mean is not known.
BEYOND = {
    "DATA_COMPRESSED",
    "DATA_DUPLICATES",
    "DATA_EMPTY",
    "DATA_MIXED_SCHEMA",
    "DATA_NOT_TEXT",
    "DATA_TOO_FEW",
    "DATA_TOO_LARGE",
    "LABELS_ONE_CLASS",
}
FILES = [(f"{n}-{what}", name, raw, code) for n, what, name, raw, code, _ in DATA if code not in BEYOND]


def fix(*words: str) -> tuple[int, str, str]:
    return ask(Case(0, "", nothing, ("fix", *words), "", ""))


def check(*words: str) -> tuple[int, str, str]:
    return ask(Case(0, "", nothing, ("check", *words), "", ""))


def hashed(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def listed(name: str) -> list[dict[str, Any]]:
    return [json.loads(x) for x in Path(f"{name}.changes.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("what", "name", "raw", "code"), FILES, ids=[f[0] for f in FILES])
def test_wrong_files_are_repaired(what: str, name: str, raw: bytes, code: str) -> None:
    Path(name).write_bytes(raw)
    before = hashed(name)
    status, out, err = fix(name, "--out", "fixed.jsonl")
    assert hashed(name) == before, "the original is untouched"
    if status:
        assert what in TOO_LITTLE, err
        assert not Path("fixed.jsonl").exists()
        assert not Path("fixed.jsonl.changes.jsonl").exists()
        return
    assert what not in TOO_LITTLE
    assert code in {change["code"] for change in listed("fixed.jsonl")}, "what was wrong is listed"
    assert out.startswith("fixed.jsonl: ")
    status, out, err = check("fixed.jsonl")
    assert status == 0, err
    assert "dropped" not in out
    assert "changed" not in out
    assert fix("fixed.jsonl", "--out", "again.jsonl")[0] == 0
    assert hashed("again.jsonl") == hashed("fixed.jsonl")
    assert listed("again.jsonl") == []


# No row of these can be separated from what is wrong, or none is left.
TOO_LITTLE = {
    "4-array that breaks",
    "14-misspelt field",
    "26-CSV, header twice",
    "26-CSV, no header",
    "27-preference pairs without a preference method",
    "28-endless line",
    "51-compressed endless line",
    "53-random bytes",
    "54-an array that ends early",
    "54-rows below two keys",
    "54-a comma after each row",
    "67-an array per line",
    "67-rows below train and test",
    "68-annotations",
}


def test_each_repair_can_be_switched_off() -> None:
    wrong = {
        "data.control=error": '{"prompt": "a\\u001b", "completion": "y"}',
        "data.empty=error": '{"prompt": "a", "completion": ""}',
        "data.invalid=error": '{"prompt": "a"}',
    }
    for setting, line in wrong.items():
        Path("a.jsonl").write_bytes(lines(line))
        off = [setting, "data.invalid=error"]
        assert fix("a.jsonl", *off, "--out", "b.jsonl")[0] == 2, setting
        assert not Path("b.jsonl").exists()
    Path("a.jsonl").write_bytes(chats((("user", "a"), ("user", "b"), ("assistant", "c"))))
    assert fix("a.jsonl", "data.turns=error", "data.invalid=error", "--out", "b.jsonl")[0] == 2
    Path("a.csv").write_bytes(b"text,label\n" + b"caf\xe9 au lait,y\n" + b"some words in English,n\n" * 30)
    assert fix("a.csv", "data.encoding=utf-8", "--out", "b.jsonl")[0] == 2
    assert fix("a.csv", "--out", "b.jsonl")[0] == 0
    assert Path("b.jsonl").read_text(encoding="utf-8").count("\n") == 31, "rows that repeat others stay"
    Path("c.jsonl").write_bytes(lines(GOOD[0]))
    assert fix("c.jsonl", "data.duplicates=drop", "--out", "d.jsonl")[0] == 0
    assert Path("d.jsonl").read_text(encoding="utf-8").count("\n") == 12


def test_rows_keep_their_fields_and_order() -> None:
    rows = [{**json.loads(g), "id": i, "more": {"x": [1, 2.5, None, True]}, "é": "\u2028"} for i, g in enumerate(GOOD)]
    Path("a.json").write_text(json.dumps([*rows, rows[0], 7]))
    assert fix("a.json", "data.duplicates=drop", "--out", "b.jsonl")[0] == 0
    assert [json.loads(x) for x in Path("b.jsonl").read_text(encoding="utf-8").split("\n")[:-1]] == rows
    assert [(c["where"], c["action"]) for c in listed("b.jsonl")] == [
        ("a.json[13]", "dropped"),
        ("a.json[12]", "dropped"),
    ]


@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_turns_are_put_in_order_in_the_rows_own_field(field: str) -> None:
    wrong = [
        {"role": "assistant", "content": "welcome"},
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c", "weight": 0},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e"},
    ]
    good = [json.loads(x)["messages"] for x in chats().decode().splitlines()]
    Path("a.jsonl").write_text("".join(json.dumps({field: m, "id": i}) + "\n" for i, m in enumerate([*good, wrong])))
    assert fix("a.jsonl", "--out", "b.jsonl")[0] == 0
    last = json.loads(Path("b.jsonl").read_text().splitlines()[-1])
    assert last == {
        field: [
            {"role": "user", "content": "a\n\nb"},
            {"role": "assistant", "content": "c", "weight": 0},
            {"role": "user", "content": "d"},
            {"role": "assistant", "content": "e"},
        ],
        "id": 10,
    }
    original, copy = (
        dataset.load(config.load(None, [*repaired.DEFAULTS], data__train=name)) for name in ("a.jsonl", "b.jsonl")
    )
    assert [(e.messages, s) for e, s in zip(original.examples, original.sides, strict=True)] == [
        (e.messages, s) for e, s in zip(copy.examples, copy.sides, strict=True)
    ]
    assert original.changes
    assert not copy.changes


@pytest.mark.parametrize("form", ["label", "labels", "chat", "completion", "parts", "choice", "place"])
def test_labels_are_written_in_one_way_if_asked(form: str) -> None:
    def row(i: int, label: str) -> str:
        text = f"{'abcdefgh'[i % 8] * 9} {i * 104729} of {i * 7919}"
        rows = {
            "label": json.dumps({"text": text, "label": label}),
            "chat": chat(("user", text), ("assistant", label)),
            "completion": json.dumps({"prompt": text, "completion": label}),
            "labels": json.dumps({"text": text, "labels": [label, "and", "also"]}),
            "parts": chat(("user", text), ("assistant", [{"type": "text", "text": label}])),
            "choice": json.dumps({"question": text, "choices": [label, "maybe"], "answer": label}),
            "place": json.dumps({"question": text, "choices": ["maybe", label], "answer": 1}),
        }
        return rows[form]

    wrong = [("yes", "no", "Yes", "no.", "yes", "no")[i % 6] for i in range(60)]
    right = [("yes", "no")[i % 2] for i in range(60)]
    Path("a.jsonl").write_text("".join(row(i, label) + "\n" for i, label in enumerate(wrong)))
    assert fix("a.jsonl", "data.labels=merge", "--out", "b.jsonl")[0] == 0
    assert Path("b.jsonl").read_text() == "".join(row(i, label) + "\n" for i, label in enumerate(right))
    assert len(listed("b.jsonl")) == 20


def test_the_settings_that_the_copy_needs_are_printed() -> None:
    rows = [{"it's": json.loads(g)["prompt"], "reply": i % 2} for i, g in enumerate(GOOD)]
    Path("a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = ["data.columns={question: it's, answer: reply}", "data.label_names=[no, 'on, or off']"]
    assert fix("a.jsonl", *settings, "data.format=question", "--out", "b c.jsonl")[0] == 0
    Path("b c.jsonl").unlink()
    Path("b c.jsonl.changes.jsonl").unlink()
    _, out, _ = fix("a.jsonl", *settings, "data.instruction=Be kind.", "--out", "b c.jsonl")
    last = shlex.split(out.splitlines()[-1])
    assert last[:3] == ["next:", "tunewright", "check"]
    assert check(*last[3:])[0] == 0
    assert check("b c.jsonl")[0] == 2, "they are needed"
    original, copy = (
        dataset.load(config.load(None, words, data__train=name))
        for name, words in (("a.jsonl", [*settings, "data.instruction=Be kind."]), ("b c.jsonl", last[4:]))
    )
    assert [e.messages for e in original.examples] == [e.messages for e in copy.examples]


@pytest.mark.parametrize(
    ("pattern", "name", "matched"),
    [
        ("data/*.jsonl", "data/x.jsonl", "data/x.jsonl"),
        ("data/*.jsonl", "data/x.json", "data/x.json.changes.jsonl"),
        ("data/**/*.jsonl", "data/deep/er/x.json", "data/deep/er/x.json.changes.jsonl"),
        ("data/**", "data/x.json", "data/x.json"),
        ("*/a.jsonl", "data/deep/a.jsonl", ""),
        ("data/*.jsonl", "data/deep/x.jsonl", ""),
        ("data/*.jsonl", "data/.x.jsonl", ""),
    ],
)
def test_what_the_pattern_would_match_is_not_written(pattern: str, name: str, matched: str) -> None:
    Path(name).parent.mkdir(parents=True)
    Path("data").mkdir(exist_ok=True)
    Path("data/a.jsonl").write_bytes(lines())
    status, _, err = fix(pattern, "--out", name)
    assert (status, Path(name).exists()) == ((2, False) if matched else (0, True))
    assert matched in err
    if not matched:
        assert not {*glob.glob(pattern, recursive=True)} & {name, f"{name}.changes.jsonl"}
    assert check(pattern)[0] == 0


def test_both_files_are_written_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("full")

    done = repaired.Repaired(("{}",), ())
    for name in ("write_lines", "write_atomic"):
        with monkeypatch.context() as patch:
            patch.setattr(repaired, name, full)
            with pytest.raises(OSError, match="full"):
                repaired.write(done, Path("b.jsonl"))
        assert not list(Path().iterdir())


def test_values_that_json_does_not_have() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**json.loads(g), "day": datetime.date(2024, 1, 2), "n": float("nan"), "m": [1.5]} for g in GOOD]
    pq.write_table(pa.Table.from_pylist(rows), "a.parquet")
    assert fix("a.parquet", "--out", "b.jsonl")[0] == 0
    first = json.loads(Path("b.jsonl").read_text().splitlines()[0])
    assert first == {**json.loads(GOOD[0]), "day": "2024-01-02", "n": None, "m": [1.5]}
    assert len(listed("b.jsonl")) == 12
    assert check("b.jsonl")[0] == 0


def test_several_files_and_leaks() -> None:
    Path("data").mkdir()
    Path("data/a.jsonl").write_text("\n".join(GOOD[:6]))
    Path("data/b.jsonl").write_text("\n".join([*GOOD[6:], GOOD[0]]))
    Path("test.jsonl").write_text(f"{GOOD[3]}\n" + '{"prompt": "quite another thing", "completion": "y"}\n')
    words = ("data/*.jsonl", "data.test=test.jsonl", "data.leaks=drop", "data.duplicates=drop")
    assert fix(*words, "--out", "all.jsonl")[0] == 0
    assert Path("all.jsonl").read_text().splitlines() == [*GOOD[:3], *GOOD[4:]]
    assert check("all.jsonl", "data.test=test.jsonl")[0] == 0


def test_the_summary_as_json_counts_rows() -> None:
    Path("a.jsonl").write_bytes(lines("oops", GOOD[0], '{"prompt": "a\\u001b", "completion": "y"}'))
    status, out, _ = fix("a.jsonl", "data.duplicates=drop", "--out", "b.jsonl", "--json")
    summary = json.loads(out)
    assert status == 0
    assert {k: summary[k] for k in ("file", "rows", "dropped", "changed")} == {
        "file": "b.jsonl",
        "rows": 13,
        "dropped": 2,
        "changed": 1,
    }
    assert [c["setting"] for c in summary["changes"]] == [
        "data.invalid=drop",
        "data.duplicates=drop",
        "data.control=strip",
    ]


def test_a_config_file_may_name_the_rows() -> None:
    Path("a.jsonl").write_bytes(lines("oops"))
    Path("c.yaml").write_text("data:\n  train: a.jsonl\n")
    assert fix("c.yaml", "--out", "b.jsonl")[0] == 0
    assert len(Path("b.jsonl").read_text().splitlines()) == 12


@pytest.mark.parametrize("existing", ["b.jsonl", "b.jsonl.changes.jsonl"])
def test_nothing_is_overwritten(existing: str) -> None:
    Path("a.jsonl").write_bytes(lines())
    Path(existing).write_text("mine")
    status, _, err = fix("a.jsonl", "--out", "b.jsonl")
    assert status == 2
    assert "DATA_EXISTS" in err
    assert Path(existing).read_text() == "mine"
    assert sorted(p.name for p in Path().iterdir()) == sorted(["a.jsonl", existing])


def test_turns_that_cannot_be_written_back_are_left_out_like_other_wrong_rows() -> None:
    good = [
        {"prompt": [{"role": "user", "content": g}], "completion": [{"role": "assistant", "content": f"{g[:40]}!"}]}
        for g in GOOD
    ]
    twice = {**good[0], "prompt": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}
    Path("a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*good, twice]))
    assert fix("a.jsonl", "--out", "b.jsonl")[0] == 0
    assert [json.loads(x) for x in Path("b.jsonl").read_text().splitlines()] == good
    (change,) = listed("b.jsonl")
    assert (change["action"], change["setting"], change["code"]) == ("dropped", "data.invalid=drop", "DATA_TURN_ORDER")
    assert fix("a.jsonl", "data.invalid=error", "--out", "c.jsonl")[0] == 2
