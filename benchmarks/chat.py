"""What a chat with a run's model costs: tokens per second of CPU time, one answer at a time, in float32; decoded one
token a step, and with guesses from the training answers (`decoding.speculative`); and whether the tokens are the same.

python benchmarks/chat.py RUN [--rounds 5] [--answers 12]      (5 minutes)
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from tunewright.core import records
from tunewright.core.config import Plan, load
from tunewright.core.records import ScoreLine
from tunewright.core.run_folder import Run
from tunewright.data.messages import Message, Prompt
from tunewright.export import export
from tunewright.model.decoding.generate import Decoding, complete, stop_ids
from tunewright.model.facts import read_facts
from tunewright.runtime.chat import load_run
from tunewright.tokens import rendering


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answers", type=int, default=12)
    given = parser.parse_args()
    run = Run(given.run)
    torch.set_num_threads(1)
    chat = load_run(run)
    model = export.trained_model(run, records.read(run.plan, Plan), read_facts(load(run.config).model), torch.float32)
    lines = list(records.read_lines(run.scores / "tuned.jsonl", ScoreLine))[: given.answers]
    asked = [
        rendering.for_generation(
            chat.template, Prompt(tuple(Message.from_json(m.model_dump(exclude_none=True)) for m in line.messages))
        )
        for line in lines
    ]
    plain = Decoding(96, stop_ids(model, chat.template.eos))
    ways = {"one token a step": plain, "with guesses": replace(plain, drafts=chat.drafts)}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[list[int]]] = {}
    complete(model, asked[:1], plain)
    for _ in range(given.rounds):
        for name, how in ways.items():
            start = time.process_time()
            answers[name] = [complete(model, [prompt], how)[0] for prompt in asked]
            rates[name].append(sum(map(len, answers[name])) / (time.process_time() - start))
    first, second = ways
    same = sum(a == b for a, b in zip(answers[first], answers[second], strict=True))
    ratios = [b / a for a, b in zip(rates[first], rates[second], strict=True)]
    print("| decoding | tokens per CPU second, median | range |\n|---|---|---|")
    for name, of in rates.items():
        print(f"| {name} | {statistics.median(of):.1f} | {min(of):.1f} to {max(of):.1f} |")
    tokens = sum(map(len, answers[first]))
    print(
        f"\n{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times as many; {same} of "
        f"{len(asked)} answers to test prompts, {tokens} tokens, are the same token for token. One thread, float32, "
        "prompt included."
    )


if __name__ == "__main__":
    main()
