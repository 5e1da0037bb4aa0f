"""`tunewright serve` under load: tokens per second for one stream, and for many over several adapters; memory during
minutes of load; and whether answers in a full batch are those that the same requests get alone.

python benchmarks/serve.py RUN [--rounds 3] [--minutes 5] [--adapters 8] [--llama-server PROGRAM]

With llama-server, both are asked in turn, in the same rounds: in float32, as many slots as the most streams, each
adapter a file of its own (`lora` in a request chooses one; requests with different ones do not share a batch there).
RUN: a finished run of the model smollm2-135m, whose weights are changed at random into several adapters: what an answer
is worth does not matter here, but its length does, so answers are not ended by a stop token (logit_bias). Writes
results/serve.md; with --rounds 0, which measures no rates and so needs no quiet machine, results/serve_memory.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import torch
from consumers import serving
from safetensors.torch import load_file, save_file

from tunewright.core import records, run_folder
from tunewright.core.records import ScoreLine
from tunewright.core.run_folder import Run
from tunewright.core.words import counted
from tunewright.model import loading
from tunewright.system import machine
from tunewright.tokens.template import load_template

HERE = Path(__file__).parent
TOKENS = 48
STREAMS = (1, 8, 32)


def changed(run: Path, runs: Path, count: int) -> list[str]:
    """Copies of a run with other weights."""
    names = []
    for n in range(count):
        copy = Run(runs / f"adapter-{n}")
        shutil.copytree(run, copy.path)
        draw = torch.Generator().manual_seed(n)
        read = load_file(copy.weights).items()
        weights = {k: t + 0.02 * t.std() * torch.randn(t.shape, generator=draw) for k, t in read}
        save_file(weights, copy.weights)
        training = run_folder.read_json(copy.training)
        run_folder.write_json(copy.training, {**training, "weights_sha256": run_folder.sha256(copy.weights)})
        names.append(f"run:{copy.name}")
    return names


@contextmanager
def served(folder: Path, home: str = "home", *more: str) -> Iterator[tuple[openai.OpenAI, int]]:
    """A client of `tunewright serve` in ``folder``, and the server's process id. Raises RuntimeError with its error if
    it does not start."""
    command = [sys.executable, "-m", "tunewright", "serve", "--port", "0", "--dtype", "float32", "--home", home]
    with open(folder / f"{home}.log", "w") as log:
        process = subprocess.Popen([*command, *more], cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        if not all(lines):
            raise RuntimeError((folder / f"{home}.log").read_text().strip().splitlines()[-1])
        shown = dict(line.split() for line in lines)
        client = openai.OpenAI(base_url=shown["base_url"], api_key=shown["api_key"], max_retries=0, timeout=1800)
        yield client, process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def llama_server(program: str, run: Path, folder: Path, adapters: int) -> Iterator[openai.OpenAI]:
    """A client of llama-server with the run's merged model in float32, and its adapter as several."""
    copy = folder / "exported"
    shutil.copytree(run, copy)
    words = [sys.executable, "-m", "tunewright", "export", str(copy), "--to", "gguf:f32,lora-gguf"]
    subprocess.run(words, check=True, capture_output=True)
    (model,), (adapter,) = copy.glob("gguf/*.gguf"), copy.glob("lora-gguf/*.gguf")
    files = [shutil.copy(adapter, folder / f"{n}.gguf") for n in range(adapters)]
    slots = ["-np", str(STREAMS[-1]), "-c", str(STREAMS[-1] * 1024), "--no-webui"]
    exact = ["-ctk", "f32", "-ctv", "f32", "-fa", "off", "-t", str(machine.cores())]
    loras = [word for file in files for word in ("--lora", str(file))]
    command = [program, "-m", str(model), *loras, "--lora-init-without-apply", *slots, *exact]
    with serving(command, folder / "llama.log", OMP_NUM_THREADS=str(machine.cores())) as url:
        yield openai.OpenAI(base_url=url, api_key="-", max_retries=0, timeout=1800)


class Load:
    """Requests to several models. ``stop``: the token that would end an answer. ``loras``: whether adapters are named
    as llama-server wants it."""

    def __init__(
        self, client: openai.OpenAI, models: list[str], prompts: list[list[Any]], stop: int, loras: bool = False
    ) -> None:
        self.client, self.models, self.prompts, self.stop, self.loras = client, models, prompts, stop, loras

    def ask(self, number: int, tokens: int = TOKENS) -> str:
        messages = self.prompts[number % len(self.prompts)]
        which = number % len(self.models)
        given: dict[str, Any] = {"logit_bias": {str(self.stop): -100}, "max_completion_tokens": tokens}
        if self.loras:
            given |= {"temperature": 0, "extra_body": {"lora": [{"id": which, "scale": 1.0}], "ignore_eos": True}}
        answer = self.client.chat.completions.create(model=self.models[which], messages=messages, **given)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == tokens
        return answer.choices[0].message.content or ""

    def rate(self, streams: int) -> float:
        """Tokens per second of so many requests at a time."""
        count = max(4, streams)
        started = time.monotonic()
        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(self.ask, range(count)))
        return count * TOKENS / (time.monotonic() - started)


def memory(pid: int) -> float:
    """Resident memory of a process, in GB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def steady(load: Load, pid: int, minutes: float, streams: int) -> list[float]:
    """Memory every ten seconds under load."""
    ending, values = time.monotonic() + 60 * minutes, list[float]()
    counter, draw, lock = itertools.count(), random.Random(0), threading.Lock()

    def stream() -> None:
        while time.monotonic() < ending:
            with lock:
                number, tokens = next(counter), draw.randint(4, 96)
            load.ask(number, tokens)

    with ThreadPoolExecutor(streams) as pool:
        running = [pool.submit(stream) for _ in range(streams)]
        while time.monotonic() < ending:
            time.sleep(10)
            values.append(memory(pid))
        for one in running:
            one.result()
    return values


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--requests", type=int, default=100, help="asked alone and together")
    parser.add_argument("--llama-server", help="the program")
    given = parser.parse_args()
    lines = list(records.read_lines(Run(given.run).scores / "tuned.jsonl", ScoreLine))
    prompts = [[m.model_dump(exclude_none=True) for m in line.messages] for line in lines]
    stop = load_template(loading.resolve("smollm2-135m")).eos
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = changed(given.run.absolute(), folder / "runs", given.adapters)
        with ExitStack() as stack:
            other: Load | None = None
            if given.llama_server:
                beside = stack.enter_context(
                    llama_server(given.llama_server, given.run.absolute(), folder, given.adapters)
                )
                other = Load(beside, models, prompts, stop, loras=True)
                other.rate(len(models))
            client, pid = stack.enter_context(served(folder))
            load, base = Load(client, models, prompts, stop), Load(client, ["smollm2-135m"], prompts, stop)
            load.rate(len(models))  # every adapter is loaded
            rates: dict[str, list[float]] = defaultdict(list)
            for _ in range(given.rounds):
                for streams in STREAMS:
                    name = f"{counted(streams, 'stream')}, {given.adapters} adapters"
                    loads = {name: load} | ({} if other is None else {f"llama-server: {name}": other})
                    for what, of in loads.items():
                        rates[what].append(of.rate(streams))
                        print(f"{what}: {rates[what][-1]:.0f} tokens per second", flush=True)
                rates[f"{STREAMS[-1]} streams, base"].append(base.rate(STREAMS[-1]))
            alone = [load.ask(n, 8 + n % 41) for n in range(given.requests)]
            with ThreadPoolExecutor(32) as pool:
                together = list(pool.map(lambda n: load.ask(n, 8 + n % 41), range(given.requests)))
            values = steady(load, pid, given.minutes, 64) if given.minutes else []
    more = [*(rate_lines(rates) if rates else []), *steady_lines(alone, together, values, given.minutes)]
    text = "\n".join([f"# `tunewright serve` under load\n\n`{command(given)}`: SmolLM2-135M in float32.\n", *more, ""])
    name = "serve.md" if rates else "serve_memory.md"
    (HERE / "results" / name).write_text(text, encoding="utf-8")
    print(text)


def command(given: argparse.Namespace) -> str:
    """That made the table, without the paths of this machine."""
    words = [f"--{name} {getattr(given, name)}" for name in ("rounds", "minutes", "adapters", "requests")]
    other = ["--llama-server PROGRAM"] if given.llama_server else []
    return " ".join(["python benchmarks/serve.py RUN", *words, *other])


def rate_lines(rates: dict[str, list[float]]) -> list[str]:
    here = machine.measure()
    one = statistics.median(next(iter(rates.values())))
    out = [
        f"Answers of {TOKENS} tokens after prompts of a real task, over HTTP with OpenAI's client; {here.cores} cores,",
        f"float32 products at {here.fp32_gflops:.0f} GFLOP/s. A stream is one request at a time. Medians and ranges of",
        "rounds, in each of which all are asked.\n",
        "| load | tokens per second | over one stream of ours |",
        "|---|---|---|",
    ]
    for name, of in rates.items():
        median = statistics.median(of)
        out.append(f"| {name} | {median:.0f} ({min(of):.0f} to {max(of):.0f}) | {median / one:.1f} |")
    return [*out, ""]


def steady_lines(alone: list[str], together: list[str], values: list[float], minutes: float) -> list[str]:
    same = sum(a == b for a, b in zip(alone, together, strict=True))
    what = f"{len(alone)} requests with several adapters and different lengths, 32 at a time"
    out = [f"{what}: {same} answers equal those that they get alone."]
    if values:
        third = max(1, len(values) // 3)
        first, last = statistics.mean(values[third : 2 * third]), statistics.mean(values[-third:])
        what = f"64 streams for {minutes:g} minutes"
        most = f"at most {max(values):.2f} GB"
        out.append(f"{what}: memory {first:.2f} GB on average in the second third, {last:.2f} GB in the last ({most}).")
        each_half_minute = ", ".join(f"{value:.2f}" for value in values[::3])
        out.append(f"Every half minute: {each_half_minute} GB; of these, up to 2 GB are cached prompts (`--cache-gb`).")
    return out


if __name__ == "__main__":
    main()
