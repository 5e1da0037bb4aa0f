"""Judging compared with transformers' batched `generate`: label scoring, and greedy answers of 60 tokens. The two take
turns, 125 rows at a time.

python benchmarks/judging.py [--rows 500]      (or: make bench-full)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tables import judging_table
from workloads import WORKLOADS, rows

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters, fused_llama, loading
from tunewright.model.decoding.generate import Decoding, complete, label_logprobs
from tunewright.system import heap, machine

HERE = Path(__file__).parent
CHUNK = 125


def transformers_generate(model: Any, prompts: list[list[int]], new: int, batch: int, eos: int) -> list[list[int]]:
    """Left-padded batches, sorted by length, as its documentation recommends."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    kept: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor([[eos] * (width - len(prompts[i])) + prompts[i] for i in chosen])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=eos, use_cache=True
            )
        for i, answer in zip(chosen, out[:, width:].tolist(), strict=True):
            kept[i] = answer[: answer.index(eos)] if eos in answer else answer
    return kept


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "judging.json")
    asked = parser.parse_args()
    heap.keep()
    threads = machine.cores()
    torch.set_num_threads(threads)
    folder = loading.resolve("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    eos = int(tokenizer.eos_token_id)
    ours = loading.load(folder, torch.bfloat16)
    adapters.attach(ours.module, AdapterConfig(rank=16), 0)  # enabled, as in a run; B is still zero
    if fused_llama.applies(ours.module):
        ours = dataclasses.replace(ours, kernels="fused")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    draw = random.Random(0)
    # Messages of different lengths after the shared instruction of 200 tokens, as in real rows.
    prompts = [
        r["ids"][: draw.randint(220, 245)] for r in rows(WORKLOADS["classify-200"], asked.rows, tokenizer, seed=1)
    ]
    names = ["assignment", "class", "comparison", "lambda", "string methods"]
    labels = [[*tokenizer.encode(f" {name}", add_special_tokens=False), eos] for name in names]
    longest = max(map(len, labels))

    def score(part: list[list[int]]) -> list[Any]:
        return (
            label_logprobs(ours, part, [labels] * len(part), Decoding(longest, (eos,), batch_size=CHUNK))
            .argmax(1)
            .tolist()
        )

    ways: dict[str, dict[str, Any]] = {
        "labels": {
            "tunewright": score,
            "transformers": lambda part: transformers_generate(theirs, part, longest, size["labels"], eos),
        },
        "greedy 60": {
            "tunewright": lambda part: complete(ours, part, Decoding(60, (eos,), batch_size=CHUNK)),
            "transformers": lambda part: transformers_generate(theirs, part, 60, size["greedy 60"], eos),
        },
    }
    size: dict[str, int] = {}
    result: dict[str, Any] = {"tasks": {}}
    for task, sides in ways.items():
        tried = {}
        for size[task] in (16, 32, 64):  # the peer's best batch size, on part of the rows
            start = time.perf_counter()
            sides["transformers"](prompts[:64])
            tried[size[task]] = time.perf_counter() - start
        size[task] = min(tried, key=tried.__getitem__)
        sides["tunewright"](prompts[:8])
        times: dict[str, list[float]] = {name: [] for name in sides}
        answers: dict[str, list[Any]] = {name: [] for name in sides}
        for number, start in enumerate(range(0, len(prompts), CHUNK)):
            for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
                began = time.perf_counter()
                answers[name] += sides[name](prompts[start : start + CHUNK])
                times[name].append(time.perf_counter() - began)
        ratio = [b / a for a, b in zip(times["tunewright"], times["transformers"], strict=True)]
        result["tasks"][task] = {
            "batch": size[task],
            "seconds": times,
            "ratio": ratio,
            "same": statistics.mean(a == b for a, b in zip(*answers.values(), strict=True))
            if task == "greedy 60"
            else None,
        }
        print(
            f"{task}: {statistics.median(ratio):.1f} times ({min(ratio):.1f} to {max(ratio):.1f}), batch {size[task]}",
            file=sys.stderr,
        )
    result["command"] = f"python benchmarks/judging.py --rows {asked.rows}"
    result["threads"] = threads
    asked.out.write_text(json.dumps(result, indent=1))
    text = judging_table(result)
    asked.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
