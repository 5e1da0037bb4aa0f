"""Several processes train what one does, bit for bit; what is lost or differs is an error in time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import rank_job
from build import FLAGS, Folder, Rows, cli, process
from rank_job import CASES

from tunewright.core.errors import TrainError
from tunewright.core.run_folder import Run, sha256
from tunewright.train.ranks import Ranks

JOB = Path(rank_job.__file__)
PACKED = [name for name in CASES if name.endswith("nf4")]
NAMES = [name for name in CASES if name not in PACKED]
FEW = ["shared", "dropout", "fsdp recomputed", "clipped"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def started(world: int, *words: str, cwd: Path | None = None, **more: str) -> list[subprocess.Popen[str]]:
    """The processes that torchrun would start."""
    port, each = str(free_port()), [str(JOB.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(each), "OMP_NUM_THREADS": "1", **more}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def results(world: int, folder: Path, *names: str) -> list[dict[str, Any]]:
    ended = [(p.communicate(timeout=300), p) for p in started(world, str(JOB), str(folder), *names)]
    assert all(p.returncode == 0 for _, p in ended), [err[-2000:] for (_, err), _ in ended]
    return [json.loads(out.splitlines()[-1]) for (out, _), _ in ended]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    (result,) = results(1, tmp_path_factory.mktemp("alone"), *NAMES)
    return result


def test_weights_and_losses_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    (one,) = results(1, tmp_path / "one", *FEW)
    assert one["clipped"]["steps"] < 12, "stopped early"
    for result in results(2, tmp_path / "two", *FEW):
        assert result == one


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_weights_and_losses_do_not_depend_on_the_number_of_processes(
    world: int, alone: dict[str, Any], tmp_path: Path
) -> None:
    """For every layout, with dropout, DoRA, recomputed layers, 16 bits, clipping, an early stop, and more processes
    than passes."""
    assert len({result["weights"] for result in alone.values()}) == len(alone)
    for result in results(world, tmp_path, *NAMES):
        assert result == alone


@pytest.mark.slow
def test_nor_do_they_with_a_base_in_nf4(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    one, *more = [r for world in (1, 2, 3) for r in results(world, tmp_path / str(world), *PACKED)]
    assert all(result == one for result in more)
    assert one["nf4"] == one["fsdp nf4"], "shards change nothing"


@pytest.mark.slow
def test_a_run_continues_with_another_number_of_processes(alone: dict[str, Any], tmp_path: Path) -> None:
    """Three, killed after their third step; then one, killed after the fourth; then two."""
    for world, stop in ((3, "3"), (1, "4")):
        killed = started(world, str(JOB), str(tmp_path), stop, "shared")
        assert {p.wait(120) for p in killed} <= {9, 1, -signal.SIGABRT}
        for p in killed:
            p.communicate()
    for result in results(2, tmp_path, "shared"):
        assert result["shared"] == alone["shared"]


@pytest.mark.slow
def test_a_killed_process_is_an_error_of_the_others_in_time(tmp_path: Path, alone: dict[str, Any]) -> None:
    """And started again, they end as if nothing had happened."""
    both = started(2, str(JOB), str(tmp_path), "shared", "padded")
    metrics = tmp_path / "shared" / "metrics.jsonl"
    while both[0].poll() is None and not metrics.exists():
        time.sleep(0.01)
    both[1].kill()
    _, err = both[0].communicate(timeout=60)
    both[1].communicate()
    assert both[1].returncode == -signal.SIGKILL
    assert both[0].returncode == 1
    assert "RANKS_LOST" in err, err[-1500:]
    for result in results(2, tmp_path, "shared", "padded"):
        assert {name: result[name] for name in result} == {name: alone[name] for name in result}


def test_processes_with_other_inputs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    together = Ranks(0, 2)
    facts = [("here", {"model": "a" * 64, "torch": "2.13"}), ("there", {"model": "a" * 64, "torch": "2.11"})]
    monkeypatch.setattr(Ranks, "by_part", lambda self, own: facts)
    with pytest.raises(TrainError, match=r"RANKS_DIFFER.*process 1 on there has another torch than process 0 on here"):
        together.require_same({})


def test_torchrun_trains_a_planned_run(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    """The real launcher: two processes on a run that `plan` made, with the base in shards; `train` then has nothing to
    do."""
    words = [str(chat_rows()), "--model", str(model_folder("llama")), *FLAGS, "train.tokens_per_pass=64"]
    for name, *more in (["one"], ["two", "train.fsdp=true"]):
        plan = cli("plan", *words, "--name", name, *more, cwd=tmp_path)
        assert plan.returncode == 0, plan.stderr
    rows = process("-m", "tunewright", "train", words[0], cwd=tmp_path, WORLD_SIZE="2", RANK="0")
    assert rows.returncode == 2
    assert "is not a run with a plan. Fix: `tunewright plan" in rows.stderr
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = process(*launcher, "-m", "tunewright", "train", "two", cwd=tmp_path)
    assert two.returncode == 0, two.stderr[-3000:]
    one = cli("train", "runs/one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    assert sha256(Run(tmp_path / "runs" / "one").weights) == sha256(Run(tmp_path / "runs" / "two").weights)
    again = cli("train", "runs/two", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
