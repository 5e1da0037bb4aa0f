"""Memory limits of control groups, of both versions, as containers and batch systems set them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from build import plan_of

from tunewright.core.config import AdapterConfig
from tunewright.core.errors import TrainError
from tunewright.model.facts import Facts
from tunewright.system import memory
from tunewright.train import planning
from tunewright.train.recipe import RowStats

GB = 10**9


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def own(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "cgroup"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_the_machine_without_limits() -> None:
    actual = memory.available()
    assert 0 < actual.free <= actual.total


def test_version_2_counts_what_the_kernel_cannot_drop(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    stat = f"anon {3 * GB}\ninactive_file {2 * GB}"
    group(root / "a", memory__max="max", memory__current=9 * GB, memory__stat=stat)
    group(root / "a" / "b", memory__max=8 * GB, memory__current=6 * GB, memory__stat=stat)
    assert list(memory._limits(root, own(tmp_path, "0::/a/b"))) == [(8 * GB, 4 * GB)]


def test_version_1_and_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    group(
        root / "memory",
        memory__limit_in_bytes=4 * GB,
        memory__usage_in_bytes=3 * GB,
        memory__stat=f"total_inactive_file {GB}",
    )
    lines = own(tmp_path, "9:cpu:/x", "4:memory:/docker/0123", "0::/")
    assert list(memory._limits(root, lines)) == [(4 * GB, 2 * GB)]


def test_a_limit_below_the_machines_memory_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_limits", lambda: iter([(2 * GB, 1.5 * GB)]))
    assert memory.available() == memory.Memory(2 * GB, 0.5 * GB)


def test_a_run_that_would_be_killed_is_refused_with_settings_that_fit() -> None:
    shape = {
        "hidden": 576,
        "layers": 30,
        "heads": 9,
        "cached": 384,
        "head_width": 64,
        "vocabulary": 49_152,
        "context": 8192,
        "parameters": 135_000_000,
    }
    names = {"name": "m", "path": "m", "model_type": "llama", "dtype": "F32", "sha256": "0", "leak": "", "window": None}
    facts = Facts(**names, **shape, shareable=True, packable=True, draws=False, fused=True)
    sizes = RowStats(rows=100, tokens=100_000, supervised=30_000, longest=800)
    plan = plan_of(tokens_per_pass=8192, dtype="float32")
    planning.require_memory(plan, facts, sizes, 24 * GB)
    with pytest.raises(TrainError, match=r"train\.gradient_checkpointing=layers train\.tokens_per_pass=800") as caught:
        planning.require_memory(plan, facts, sizes, 2 * GB)
    assert caught.value.code == "TRAIN_MEMORY"
    smaller = plan_of(tokens_per_pass=800, gradient_checkpointing="layers", dtype="float32")
    planning.require_memory(smaller, facts, sizes, 2 * GB)
    with pytest.raises(TrainError, match="choose a smaller model or shorter rows"):
        planning.require_memory(plan, facts, sizes, 0.3 * GB)
    large = dataclasses.replace(facts, parameters=8_000_000_000, hidden=4096, layers=32)
    with pytest.raises(TrainError, match="set quantise=stored"):
        planning.require_memory(plan, large, sizes, 20 * GB)
    planning.require_memory(smaller, dataclasses.replace(large, packed="stored"), sizes, 20 * GB)
    full = smaller.model_copy(update={"adapter": AdapterConfig(kind="none")})
    planning.require_memory(full, facts, sizes, 4 * GB)
    with pytest.raises(TrainError, match=r"needs about 2\.\d GB"):  # gradients and AdamW's moments too
        planning.require_memory(full, facts, sizes, 1.5 * GB)
    planning.require_memory(smaller, facts, sizes, 1.5 * GB)
