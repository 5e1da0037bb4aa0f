"""A model that is larger than the memory it may use: three steps on random weights of a real shape, on a CPU.

python benchmarks/large.py [--shape 8b] [--steps 3]      Writes results/large.md; needs 16 GB of disk for 8b.

What counts is the memory that belongs to the process alone; pages of the model's files are the system's, which drops
them when it needs them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Shapes of Llama 3.2 1B, 3B and Llama 3.1 8B.
SHAPES: dict[str, dict[str, int | bool]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
SHARD = 2 << 30  # bytes


def write_model(folder: Path, shape: str) -> int:
    """Random bfloat16 weights, written shard by shard, with the embedded model's tokenizer. Returns their number."""
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from tunewright.model import loading

    tokenizer = AutoTokenizer.from_pretrained(loading.resolve(loading.EMBEDDED))
    tokenizer.save_pretrained(folder)
    tied = shape != "8b"
    config = AutoConfig.for_model(
        "llama", **SHAPES[shape], vocab_size=128_256, num_key_value_heads=8, tie_word_embeddings=tied, dtype="bfloat16",
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.eos_token_id,
        max_position_embeddings=8192, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    with init_empty_weights():
        shapes = {n: tuple(p.shape) for n, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    generator, shard, size, index = torch.Generator().manual_seed(0), dict[str, Any](), 0, dict[str, str]()
    total, files = 0, 0

    def flush() -> None:
        nonlocal files, size
        name = f"model-{files:05}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        files, size = files + 1, 0
        shard.clear()

    for name, dims in shapes.items():
        weight = torch.ones(dims) if len(dims) == 1 else torch.empty(dims).normal_(0, 0.02, generator=generator)
        shard[name] = weight.bfloat16()
        total, size = total + weight.numel(), size + 2 * weight.numel()
        if size > SHARD:
            flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 2 * total}, "weight_map": index})
    )
    return total


def rows_file(folder: Path) -> Path:
    """Questions with one long instruction, as users have them; of addresses, from the demo."""
    from tunewright.cli.demo import rows_file as demo

    lines = demo().read_text(encoding="utf-8").splitlines()[:60]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "rows.jsonl"


def watched(command: list[str], cwd: Path) -> dict[str, float]:
    """Runs a command. Returns its seconds, and the most memory of its own and in pages of files, in GB."""
    most = {"anonymous": 0.0, "file": 0.0}
    process = subprocess.Popen(command, cwd=cwd)

    def watch() -> None:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            values = {key: line.split() for line in lines for key in [line.split(":")[0]]}
            for name, key in (("anonymous", "RssAnon"), ("file", "RssFile")):
                if key in values:
                    most[name] = max(most[name], float(values[key][1]) / 1e6)
            time.sleep(0.5)

    watcher, start = threading.Thread(target=watch), time.monotonic()
    watcher.start()
    assert process.wait() == 0
    watcher.join()
    return {"seconds": time.monotonic() - start, **most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the model here, or use the one that is here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        model = folder / given.shape
        if not (model / "model.safetensors.index.json").exists():
            model.mkdir(parents=True, exist_ok=True)
            write_model(model, given.shape)
        settings = ["quantise=stored", f"train.steps={given.steps}", "train.batch_size=2", "prove.evidence=plain"]
        settings += ["train.tokens_per_pass=512", "train.eval_every=1000", "prove.max_test_rows=2", "split.dev=0"]
        settings += ["prove.max_new_tokens=4", "prove.few_shot=[]"]  # each token reads all weights
        words = ["train", str(rows_file(folder)), "--model", str(model), "--name", "large", "--yes", *settings]
        used = watched([sys.executable, "-m", "tunewright", *words, "--runs", str(Path(temporary) / "runs")], folder)
        run = Path(temporary) / "runs" / "large"
        plan = json.loads((run / "plan.json").read_text())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        size = 1e-9 * sum(f.stat().st_size for f in model.glob("*.safetensors"))
    steps = [line for line in lines if "seconds" in line]
    write(given.shape, size, used, plan, steps)


def write(shape: str, size: float, used: dict[str, float], plan: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    """Adds a line to the table."""
    file = HERE / "results" / "large.md"
    head = [
        "# Large models on a CPU",
        "",
        "`python benchmarks/large.py --shape SHAPE`: random weights in bfloat16, `quantise=stored`. The process's own",
        "memory counts; pages of files are dropped where memory is needed.",
        "",
        "| shape | files, GB | own memory, GB | pages of files, GB | dtype | tokens a step | seconds a step | all, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    before = file.read_text().splitlines()[len(head) :] if file.exists() else []
    seconds = ", ".join(f"{line['seconds']:.0f}" for line in steps)
    tokens = sum(line["computed"] for line in steps) / len(steps)
    line = f"| {shape} | {size:.1f} | {used['anonymous']:.1f} | {used['file']:.1f} | {plan['dtype']} | {tokens:.0f} | "
    line += f"{seconds} | {used['seconds']:.0f} |"
    kept = [x for x in before if x.strip() and not x.startswith(f"| {shape} ")]
    file.write_text("\n".join([*head, *kept, line, ""]), encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
