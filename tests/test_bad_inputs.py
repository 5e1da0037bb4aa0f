"""Wrong data files, configs, model and adapter folders get the right code, place, exit status and fix.

No traceback, no files left behind, no hang. Each case is a row of the tables in `bad_inputs.py`.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_inputs import ABSENT, CASES, GOOD, Case, ask, in_the_docs, lines, sound

from tunewright.core import config
from tunewright.core.errors import CODES, TunewrightError
from tunewright.data import dataset
from tunewright.tokens import template

SECONDS = 60
FIRST = {case.code: case for case in reversed(CASES)}  # docs/errors.md has its message
DOCUMENTED = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "sound"
    folder.mkdir()
    sound(folder)
    return folder


@pytest.fixture
def bounded() -> Iterator[None]:
    """A case that hangs fails."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"took over {SECONDS} s"))
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("case", CASES, ids=[f"{c.number}-{c.what}" for c in CASES])
def test_wrong_input(case: Case, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    shutil.copytree(whole, folder)
    case.make(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(template, "SECONDS", 0.5)
    before = sorted(folder.rglob("*"))
    status, out, printed = ask(case)
    line = next(x for x in printed.splitlines() if x.startswith("error["))
    actual = re.fullmatch(r"error\[(\w+)\] (.*?): .+ Fix: .+", line)
    assert actual, line
    assert (actual[1], status) == (case.code, case.status), line
    assert re.search(rf"(^|/|`){re.escape(case.place)}$", actual[2]) or not case.place, line
    assert out == "", "stdout is for results"
    assert "Traceback" not in printed
    assert all(len(x) < 700 for x in printed.splitlines())
    assert sorted(folder.rglob("*")) == before, "something is left behind"
    if case is FIRST[case.code]:
        row = f"| `{case.code}` | {CODES[case.code]} | `{in_the_docs(line, folder)}` |"
        assert row in DOCUMENTED, "run `make docs`"


def test_every_code_is_documented() -> None:
    rows = [row for row in DOCUMENTED if row.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(CODES)
    for code, meaning in CODES.items():
        assert code in FIRST or f"| `{code}` | {meaning} |  |" in rows, "run `make docs`"


def test_the_list_is_complete_and_the_readme_has_its_length() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert f"| {len(CASES)} wrong files, configs, models and adapters are rejected " in readme
    assert {c.number for c in CASES} | set(ABSENT) | ACCEPTED == set(range(1, 71))


# 4, 5, 7, 20, 26: inputs that others reject or misread, and we read; 20 is in test_rendering.py.
ACCEPTED = {4, 5, 7, 20, 26}


def test_wrong_rows_are_shown_together_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*['{"prompt": "x"}'] * 30))
    with pytest.raises(TunewrightError) as caught:
        dataset.load(config.load(None, data__train=str(tmp_path / "a.jsonl"), data__format="completion"))
    assert len(caught.value.problems) == 30
    assert str(caught.value).count("DATA_FIELD_MISSING") == 1, "one cause, one line"
    assert "and in 29 more rows" in str(caught.value)


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
        actual = dataset.load(config.load(None, data__train=str(tmp_path / name)))
        assert len(actual.examples) == 13, name
    assert actual.examples[1].messages[-1].content == "007"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "missing.jsonl"],
        ["run", "bad.jsonl", "train.lr=1e-4"],
        ["train", "good.jsonl", "train.lr"],
        ["runs", "show", "../x"],
        ["preview", "good.jsonl", "--row", "99"],
    ],
)
def test_every_command_exits_with_2_and_one_line(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "bad.jsonl").write_text("{oops\n")
    (tmp_path / "good.jsonl").write_bytes(lines())
    done = subprocess.run(
        [sys.executable, "-m", "tunewright", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "error[" in done.stderr
    assert "Fix:" in done.stderr
    assert done.stdout == ""
