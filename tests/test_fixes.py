"""Mistakes, each corrected by following the fix in its own message, and nothing else."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_inputs import Case, ask, chat, chats, labels, leak, lines, lines_of_chat, sound, unseen_label, write

Words = list[str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixes") / "sound"
    folder.mkdir()
    sound(folder)
    return folder


def edited(file: Path, change: Callable[[str], str]) -> None:
    file.write_text(change(file.read_text()))


def line_of(printed: str) -> tuple[Path, int]:
    """file:line of the first error."""
    actual = re.match(r"error\[\w+\] ([^: ]+):(\d+)", printed)
    assert actual, printed
    return Path(actual[1]), int(actual[2])


def meant_setting(printed: str, words: Words) -> Words:
    """did you mean SECTION.KEY?"""
    (meant,) = re.findall(r"did you mean ([\w.]+)\?", printed)
    return [f"{meant}={w.split('=')[1]}" if "=" in w else w for w in words]


def mapped_columns(printed: str, words: Words) -> Words:
    """map them: data.columns='{prompt: your_field, completion: other_field}'"""
    (setting,) = re.findall(r"data\.columns='([^']+)'", printed)
    return [*words, f"data.columns={setting.replace('your_field', 'ask').replace('other_field', 'reply')}"]


def meant_role(printed: str, words: Words) -> Words:
    wrong, meant = re.findall(r"'(\w+)'", printed)[-2:]
    file, _ = line_of(printed)
    edited(file, lambda text: text.replace(wrong, meant))
    return words


def quoted(printed: str, words: Words) -> Words:
    """put it in quotes: 'data.instruction="..."'."""
    (key,) = re.findall(r"'([\w.]+)=\"\.\.\.\"'", printed)
    return [w if not w.startswith(f"{key}=") else f'{key}="{w.removeprefix(f"{key}=")}"' for w in words]


def offered_setting(printed: str, words: Words) -> Words:
    """set data.invalid=drop; of several, the first."""
    return [*words, re.findall(r"data\.\w+=[\w-]+", printed)[0]]


def other_target(printed: str, words: Words) -> Words:
    (layers,) = re.findall(r"layers end in: (.+?)\.$", printed, re.M)
    return [w if "targets" not in w else f"adapter.targets=[{layers.split(', ')[0]}]" for w in words]


def other_name(printed: str, words: Words) -> Words:
    assert "choose another --name" in printed
    return [*words[:-1], "another"]


def a_long_row(folder: Path) -> None:
    edited(folder / "good.jsonl", lambda text: text + chat(("user", "what of it? " * 20), ("assistant", "IT")) + "\n")


def one_of_two(printed: str, words: Words) -> Words:
    """train.steps and train.epochs are both set: keep one of them."""
    assert "keep one of them" in printed
    return [w for w in words if not w.startswith("train.epochs")]


RENAMED_COLUMNS = b"ask,reply\n" + b"".join(b"what of %d,it is %d\n" % (i, i * i) for i in range(20))
WESTERN = "text,label\n" + "".join(f"Größe {i} und {i * 7919} more words in English,{'yn'[i % 2]}\n" for i in range(30))
EMPTY_LABEL = labels(*((f"text {i}, {'ab' * i}", "yn"[i % 2]) for i in range(30)), ("more", " "))
PREVIEW = ("preview", "good.jsonl", "--model", "model")
PLAN = ("plan", "good.jsonl", "--model", "model")
MISTAKES: list[tuple[str, Callable[[Path], object], tuple[str, ...], Callable[[str, Words], Words]]] = [
    ("a misspelt setting", lambda f: None, (*PREVIEW, "train.learning_rate=1e-4"), meant_setting),
    ("columns of other names", write("a.csv", RENAMED_COLUMNS), ("check", "a.csv"), mapped_columns),
    ("a row cut off", write("a.jsonl", lines('{"prompt": "x", "compl')[:-1]), ("check", "a.jsonl"), offered_setting),
    ("UTF-16", write("a.jsonl", lines().decode().encode("utf-16")), ("check", "a.jsonl"), offered_setting),
    ("latin-1", write("a.csv", WESTERN.encode("latin-1")), ("check", "a.csv"), offered_setting),
    ("some lines in latin-1", write("a.csv", WESTERN.encode() + b"caf\xe9,n\n"), ("check", "a.csv"), offered_setting),
    ("control characters", write("a.jsonl", lines('{"prompt": "x\\u001b", "completion": "y"}')), ("check", "a.jsonl"), offered_setting),
    ("a key twice", write("a.jsonl", lines('{"prompt": "x", "prompt": "y", "completion": "z"}')), ("check", "a.jsonl"), offered_setting),
    ("a cell too many", write("a.csv", WESTERN.encode() + b"a,b,c\n"), ("check", "a.csv"), offered_setting),
    ("a quote that is open", write("a.csv", WESTERN.encode() + b'"a,b\n'), ("check", "a.csv"), offered_setting),
    ("two turns of the user", write("a.jsonl", chats((("user", "x"), ("user", "z"), ("assistant", "y")))), ("check", "a.jsonl"), offered_setting),
    ("a wrong call", write("a.jsonl", lines_of_chat({"role": "assistant", "tool_calls": [{"id": "1"}]})), ("check", "a.jsonl"), offered_setting),
    ("a new test label", unseen_label, ("check", "train.jsonl", "data.test=test.jsonl"), offered_setting),
    ("a misspelt role", write("a.jsonl", chats((("user", "x"), ("asistant", "y")))), ("check", "a.jsonl"), meant_role),
    ("a test row in train", leak, ("check", "train.jsonl", "data.test=test.jsonl"), offered_setting),
    ("an empty label", write("a.jsonl", EMPTY_LABEL), ("check", "a.jsonl"), offered_setting),
    ("rows over the limit", a_long_row, (*PLAN, "train.max_length=64"), offered_setting),
    ("targets that match nothing", lambda f: None, (*PLAN, "adapter.targets=[query]"), other_target),
    ("a name that is taken", lambda f: (f / "runs" / "r").mkdir(parents=True), (*PLAN, "--name", "r"), other_name),
    ("a colon in a text", lambda f: None, (*PREVIEW, "data.instruction=One word: yes or no."), quoted),
    ("two limits of training", lambda f: None, (*PREVIEW, "train.steps=5", "train.epochs=2"), one_of_two),
]  # fmt: skip


def test_the_readme_has_their_number() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert f"| {len(MISTAKES)} mistakes, each corrected " in readme


@pytest.mark.parametrize(("make", "words", "fix"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_the_message_alone_is_enough(
    make: Callable[[Path], object],
    words: tuple[str, ...],
    fix: Callable[[str, Words], Words],
    whole: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(whole, folder)
    make(folder)
    with contextlib.chdir(folder):
        status, _, printed = ask(Case(0, "", make, words, "", ""))
        assert status == 2
        printed = printed[printed.index("error[") :]
        status, _, then = ask(Case(0, "", make, tuple(fix(printed, list(words))), "", ""))
        assert status == 0, (printed, then)
