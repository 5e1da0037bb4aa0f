"""What a run survives: kills at every touch of the disk, damaged checkpoints, a second process, a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from build import FLAGS, cli, plan_of, tiny_model, train_rows, training_of

from tunewright.core import run_folder
from tunewright.core.errors import RunError, TrainError
from tunewright.core.run_folder import Run
from tunewright.model import adapters
from tunewright.train import checkpoints, loop

Folder = Callable[[str], Path]
Rows = Callable[..., Path]
HERE = Path(__file__).parent


def test_killed_and_gone_on_is_as_if_nothing_had_happened() -> None:
    """The short form of `make torture`."""
    done = subprocess.run(
        [sys.executable, str(HERE / "torture.py"), "--kills", "40", "--minutes", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills, ended, lost, unequal = map(
        int, re.findall(r"(\d+) kills, \d+ full disks, (\d+) runs, (\d+) lost, (\d+) unequal", done.stdout)[-1]
    )
    assert kills >= 10
    assert ended >= 5
    assert (lost, unequal) == (0, 0)


def train(folder: Path, steps: int = 6) -> tuple[list[torch.Tensor], Run]:
    run, plan = Run(folder), plan_of(steps=6, checkpoint_every=2, eval_every=3)
    folder.mkdir(exist_ok=True)
    model = tiny_model()
    adapters.attach(model, plan.adapter, plan.seed)

    def stop(p: loop.Progress) -> None:
        if p.step == steps < plan.steps:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        loop.train(training_of(model, plan, train_rows(9), train_rows(3, seed=5), run), stop)
    return [p.detach().clone() for p in adapters.trainable(model).values()], run


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("weights.safetensors", flip),
        ("optimizer.safetensors", flip),
        ("weights.safetensors", lambda f: f.write_bytes(f.read_bytes()[:-9])),
        ("state.json", lambda f: f.write_text("{")),
        ("state.json", lambda f: f.unlink()),
        ("COMPLETE", lambda f: f.write_text("")),
        ("../best-000003.safetensors", flip),
    ],
)
def test_a_damaged_newest_checkpoint_costs_some_steps_and_nothing_else(
    tmp_path: Path, file: str, damage: Callable[[Path], Any]
) -> None:
    straight, _ = train(tmp_path / "straight")
    _, run = train(tmp_path / "stopped", steps=5)
    damage(run.checkpoints / "step-000004" / file)
    found, damaged = checkpoints.newest(run.checkpoints)
    assert found is not None
    assert found.name == "step-000002"
    assert len(damaged) == 1
    assert "step-000004" in damaged[0]
    again, _ = train(tmp_path / "stopped")
    assert all(torch.equal(a, b) for a, b in zip(straight, again, strict=True))


def test_damaged_final_weights_are_not_used(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    assert (
        cli("train", str(chat_rows()), "--name", "r", "--model", str(model_folder("llama")), *FLAGS, cwd=tmp_path).returncode == 0
    )
    run = Run(tmp_path / "runs" / "r")
    before = run.weights.read_bytes()
    flip(run.weights)
    done = cli("prove", "r", cwd=tmp_path)
    assert done.returncode == 2
    assert "RUN_DAMAGED" in done.stderr
    assert "remove runs/r/training.json" in done.stderr
    run.training.unlink()  # as the message says
    assert cli("train", "r", cwd=tmp_path).returncode == 0
    assert run.weights.read_bytes() == before


# -- one writer


def started(folder: Path, hold: str = "time.sleep(60)") -> subprocess.Popen[str]:
    code = f"import time, pathlib\nfrom tunewright import runs\nwith run_folder.writing(run_folder.Run(pathlib.Path({str(folder)!r}))):\n print('in', flush=True)\n {hold}\n"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


@pytest.mark.parametrize("stopped", [False, True])
def test_two_processes_do_not_write_one_run(tmp_path: Path, stopped: bool) -> None:
    """A writer that is merely stopped, however long, is still the writer."""
    (tmp_path / "config.yaml").write_text("")
    first = started(tmp_path)
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
    with run_folder.writing(Run(tmp_path)):  # of a dead process: taken over, and said
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


def test_two_starts_on_one_run_refuse_the_second(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    data, model = str(chat_rows()), str(model_folder("llama"))
    assert cli("plan", data, "--name", "r", "--model", model, *FLAGS, cwd=tmp_path).returncode == 0
    first = started(tmp_path / "runs" / "r")
    try:
        done = cli("run", "r", cwd=tmp_path)
        assert done.returncode == 2
        assert "RUN_LOCKED" in done.stderr
        again = cli("plan", data, "--name", "r", "--model", model, cwd=tmp_path)
        assert "RUN_EXISTS" in again.stderr
    finally:
        first.kill()
        first.communicate()


def test_an_export_that_was_killed_is_made_again_whole(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    model = str(model_folder("llama"))
    assert cli("train", str(chat_rows()), "--name", "r", "--model", model, *FLAGS, cwd=tmp_path).returncode == 0
    command = [sys.executable, str(HERE / "torture.py"), "--export", str(tmp_path / "runs" / "r")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    kills, unequal = map(int, re.findall(r"(\d+) kills of an export, (\d+) unequal", done.stdout)[-1])
    assert kills > 15
    assert unequal == 0


# -- signals and memory


def test_the_first_signal_asks_and_the_second_ends_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with loop._interrupts() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_proving_it_goes_on_to_the_same_verdict(
    number: int, tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    arguments = ["prove", str(chat_rows()), "--model", str(model_folder("llama")), *FLAGS]
    assert cli(*arguments, "--name", "straight", cwd=tmp_path).returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "tunewright", *arguments, "--name", "r"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    events = tmp_path / "runs" / "r" / "events.jsonl"
    while process.poll() is None and not (events.exists() and "prove_started" in events.read_text()):
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert re.search(r"error\[TRAIN_INTERRUPTED\].*during `prove`.*Fix: `tunewright run", said), said
    assert "Traceback" not in said
    assert cli("prove", "r", cwd=tmp_path).returncode == 0
    first, second = ((tmp_path / "runs" / n / "verdict.json").read_text() for n in ("straight", "r"))
    drop = re.compile(r'"(?:seconds|test_reads|asked_again)":[^}]*')
    assert drop.sub("", first) == drop.sub("", second)


def test_out_of_memory_is_said(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    """When training begins the address space is closed, and what is free within it is taken."""
    code = """
import resource, sys, torch
from tunewright import cli, loop
train = loop.train
def narrow(*args, **more):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4_000_000,) * 2)
    taken = []
    try:
        while True:
            taken.append(torch.ones(1 << 16))
    except RuntimeError:
        del taken[-2:]
    return train(*args, **more)
loop.train = narrow
cli.main()
"""
    flags = ["train.steps=3", "train.batch_size=40", "train.tokens_per_pass=8192", "train.dtype=float32", "threads=1"]
    words = ["train", str(chat_rows()), "--name", "r", "--model", str(model_folder("llama")), *flags]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert re.search(r"error\[TRAIN_MEMORY\] \S*runs/r: .* GB .*Fix: .*train.tokens_per_pass", done.stderr), done.stderr
    assert "Traceback" not in done.stderr


# -- the disk


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    half, kept = tmp_path / "data" / ".split.jsonl.123.456", tmp_path / "data" / ".keep"
    half.write_text("x")
    kept.write_text("x")
    with run_folder.writing(Run(tmp_path)):
        assert not half.exists()
        assert kept.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TrainError, match="RUN_DISK"):
        run_folder.write_json(tmp_path / "x.json", {})


def test_a_file_size_limit_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import resource, signal, pathlib
from tunewright import runs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
run_folder.write_atomic(pathlib.Path({str(tmp_path)!r}) / "x", b"0" * 5000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "[RUN_DISK]" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unfinished", ["{", '{"step": 3, "los', "x" * 9000])
@pytest.mark.parametrize("before", [0, 1, 200])
def test_a_line_after_an_unfinished_one_is_read(tmp_path: Path, before: int, unfinished: str) -> None:
    """A full disk ends a line in its middle; what is appended once there is room again must not be glued to that."""
    file = tmp_path / "metrics.jsonl"
    for i in range(before):
        run_folder.append_line(file, {"step": i, "text": "é" * 40})
    with open(file, "a") as torn:
        torn.write(unfinished)
    run_folder.append_line(file, {"step": before})
    assert [line["step"] for line in run_folder.read_lines(file)] == [*range(before), before]


def test_a_disk_that_fills_within_a_line_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    code = f"""
import resource, signal, pathlib
from tunewright import runs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for i in range(100):
    run_folder.append_line(pathlib.Path({str(file)!r}), {{"step": i, "text": "x" * 70}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "[RUN_DISK]" in done.stderr
    written = len(list(run_folder.read_lines(file)))
    assert written > 5
    run_folder.append_line(file, {"step": written})
    assert [line["step"] for line in run_folder.read_lines(file)] == [*range(written), written]


def test_a_clock_that_jumps_back_harms_no_run_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(run_folder.datetime, "datetime", Fixed)
    names = {run_folder.create(tmp_path, None, "rows").name for _ in range(3)}
    assert len(names) == 3


def test_going_on_elsewhere_is_said(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    data, model = str(chat_rows()), str(model_folder("llama"))
    assert cli("plan", data, "--name", "r", "--model", model, *FLAGS, cwd=tmp_path).returncode == 0
    receipt = tmp_path / "runs" / "r" / "receipt.json"
    told = json.loads(receipt.read_text())
    told["versions"]["torch"], told["machine"]["processor"] = "1.0", "an abacus"
    receipt.write_text(json.dumps(told))
    done = cli("train", "r", cwd=tmp_path)
    assert done.returncode == 0
    assert "torch was 1.0" in done.stderr
    assert "processor was an abacus" in done.stderr


def test_another_protocol_is_refused_field_by_field(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    assert (
        cli("plan", str(chat_rows()), "--name", "r", "--model", str(model_folder("llama")), *FLAGS, cwd=tmp_path).returncode == 0
    )
    file = tmp_path / "runs" / "r" / "config.yaml"
    file.write_text(file.read_text().replace("margin: 0.02", "margin: 0.2"))
    done = cli("train", "r", cwd=tmp_path)
    assert done.returncode == 2
    assert "RESUME_MISMATCH" in done.stderr
    assert "margin was 0.02, is 0.2" in done.stderr


# -- made again


def test_a_run_made_again_is_equal_and_a_changed_one_says_what_differs(
    tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    data = chat_rows()
    assert cli("prove", str(data), "--name", "r", "--model", str(model_folder("llama")), *FLAGS, cwd=tmp_path).returncode == 0
    done = cli("runs", "reproduce", "r", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert told["equal"]
    assert told["compared"] == "weights, losses and scores"
    assert told["differs"] == {}
    data.write_text(data.read_text().replace("RED", "Red"))
    done = cli("runs", "reproduce", "r", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "weights     DIFFERENT" in done.stdout
    assert "sha256 of data" in done.stdout
    assert (tmp_path / "runs" / "r-again-2").is_dir()
