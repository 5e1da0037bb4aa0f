"""Write every export that the config asks for. An export is accepted only after a fresh process has loaded it and given
the same answers."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tunewright.core.config import Plan
from tunewright.core.errors import TrainError
from tunewright.core.records import ExportCheck
from tunewright.core.run_folder import Run, chosen_scale
from tunewright.export import EXPORTS, verify
from tunewright.export.kind import Dtype, Export, TrainedRun
from tunewright.model import adapters, loading
from tunewright.model.facts import Facts
from tunewright.model.language_model import LanguageModel
from tunewright.train import checkpoints

CHECK_PROMPTS = 8
CHECK_PROMPT_TOKENS = 512
NEW_TOKENS = 24


@dataclass(frozen=True)
class Expected:
    """The request that the fresh process gets, and the trained model's answers to it: logits_NV after each prompt, and
    greedy token ids."""

    request: verify.VerifyRequest
    logits_NV: Tensor
    greedy: list[list[int]]


def trained_model(run: Run, plan: Plan, facts: Facts, dtype: torch.dtype) -> LanguageModel:
    """The tuned model, from the run's own weights at its chosen scale, in ``dtype``."""
    model = loading.load(facts.path, dtype)
    adapters.attach(model.module, plan.adapter, plan.seed)
    checkpoints.load_trained(run, model.module, chosen_scale(run))
    model.module.requires_grad_(False)
    if plan.adapter.kind == "none":
        model.module.to(dtype)
    return model


def export(source: TrainedRun, prompts: Sequence[Sequence[int]], stop: Sequence[int]) -> list[ExportCheck]:
    """Writes the exports. ``prompts``: token ids of held-out prompts; ``stop``: tokens that end an answer.

    Raises EXPORT_MISMATCH if an export cannot be reloaded or answers differently.
    """
    model = trained_model(source.run, source.plan, source.facts, torch.float32)
    expected = _expected(source, model, prompts, stop)
    checks = []
    for row in EXPORTS.values():
        if row.wanted(source.config, source.plan):
            folder, dtype = row.folder(source.run), row.dtype(source.config, source.facts)
            row.write(source, model.module, folder, dtype)
            checks.append(_check(row, folder, dtype, expected))
    return checks


def _expected(
    source: TrainedRun, model: LanguageModel, prompts: Sequence[Sequence[int]], stop: Sequence[int]
) -> Expected:
    request = verify.VerifyRequest(
        prompts=[list(ids)[-CHECK_PROMPT_TOKENS:] for ids in prompts[:CHECK_PROMPTS]],
        new_tokens=NEW_TOKENS,
        stop=list(stop),
        base=source.facts.path,
        base_sha256=source.facts.sha256,
        threads=source.plan.threads,
    )
    return Expected(request, *verify.answers(model, request))


def _check(row: Export, folder: Path, dtype: Dtype, expected: Expected) -> ExportCheck:
    """Raises EXPORT_MISMATCH if the export cannot be reloaded or answers differently."""
    logits_NV, greedy = _reloaded(row, folder, expected.request)
    gap = float((logits_NV - expected.logits_NV).abs().max())
    same = sum(a == b for a, b in zip(greedy, expected.greedy, strict=True))
    if not gap <= row.tolerance[dtype]:  # also if it is NaN
        raise TrainError(
            "EXPORT_MISMATCH",
            f"a logit of the reloaded {row.kind} differs from the trained model's by {gap:.2e} "
            f"(allowed: {row.tolerance[dtype]:g}); {same} of {len(greedy)} greedy texts agree.",
            where=str(folder),
            fix="set export.dtype=float32, or report this with the run folder.",
        )
    return ExportCheck(
        kind=row.kind,
        path=str(folder),
        dtype=dtype,
        largest_difference=gap,
        same_texts=same,
        canaries=len(greedy),
        loaded_with=row.loaded_with,
    )


def _reloaded(row: Export, folder: Path, request: verify.VerifyRequest) -> tuple[Tensor, list[list[int]]]:
    """(logits_NV, greedy token ids) of the export, from a fresh process."""
    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as scratch:
        request_file, out = Path(scratch) / "request.json", Path(scratch) / "out.safetensors"
        request_file.write_text(request.to_json(), encoding="utf-8")
        command = [sys.executable, "-m", "tunewright.export.verify", row.kind, str(folder), str(request_file), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise TrainError(
                "EXPORT_MISMATCH", f"a fresh process could not load the {row.kind}: {last}", where=str(folder)
            )
        with safe_open(out, "pt") as file:
            return file.get_tensor("logits"), json.loads(file.metadata()["greedy"])
