"""What leaves: the adapter and the merged model. Nothing counts as exported before a fresh process has loaded it and said the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tunewright.core.config import Config, Plan
from tunewright.core.errors import TrainError
from tunewright.core.run_folder import Run, disk_errors, write_json
from tunewright.export import verify
from tunewright.model import adapters, arch_probe, loading, peft_format
from tunewright.model.facts import Facts
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.template import Template
from tunewright.train import checkpoints

CANARIES = 8
NEW_TOKENS = 24
# float32 sums in another order move a logit by some 1e-5; weights rounded to 16 bits by some 1e-1.
TOLERANCE = {"float32": 1e-3, "bfloat16": 1.0, "float16": 0.5}


@dataclass(frozen=True)
class ExportCheck:
    """One export, as a fresh process found it: largest logit difference over all canaries, and how many greedy texts agree."""

    kind: str
    path: str
    dtype: str
    largest_difference: float
    same_texts: int
    canaries: int
    loaded_with: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def merged_dtype(config: Config, facts: Facts) -> tuple[str, str]:
    if config.export.dtype != "auto":
        return config.export.dtype, "as asked"
    if facts.parameters * 4 <= 2e9:
        return "float32", "the adapter's part of a weight is below bfloat16's precision; float32 keeps it and stays under 2 GB"
    own = {"BF16": "bfloat16", "F16": "float16"}.get(facts.dtype, "float32")
    return own, f"the base's own dtype ({facts.dtype}), because float32 would take over 2 GB"


def trained_model(run: Run, plan: Plan, facts: Facts, dtype: torch.dtype) -> LanguageModel:
    """The model as training left it, from the run's own weights, in ``dtype``."""
    model = loading.load(facts.path, dtype)
    adapters.attach(model.module, plan.adapter, plan.seed)
    checkpoints.load_trained(run, model.module)
    model.module.requires_grad_(False)
    if plan.adapter.kind == "none":
        model.module.to(dtype)
    return model


def export(
    run: Run, config: Config, plan: Plan, facts: Facts, template: Template, canaries: Sequence[Sequence[int]], stop: Sequence[int]
) -> list[ExportCheck]:
    """Write adapter/ and merged/, check each in a fresh process. Raises EXPORT_MISMATCH and leaves nothing that lies."""
    model = trained_model(run, plan, facts, torch.float32)
    kept = [list(c)[-512:] for c in canaries[:CANARIES]]
    expected, texts = verify.answers(model, kept, NEW_TOKENS, tuple(stop))
    asked = {"canaries": kept, "new_tokens": NEW_TOKENS, "stop": list(stop), "base_sha256": facts.sha256, "threads": plan.threads}
    found = []
    if plan.adapter.kind != "none":
        note = {"base": facts.name, "base_sha256": facts.sha256, "template_sha256": template.sha256, "run": run.name}
        peft_format.save(
            model.module, plan.adapter, run.adapter, facts.path if facts.name == loading.EMBEDDED else facts.name, note
        )
        found.append(_check("adapter", run.adapter, facts, asked, expected, texts, "float32"))
    if config.export.merged or plan.adapter.kind == "none":
        dtype, _ = merged_dtype(config, facts)
        adapters.merge(model.module)
        _save_merged(model.module, template, run.merged, loading.torch_dtype(dtype))  # type: ignore[arg-type]
        found.append(_check("merged", run.merged, facts, asked, expected, texts, dtype))
    write_json(run.export, [c.to_json() for c in found])
    return found


def _save_merged(model: Any, template: Template, folder: Path, dtype: torch.dtype) -> None:
    for left in folder.parent.glob(".merged-*"):  # of a process that was killed here
        shutil.rmtree(left)
    beside = Path(tempfile.mkdtemp(prefix=".merged-", dir=folder.parent))
    try:
        with disk_errors(folder), arch_probe.quiet():
            model.to(dtype).save_pretrained(beside)
            template.tokenizer.save_pretrained(beside)
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check(
    kind: str, folder: Path, facts: Facts, asked: dict[str, Any], expected: torch.Tensor, texts: list[list[int]], dtype: str
) -> ExportCheck:
    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as scratch:
        canaries, out = Path(scratch) / "canaries.json", Path(scratch) / "out.safetensors"
        canaries.write_text(json.dumps(asked), encoding="utf-8")
        command = [sys.executable, "-m", "tunewright.export.verify", kind, str(folder), facts.path, str(canaries), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise TrainError("EXPORT_MISMATCH", f"a fresh process could not load the {kind}: {last}", where=str(folder))
        with safe_open(out, "pt") as file:
            logits, greedy_ids = file.get_tensor("logits"), json.loads(file.metadata()["greedy"])
    gap = float((logits - expected).abs().max())
    same = sum(a == b for a, b in zip(greedy_ids, texts, strict=True))
    how = "tunewright, base model and adapter" if kind == "adapter" else "transformers alone"
    if not gap <= TOLERANCE[dtype]:
        raise TrainError(
            "EXPORT_MISMATCH",
            f"the reloaded {kind} differs from the trained model by {gap:.2e} in a logit (allowed {TOLERANCE[dtype]:g}); {same} of {len(texts)} greedy texts agree.",
            where=str(folder),
            fix="set export.dtype=float32, or report this with the run folder.",
        )
    return ExportCheck(kind, str(folder), dtype, gap, same, len(texts), how)
