"""Would torch.compile pay off on a CPU? The elementwise parts of a layer, eager and compiled, cold start included.

python benchmarks/compiled.py      (needs a C++ compiler; prints after how many steps compiling pays off)
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LAYERS, T, D, INNER, H, K = 30, 976, 576, 1536, 12, 64


def gate(g: Tensor, u: Tensor) -> Tensor:
    return F.silu(g) * u


def gate_back(d: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(g.float())
    silu = g.float() * s
    return (d.float() * u.float() * (s * (1 + g.float() * (1 - s)))).to(g.dtype), (d.float() * silu).to(g.dtype)


def norm(x: Tensor, w: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * w


def norm_back(d: Tensor, x: Tensor, w: Tensor) -> Tensor:
    wide, dw = x.float(), d.float() * w.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    return ((dw - wide * ((dw * wide).mean(-1, keepdim=True) * inverse.square())) * inverse).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., : K // 2], x[..., K // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def median_seconds(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(60):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()  # empty, as for a new user
    torch.manual_seed(0)

    def bf16(*shape: int) -> Tensor:
        return torch.randn(shape).bfloat16()

    cases: list[tuple[str, int, Any, tuple[Tensor, ...]]] = [
        ("gate", 1, gate, (bf16(T, INNER), bf16(T, INNER))),
        ("gate, backward", 1, gate_back, (bf16(T, INNER), bf16(T, INNER), bf16(T, INNER))),
        ("norm", 2, norm, (bf16(T, D), bf16(D))),
        ("norm, backward", 2, norm_back, (bf16(T, D), bf16(T, D), bf16(D))),
        ("rotation (and back)", 2, rotate, (bf16(T, H, K), bf16(T, 1, K // 2), bf16(T, 1, K // 2))),
    ]
    from tunewright.model import fused_llama

    class Norm:
        weight, variance_epsilon = bf16(D), 1e-5

    x, g, u, r = (bf16(*s).requires_grad_() for s in ((T, D), (T, INNER), (T, INNER), (T, H, K)))
    cos, sin = bf16(T, 1, K), bf16(T, 1, K)
    made = {
        "norm": fused_llama.rms_norm(Norm, x),
        "gate": fused_llama._SwiGLU.apply(g, u),
        "rotation": fused_llama._Rotate.apply(r, cos, sin),
    }
    back = {name: torch.randn_like(y) for name, y in made.items()}
    ours = {
        "gate": lambda: fused_llama._SwiGLU.apply(g, u),
        "gate, backward": lambda: torch.autograd.grad(made["gate"], (g, u), back["gate"], retain_graph=True),
        "norm": lambda: fused_llama.rms_norm(Norm, x),
        "norm, backward": lambda: torch.autograd.grad(made["norm"], x, back["norm"], retain_graph=True),
        "rotation (and back)": lambda: fused_llama._Rotate.apply(r, cos, sin),
    }
    print("| part | times per layer | ours, ms | compiled, ms | compiling, s |\n|---|---|---|---|---|")
    cold = saved = 0.0
    for name, times, function, given in cases:
        compiled = torch.compile(function, dynamic=True)
        start = time.perf_counter()
        compiled(*given)
        compiling = time.perf_counter() - start
        eager = median_seconds(ours[name])
        fast = median_seconds(lambda compiled=compiled, given=given: compiled(*given))
        cold += compiling
        saved += LAYERS * times * (eager - fast)
        print(f"| {name} | {times} | {eager * 1e3:.2f} | {fast * 1e3:.2f} | {compiling:.1f} |")
    verdict = f"it pays off after {cold / saved:.0f} steps" if saved > 0 else "it never pays off"
    print(f"\nA step of {T} tokens would save {saved:.2f} s; compiling takes {cold:.0f} s: {verdict}.")


main()
