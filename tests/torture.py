"""Kill training wherever it changes the disk, and at random moments; resume it; compare it with an uninterrupted run:
weights, optimizer state and logged losses, bit for bit.

python tests/torture.py [--kills 1000] [--minutes 60] [--world tiny] [--out FILE]

Every attempt is a fork of a process that has torch loaded. A failpoint is a call that changes the disk (write, fsync,
rename, unlink, mkdir, rmdir, link, chmod). The child counts these calls and dies by SIGKILL before or after the given
one (before an fsync, sometimes with half of the file cut off); or the call fails, as on a full disk.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunewright.core.config import AdapterConfig, MethodOptions, Plan
from tunewright.core.errors import TrainError
from tunewright.core.run_folder import Run, disk_errors, read_lines, writing
from tunewright.methods import METHODS
from tunewright.model import adapters, loading
from tunewright.model.facts import read_facts
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.sequences import TokenSequence, TrainRow, single
from tunewright.train import checkpoints, loop

CALLS = ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "link", "chmod")
FINISHED, DISK_FULL = 0, 7


@dataclass(frozen=True)
class World:
    """What is trained; ``model`` is loaded once and inherited by the forks."""

    model: LanguageModel
    rows: list[TrainRow]
    dev: list[TrainRow]
    plan: Plan


def tiny() -> World:
    """Accumulation over several passes, shared prefixes, dropout, shuffling, a checkpoint every second step."""
    from build import plan_of, rows, tiny_lm, train_rows

    head = tuple(range(40, 60))
    data = [single(TokenSequence(head + r.ids, (*[0.0] * len(head), *r.weights), r.row)) for r in rows(11)]
    adapter = AdapterConfig(rank=4, alpha=8.0, dropout=0.2)
    plan = plan_of(
        rows=11,
        steps=8,
        batch_size=5,
        tokens_per_pass=90,
        layout="shared",
        adapter=adapter,
        lr=1e-3,
        eval_every=3,
        threads=1,
    )
    return World(tiny_lm(), data, train_rows(3, seed=5), plan)


def preferences() -> World:
    """DPO: the reference is computed and stored before the first step."""
    from build import plan_of, tiny_lm

    def answer(row: int, side: int) -> TokenSequence:
        own = tuple(3 + (row * 7 + side * 5 + i * i) % 50 for i in range(4 + (row + side) % 5))
        prompt = tuple(40 + (row + i) % 15 for i in range(6))
        return TokenSequence((*prompt, *own), (*[0.0] * len(prompt), *[1.0] * len(own)), row)

    pairs = [TrainRow((answer(i, 0), answer(i, 1)), i) for i in range(12)]
    plan = plan_of(
        method="dpo",
        options=METHODS["dpo"].options(MethodOptions()),
        rows=9,
        steps=8,
        batch_size=4,
        tokens_per_pass=60,
        layout="shared",
        adapter=AdapterConfig(rank=4, alpha=8.0),
        lr=1e-3,
        eval_every=3,
        threads=1,
    )
    return World(tiny_lm(), pairs[:9], pairs[9:], plan)


def real() -> World:
    """SmolLM2-135M-Instruct on short rows, as the plan would train it."""
    from build import plan_of, train_rows

    facts = read_facts("smollm2-135m")
    adapter = AdapterConfig(rank=8, alpha=16.0, dropout=0.1)
    plan = plan_of(rows=12, steps=6, batch_size=4, tokens_per_pass=64, layout="shared", adapter=adapter,
                   lr=1e-3, eval_every=3, dtype="bfloat16",
                   threads=1)  # fmt: skip
    return World(loading.load(facts.path, torch.bfloat16), train_rows(12), train_rows(2, seed=5), plan)


WORLDS = {"tiny": tiny, "preferences": preferences, "real": real}


def forked(folder: Path, work: Callable[[], int]) -> int:
    """Exit status of ``work`` in a fork; -9 if it was killed. ``folder`` is created first."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def train(world: World, folder: Path) -> int:
    """Train with the loop alone and save the weights; DISK_FULL if the error is a full disk."""
    run = Run(folder)
    adapters.attach(world.model.module, world.plan.adapter, world.plan.seed)
    try:
        with writing(run):
            inputs = loop.TrainingInputs(world.model, world.plan, world.rows, world.dev, run, {"data": "d"})
            loop.train(loop.with_precomputed(inputs))
            checkpoints.save_weights(run.weights, adapters.trainable(world.model.module))
    except TrainError as error:
        if error.code == "RUN_DISK":
            return DISK_FULL
        raise
    return FINISHED


def failing(at: int, how: str, counted: int | None = None) -> None:
    """From now on, the ``at``-th call that changes the disk is the last: the process is killed "before" or "after" it,
    or the disk is "full"."""
    count = 0
    rng = random.Random(at)
    flushed: dict[int, int] = {}  # size of appended files before the run: no crash removes these bytes

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def failed(*args: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if counted is not None:
                os.write(counted, b".")
            if count == at and how == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if count == at and how == "before":
                if name == "fsync" and stat.S_ISREG(os.fstat(args[0]).st_mode) and rng.random() < 0.5:
                    now = os.fstat(args[0])
                    os.ftruncate(args[0], max(flushed.get(now.st_ino, 0), now.st_size // 2))
                os.kill(os.getpid(), signal.SIGKILL)
            actual = call(*args, **more)
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return actual

        return failed

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))
    plain = builtins.open

    def opened(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        if "a" in mode and os.path.exists(file):
            flushed[os.stat(file).st_ino] = os.stat(file).st_size
        return (
            wrap("open", plain)(file, mode, *args, **more)
            if set(mode) & set("wxa")
            else plain(file, mode, *args, **more)
        )

    builtins.open = io.open = opened  # type: ignore[assignment]


def left(folder: Path) -> dict[str, Any]:
    """What must be equal: hashes of all weights and moments, the log without its times, and the names of hidden
    leftover files."""
    run = Run(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix == ".safetensors")
    return {
        "files": {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
        "lines": [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run.metrics)],
        "leftovers": [p.name for p in folder.rglob(".*") if p.name != ".lock"],
    }


def failpoints(folder: Path, work: Callable[[], int]) -> int:
    """The number of calls with which ``work`` changes the disk."""

    def watched() -> int:
        failing(-1, "after", counter)
        return work()

    reader, counter = os.pipe()
    assert forked(folder, watched) == FINISHED
    os.close(counter)
    return len(os.read(reader, 1 << 16))


@dataclass
class Tally:
    """``lost``: how often a valid checkpoint was gone after a kill; ``unequal``: runs that ended differently from the
    uninterrupted one."""

    kills: int = 0
    full: int = 0
    runs: int = 0
    lost: int = 0
    unequal: int = 0
    points: int = 0


def torture(
    world: World, root: Path, kills: int, seconds: float, seed: int = 0, say: Callable[[str], None] = print
) -> Tally:
    """Runs that are killed a few times each, at each failpoint in turn and at random moments, until ``kills`` is
    reached."""
    rng, deadline = random.Random(seed), time.monotonic() + seconds
    begun = time.monotonic()
    assert forked(root / "straight", lambda: train(world, root / "straight")) == FINISHED
    took, straight = time.monotonic() - begun, left(root / "straight")
    tally = Tally(points=failpoints(root / "counted", lambda: train(world, root / "counted")))
    places = [(n, how) for n in range(1, tally.points + 1) for how in ("before", "after", "full")]
    rng.shuffle(places)
    while tally.kills < kills and time.monotonic() < deadline:
        folder = root / f"run-{tally.runs}"
        _tortured(world, folder, rng, places, took, tally)
        tally.unequal += left(folder) != straight
        tally.runs += 1
        if left(folder) == straight:
            shutil.rmtree(folder)
        say(
            f"{tally.kills} kills, {tally.full} full disks, {tally.runs} runs, {tally.lost} lost, {tally.unequal} "
            "unequal"
        )
    return tally


def _tortured(
    world: World, folder: Path, rng: random.Random, places: list[tuple[int, str]], took: float, tally: Tally
) -> None:
    """One run to its end, killed up to five times on the way."""
    newest = -1
    for _ in range(rng.randint(1, 5)):
        if rng.random() < 0.8:
            at, how = places[(tally.kills + tally.full) % len(places)]
            status = forked(folder, lambda at=at, how=how: (failing(at, how), train(world, folder))[1])  # type: ignore[misc]
        else:
            status = _killed_in_time(world, folder, rng.uniform(0, took))
        tally.kills += status == -signal.SIGKILL
        tally.full += status == DISK_FULL
        assert status in (FINISHED, DISK_FULL, -signal.SIGKILL), status
        actual = checkpoints.newest(folder / "checkpoints")
        step = int(actual.folder.name.removeprefix("step-")) if actual.folder else -1
        tally.lost += step < newest or bool(actual.damaged)
        newest = step
        if status == FINISHED:
            break
    assert forked(folder, lambda: train(world, folder)) == FINISHED


def _killed_in_time(world: World, folder: Path, after: float) -> int:
    def work() -> int:
        signal.setitimer(signal.ITIMER_REAL, max(after, 1e-3))
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        return train(world, folder)

    return forked(folder, work)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--world", choices=list(WORLDS), default="tiny", help="what is trained")
    parser.add_argument("--out", type=Path, help="JSON file to put the tally into")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    world = WORLDS[asked.world]()
    root = Path(tempfile.mkdtemp(prefix="tunewright-torture-"))
    tally = torture(world, root, asked.kills, 60 * asked.minutes)
    if asked.out:
        known = json.loads(asked.out.read_text()) if asked.out.exists() else {}
        with disk_errors(asked.out):
            asked.out.write_text(json.dumps({**known, asked.world: vars(tally)}, indent=1) + "\n")
    if tally.lost or tally.unequal:
        sys.exit(f"not survived; see {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
