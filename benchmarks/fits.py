"""What fits where: memory of training by the plan's own estimate, for shapes of models that people use.

python benchmarks/fits.py      Prints the table of docs/guide-scale.md and writes it there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from tunewright.model.facts import Facts
from tunewright.model.frozen import nf4
from tunewright.train import planning
from tunewright.train.recipe import RowStats

GUIDE = Path(__file__).parent.parent / "docs" / "guide-scale.md"
TOKENS = 4096  # of a pass
ROWS = RowStats(rows=100, tokens=100_000, supervised=30_000, longest=1000)
# hidden, layers, heads, key-value heads, vocabulary, parameters: Qwen2.5 0.5B to 3B, Llama 3.1 8B, Qwen2.5 14B to 72B.
SHAPES = {
    "0.5B": (896, 24, 14, 2, 151_936, 0.49e9),
    "1.5B": (1536, 28, 12, 2, 151_936, 1.54e9),
    "3B": (2048, 36, 16, 2, 151_936, 3.09e9),
    "8B": (4096, 32, 32, 8, 128_256, 8.03e9),
    "14B": (5120, 48, 40, 8, 152_064, 14.8e9),
    "32B": (5120, 64, 40, 8, 152_064, 32.8e9),
    "72B": (8192, 80, 64, 8, 152_064, 72.7e9),
}


def facts(name: str, packed: str) -> Facts:
    hidden, layers, heads, kv, vocabulary, parameters = SHAPES[name]
    width = hidden // heads
    size = {"": 0, "stored": 0, "nf4": nf4.BYTES * int(parameters) // nf4.BLOCK}[packed]
    return Facts(
        name=name, path="", model_type="", hidden=hidden, layers=layers, heads=heads, cached=2 * kv * width,
        head_width=width, vocabulary=vocabulary, context=8192, parameters=int(parameters), dtype="BF16", window=None,
        shareable=True, packable=True, leak="", draws=False, fused=True, sha256="", packed=packed, packed_bytes=size,
    )  # fmt: skip


def gigabytes(
    name: str, packed: str, dtype: planning.Dtype, recompute: Literal["none", "layers"], kind: str = "lora"
) -> float:
    of = facts(name, packed)
    kernels: Literal["flex", "fused"] = "flex" if dtype == "bfloat16" else "fused"
    per_token = planning.bytes_per_token(of, ROWS, dtype, kernels, recompute)
    return (planning._kept(of, dtype, kind) + TOKENS * per_token) / 1e9


def main() -> None:
    columns = [
        ("GPU, bfloat16", "", "bfloat16", "none", "lora"),
        ("the same, layers recomputed", "", "bfloat16", "layers", "lora"),
        ("GPU, NF4, layers recomputed", "nf4", "bfloat16", "layers", "lora"),
        ("CPU, float32, layers recomputed", "", "float32", "layers", "lora"),
        ("CPU, `quantise=stored`, layers recomputed", "stored", "float32", "layers", "lora"),
        ("all weights trained", "", "float32", "layers", "none"),
    ]
    lines = [f"| model | {' | '.join(title for title, *_ in columns)} |", f"|---|{'---|' * len(columns)}"]
    for name in SHAPES:
        lines.append(f"| {name} | {' | '.join(f'{gigabytes(name, *how):.0f}' for _, *how in columns)} |")  # type: ignore[arg-type]
    table = "\n".join(lines)
    print(table)
    text = GUIDE.read_text(encoding="utf-8")
    new = re.sub(r"(<!-- fits: .*?-->\n).*?(<!-- /fits -->)", lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.S)
    GUIDE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
