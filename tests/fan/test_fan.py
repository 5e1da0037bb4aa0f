"""Jobs run side by side; a job that is killed continues, one that fails is reported, and none is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunewright.core.console import Console
from tunewright.core.errors import RunWaits
from tunewright.fan import local, out
from tunewright.fan.jobs import Ended, Job, Where

HERE = Path(__file__).parent
QUIET = Console(quiet=True)


def jobs(root: Path, count: int, steps: int = 4, **orders: object) -> list[Job]:
    """``orders``: what the first of them does."""
    every = []
    for n in range(count):
        folder = root / f"job-{n}"
        folder.mkdir()
        if orders and n == 0:
            (folder / "orders.json").write_text(json.dumps(orders))
        every.append(Job(f"job-{n}", "job", (str(folder), str(steps)), folder, steps, 1))
    return every


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(out, "POLL_SECONDS", 0.02)


def processes(job: Job) -> int:
    return len(list(job.folder.glob("process-*")))


@pytest.mark.parametrize("at_once", [1, 3])
def test_all_are_run_to_the_end(at_once: int, tmp_path: Path) -> None:
    every = jobs(tmp_path, 5)
    assert out.run(every, Where("local", at_once), QUIET) == {}
    assert [job.step() for job in every] == [4] * 5
    assert [processes(job) for job in every] == [1] * 5


def test_no_more_run_at_once_than_allowed(tmp_path: Path) -> None:
    place = local.Local(Where("local", 2))
    every = jobs(tmp_path, 3, seconds=0.1)
    for job in every[:2]:
        assert place.has_room()
        place.start(job)
    assert not place.has_room()
    place.stop()


def test_a_killed_job_continues_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = jobs(tmp_path, 2, killed_once_at=2)
    assert out.run(every, Where("local", 2), QUIET) == {}
    assert [job.step() for job in every] == [4, 4]
    assert processes(every[0]) == 2
    assert "job-0 was killed after step 2" in capsys.readouterr().err


def test_a_job_that_dies_three_times_without_a_checkpoint_is_given_up_and_the_others_end(tmp_path: Path) -> None:
    every = jobs(tmp_path, 3, killed_at=2)
    failed = out.run(every, Where("local", 1), QUIET)
    assert list(failed) == ["job-0"]
    assert failed["job-0"].code == "TRAIN_WORKER"
    assert "without reaching a new checkpoint, most recently after step 2" in str(failed["job-0"])
    assert processes(every[0]) == 3
    assert [job.step() for job in every] == [2, 4, 4]


def test_the_error_of_a_job_is_its_own(tmp_path: Path) -> None:
    every = jobs(tmp_path, 2, error_at=1)
    failed = out.run(every, Where("local"), QUIET)
    assert {name: error.code for name, error in failed.items()} == {"job-0": "TRAIN_NOT_FINITE"}
    assert every[1].step() == 4
    assert processes(every[0]) == 1, "an error would only come again"


def test_jobs_save_and_end_when_their_starter_is_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "job-0"
    jobs(tmp_path, 1, seconds=0.1)
    code = f"""
import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)
from pathlib import Path; from tunewright.fan import out; from tunewright.fan.jobs import Ended, Job, Where
from tunewright.core.console import Console
f = Path({str(folder)!r})
out.run([Job("job-0", "job", (str(f), "1000"), f, 1000, 1)], Where("local"), Console(quiet=True))"""
    starter = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    starter.send_signal(signal.SIGTERM)
    starter.communicate(timeout=60)
    assert (folder / "saved").exists()


def test_printed_jobs_are_shell_lines_that_do_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = jobs(tmp_path, 2)
    with pytest.raises(RunWaits, match="2 trainings") as waits:
        out.run(every, Where("print"), QUIET)
    assert waits.value.exit_code == 4
    lines = capsys.readouterr().out.splitlines()
    for line in lines:
        subprocess.run(line, shell=True, check=True)
    assert [job.step() for job in every] == [4, 4]


def test_no_jobs_need_no_place() -> None:
    assert out.run([], Where("print"), QUIET) == {}


def test_a_job_that_was_stopped_or_whose_folder_was_locked_is_started_again() -> None:
    job = Job("a", "job", (), Path(), 1, 1)
    assert Ended(job, 130, "").killed
    locked = Ended(job, 2, '{"error": [{"code": "RUN_LOCKED"}]}')
    assert (locked.killed, locked.locked) == (False, True)
    assert not Ended(job, 2, '{"error": [{"code": "CONFIG_RANGE"}]}').killed


def test_a_locked_job_is_waited_for_and_its_error_says_who_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Ended(Job("a", "job", (), Path(), 1, 1), 2, '{"error": [{"code": "RUN_LOCKED"}]}')
    since: dict[str, float] = {}
    assert all(out._is_tried_again(ended, [], since) for _ in range(9))
    monkeypatch.setattr(out, "LOCKED_SECONDS", 0.0)
    assert not out._is_tried_again(ended, [], since)


def test_each_job_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [room["CUDA_VISIBLE_DEVICES"] for room in local.rooms(Where("local"), 3)] == ["0", "1", "2"]
    assert len(local.rooms(Where("local", 1), 4)) == 1
    assert [room["CUDA_VISIBLE_DEVICES"] for room in local.rooms(Where("local", 3), 2)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert [room["CUDA_VISIBLE_DEVICES"] for room in local.rooms(Where("local"), 2)] == ["GPU-a", "GPU-b"]
    assert local.rooms(Where("local"), 0) == [{}]


def test_the_cores_are_divided_among_jobs_of_this_machine() -> None:
    assert out.threads(Where("local", 3), 8) == 2
    assert out.threads(Where("local", 9), 8) == 1
    assert out.threads(Where("ray", 3), 8) == out.threads(Where(), 8) == 8
