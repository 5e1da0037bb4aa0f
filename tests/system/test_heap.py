"""What a process keeps after tensors are freed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tunewright.system import heap
from tunewright.system.heap import GROWTH, Kept

PRODUCTS = """
import sys
import torch
from tunewright.system import heap
if sys.argv[1] == "kept":
    heap.keep()
weight = torch.ones(576, 96, dtype=torch.bfloat16)
for rows in range(64, 700, 2):
    torch.ones(rows, 576, dtype=torch.bfloat16) @ weight
    if rows == 64:
        before = heap.resident_gb()
print(heap.resident_gb() - before)
"""


def test_products_of_many_shapes_take_little_memory() -> None:
    def grown(how: str) -> float:
        # Without what `heap.keep` has set in this process.
        env = {k: v for k, v in os.environ.items() if "CACHE_CAPACITY" not in k}
        done = subprocess.run(
            [sys.executable, "-c", PRODUCTS, how], env=env, capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    by_default = grown("default")
    if by_default < 0.05:
        pytest.skip(f"this processor's products keep no code: {by_default:.2f} GB")
    assert grown("kept") < 0.6 * by_default


def test_memory_is_returned_when_a_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [2.0]
    released: list[float] = []

    def release() -> None:
        released.append(held[0])
        held[0] = 1.0

    monkeypatch.setattr(heap, "resident_gb", lambda: held[0])
    monkeypatch.setattr(heap, "release", release)
    kept = Kept()
    seen = []
    for _ in range(200):
        held[0] = max(2.0, held[0] * 1.05)  # a step needs 2 GB, and a twentieth is left over
        kept = heap.bounded(kept)
        seen.append(held[0])
    assert kept.limit == GROWTH * 2.1  # what was held after the first step
    assert max(seen) <= kept.limit * 1.05
    assert 10 < len(released) < 40


def test_a_step_that_needs_more_raises_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [2.0]
    released: list[float] = []
    monkeypatch.setattr(heap, "resident_gb", lambda: held[0])
    monkeypatch.setattr(heap, "release", lambda: released.append(held[0]))
    kept = heap.bounded(Kept())
    held[0] = 5.0  # from now on, every step does
    for _ in range(50):
        kept = heap.bounded(kept)
    assert released == [5.0]
    assert kept.limit == GROWTH * 5.0
