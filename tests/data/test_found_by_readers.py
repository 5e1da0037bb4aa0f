"""What people found who read the code and ran nothing: rows that were misread, dropped or leaked without a word."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from build import cli, write_chat_rows
from hypothesis import given
from hypothesis import strategies as st

from tunewright.core.config import load
from tunewright.core.errors import DataError
from tunewright.data import dataset, split
from tunewright.data.files import documents, parquet
from tunewright.data.files.rows import FileSettings
from tunewright.data.formats import RowSettings, labelled
from tunewright.data.messages import Chat, Message
from tunewright.data.remedies import labels
from tunewright.tokens.packing import singles, split_into_passes


def chat(*texts: str) -> Chat:
    roles = ("user", "assistant")
    return Chat(tuple(Message(roles[i % 2], text) for i, text in enumerate(texts)), "x:1")


def test_a_label_is_respelled_behind_its_thoughts() -> None:
    rows = [chat(f"q{i}", "spam" if i else "<think>why</think>Spam") for i in range(9)]
    sides: Any = {"train": (*rows, *(chat(f"r{i}", "ham") for i in range(9)))}
    merged, changes = labels.merge(sides)
    assert merged["train"][0].messages[-1].content == "<think>why</think>spam"
    assert len(changes) == 1


def test_rows_that_all_contradict_each_other_are_too_few_and_no_crash(tmp_path: Path) -> None:
    lines = [{"prompt": f"question {i} of {i * 7}", "completion": f"answer {k}"} for i in range(9) for k in (1, 2)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [f"data.train={file}", "data.contradictions=drop", "data.duplicates=drop"]
    with pytest.raises(DataError, match="DATA_"):
        dataset.load(load(None, words))


NAMED = RowSettings(label_names=["neg", "pos"])


@pytest.mark.parametrize(("value", "expected"), [("1.0", "pos"), ("0", "neg"), (" 1 ", "pos"), ("pos", "pos")])
def test_numbers_of_a_csv_file_have_names(value: str, expected: str) -> None:
    assert labelled.label(value, "label", NAMED, "x:1") == expected
    with pytest.raises(DataError, match="DATA_LABEL"):
        labelled.label("-1", "label", NAMED, "x:1")


def test_nulls_that_arrow_adds_to_arguments_are_not_learned() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    calls = [{"name": "f", "arguments": {"city": "Oslo"}}, {"name": "g", "arguments": {"query": "x"}}]
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"function": call}]}]}
        for call in calls
    ]
    raw = io.BytesIO()
    pq.write_table(pyarrow.Table.from_pylist(rows), raw)
    read: Any = list(parquet.items(bytearray(raw.getvalue()), "x", FileSettings()))
    arguments = [row.data["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in read]
    assert arguments == [call["arguments"] for call in calls]


def test_hidden_folders_are_no_documents(tmp_path: Path) -> None:
    for name in ("a.md", ".trash/b.md", "c/.ipynb_checkpoints/d.md", "c/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    assert [Path(p).name for p in documents.in_folder(tmp_path)] == ["a.md", "e.txt"]


def test_a_row_that_a_longer_conversation_begins_with_is_an_overlap() -> None:
    rows = [chat("hi", "hello"), chat("hi", "hello", "and now?", "bye"), chat("hi", "good day"), chat("other", "x")]
    assert split.overlaps(rows, [1, 3], [0, 2]) == (0,)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(8, 60))
def test_passes_are_those_of_the_plain_rule(lengths: list[int], capacity: int) -> None:
    """Longest first, each into the first pass with room."""
    passes: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = (p for p in passes if sum(lengths[k] for k in p) + lengths[i] <= capacity)
        first = next(room, None)
        if first is None:
            passes.append([i])
        else:
            first.append(i)
    assert split_into_passes(singles([(1,) * n for n in lengths]), capacity, "packed") == passes


def test_a_prompt_that_leaves_no_room_for_an_answer_is_named(tmp_path: Path, model_folder: Any) -> None:
    """Before, the tuned arm was missing, and planning crashed after the self-test."""
    file = write_chat_rows(tmp_path / "rows.jsonl", 40)
    lines = file.read_text().splitlines()
    file.write_text("".join(f"{line}\n" for line in lines[:36]))
    test = tmp_path / "test.jsonl"
    row = json.loads(lines[36])
    row["messages"][0]["content"] = "word " * 388
    test.write_text("".join(f"{line}\n" for line in [json.dumps(row), *lines[37:]]))
    words = ["plan", str(file), f"data.test={test}", "--model", str(model_folder("llama")), "prove.max_new_tokens=120"]
    done = cli(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "DATA_TOO_LONG" in done.stderr
    assert "test.jsonl:1" in done.stderr
    assert "prove.max_new_tokens" in done.stderr
