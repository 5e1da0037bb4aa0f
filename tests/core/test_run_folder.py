"""A run folder has one writer, and what is on the disk is complete: locks, half-written files, full disks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from build import process, writer

from tunewright.core import run_folder
from tunewright.core.errors import RunError, TrainError
from tunewright.core.run_folder import Run


@pytest.mark.parametrize("stopped", [False, True])
def test_two_processes_do_not_write_one_run(tmp_path: Path, stopped: bool) -> None:
    """A writer that is suspended, however long, is still the writer."""
    (tmp_path / "config.yaml").write_text("")
    first = writer(tmp_path)
    try:
        if stopped:
            first.send_signal(signal.SIGSTOP)
        with pytest.raises(RunError, match=rf"RUN_LOCKED.*process {first.pid} on"), run_folder.writing(Run(tmp_path)):
            pass
        with pytest.raises(RunError, match="RUN_LOCKED"):
            run_folder.remove(Run(tmp_path))
    finally:
        first.kill()
        first.communicate()
    with run_folder.writing(Run(tmp_path)):  # left by a dead process: taken over, with an event
        assert json.loads((tmp_path / ".owner").read_text())["process"] == os.getpid()
    events = [json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(e["event"], e["from_process"]) for e in events] == [("taken_over", first.pid)]
    assert not (tmp_path / ".owner").exists()


def test_the_owner_on_another_machine_is_named(tmp_path: Path) -> None:
    owner = {"process": 1, "host": "elsewhere", "since": "2026-01-01", "command": "x"}
    (tmp_path / ".owner").write_text(json.dumps(owner))
    with pytest.raises(RunError, match="process 1 on elsewhere, since 2026-01-01"), run_folder.writing(Run(tmp_path)):
        pass
    assert json.loads((tmp_path / ".owner").read_text()) == owner


def test_half_written_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    half, kept = tmp_path / "data" / ".split.jsonl.123.456", tmp_path / "data" / ".keep"
    half.write_text("x")
    kept.write_text("x")
    with run_folder.writing(Run(tmp_path)):
        assert not half.exists()
        assert kept.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_of_our_errors(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TrainError, match="RUN_DISK"):
        run_folder.write_json(tmp_path / "x.json", {})


def test_a_file_size_limit_is_one_of_our_errors_and_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import resource, signal, pathlib
from tunewright.core import run_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
run_folder.write_atomic(pathlib.Path({str(tmp_path)!r}) / "x", b"0" * 5000)
"""
    done = process("-c", code, cwd=tmp_path)
    assert "[RUN_DISK]" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unfinished", ["{", '{"step": 3, "los', "x" * 9000])
@pytest.mark.parametrize("before", [0, 1, 200])
def test_a_line_after_an_unfinished_one_is_read(tmp_path: Path, before: int, unfinished: str) -> None:
    """A full disk cuts a line off in the middle; what is appended later must start on a new line."""
    file = tmp_path / "metrics.jsonl"
    for i in range(before):
        run_folder.append_line(file, {"step": i, "text": "é" * 40})
    with open(file, "a") as torn:
        torn.write(unfinished)
    run_folder.append_line(file, {"step": before})
    assert [line["step"] for line in run_folder.read_lines(file)] == [*range(before), before]


def test_a_disk_that_fills_within_a_line_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    code = f"""
import resource, signal, pathlib
from tunewright.core import run_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for i in range(100):
    run_folder.append_line(pathlib.Path({str(file)!r}), {{"step": i, "text": "x" * 70}})
"""
    done = process("-c", code, cwd=tmp_path)
    assert "[RUN_DISK]" in done.stderr
    written = len(list(run_folder.read_lines(file)))
    assert written > 5
    run_folder.append_line(file, {"step": written})
    assert [line["step"] for line in run_folder.read_lines(file)] == [*range(written), written]


def test_a_clock_that_jumps_back_repeats_no_run_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(run_folder.datetime, "datetime", Fixed)
    names = {run_folder.create(tmp_path, None, "rows").name for _ in range(3)}
    assert len(names) == 3
