"""Trackers get every step once, under the usual names, while the run writes it; with the real packages too, where they
are installed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from build import FLAGS, cli, copied
from report import records as made

from tunewright.core import console
from tunewright.core.config import load
from tunewright.core.errors import MissingExtra
from tunewright.core.run_folder import Run, append_line
from tunewright.track import follow, trackers
from tunewright.track.trackers import TRACKERS, TrackedRun, Tracker

REAL = [
    pytest.param(n, marks=pytest.mark.skipif(importlib.util.find_spec(n) is None, reason=f"{n} is not installed"))
    for n in TRACKERS
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run folder that has a plan and no steps yet."""
    everything = made.everything()
    started = {**everything, "metrics": None, "verdict": None, "export": None}
    run = made.write(tmp_path / "one", started)
    (run.path / "track").mkdir()
    return run


class Recorder:
    """A tracker that keeps what it is sent."""

    def __init__(self) -> None:
        self.runs: list[TrackedRun] = []
        self.steps: list[tuple[int, dict[str, Any]]] = []
        self.files: list[str] = []
        self.closed = 0

    def open(self, run: TrackedRun) -> Tracker:
        self.runs.append(run)

        def close() -> None:
            self.closed += 1

        return Tracker(
            lambda step, values: self.steps.append((step, dict(values))), lambda f: self.files.append(f.name), close
        )


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setitem(trackers.TRACKERS, "wandb", recorder.open)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    return recorder


def log(run: Run, steps: range) -> None:
    for step in steps:
        append_line(run.metrics, made.step(step))


def follow_to_the_end(run: Run, name: str = "wandb") -> None:
    ended = threading.Event()
    ended.set()
    follow.follow(run, name, ended)


def conclude(run: Run) -> None:
    run.verdict.write_text(json.dumps(made.verdict()))
    run.report.write_text("<p>report</p>")


def waited(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    return condition()


def test_steps_arrive_while_the_run_writes_them(run: Run, recorder: Recorder) -> None:
    ended = threading.Event()
    thread = threading.Thread(target=follow.follow, args=(run, "wandb", ended))
    thread.start()
    try:
        assert not recorder.runs, "nothing is opened before there is something to send"
        log(run, range(3))
        assert waited(lambda: len(recorder.steps) == 3)
        log(run, range(3, 11))
        assert waited(lambda: len(recorder.steps) == 11)
        assert not recorder.closed
    finally:
        ended.set()
        thread.join()
    assert [step for step, _ in recorder.steps] == list(range(11))
    assert recorder.steps[0][1] == {"eval/loss": 2.0}
    assert recorder.steps[1][1] == {
        "train/loss": 3.0,
        "train/learning_rate": 0.002,
        "train/grad_norm": 1.0,
        "train/tokens_per_second": 200.0,
    }
    assert recorder.steps[10][1]["eval/loss"] == 2.0 / 11
    assert recorder.closed == 1
    assert recorder.runs[0].plan["adapter.rank"] == made.plan()["adapter"]["rank"]
    assert not [key for key in recorder.runs[0].plan if key.startswith(("reasons", "estimate"))]


def test_a_resumed_run_sends_no_step_twice(run: Run, recorder: Recorder) -> None:
    log(run, range(8))
    follow_to_the_end(run)
    lines = run.metrics.read_text().splitlines(keepends=True)
    run.metrics.write_text("".join(lines[:5]))  # the run goes back to its last checkpoint
    follow_to_the_end(run)
    log(run, range(5, 12))
    follow_to_the_end(run)
    assert [step for step, _ in recorder.steps] == list(range(12))
    assert len({r.id for r in recorder.runs}) == 1


def test_an_unfinished_line_is_not_read(run: Run, recorder: Recorder) -> None:
    log(run, range(2))
    with open(run.metrics, "a") as file:
        file.write('{"step": 2, "lo')
    follow_to_the_end(run)
    assert [step for step, _ in recorder.steps] == [0, 1]


def test_verdict_and_report_are_sent_once_and_again_if_they_change(run: Run, recorder: Recorder) -> None:
    log(run, range(3))
    conclude(run)
    follow_to_the_end(run)
    follow_to_the_end(run)
    assert recorder.files == ["report.html"]
    step, values = recorder.steps[-1]
    assert step == 3
    assert (values["verdict"], values["verdict/tuned"]) == ("BETTER", made.verdict()["tuned"])
    run.report.write_text("<p>other</p>")
    follow_to_the_end(run)
    assert recorder.files == ["report.html", "report.html"]


def test_nothing_is_sent_that_was_not_asked_for(run: Run, recorder: Recorder) -> None:
    log(run, range(3))
    with follow.following(run, [], console.Console(quiet=True)):
        pass
    assert not recorder.runs
    assert not list((run.path / "track").iterdir())


def test_a_tracker_that_fails_is_a_warning(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """In its own process: the run's records are unreadable to it."""
    log(run, range(3))
    run.plan.write_text("{}")
    with follow.following(run, ["tunewright.track"], console.Console(quiet=True)):
        pass
    assert "track: tunewright.track failed: KeyError" in capsys.readouterr().err
    assert (run.path / "track" / "tunewright.track.log").stat().st_mode & 0o077 == 0


def test_the_makers_of_trackers_get_no_reports(run: Run, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user's own environment says otherwise."""
    for variable in trackers.NO_TELEMETRY:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    seen: list[str | None] = []

    def opened(tracked: TrackedRun) -> Tracker:
        seen.extend(os.environ.get(variable) for variable in trackers.NO_TELEMETRY)
        return recorder.open(tracked)

    monkeypatch.setitem(trackers.TRACKERS, "wandb", opened)
    log(run, range(2))
    follow.main(str(run.path), "wandb")
    assert seen == ["true", "true", "1"]
    assert len(recorder.steps) == 2


def test_a_missing_package_is_an_error_before_training(tmp_path: Path, proved: Path) -> None:
    """Whichever of the trackers is missing here."""
    missing = [name for name in TRACKERS if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("all trackers are installed")
    copied(proved, tmp_path)
    done = cli("run", "rows.jsonl", f"track=[{missing[0]}]", cwd=tmp_path)
    assert done.returncode == 2
    assert f"pip install {missing[0]}" in done.stderr
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["r"], "no run folder is left"
    with pytest.raises(MissingExtra):
        follow.following(Run(tmp_path), [missing[0]], console.Console()).__enter__()


def test_a_run_is_followed_while_its_stages_run(tmp_path: Path, proved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The followers start before the first stage and end after the last one."""
    seen: list[tuple[str, tuple[str, ...]]] = []

    @contextlib.contextmanager
    def following(run: Run, names: Sequence[str], _: object) -> Iterator[None]:
        assert not run.audit.exists()
        yield
        assert run.audit.exists()
        seen.append((run.name, tuple(names)))

    monkeypatch.setattr(follow, "following", following)
    copied(proved, tmp_path)
    model = load(tmp_path / "runs" / "r" / "config.yaml").model
    command = ("plan", "rows.jsonl", "--name", "new", "--model", model, *FLAGS, "track=[mlflow, tensorboard]")
    done = cli(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert seen == [("new", ("mlflow", "tensorboard"))]


# -- the real packages, offline, with a store of their own


def environment(folder: Path) -> dict[str, str]:
    store = folder / "store"
    return {
        **os.environ,
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(store / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db",
        "MLFLOW_ARTIFACT_ROOT": str(store),
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder),
    }


def followed(run: Run, name: str, folder: Path) -> subprocess.Popen[bytes]:
    (folder / "store").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tunewright.track.follow", str(run.path), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment(folder), cwd=folder)


Read = Callable[[Run, Path], tuple[dict[str, list[tuple[int, float]]], str]]


def of_tensorboard(run: Run, folder: Path) -> tuple[dict[str, list[tuple[int, float]]], str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run.path / "track" / "tensorboard"))
    read.Reload()
    texts = [e.tensor_proto.string_val[0].decode() for tag in read.Tags()["tensors"] for e in read.Tensors(tag)]
    return {t: [(e.step, e.value) for e in read.Scalars(t)] for t in read.Tags()["scalars"]}, "\n".join(texts)


def of_mlflow(run: Run, folder: Path) -> tuple[dict[str, list[tuple[int, float]]], str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/store/mlflow.db")
    experiment = client.get_experiment_by_name("tunewright")
    assert experiment is not None
    (only,) = client.search_runs([experiment.experiment_id])
    files = [f.path for f in client.list_artifacts(only.info.run_id)]
    id_ = only.info.run_id
    histories = {key: [(m.step, m.value) for m in client.get_metric_history(id_, key)] for key in only.data.metrics}
    return histories, f"{only.data.params} {only.data.tags} {files}"


def of_trackio(run: Run, folder: Path) -> tuple[dict[str, list[tuple[int, float]]], str]:
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; (name,) = S.get_runs('tunewright');"
        "print(json.dumps([S.get_logs('tunewright', name), S.get_run_config('tunewright', name),"
        " S.get_artifacts('tunewright')], default=str))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(folder), capture_output=True, check=True)
    logs, config, artifacts = json.loads(done.stdout.splitlines()[-1])
    return histories(logs, "step"), f"{logs[-1]} {config} {artifacts}"


def of_wandb(run: Run, folder: Path) -> tuple[dict[str, list[tuple[int, float]]], str]:
    """Of an offline run: a file of records in blocks of 32 KiB, as in LevelDB's log. A continued run has two files."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, texts = [], ""
    for file in sorted((run.path / "track").glob("wandb/offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime):
        content, at, parts = file.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
            size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
            parts, at = parts + content[at + 7 : at + 7 + size], at + 7 + size
            if kind in (1, 4):  # complete, or the last part
                record, parts = Record.FromString(parts), b""
                if record.HasField("history"):
                    items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                    rows.append({**items, "step": record.history.step.num})
                if record.HasField("run"):
                    assert record.run.run_id == follow._tracked(run).id
                texts += str(record) if record.HasField("run") or record.HasField("artifact") else ""
    return histories(rows, "step"), f"{texts} {rows[-1]}"


def histories(rows: list[dict[str, Any]], step: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each number, from rows of several numbers."""
    names = {name for row in rows for name in row if "/" in name}
    return {name: [(row[step], row[name]) for row in rows if name in row] for name in names}


READERS: dict[str, Read] = {
    "tensorboard": of_tensorboard,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
    "wandb": of_wandb,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages themselves, when they read
@pytest.mark.parametrize("name", REAL)
def test_the_real_package_stores_each_step_once(run: Run, tmp_path: Path, name: str) -> None:
    """Two processes follow the run one after the other; the first is ended by the end of its input."""
    log(run, range(6))
    first = followed(run, name, tmp_path)
    first.communicate()
    assert first.returncode == 0
    log(run, range(6, 21))
    conclude(run)
    second = followed(run, name, tmp_path)
    second.communicate()
    assert second.returncode == 0
    scalars, texts = READERS[name](run, tmp_path)
    assert [step for step, _ in scalars["train/loss"]] == list(range(1, 21))
    assert [value for _, value in scalars["train/loss"]] == pytest.approx([3.0 / step for step in range(1, 21)])
    assert scalars["eval/loss"] == [(0, pytest.approx(2.0)), (10, pytest.approx(2 / 11)), (20, pytest.approx(2 / 21))]
    assert scalars["verdict/tuned"] == [(21, pytest.approx(made.verdict()["tuned"]))]
    assert {"train/learning_rate", "train/grad_norm", "train/tokens_per_second"} <= set(scalars)
    for word in ("BETTER", "adapter.rank", "report"):
        assert word in texts, word


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_following_is_live_and_survives_the_death_of_the_run(run: Run, tmp_path: Path, name: str) -> None:
    """What has been sent is noted within seconds; when the run is killed, the rest is sent and the follower ends."""
    process = followed(run, name, tmp_path)
    log(run, range(4))
    note = run.path / "track" / f"{name}.json"
    assert waited(lambda: note.exists() and json.loads(note.read_text())["step"] == 3, 60)
    assert process.poll() is None
    log(run, range(4, 6))
    process.communicate()
    assert json.loads(note.read_text())["step"] == 5
    assert process.returncode == 0
