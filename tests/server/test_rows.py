"""Files of rows are read by another process: what they take does not take it from the server."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from build import write_chat_rows
from server_running import SHORT_JOB, finished, running

from tunewright.core.config import Config, load
from tunewright.core.errors import DataError
from tunewright.data import dataset
from tunewright.data.messages import from_json
from tunewright.report import rows as shown
from tunewright.report.rows import Part
from tunewright.server import rows
from tunewright.server.rows import Reader, ReadingLimits
from tunewright.server.service import Settings

HELLO: Any = [{"role": "user", "content": "x"}]


def config(path: Path) -> Config:
    return load(None, [f"data.train={json.dumps(str(path))}"])


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that take seconds."""
    path = tmp_path_factory.mktemp("slow") / "slow.jsonl"
    with open(path, "w") as out:
        for n in range(10_000):
            words = " ".join(str(n * 7919 % (1000 + i)) for i in range(100))
            out.write(json.dumps({"prompt": f"{n} {words}", "completion": f"{n}"}) + "\n")
    return path


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader(ReadingLimits())
    yield made
    made.close()


def test_another_process_says_what_this_one_would(reader: Reader, tmp_path: Path) -> None:
    good, part = config(write_chat_rows(tmp_path / "good.jsonl", 60)), Part(start=50, count=8, flagged=False)
    assert reader.submit(good).result() == {}
    page = reader.submit(good, part).result()
    assert page == shown.page(dataset.load(good), tmp_path / "good.jsonl", part)
    assert ([row["number"] for row in page["rows"]], page["more"]) == (list(range(50, 58)), 58)
    assert [from_json(row["example"]) for row in page["rows"]] == list(dataset.load(good).examples[50:58])
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n' * 60)
    bad = config(tmp_path / "bad.jsonl")
    with pytest.raises(DataError) as here:
        dataset.load(bad)
    with pytest.raises(DataError) as there:
        reader.submit(bad).result()
    assert (str(there.value), there.value.code) == (str(here.value), "DATA_JSON_INVALID")
    assert there.value.problems == here.value.problems[: rows.MOST_PROBLEMS]


def test_rows_are_shown_as_they_are_trained_on(reader: Reader, tmp_path: Path) -> None:
    """Messages with thoughts, calls, weights and tools; documents; and a row that is too long."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": [2]}'}}
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [call], "weight": 0},
        {"role": "tool", "tool_call_id": "c", "content": "3"},
        {"role": "assistant", "content": "it is 3", "reasoning_content": "hm"},
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    chats = [{"messages": [{"role": "user", "content": f"add {n}"}, *turns], "tools": [tool]} for n in range(20)]
    chats[3]["messages"][0]["content"] = "x" * (shown.MOST_CHARACTERS + 1)  # type: ignore[index]
    texts = [{"text": f"document {n} has {n * 37 % 101} words about {n * n}"} for n in range(20)]
    for name, given in (("chats", chats), ("texts", texts)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in given))
        page = reader.submit(config(file), Part(start=0, count=20, flagged=False)).result()
        examples: list[Any] = list(dataset.load(config(file)).examples)
        if name == "chats":
            examples[3] = None
        assert [row["example"] and from_json(row["example"]) for row in page["rows"]] == examples


def test_a_process_that_ends_is_an_error_with_a_fix_and_is_replaced(reader: Reader, tmp_path: Path, slow: Path) -> None:
    good = config(write_chat_rows(tmp_path / "good.jsonl", 60))
    (idle,) = reader._processes._idle
    os.kill(idle.started.pid, signal.SIGKILL)
    idle.started.wait()
    assert reader.submit(good).result() == {}
    reading = reader.submit(config(slow))
    while not reader._processes._busy:
        time.sleep(0.01)
    os.kill(reader._processes._busy[0].started.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"DATA_READING.* memory"):
        reading.result()
    assert reader.submit(good).result() == {}


def test_what_takes_too_long_is_given_up(tmp_path: Path, slow: Path) -> None:
    reader = Reader(ReadingLimits(seconds=0.3, per_mib=0.0))
    with pytest.raises(DataError, match=r"longer than 0 s.* Fix: upload fewer"):
        reader.submit(config(slow)).result()
    assert (reader._processes._idle, reader._processes._busy) == ([], [])
    reader.close()


def test_a_file_that_takes_too_much_fails_its_job_and_nothing_else(fresh: Settings, tmp_path: Path) -> None:
    """A row has 2.5 million lists: 7.5 MB in the file, 180 MB in memory."""
    rows_file = write_chat_rows(tmp_path / "small.jsonl", 60)
    with running(replace(fresh, reading=ReadingLimits(memory=480 << 20))) as server, server.http() as http:
        client = server.client()
        small = client.files.create(file=rows_file, purpose="fine-tune")
        heavy = rows_file.read_bytes() + b'{"messages": [], "x": [' + b"[]," * 2_500_000 + b"[]]}"
        too_much = client.files.create(file=("heavy.jsonl", heavy), purpose="fine-tune")
        given: Any = {"model": server.model, "extra_body": {"tunewright": SHORT_JOB}}
        failing = client.fine_tuning.jobs.create(training_file=too_much.id, **given)
        pages: list[str] = []
        page = threading.Thread(target=lambda: pages.append(http.get(f"/data/{too_much.id}").text))
        page.start()
        seconds = []
        while client.fine_tuning.jobs.retrieve(failing.id).status == "validating_files":
            began = time.monotonic()
            client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=2)
            seconds.append(time.monotonic() - began)
        page.join()
        assert seconds
        assert max(seconds) < 1.5
        failed = finished(client, failing.id)
        assert (failed.status, failed.error.code, failed.error.param) == ("failed", "DATA_READING", "training_file")
        assert "0.5 GB of memory" in failed.error.message
        assert "DATA_READING" in pages[0]
        assert "Rows as the model sees them" in http.get(f"/data/{small.id}").text
