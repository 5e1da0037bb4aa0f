"""`tunewright serve --engine URL` before vLLM: does it answer as our own engine does, and what if something is wrong?

python benchmarks/serve_vllm.py RUN [--requests 40]      (makes an environment of 3.4 GB, unless --program PYTHON)

RUN: a finished run with an exported adapter, whose base is a folder or the embedded model. Writes
results/serve-vllm.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
from consumers import VLLM, free_port, serving, vllm_python
from safetensors.torch import load_file, save_file
from serve import served

from tunewright.core import records
from tunewright.core.records import ScoreLine
from tunewright.core.run_folder import Run

HERE = Path(__file__).parent
TOKENS = 24
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "number": {"type": "integer"}},
    "required": ["name", "number"],
    "additionalProperties": False,
}


def vllm(python: str, base: str | Path, port: int, log: Path) -> contextlib.AbstractContextManager[str]:
    """vLLM with a base, ready for adapters."""
    engine = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base), "--dtype", "float32"]
    size = ["--max-model-len", "2048", "--enforce-eager", "--max-logprobs", "20"]
    lora = ["--enable-lora", "--max-lora-rank", "64", "--generation-config", "vllm", "--enable-prompt-tokens-details"]
    grammar = ["--structured-outputs-config", json.dumps({"backend": "guidance"})]
    command = [*engine, *size, *lora, *grammar]
    return serving(command, log, port, VLLM_ALLOW_RUNTIME_LORA_UPDATING="True")


def asked(client: openai.OpenAI, model: str, prompts: list[list[Any]]) -> list[tuple[str, list[float]]]:
    """Greedy answers with the log-probabilities of their tokens, 8 at a time."""

    def one(messages: list[Any]) -> tuple[str, list[float]]:
        given: dict[str, Any] = {"max_tokens": TOKENS, "logprobs": True}
        choice = client.chat.completions.create(model=model, messages=messages, **given).choices[0]
        assert choice.logprobs is not None
        return choice.message.content or "", [t.logprob for t in choice.logprobs.content or []]

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, prompts))


def compared(theirs: list[Any], ours: list[Any]) -> str:
    equal = [a[0] == b[0] for a, b in zip(theirs, ours, strict=True)]
    pairs = [(x, y) for a, b in zip(theirs, ours, strict=True) if a[0] == b[0] for x, y in zip(a[1], b[1], strict=True)]
    furthest = max((abs(x - y) for x, y in pairs), default=float("nan"))
    return f"{sum(equal)} of {len(equal)} texts equal; largest difference of a log-probability {furthest:.1e}"


def refusal(client: openai.OpenAI, model: str) -> str:
    try:
        asked(client, model, [[{"role": "user", "content": "hello"}]])
    except openai.APIStatusError as error:
        return f"refused: {error.body['message'] if isinstance(error.body, dict) else error}"
    return "ANSWERED"


def halved(run: Path, target: Path) -> None:
    """A copy of a run whose exported adapter has half its alpha."""
    shutil.copytree(run, target)
    file = target / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] / 2}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--program", help="the Python of an environment with vLLM")
    given = parser.parse_args()
    python = given.program or vllm_python(HERE.parent / "build" / "consumers")
    receipt = json.loads((given.run / "receipt.json").read_text())["model"]
    base, path, name = receipt["name"], Path(receipt["path"]), f"run:{given.run.name}"
    lines = list(records.read_lines(Run(given.run).scores / "tuned.jsonl", ScoreLine))[: given.requests]
    prompts = [[m.model_dump(exclude_none=True) for m in line.messages] for line in lines]
    rows: list[tuple[str, str]] = []

    def row(what: str, result: str) -> None:
        print(f"{what}: {result}", flush=True)
        rows.append((what, result))

    with tempfile.TemporaryDirectory() as temporary:
        folder, port = Path(temporary), free_port()
        shutil.copytree(given.run, folder / "runs" / given.run.name)
        halved(given.run, folder / "runs" / "halved")
        engine = ("--engine", f"http://127.0.0.1:{port}")
        with served(folder, "own", "--model", base) as (own, _):
            bases = asked(own, own.models.list().data[-1].id, prompts)
            tuned = asked(own, name, prompts)
        with contextlib.ExitStack() as stack:
            stack.enter_context(vllm(python, path, port, folder / "vllm.log"))
            with served(folder, "half", "--model", base, *engine) as (front, _):  # its weights would have the same name
                row("an exported adapter whose alpha was halved", refusal(front, "run:halved"))
            with served(folder, "front", "--model", base, *engine) as (front, _):
                own_name = next(m.id for m in front.models.list() if not m.id.startswith("run:"))
                row("the base", compared(asked(front, own_name, prompts), bases))
                row("the tuned model, published at its first request", compared(asked(front, name, prompts), tuned))
                form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
                kept = 0
                for messages in prompts[:5]:
                    choice = front.chat.completions.create(model=name, messages=messages, response_format=form).choices[
                        0
                    ]
                    jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)
                    kept += 1
                row("answers with a schema", f"{kept} of 5 valid")
                stack.close()
                row("vLLM is away", refusal(front, own_name))
                with vllm(python, path, port, folder / "vllm.log"):
                    again = compared(asked(front, name, prompts), tuned)
                    row("vLLM was started again, without the adapter", again)
        other = folder / "other-base"
        shutil.copytree(path, other)
        weights = load_file(other / "model.safetensors")
        weights["model.layers.3.mlp.down_proj.weight"] *= 1.02
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
        with vllm(python, other, port, folder / "vllm.log"):
            try:
                with served(folder, "wrong", "--model", base, *engine):
                    row("another base: one matrix multiplied by 1.02", "SERVED")
            except RuntimeError as error:
                row("another base: one matrix multiplied by 1.02", f"refused: {error}")
    text = [
        "# vLLM behind `tunewright serve`\n",
        f"`python benchmarks/serve_vllm.py RUN`; {VLLM}, float32; RUN: {base}. {len(prompts)} held-out prompts,",
        f"{TOKENS} tokens each, compared with our own engine.\n",
        "| asked | result |",
        "|---|---|",
        *(f"| {what} | {result.replace(str(folder), '...')} |" for what, result in rows),
    ]
    (HERE / "results" / "serve-vllm.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
