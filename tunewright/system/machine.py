"""This machine: cores, memory, and which dtype its processor multiplies faster. Measured, not looked up."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from tunewright.system.memory import available

FASTER = 1.3


@dataclass(frozen=True)
class Machine:
    """``fp32_gflops``, ``bf16_gflops``: of a (512, 1024) x (1024, 1024) product, the best of a quarter of a second;
    on a GPU of a (4096, 4096) x (4096, 4096) product, because a small one takes as long as its launch. Memory in GB
    (10^9 bytes); ``free_gb`` is what was free when it was measured."""

    device: str
    cores: int
    memory_gb: float
    free_gb: float
    fp32_gflops: float
    bf16_gflops: float
    processor: str

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """What it computes in by default: bfloat16 rounds, so it must be ``FASTER`` times as fast."""
        return "bfloat16" if self.bf16_gflops > FASTER * self.fp32_gflops else "float32"

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def measure(threads: int | None = None) -> Machine:
    """Measure this machine, and set torch's threads: to ``threads``, or one for each core."""
    threads = threads or cores()
    torch.set_num_threads(threads)
    where = device()
    if where == "cuda":
        free, total = map(float, torch.cuda.mem_get_info())
        name = torch.cuda.get_device_name()
    else:
        memory = available()
        total, free = memory.total, memory.free
        name = _processor()
    fp32, bf16 = _gflops(where)
    return Machine(where, threads, round(total / 1e9, 1), round(free / 1e9, 1), fp32, bf16, name)


def device() -> str:
    """Where models are computed."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def cores() -> int:
    """Processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch's allocator on the CPU raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def peak_gb() -> float:
    """Largest memory of this process so far (GPU: of torch's allocator)."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 1e9
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _gflops(device: str) -> tuple[float, float]:
    """(float32, bfloat16) speed. Without bfloat16 in hardware one product can take seconds, so a dtype that is ten
    times slower than the other in a small product is not measured in a large one."""
    shape = (512, 1024) if device == "cpu" else (4096, 4096)
    small = _speeds(device, (64, 256), (torch.float32, torch.bfloat16), rounds=3)
    large = _speeds(device, shape, [d for d, speed in small.items() if speed > max(small.values()) / 10], rounds=6)
    fp32, bf16 = (round((small | large)[dtype], 1) for dtype in small)
    return fp32, bf16


def _speeds(
    device: str, shape: tuple[int, int], dtypes: Sequence[torch.dtype], rounds: int, seconds: float = 0.02
) -> dict[torch.dtype, float]:
    """GFLOP/s of (rows, width) x (width, width) products, the best of alternating rounds: a busy neighbour slows a
    round, not the best of several."""
    (rows, width), best = shape, dict.fromkeys(dtypes, float("inf"))
    operands = {d: [torch.ones(n, width, dtype=d, device=device) for n in (rows, width)] for d in dtypes}
    for _ in range(rounds):
        for dtype, (a, b) in operands.items():
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                start = time.perf_counter()
                (a @ b)[0, 0].item()
                best[dtype] = min(best[dtype], time.perf_counter() - start)
    return {dtype: 2 * rows * width * width / t / 1e9 for dtype, t in best.items()}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
