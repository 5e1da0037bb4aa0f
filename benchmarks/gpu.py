"""One GPU: attention, steps, packed weights, beside transformers + PEFT, on random weights of real shapes.

python benchmarks/gpu.py [--minutes 8] [--device cuda] [--shapes 0.5b 8b ...] [--out results/gpu.md]

`make gpu` runs the tests that need a GPU, and then this. Begins no cell that would end after the given minutes; what is
missing is listed. All ways take the same rows in the same order, one after another, and medians of their steps count.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ours import plan_of

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters, language_model
from tunewright.model.attention import flex, interface, tree
from tunewright.model.frozen import packing as packed_weights
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import packing
from tunewright.tokens.sequences import TokenSequence, TrainRow, single
from tunewright.train.step import make_learner, take_step

HERE = Path(__file__).parent
STEPS, WARM = 6, 2
RANK = 16


@dataclass(frozen=True)
class Shape:
    """Of a decoder like Llama's. ``kv``: heads of keys and values."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv: int
    vocabulary: int = 128_256


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, 300),
    "135m": Shape(576, 1536, 30, 9, 3, 49_152),
    "0.5b": Shape(896, 4864, 24, 14, 2, 151_936),
    "1.5b": Shape(1536, 8960, 28, 12, 2, 151_936),
    "8b": Shape(4096, 14_336, 32, 32, 8),
}


@dataclass(frozen=True)
class Rows:
    """``batch`` rows a step, each of ``shared`` common tokens and ``own`` of its own, the last ``labelled`` targets."""

    shared: int
    own: int
    labelled: int
    batch: int
    passes: int  # tokens of a pass


ROWS = {
    "8 rows x 250": Rows(0, 250, 80, 8, 4096),
    "instruction 850": Rows(850, 62, 3, 16, 16_384),
    "16 x 1,000, full": Rows(0, 1000, 999, 16, 16_384),
}
WAYS = ("transformers + PEFT", "fused", "flex", "compiled")


class Clock:
    """Seconds of work on a device."""

    def __init__(self, device: str, minutes: float) -> None:
        self.device, self.end = device, time.monotonic() + 60 * minutes
        self.skipped: list[str] = []

    def has_time(self, what: str) -> bool:
        if time.monotonic() < self.end:
            return True
        self.skipped.append(what)
        return False

    def seconds(self, call: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_gb(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else float("nan")

    def forget(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def module_of(shape: Shape, dtype: torch.dtype, device: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    interface.register()
    config = AutoConfig.for_model(
        "llama",
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv,
        vocab_size=shape.vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        use_cache=False,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False).eval()


def rows_of(kind: Rows, vocabulary: int, count: int) -> list[TrainRow]:
    draw = random.Random(0)
    common = tuple(draw.randrange(vocabulary) for _ in range(kind.shared))
    length = kind.shared + kind.own
    weights = tuple(float(t >= length - kind.labelled) for t in range(length))
    return [
        single(TokenSequence((*common, *(draw.randrange(vocabulary) for _ in range(kind.own))), weights, i))
        for i in range(count)
    ]


def peak_flops(clock: Clock, dtype: torch.dtype) -> float:
    """Of a large product."""
    n = 8192 if clock.device == "cuda" else 512
    a = torch.randn(n, n, device=clock.device, dtype=dtype)
    return 2 * n**3 / min(clock.seconds(lambda: a @ a) for _ in range(5))


@dataclass(frozen=True)
class Timed:
    """Seconds of the first step, compiling included, and the median of the later ones; tokens computed in a step."""

    first: float
    each: float
    computed: float


def steps(clock: Clock, step: Callable[[int], float]) -> Timed:
    """``step``: takes a step, and returns how many tokens it computed."""
    computed = []
    first = clock.seconds(lambda: computed.append(step(0)))
    later = [clock.seconds(lambda n=n: computed.append(step(n))) for n in range(1, WARM + STEPS)]
    return Timed(first, statistics.median(later[WARM:]), statistics.mean(computed))


def ours(model: LanguageModel, way: str, kind: Rows, rows: list[TrainRow], dtype: str) -> Callable[[int], float]:
    setup = {"batch": kind.batch, "capacity": kind.passes, "layout": "shared", "dtype": dtype, "lr": 1e-4, "threads": 1}
    plan = plan_of(setup, rows).model_copy(update={"kernels": way})
    student = make_learner(dataclasses.replace(model, kernels=way), plan)
    return lambda number: take_step(student, rows, plan, number).computed


def peft_step(module: Any, kind: Rows, rows: list[TrainRow], device: str) -> Callable[[int], float]:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(module, LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear")).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=device == "cuda")
    length = kind.shared + kind.own
    micro = max(1, kind.passes // length)
    ids_RT = torch.tensor([r.sequences[0].ids for r in rows])
    labels_RT = ids_RT.clone()
    labels_RT[:, : length - kind.labelled] = -100

    def step(number: int) -> float:
        chosen = packing.step_rows(len(rows), kind.batch, 0, number)
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for start in range(0, kind.batch, micro):
            part = chosen[start : start + micro]
            ids, labels = (x[part].to(device, non_blocking=True) for x in (ids_RT, labels_RT))
            loss = model(input_ids=ids, labels=labels, num_items_in_batch=kind.batch * kind.labelled).loss
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        assert torch.isfinite(total)
        return float(kind.batch * length)

    return step


def step_table(clock: Clock, names: list[str], dtype: str) -> list[str]:
    kind_of = getattr(torch, dtype)
    peak = peak_flops(clock, kind_of)
    out = [
        f"\n## Steps ({dtype}; large products: {peak / 1e12:.1f} TFLOP/s)\n",
        "Of peak: 4 operations for each weight and computed token. First: the first step, with all compiling.\n",
        "| model | rows of a step | way | s a step | rows/s | x PEFT | computed tokens/s | of peak | GB | first, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        shape = SHAPES[name]
        for title, kind in ROWS.items():
            rows, against = rows_of(kind, shape.vocabulary, 4 * kind.batch), 0.0
            for way in WAYS:
                if not clock.has_time(f"{name}, {title}, {way}"):
                    continue
                clock.forget()
                module = module_of(shape, kind_of, clock.device)
                size = sum(p.numel() for n, p in module.named_parameters() if "embed" not in n)
                try:
                    if way == "transformers + PEFT":
                        done = steps(clock, peft_step(module, kind, rows, clock.device))
                        against = done.each
                    else:
                        adapters.attach(module, AdapterConfig(rank=RANK, alpha=32.0), 0)
                        done = steps(clock, ours(language_model.of(module), way, kind, rows, dtype))
                except (RuntimeError, NotImplementedError) as error:
                    line = f"| {name} | {title} | {way} | {str(error).splitlines()[0][:80]} | | | | | | |"
                else:
                    speed = (
                        f"{kind.batch / done.each:.1f} | {against / done.each:.2f} | {done.computed / done.each:,.0f}"
                    )
                    of_peak = 4 * size * done.computed / done.each / peak
                    line = f"| {name} | {title} | {way} | {done.each:.3f} | {speed} | {of_peak:.0%} | "
                    line += f"{clock.peak_gb():.1f} | {done.first:.1f} |"
                print(line, flush=True)
                out.append(line)
                del module
    return out


def both_ways(attend: Any, part: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padding: int) -> torch.Tensor:
    """Attention, and its backward pass."""
    y_1THK: torch.Tensor = attend(part, *(F.pad(x, (0, 0, 0, padding)) for x in (q, k, v)))[:, : q.shape[2]]
    y_1THK.sum().backward()
    return y_1THK.detach()


def attention_table(clock: Clock, dtype: str) -> list[str]:
    out = [
        "\n## Attention of one layer, forward and backward\n",
        "| rows | heads | plain, ms | FlexAttention, ms | largest difference |",
        "|---|---|---|---|---|",
    ]
    for heads, kv, width in ((14, 2, 64), (32, 8, 128)):
        for title, kind in ROWS.items():
            if not clock.has_time(f"attention, {title}, {heads} heads"):
                continue
            clock.forget()
            batch = packing.to_microbatch(
                [r.sequences[0] for r in rows_of(kind, 300, min(kind.batch, max(1, kind.passes // kind.own)))], "shared"
            )
            laid = flex.layout(batch.segments, batch.positions_BT[0])
            tokens = batch.ids_BT.size
            draw = torch.Generator(clock.device).manual_seed(0)
            q, k, v = (
                torch.randn(1, n, tokens, width, generator=draw, device=clock.device, dtype=getattr(torch, dtype))
                for n in (heads, kv, kv)
            )
            for x in (q, k, v):
                x.requires_grad_()
            part = type("Attention", (), {"sliding_window": None, "scaling": width**-0.5})()
            plain = tree.attend(batch.segments, keep_weights=True)
            kernel = flex.kernel() if clock.device == "cuda" else flex.eager_kernel
            flexible = flex.attend(laid, [None], torch.device(clock.device), kernel)
            calls = [
                functools.partial(both_ways, *given)
                for given in ((plain, part, q, k, v, 0), (flexible, part, q, k, v, laid.padding))
            ]
            try:
                outputs = [call().float() for call in calls]
            except NotImplementedError as error:  # on a CPU, there is no backward pass
                out.append(f"| {title} | {heads}/{kv} x {width} | {str(error)[:60]} | | |")
                continue
            times = [statistics.median(clock.seconds(call) for _ in range(STEPS)) for call in calls]
            difference = float((outputs[0] - outputs[1]).abs().max())
            line = (
                f"| {title} | {heads}/{kv} x {width} | {1e3 * times[0]:.2f} | {1e3 * times[1]:.2f} | {difference:.1e} |"
            )
            print(line, flush=True)
            out.append(line)
    return out


def packed_table(clock: Clock, names: list[str], dtype: str) -> list[str]:
    out = ["\n## A base in NF4 (8 rows x 250)\n", "| model | base, GB | s a step | peak, GB |", "|---|---|---|---|"]
    kind, kind_of = ROWS["8 rows x 250"], getattr(torch, dtype)
    for name in names:
        if not clock.has_time(f"{name} in NF4"):
            continue
        clock.forget()
        module = module_of(SHAPES[name], kind_of, clock.device)
        packed_weights.pack(module, "nf4", kind_of)
        clock.forget()
        held = clock.peak_gb()
        adapters.attach(module, AdapterConfig(rank=RANK, alpha=32.0), 0)
        rows = rows_of(kind, SHAPES[name].vocabulary, 4 * kind.batch)
        each = steps(clock, ours(language_model.of(module), "fused", kind, rows, dtype)).each
        line = f"| {name} | {held:.1f} | {each:.3f} | {clock.peak_gb():.1f} |"
        print(line, flush=True)
        out.append(line)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shapes", nargs="+", default=["0.5b", "8b", "135m", "1.5b"], choices=SHAPES)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.md")
    given = parser.parse_args()
    clock, dtype = Clock(given.device, given.minutes), "bfloat16" if given.device == "cuda" else "float32"
    device = torch.cuda.get_device_name() if given.device == "cuda" else "a CPU"
    tables = [*step_table(clock, given.shapes, dtype), *attention_table(clock, dtype)]
    try:
        tables += packed_table(clock, given.shapes, dtype)
    except Exception as error:  # without bitsandbytes
        tables.append(f"\nNo base in NF4: {str(error).splitlines()[0]}")
    head = ["# One GPU", "", f"`python benchmarks/gpu.py` on {device}, torch {torch.__version__}; random weights."]
    if clock.skipped:
        tables += ["", f"Not measured within {given.minutes:g} minutes: {'; '.join(clock.skipped)}."]
    given.out.write_text("\n".join([*head, *tables, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
