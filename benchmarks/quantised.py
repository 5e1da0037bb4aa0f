"""What a base in few bits costs: a training step, decoding, and the memory of the linear layers, on the real model.

python benchmarks/quantised.py [--rounds 5]      Writes results/quantised.md.

Steps of all forms take turns. One process; the same rows, adapter and kernels. Gradients are compared with those of the
dense weights that the packed ones stand for.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from recipe_tasks import TASKS, write

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters, forward, loading
from tunewright.model.decoding.generate import Decoding, complete
from tunewright.model.frozen.packed import PackedLinear, replace_module
from tunewright.model.language_model import LanguageModel
from tunewright.system import heap
from tunewright.tokens import packing, rendering
from tunewright.tokens.rendering import for_training
from tunewright.tokens.sequences import flat, single
from tunewright.tokens.template import load_template

HERE = Path(__file__).parent
ROWS = 8
NEW, NEVER = 48, 10**9  # new tokens; a token that no answer has


def linear_mb(module: torch.nn.Module) -> float:
    """Of all linear layers but the head."""
    packed = [b.nbytes for m in module.modules() if isinstance(m, PackedLinear) for b in m.buffers()]
    head = module.get_output_embeddings()  # type: ignore[operator]
    dense = [m.weight.nbytes for m in module.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return (sum(packed) + sum(dense)) / 1e6


def with_adapter(model: LanguageModel) -> LanguageModel:
    adapters.attach(model.module, AdapterConfig(), 0)
    for p in adapters.trainable(model.module).values():
        torch.nn.init.normal_(p, std=0.01, generator=torch.Generator().manual_seed(p.numel()))
    return dataclasses.replace(model, kernels="fused")


def dense_copy(folder: Path, packed: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    copy = loading.load(folder, dtype)
    for name, layer in packed.module.named_modules():
        if isinstance(layer, PackedLinear):
            other: Any = copy.module.get_submodule(name)
            with torch.no_grad():
                other.weight.copy_(layer.weight_in(dtype))
            replace_module(copy.module, name, other)
    return with_adapter(copy)


def step(model: LanguageModel, batch: packing.Microbatch) -> tuple[float, dict[str, torch.Tensor]]:
    model.module.zero_grad(set_to_none=True)
    begun = time.perf_counter()
    forward.loss(model, batch).backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - begun
    return seconds, {n: p.grad.clone() for n, p in adapters.trainable(model.module).items() if p.grad is not None}


def decode(model: LanguageModel, prompts: list[list[int]]) -> tuple[float, list[list[int]]]:
    model.module.eval()
    begun = time.perf_counter()
    answers = complete(model, prompts, Decoding(NEW, (NEVER,), batch_size=len(prompts)))
    return time.perf_counter() - begun, answers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    heap.keep()
    folder, file = loading.resolve(loading.EMBEDDED), loading.gguf_file(loading.EMBEDDED)
    dtype = torch.float32
    template = load_template(folder, None, "2026-01-01")
    task = TASKS["addresses"]
    from tunewright.core import config as configuration
    from tunewright.data import dataset

    words = [f"{k}={v}" for k, v in write(task, HERE.parent / "build" / "quantised").items()]
    data = dataset.load(configuration.load(None, words))
    examples = [data.examples[i] for i in data.side("train")[:ROWS]]
    rows = [single(s) for i, e in enumerate(examples) for s in for_training(template, e, i, None)]
    batch = packing.to_microbatch(flat(rows), "shared")
    models = {"dense": with_adapter(loading.load(folder, dtype))}
    copies = {"dense": models["dense"]}
    for name, how in (("nf4", "nf4"), ("gguf (Q4_1)", str(file))):
        plain = loading.load(folder, dtype, packed=how)
        copies[name] = dense_copy(folder, plain, dtype)
        models[name] = with_adapter(plain)
    equal = {}
    for name, model in models.items():
        ours, theirs = step(model, batch)[1], step(copies[name], batch)[1]
        equal[name] = all(torch.equal(ours[key], theirs[key]) for key in theirs)
    prompts = [rendering.for_generation(template, example) for example in examples]
    times: dict[str, list[float]] = {name: [] for name in models}
    decoding: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(given.rounds):
        for name, model in models.items():
            times[name].append(step(model, batch)[0])
            seconds_, answers = decode(model, prompts)
            decoding[name].append(seconds_)
            equal[name] = equal[name] and answers == decode(copies[name], prompts)[1]
    lines = [
        "# A base in few bits\n",
        f"`python benchmarks/quantised.py --rounds {given.rounds}`: SmolLM2-135M, {ROWS} addresses "
        f"({batch.ids_BT.size} tokens) in float32, {torch.get_num_threads()} threads, forward and backward; "
        f"{NEW} tokens of {ROWS} answers, decoded together. Times dense: median, least to most.\n",
        "| base | linear layers, MB | step, s | times dense | decoding, s | times dense | as of its dense numbers |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, model in models.items():
        cells = []
        for spent in (times, decoding):
            ratios = sorted(a / b for a, b in zip(spent[name], spent["dense"], strict=True))
            cells.append(f"{statistics.median(spent[name]):.2f}")
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        same = "gradients and answers, bit for bit" if equal[name] else "**no**"
        lines.append(f"| {name} | {linear_mb(model.module):.0f} | {' | '.join(cells)} | {same} |")
    print("\n".join(lines))
    (HERE / "results" / "quantised.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
