"""Write the tables of README.md's "Take it with you": which programs gave the trained model's answers, and what the
types of GGUF files cost.

for c in llama-server vllm libraries; do python benchmarks/consumers.py $c RUN; done      (writes benchmarks/results)
tunewright export RUN --to gguf:f32,f16,q8_0,q6_k,q4_k_m
python scripts/exports_readme.py RUN
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MARK = "<!-- written by scripts/exports_readme.py: {} -->"
END = "<!-- end -->"


def accepted(run: Path) -> list[str]:
    """A row for every program that gave the trained model's answers: of the run itself, and of the committed tables."""
    rows = [
        "| program | what it loads | largest difference (nats) | from the base model | equal texts |",
        "|---|---|---|---|---|",
    ]
    checks = json.loads((run / "verify.json").read_text(encoding="utf-8")) if (run / "verify.json").exists() else []
    for c in checks:
        if c["cause"] is None:
            program = f"{c['consumer']} {c.get('consumer_version', '')}".strip()
            numbers = f"{c['largest_difference']:.1e} | {c['base_difference']:.1e}"
            rows.append(f"| {program} | `{c['path']}` | {numbers} | {c['same_texts']} of {c['prompts']} |")
    for table in sorted((ROOT / "benchmarks" / "results").glob("consumers-*.md")):
        text = table.read_text(encoding="utf-8")
        (program,) = re.findall(r"^(\S+ ?\S*): \d+ of", text, re.MULTILINE) or [""]
        before = ""
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            cells[0] = cells[0].replace("the same", before, 1)
            before = cells[0]
            if len(cells) == 7 and cells[1:3] == ["agrees", "agrees"]:
                served, own = cells[0], ""
                if not program:  # of a library, which each row names
                    served, _, own = cells[0].rpartition(" in ")
                rows.append(f"| {own or program} | {served} | {cells[3]} | {cells[4]} | {cells[5]} |")
    return rows


def losses(run: Path) -> list[str]:
    checks: list[dict[str, Any]] = json.loads((run / "export.json").read_text(encoding="utf-8"))
    metric = json.loads((run / "verdict.json").read_text(encoding="utf-8"))["metric"]
    rows = [
        f"| type | MB | tensors | KL (nats) | top-1 agreement | {metric} on dev, difference |",
        "|---|---|---|---|---|---|",
    ]
    for check in checks:
        if check["kind"] == "gguf":
            loss, tensors = check["loss"], check["file"]["tensors"]
            types = ", ".join(f"{count} {kind}" for kind, count in tensors.items())
            low, high = loss["interval"]
            rows.append(
                f"| {check['dtype']} | {check['file']['bytes'] / 1e6:.0f} | {types} | {loss['kl']:.1e} | "
                f"{100 * loss['same_likeliest']:.1f} % of {loss['tokens']} | "
                f"{loss['difference']:+.3f} [{low:+.3f}, {high:+.3f}], {loss['rows']} rows |"
            )
    return rows


def main(run: Path) -> None:
    file = ROOT / "README.md"
    text = file.read_text(encoding="utf-8")
    for name, rows in (("programs", accepted(run)), ("types", losses(run))):
        before, mark, rest = text.partition(MARK.format(name))
        assert mark, name
        text = "\n".join([before + mark, *rows, END + rest.partition(END)[2]])
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
