"""Kill the export of a run that has exports already, before or after every call that changes the disk.

python tests/torture_export.py [--every N]

After each kill, the folder of every kind is absent, the old one or the new one, with its card and its modes; if
export.json is there, all folders are those that it lists. An export after it (tried after every eighth kill) writes the
same as one that was never killed. Only the fresh process that checks an export is omitted: it writes nothing into the
run folder.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torture
from export import families
from report import records as made
from torture import FINISHED

from tunewright.core import records
from tunewright.core.config import AdapterConfig
from tunewright.core.records import ExportCheck
from tunewright.core.run_folder import Run, read_json, sha256, write_atomic, write_json, writing
from tunewright.export import KINDS, bundles, card, export, portable, unchanged
from tunewright.export.kind import Export, TrainedRun
from tunewright.export.reload_check import CheckPrompt
from tunewright.model.language_model import LanguageModel

REPEATED = 8
TO = [kind for kind in KINDS if kind != "onnx"]
State = dict[str, tuple[str, int]]  # hash ("" of a folder) and mode of every path in a folder; empty if it is absent


@dataclass
class Tally:
    """``broken``: kills after which a folder was none of the three; ``unequal``: exports after a kill that differ."""

    points: int = 0
    kills: int = 0
    broken: int = 0
    unequal: int = 0


def trained(root: Path) -> TrainedRun:
    """A run with trained weights, and all records that exports and cards are made from."""
    everything = {**made.everything(), "export": None, "verify": None}
    run = made.write(root / "one", everything)
    model = families.save("smollm", root / "model")
    source = families.trained_run(model, root, AdapterConfig(rank=4, alpha=8.0), export__to=TO, export__gguf=["f16"])
    records.write(run.plan, source.plan)
    return source


def changed(source: TrainedRun) -> None:
    """Other weights and another instruction, so that no export stays as it is."""
    from safetensors.torch import load_file, save

    run = source.run
    write_atomic(run.weights, save({name: 2 * tensor for name, tensor in load_file(run.weights).items()}))
    write_json(run.training, {**read_json(run.training), "weights_sha256": sha256(run.weights)})
    write_json(run.receipt, {**read_json(run.receipt), "instruction": "Answer briefly."})


def unchecked(row: Export, path: Path, dtype: str, *_: Any) -> ExportCheck:
    same = {"largest_difference": 0.0, "same_texts": 1, "prompts": 1, "encoded": 1, "loaded_with": row.loaded_with}
    return ExportCheck(kind=row.kind, path=str(path), dtype=dtype, **same)


def exported(source: TrainedRun) -> int:
    """What the stage does, in its order."""

    def finish(folder: Path, checks: list[ExportCheck], model: LanguageModel) -> list[ExportCheck]:
        write_atomic(folder / "README.md", card.text(source.run, checks))
        portable.let_others_read(folder)
        return checks

    stop, run = [source.template.eos], source.run
    with writing(run):
        if run.export.exists():
            run.export.replace(unchanged.earlier(run))
        origin = unchanged.made_from(source, [], "code")
        checks = export.export(source, [CheckPrompt([1, 2, 3])], stop, finish=finish, origin=origin)
        bundles.write(source, stop)
        unchanged.earlier(run).unlink(missing_ok=True)
        records.write(run.export, checks)
    return FINISHED


def state(folder: Path) -> State:
    paths = [folder, *sorted(folder.rglob("*"))] if folder.exists() else []
    return {str(p.relative_to(folder)): (sha256(p) if p.is_file() else "", p.stat().st_mode & 0o777) for p in paths}


def states(run: Run) -> dict[str, State]:
    return {name: state(run.path / name) for name in (*TO, "export.json")}


def leftovers(run: Run) -> list[str]:
    """Besides what a later export needs."""
    return [path.name for path in run.path.glob(".*") if path.name != ".lock"]


def killed(root: Path, every: int = 1) -> Tally:
    """Kills at every N-th place: a call, before or after it."""
    export._check, export.NEW_TOKENS = unchecked, 1
    source = trained(root)
    run = source.run
    assert torture.forked(run.path, lambda: exported(source)) == FINISHED
    old = states(run)
    changed(source)
    shutil.copytree(run.path, root / "start")
    tally = Tally(points=torture.failpoints(run.path, lambda: exported(source)))
    new = states(run)
    assert all(old[kind] and new[kind] and old[kind] != new[kind] for kind in TO), "old and new differ"
    places = [(at, how) for at in range(1, tally.points + 1) for how in ("before", "after")][::every]
    for number, (at, how) in enumerate(places):
        shutil.rmtree(run.path)
        shutil.copytree(root / "start", run.path)
        status = torture.forked(run.path, lambda at=at, how=how: (torture.failing(at, how), exported(source))[1])  # type: ignore[misc]
        assert status in (-signal.SIGKILL, FINISHED), status  # there is no "after" of a call that fails
        tally.kills += status == -signal.SIGKILL
        tally.broken += is_broken(states(run), old, new)
        if number % REPEATED == 0 or (at, how) == places[-1]:
            assert torture.forked(run.path, lambda: exported(source)) == FINISHED
            tally.unequal += states(run) != new or bool(leftovers(run))
    return tally


def is_broken(actual: dict[str, State], old: dict[str, State], new: dict[str, State]) -> bool:
    if actual["export.json"]:
        return actual not in (old, new)
    return any(actual[kind] not in ({}, old[kind], new[kind]) for kind in TO)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--every", type=int, default=1, help="kill at every N-th place")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="tunewright-torture-") as root:
        tally = killed(Path(root), asked.every)
    sys.stdout.write(f"{vars(tally)}\n")
    sys.exit(tally.broken + tally.unequal > 0)


if __name__ == "__main__":
    main()
