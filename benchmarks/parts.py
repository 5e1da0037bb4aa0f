"""The parts of a step, one by one: matrix products, attention kernels, block sizes of attention, the fused decoder.

python benchmarks/parts.py      (two minutes; prints the tables that NOTES.md discusses)
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from workloads import WORKLOADS, rendered, rows

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters, forward, fused_llama, loading
from tunewright.model.attention import tree
from tunewright.system import heap, machine
from tunewright.tokens.packing import to_microbatch

HEADS, GROUPS, WIDTH = 9, 3, 64


def best_milliseconds(call: Callable[[], Any], seconds: float = 0.4) -> float:
    """The fastest of as many calls as fit into ``seconds``."""
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def bf16(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def products(tokens: int = 976) -> None:
    print(
        f"## Matrix products, bfloat16, {tokens} tokens (GFLOP/s)\n\n"
        "| inputs, outputs | forward | input gradient | input gradient, weight transposed in advance |\n"
        "|---|---|---|---|"
    )
    for i, o in ((576, 576), (576, 192), (576, 960), (576, 1536), (576, 3072), (1536, 576)):
        x, g, w = bf16(tokens, i), bf16(tokens, o), bf16(o, i)
        turned, flop = w.T.contiguous(), 2 * tokens * i * o / 1e6
        speeds = [flop / best_milliseconds(call) for call in (lambda: x @ w.T, lambda: g @ w, lambda: g @ turned.T)]  # noqa: B023
        print(f"| {i}, {o} | {' | '.join(f'{s:.0f}' for s in speeds)} |")


def kernels() -> None:
    print(
        "\n## Attention of one layer, bfloat16 (milliseconds, forward / backward)\n\n"
        "| queries on keys | torch's flash kernel | plain matrix products |\n|---|---|---|"
    )
    ops = torch.ops.aten
    shapes = {
        "768 on 207": (1, 768, 207, False),
        "768 on 850": (1, 768, 850, False),
        "1600 on 1500": (1, 1600, 1500, False),
        "16 rows of 48, causal": (16, 48, 48, True),
        "8 rows of 200, causal": (8, 200, 200, True),
        "850, causal": (1, 850, 850, True),
    }
    for name, (batch, m, n, causal) in shapes.items():
        q, k, v, g = (bf16(batch, t, HEADS, WIDTH).transpose(1, 2) for t in (m, n, n, m))
        flash = ops._scaled_dot_product_flash_attention_for_cpu
        out, lse = flash(q, k, v, 0.0, causal, attn_mask=None, scale=0.125)
        back = ops._scaled_dot_product_flash_attention_for_cpu_backward
        a = best_milliseconds(lambda: flash(q, k, v, 0.0, causal, attn_mask=None, scale=0.125))  # noqa: B023
        b = best_milliseconds(lambda: back(g, q, k, v, out, lse, 0.0, causal, attn_mask=None, scale=0.125))  # noqa: B023
        rep = HEADS // GROUPS
        q, g, k, v = (
            bf16(batch * GROUPS, m * rep, WIDTH),
            bf16(batch * GROUPS, m * rep, WIDTH),
            bf16(batch * GROUPS, n, WIDTH),
            bf16(batch * GROUPS, n, WIDTH),
        )
        hidden = (torch.arange(n) > torch.arange(m)[:, None]).repeat_interleave(rep, 0) if causal else None

        def weights() -> Tensor:
            s = q @ k.transpose(1, 2)  # noqa: B023
            if hidden is not None:  # noqa: B023
                s.masked_fill_(hidden, float("-inf"))  # noqa: B023
            return s.softmax(-1, dtype=torch.float32).bfloat16()

        p = weights()

        def backward() -> None:
            ds = torch._softmax_backward_data(g @ v.transpose(1, 2), p, -1, torch.bfloat16)  # noqa: B023
            p.transpose(1, 2) @ g, ds @ k, ds.transpose(1, 2) @ q  # noqa: B023

        c, d = best_milliseconds(lambda: weights() @ v), best_milliseconds(backward)  # noqa: B023
        print(f"| {name} | {a:.1f} / {b:.1f} | {c:.1f} / {d:.1f} |")


def steps() -> None:
    """Forward and backward of 16 rows of classify-200, in turns: transformers' modules, and the fused decoder with
    several block sizes."""
    from transformers import AutoTokenizer

    folder = loading.resolve("smollm2-135m")
    model = loading.load(folder, torch.bfloat16)
    adapters.attach(model.module, AdapterConfig(rank=16), 0)
    microbatch = to_microbatch(
        rendered(rows(WORKLOADS["classify-200"], 16, AutoTokenizer.from_pretrained(folder))), "shared"
    )
    able = fused_llama.applies(model.module)
    ways = {"transformers' modules, 256 / 128": (False, 256, 128)}
    ways |= {
        f"fused, {long} / {short}": (able, long, short)
        for long, short in ((256, 0), (256, 64), (256, 128), (256, 256), (128, 128), (512, 128))
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(6):
        for name in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
            fused, tree.LONG, tree.SHORT = ways[name]
            used = dataclasses.replace(model, kernels="fused" if fused else "transformers")
            tree.blocks.cache_clear()
            start = time.perf_counter()
            forward.loss(used, microbatch).backward()
            times[name].append(time.perf_counter() - start)
            model.module.zero_grad()
    print(
        f"\n## A pass of {microbatch.ids_BT.size} computed tokens, forward and backward\n\n"
        "| decoder, most queries in a long / short block | s, best of five | median |\n|---|---|---|"
    )
    for name, spent in times.items():
        print(f"| {name} | {min(spent[1:]):.2f} | {statistics.median(spent[1:]):.2f} |")


def main() -> None:
    heap.keep()
    torch.set_num_threads(machine.cores())
    torch.manual_seed(0)
    products()
    kernels()
    steps()


main()
