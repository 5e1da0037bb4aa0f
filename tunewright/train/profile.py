"""Where the time of a training step goes, and how close it comes to the machine's fastest matrix product."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunewright.core.config import Plan
from tunewright.core.records import Profile
from tunewright.methods import METHODS, precomputed
from tunewright.model.adapters import LoRALinear, trainable
from tunewright.model.language_model import LanguageModel
from tunewright.system import heap
from tunewright.tokens import packing, prefix_tree
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.sequences import TrainRow, flat
from tunewright.train.step import make_learner, make_optimizer, take_step

STEPS, CALIBRATION_STEPS = 3, 8
SOME = 5_000_000
MOMENTS_BYTES = {"adamw": 8, "adamw8": 2}  # for each trained number
# torch's operations by purpose: the first pattern that fits the whole name, without "aten::".
KINDS = {
    "matrix products": r"(add)?m[mv]_?|mkldnn_linear",
    "attention products": r"(badd)?bmm|.*(flash|efficient)_attention.*",
    "softmax and masks": r"_softmax.*|masked_fill_|logsumexp",
    "copies and conversions": r"copy_|cat|index(_select|_add_)?|fill_",
    "optimizer and clipping": r"_foreach_.*|lerp_|addcdiv_|sqrt",
    "norms, gates, positions, sums": r"(mul|add|sub|neg|div|addcmul|exp)_?|mean|sum|pow|r?sqrt|(silu|gelu).*|.*_norm.*",
}
REST, LARGEST_REST = "Python, dispatch, the rest", 0.2  # where it is larger, the patterns do not fit torch


def lines(p: Profile) -> list[str]:
    """The profile as text, a line each."""
    shared = f", of which {p.computed} were computed" if p.computed < p.tokens else ""
    text = [f"a step of {p.rows} rows, {p.tokens} tokens{shared}: {p.seconds:.2f} s"]
    for kind, seconds in sorted(p.seconds_by_kind.items(), key=lambda item: -item[1]):
        text.append(f"  {kind:<32}{seconds:6.3f} s {seconds / p.seconds:5.0%}")
    if p.seconds_by_kind[REST] > LARGEST_REST * p.seconds:
        text.append(f"  over {LARGEST_REST:.0%} is unclassified")
    text.append(
        f"  {p.gflop:.0f} GFLOP at {p.gflop / p.seconds:.0f} GFLOP/s: "
        f"{p.of_peak:.0%} of the {p.peak_gflops:.0f} that this machine reaches"
    )
    if p.logical_gflop > 1.1 * p.gflop:
        ratio = p.logical_gflop / p.gflop
        text.append(f"  row by row it would be {p.logical_gflop:.0f} GFLOP: {ratio:.1f} times as much")
    return text


def flops(model: LanguageModel, tokens: int, pairs: int, predicted: int) -> float:
    """Floating point operations of a forward and backward pass over ``tokens`` tokens.

    Per token, 4 for each frozen weight of a matrix (forward, and backward to the input) and 6 for each trained one; the
    head only for the ``predicted`` tokens; 12 for each layer, unit of attention width and (query, key) pair.
    """
    head_VD = model.head_VD
    config = model.module.config.get_text_config()
    frozen = trained = 0
    for layer in model.decoder.modules():
        if isinstance(layer, LoRALinear):
            trained += layer.lora_A.numel() + layer.lora_B.numel()
        elif isinstance(layer, torch.nn.Linear):
            frozen += 0 if layer.weight.requires_grad else layer.weight.numel()
            trained += layer.weight.numel() if layer.weight.requires_grad else 0
    heads = int(getattr(config, "num_attention_heads", 0) or 1)
    width = heads * int(getattr(config, "head_dim", 0) or config.hidden_size // heads)
    once = 6.0 if head_VD.requires_grad else 4.0
    attention = 12.0 * int(config.num_hidden_layers) * width * pairs
    return (4.0 * frozen + 6.0 * trained) * tokens + once * int(head_VD.numel()) * predicted + attention


@dataclass(frozen=True)
class Speed:
    """Forward and backward on real rows, measured over ``passes`` passes. Seconds: ``read`` of a token without the
    backward pass, ``update`` of the optimizer. ``held_gb``: memory of this process after
    the first passes, and of the optimizer's moments."""

    tokens_per_second: float
    passes: int
    read: float
    update: float
    held_gb: float


def calibrate(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, seconds: float = 4.0) -> Speed:
    """The speed of the first steps' passes, for at most about ``seconds``, after one pass to warm up. Leaves no
    gradient."""
    method = METHODS[plan.method]
    some = 1 if plan.embed else CALIBRATION_STEPS  # whose texts are computed before the first pass
    chosen = [packing.step_rows(len(rows), plan.batch_size, plan.seed, step) for step in range(some)]
    rows = _precomputed(model, rows, plan, chosen)
    passes = [b for step, c in enumerate(chosen) for b in method.microbatches(model, rows, c, plan, step)]
    model.module.train()
    heap.release()
    tokens, spent, count = 0, 0.0, 0
    for i, microbatch in enumerate([passes[0], *passes]):
        start = _now()
        method.loss(model, microbatch, plan).sum.backward()  # type: ignore[no-untyped-call]
        model.module.zero_grad(set_to_none=True)
        if i:
            tokens, spent, count = tokens + microbatch.tokens, spent + _now() - start, count + 1
        if spent > seconds:
            break
    model.module.eval()
    trained = sum(p.numel() for p in trainable(model.module).values())
    held = heap.resident_gb() + MOMENTS_BYTES[plan.optimizer] * trained / 1e9
    longest = method.microbatches(model, rows, sorted({i for step in chosen for i in step}), plan, 0)[0]
    start = _now()
    with torch.no_grad():
        method.loss(model, longest, plan)
    read = (_now() - start) / longest.tokens
    return Speed(tokens / max(spent, 1e-9), count, read, _update_seconds(model, plan), held)


def _now() -> float:
    """The time when everything asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def _update_seconds(model: LanguageModel, plan: Plan) -> float:
    """Of the optimizer: measured on copies of some parameters, of about `SOME` numbers in all."""
    every = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    some: dict[str, torch.nn.Parameter] = {}
    for name, p in every.items():
        if sum(copy.numel() for copy in some.values()) < SOME:
            some[name] = torch.nn.Parameter(p.detach()[: max(1, SOME * len(p) // p.numel())].clone())
            some[name].grad = torch.zeros_like(some[name])
    optimizer = make_optimizer(some, plan)
    start = _now()
    for turn in range(2):  # the first makes the moments
        start = _now() if turn else start
        torch.nn.utils.clip_grad_norm_(some.values(), plan.max_grad_norm)
        optimizer.step()
    fraction = sum(p.numel() for p in some.values()) / sum(p.numel() for p in every.values())
    return float((_now() - start) / fraction)


def measure(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, peak_gflops: float) -> Profile:
    """Take `STEPS` steps after one to warm up, and one under torch's profiler; the weights are restored."""
    chosen = [packing.step_rows(len(rows), plan.batch_size, plan.seed, step) for step in range(STEPS)]
    rows = _precomputed(model, rows, plan, chosen)
    student = make_learner(model, plan)
    before: dict[str, Tensor] = {name: p.detach().clone() for name, p in student.parameters.items()}
    take_step(student, rows, plan, 0)
    start = time.perf_counter()
    taken = [take_step(student, rows, plan, step) for step in range(STEPS)]
    seconds = (time.perf_counter() - start) / STEPS
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as watched:
        take_step(student, rows, plan, 0)
    with torch.no_grad():
        for name, p in student.parameters.items():
            p.copy_(before[name])
    model.module.zero_grad(set_to_none=True)
    microbatches = [
        b for step, c in enumerate(chosen) for b in METHODS[plan.method].microbatches(model, rows, c, plan, step)
    ]
    alone = flat(rows[i] for c in chosen for i in c)
    logical = sum(flops(model, len(s.ids), len(s.ids) * (len(s.ids) + 1) // 2, s.supervised) for s in alone)
    gflop = sum(_flops(model, b) for b in microbatches) / STEPS / 1e9
    return Profile(
        seconds=round(seconds, 4),
        rows=plan.batch_size,
        tokens=sum(t.tokens for t in taken) // STEPS,
        computed=sum(t.computed for t in taken) // STEPS,
        supervised=sum(t.supervised for t in taken) / STEPS,
        gflop=round(gflop, 6),
        logical_gflop=round(logical / STEPS / 1e9, 6),
        peak_gflops=peak_gflops,
        seconds_by_kind=_by_kind(watched, seconds),
        of_peak=round(gflop / seconds / peak_gflops, 4),
    )


def _precomputed(
    model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, chosen: Sequence[Sequence[int]]
) -> list[TrainRow]:
    """The rows, `methods.precomputed` for the chosen ones only: for all of them it could take minutes."""
    places = sorted({i for step in chosen for i in step})
    done = dict(zip(places, precomputed(model, [rows[i] for i in places], plan), strict=True))
    return [done.get(i, row) for i, row in enumerate(rows)]


def _flops(model: LanguageModel, microbatch: Microbatch) -> float:
    rows, width = microbatch.ids_BT.shape
    pairs = prefix_tree.pairs(microbatch.segments) if microbatch.segments else rows * width * (width + 1) // 2
    return flops(model, microbatch.ids_BT.size, pairs, len(microbatch.target_N))


def _by_kind(watched: Any, seconds: float) -> dict[str, float]:
    """Seconds by kind, scaled to the duration of a step without the profiler."""
    spent = dict.fromkeys([*KINDS, REST], 0.0)
    device = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    for event in watched.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name)), REST)
        spent[kind] += getattr(event, device)
    total = sum(spent.values()) or 1.0
    return {kind: round(seconds * part / total, 4) for kind, part in spent.items()}
