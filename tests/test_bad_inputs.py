"""Wrong data files and configs: the code, the place, exit status 2, one line, no traceback. Each case is a row of a table."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tunewright import config, dataset
from tunewright.errors import TunewrightError

GOOD = [
    json.dumps({"prompt": f"question number {i} about {w}", "completion": f"an answer of {w} and {i}"})
    for i, w in enumerate(
        ["apples", "boats", "clouds", "drums", "eagles", "forests", "gates", "hills", "islands", "jars", "kites", "lakes"]
    )
]


def lines(*bad: str) -> bytes:
    return ("\n".join([*GOOD, *bad]) + "\n").encode()


def chat(*messages: tuple[str, object]) -> str:
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in messages]})


CHATS = (
    "\n".join(
        chat(("user", f"question {i} of {w}"), ("assistant", f"answer {i} {w}"))
        for i, w in enumerate(["apples", "boats", "clouds", "drums", "eagles", "forests", "gates", "hills", "islands", "jars"])
    )
    + "\n"
)

# name, bytes of the file, code, end of the place (without the folder)
DATA: list[tuple[str, str, bytes, str, str]] = [
    ("empty", "a.jsonl", b"", "DATA_EMPTY", "a.jsonl"),
    ("blank lines", "a.jsonl", b"\n \n\n", "DATA_EMPTY", "a.jsonl"),
    ("invalid JSON", "a.jsonl", lines('{"prompt": "x" "completion": "y"}', GOOD[0]), "DATA_JSON_INVALID", "a.jsonl:13:16"),
    ("cut off", "a.jsonl", lines('{"prompt": "x", "compl')[:-1], "DATA_JSON_INVALID", "a.jsonl:13:17"),
    ("array that breaks", "a.json", b'[{"prompt": "x", "completion": "y"},\n {"prompt": }]', "DATA_JSON_INVALID", "a.json:2:13"),
    ("UTF-16", "a.jsonl", "\n".join(GOOD).encode("utf-16"), "DATA_ENCODING", "a.jsonl:1"),
    ("latin-1", "a.jsonl", lines() + '{"prompt": "café", "completion": "y"}\n'.encode("latin-1"), "DATA_ENCODING", "a.jsonl:13"),
    ("lone surrogate", "a.jsonl", lines('{"prompt": "\\ud800", "completion": "y"}'), "DATA_UNICODE", "a.jsonl:13"),
    ("NUL", "a.jsonl", lines('{"prompt": "a\\u0000b", "completion": "y"}'), "DATA_CONTROL_CHAR", "a.jsonl:13"),
    ("raw control character", "a.jsonl", lines('{"prompt": "a\x01b", "completion": "y"}'), "DATA_CONTROL_CHAR", "a.jsonl:13:14"),
    ("NaN", "a.jsonl", lines('{"prompt": "x", "completion": "y", "score": NaN}'), "DATA_NUMBER_NOT_FINITE", "a.jsonl:13"),
    ("1e400", "a.jsonl", lines('{"prompt": "x", "completion": "y", "score": 1e400}'), "DATA_NUMBER_NOT_FINITE", "a.jsonl:13"),
    ("duplicate key", "a.jsonl", lines('{"prompt": "x", "prompt": "z", "completion": "y"}'), "DATA_DUPLICATE_KEY", "a.jsonl:13"),
    ("deep nesting", "a.jsonl", lines("[" * 200_000), "DATA_TOO_DEEP", "a.jsonl:13"),
    (
        "5,000 digits",
        "a.jsonl",
        lines('{"prompt": "x", "completion": "y", "n": ' + "9" * 5000 + "}"),
        "DATA_NUMBER_TOO_LARGE",
        "a.jsonl:13",
    ),
    ("row is a list", "a.jsonl", lines("[1, 2]"), "DATA_ROW_NOT_OBJECT", "a.jsonl:13"),
    ("row is null", "a.jsonl", lines("null"), "DATA_ROW_NOT_OBJECT", "a.jsonl:13"),
    ("misspelt field", "a.jsonl", b'{"prompt": "x", "completoin": "y"}\n', "DATA_FIELD_MISSING", "a.jsonl:1"),
    ("mixed forms", "a.jsonl", lines(chat(("user", "a"), ("assistant", "b"))), "DATA_MIXED_SCHEMA", "a.jsonl:1"),
    ("number for text", "a.jsonl", lines('{"prompt": "x", "completion": 7}'), "DATA_FIELD_TYPE", "a.jsonl:13"),
    (
        "content parts",
        "a.jsonl",
        (CHATS + chat(("user", ["x"]), ("assistant", "y")) + "\n").encode(),
        "DATA_FIELD_TYPE",
        "a.jsonl:11",
    ),
    ("blank answer", "a.jsonl", lines('{"prompt": "x", "completion": "  "}'), "DATA_EMPTY_TARGET", "a.jsonl:13"),
    (
        "unknown role",
        "a.jsonl",
        (CHATS + chat(("user", "x"), ("asistant", "y")) + "\n").encode(),
        "DATA_ROLE_UNKNOWN",
        "a.jsonl:11",
    ),
    (
        "two system turns",
        "a.jsonl",
        (CHATS + chat(("system", "s"), ("system", "s"), ("user", "x"), ("assistant", "y")) + "\n").encode(),
        "DATA_TURN_ORDER",
        "a.jsonl:11",
    ),
    (
        "user twice",
        "a.jsonl",
        (CHATS + chat(("user", "x"), ("user", "z"), ("assistant", "y")) + "\n").encode(),
        "DATA_TURN_ORDER",
        "a.jsonl:11",
    ),
    (
        "last turn not assistant",
        "a.jsonl",
        (CHATS + chat(("user", "x"), ("assistant", "y"), ("user", "z")) + "\n").encode(),
        "DATA_TURN_ORDER",
        "a.jsonl:11",
    ),
    ("no assistant turn", "a.jsonl", (CHATS + chat(("user", "x")) + "\n").encode(), "DATA_NOTHING_TO_LEARN", "a.jsonl:11"),
    ("all rows the same", "a.jsonl", b'{"prompt": "x", "completion": "y"}\n' * 1000, "DATA_DUPLICATES", "a.jsonl:1"),
    (
        "one class",
        "a.jsonl",
        "".join(json.dumps({"text": f"some text {i * 37}", "label": "yes"}) + "\n" for i in range(40)).encode(),
        "LABELS_ONE_CLASS",
        "a.jsonl:1",
    ),
    ("too few", "a.jsonl", "\n".join(GOOD[:5]).encode(), "DATA_TOO_FEW", "a.jsonl"),
    ("preference pairs", "a.jsonl", b'{"prompt": "x", "chosen": "y", "rejected": "z"}\n', "DATA_FORM_UNSUPPORTED", "a.jsonl:1"),
    ("CSV, open quote", "a.csv", b'prompt,completion\nx,y\nz,"open\n', "DATA_CSV", "a.csv:3"),
    ("CSV, ragged", "a.csv", b"prompt,completion\nx,y\nz,a,b\n", "DATA_CSV", "a.csv:3"),
    ("CSV, header twice", "a.csv", b"prompt,prompt\nx,y\n", "DATA_CSV", "a.csv:1"),
    ("CSV, no header", "a.csv", b"hello,there\nx,y\n", "DATA_FIELD_MISSING", "a.csv:2"),
    ("gzip", "a.jsonl", gzip.compress(lines()), "DATA_NOT_TEXT", "a.jsonl"),
    ("xlsx", "a.jsonl", b"PK\x03\x04" + b"0" * 100, "DATA_NOT_TEXT", "a.jsonl"),
    ("not Parquet", "a.parquet", b"hello", "DATA_NOT_TEXT", "a.parquet"),
    ("endless line", "a.jsonl", b'{"prompt": "' + b"x" * (17 * 1024 * 1024), "DATA_LINE_TOO_LONG", "a.jsonl:1"),
]

CONFIGS: list[tuple[str, str, str, str]] = [
    ("unknown key", "train:\n  learnin_rate: 1e-4\n", "CONFIG_UNKNOWN_KEY", "c.yaml:2"),
    ("unknown section", "trian:\n  lr: 1e-4\n", "CONFIG_UNKNOWN_KEY", "c.yaml:1"),
    ("duplicate key", "seed: 1\nseed: 2\n", "CONFIG_DUPLICATE_KEY", "c.yaml:2"),
    ("python tag", "model: !!python/object/apply:os.system ['true']\n", "CONFIG_UNSAFE_TAG", "c.yaml:1"),
    ("alias bomb", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "CONFIG_UNSAFE_TAG", "c.yaml:1"),
    ("tab", "train:\n\tlr: 1\n", "CONFIG_SYNTAX", "c.yaml:2"),
    ("ten megabytes", "#" * 10_000_000, "CONFIG_TOO_LARGE", "c.yaml"),
    ("deep", "model: " + "[" * 5000 + "\n", "CONFIG_", "c.yaml"),
    ("list at the top", "- a\n- b\n", "CONFIG_SYNTAX", "c.yaml"),
    ("negative rate", "train:\n  lr: -1e-4\n", "CONFIG_RANGE", "c.yaml:2"),
    ("rate of ten", "train:\n  lr: 10\n", "CONFIG_RANGE", "c.yaml:2"),
    ("NaN", "train:\n  lr: .nan\n", "CONFIG_RANGE", "c.yaml:2"),
    ("infinity", "train:\n  clip: -.inf\n", "CONFIG_RANGE", "c.yaml:2"),
    ("text for a number", "train:\n  lr: fast\n", "CONFIG_RANGE", "c.yaml:2"),
    ("truth for a number", "train:\n  batch: true\n", "CONFIG_RANGE", "c.yaml:2"),
    ("no epochs", "train:\n  epochs: 0\n", "CONFIG_RANGE", "c.yaml:2"),
    ("no batch", "train:\n  batch: 0\n", "CONFIG_RANGE", "c.yaml:2"),
    ("section as value", "train: 3\n", "CONFIG_RANGE", "c.yaml:1"),
    ("steps and epochs", "train:\n  steps: 5\n  epochs: 1\n", "CONFIG_CONFLICT", "c.yaml:2"),
    ("rank without adapter", "adapter:\n  kind: none\n  rank: 8\n", "CONFIG_CONFLICT", ""),
    ("everything held out", "split:\n  dev: 0.5\n  test: 0.5\n", "CONFIG_CONFLICT", ""),
]


@pytest.mark.parametrize(("name", "raw", "code", "place"), [row[1:] for row in DATA], ids=[row[0] for row in DATA])
def test_data_file(tmp_path: Path, name: str, raw: bytes, code: str, place: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(TunewrightError) as caught:
        dataset.load(config.load(None, data__train=str(tmp_path / name)))
    problem = caught.value.problems[0]
    assert (problem.code, Path(problem.where).name) == (code, place), str(caught.value)
    assert problem.mend, "every error says what to do"
    assert caught.value.exit_code == 2
    assert all(len(line) < 700 for line in str(caught.value).splitlines())


@pytest.mark.parametrize(("text", "code", "place"), [row[1:] for row in CONFIGS], ids=[row[0] for row in CONFIGS])
def test_config_file(tmp_path: Path, text: str, code: str, place: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TunewrightError) as caught:
        config.load(file)
    problem = caught.value.problems[0]
    assert problem.code.startswith(code), str(caught.value)
    assert Path(problem.where).name.startswith(place), str(caught.value)
    assert "\n" not in str(caught.value)
    assert problem.mend, "every error says what to do"


@pytest.mark.parametrize(
    "make",
    [lambda p: p.mkdir(), lambda p: os.mkfifo(p), lambda p: p.symlink_to("/nowhere/at/all")],
    ids=["empty folder", "FIFO", "broken link"],
)
def test_not_a_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "rows.jsonl")
    with pytest.raises(TunewrightError) as caught:
        dataset.load(config.load(None, data__train=str(tmp_path / "rows.jsonl")))
    assert caught.value.code in ("DATA_NOT_A_FILE", "DATA_EMPTY")


def test_dev_null_and_dev_zero_end_at_once() -> None:
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(TunewrightError) as caught:
            dataset.load(config.load(None, data__train=device))
        assert caught.value.code == "DATA_NOT_A_FILE"


def test_wrong_rows_are_shown_together_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*['{"prompt": "x"}'] * 30))
    with pytest.raises(TunewrightError) as caught:
        dataset.load(config.load(None, data__train=str(tmp_path / "a.jsonl"), data__form="completion"))
    assert len(caught.value.problems) == 30
    assert str(caught.value).count("DATA_FIELD_MISSING") == 20
    assert "and 10 more" in str(caught.value)


def test_accepted_oddities(tmp_path: Path) -> None:
    """A byte order mark, U+2028 inside a text, a JSON array, CRLF, `;` in CSV, "NA" and "007" as texts."""
    odd = json.dumps({"prompt": "one\u2028two", "completion": "NA"}, ensure_ascii=False)
    variants = {
        "bom.jsonl": b"\xef\xbb\xbf" + lines(odd),
        "crlf.jsonl": lines(odd).replace(b"\n", b"\r\n"),
        "array.jsonl": b"[" + b",".join(g.encode() for g in [*GOOD, odd]) + b"]",
        "semi.csv": (
            "prompt;completion\n"
            + "\n".join(f"question {i} about things, {'ab' * i};007" if i else 'a "b" c;NA' for i in range(13))
        )
        .replace('a "b" c', "plain")
        .encode(),
    }
    for name, raw in variants.items():
        (tmp_path / name).write_bytes(raw)
        found = dataset.load(config.load(None, data__train=str(tmp_path / name)))
        assert len(found.examples) == 13, name
    assert found.examples[1].messages[-1].content == "007"  # type: ignore[union-attr]


def test_a_leak_between_the_users_own_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines())
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"prompt": "Question  NUMBER 3 about drums", "completion": "x"})
        + "\n"
        + json.dumps({"prompt": "quite another thing", "completion": "y"})
        + "\n"
    )
    with pytest.raises(TunewrightError) as caught:
        dataset.load(config.load(None, data__train=str(tmp_path / "train.jsonl"), data__test=str(tmp_path / "test.jsonl")))
    assert caught.value.code == "SPLIT_LEAK"
    assert caught.value.where.endswith("test.jsonl:1")
    assert "train.jsonl:4" in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "missing.jsonl"],
        ["check", "bad.jsonl"],
        ["run", "bad.jsonl", "train.lr=1e-4"],
        ["plan", "good.jsonl", "train.lrr=1"],
        ["train", "good.jsonl", "train.lr"],
        ["chat", "no-such-run"],
        ["runs", "show", "../x"],
        ["show", "good.jsonl", "--row", "99"],
        ["run", "good.jsonl", "--model", "nowhere"],
    ],
)
def test_the_command_line_exits_with_2_and_one_line(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "bad.jsonl").write_text("{oops\n")
    (tmp_path / "good.jsonl").write_bytes(lines())
    done = subprocess.run(
        [sys.executable, "-m", "tunewright.cli", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "error[" in done.stderr
    assert "Fix:" in done.stderr
    assert done.stdout == ""
