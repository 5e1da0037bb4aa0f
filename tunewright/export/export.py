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
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewright.core.config import Config, Plan
from tunewright.core.errors import ConfigError, TrainError
from tunewright.core.records import ExportCheck
from tunewright.core.run_folder import Run, chosen_scale, disk_errors, replacing
from tunewright.export import EXPORTS, bundles, verify
from tunewright.export.kind import Dtype, Export, TrainedRun
from tunewright.export.verify import CheckPrompt
from tunewright.model import adapters, loading
from tunewright.model.facts import Facts
from tunewright.model.language_model import LanguageModel
from tunewright.train import checkpoints

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECK_PROMPTS = 8
CHECK_PROMPT_TOKENS = 512
NEW_TOKENS = 24


@dataclass(frozen=True)
class Answers:
    """logits_NV after each prompt, greedy token ids, and token ids of the prompts that were given as messages."""

    logits_NV: Tensor
    greedy: list[list[int]]
    encoded: list[list[int]]


@dataclass(frozen=True)
class Expected:
    """The request that the fresh process gets, and the trained model's answers to it."""

    request: verify.VerifyRequest
    answers: Answers


def trained_model(run: Run, plan: Plan, facts: Facts, dtype: torch.dtype) -> LanguageModel:
    """The tuned model, from the run's own weights at its chosen scale, in ``dtype``."""
    model = loading.load(facts.path, dtype)
    adapters.attach(model.module, plan.adapter, plan.seed)
    checkpoints.load_trained(run, model.module, chosen_scale(run))
    model.module.requires_grad_(False)
    if plan.adapter.kind == "none":
        model.module.to(dtype)
    return model


def export(source: TrainedRun, prompts: Sequence[CheckPrompt], stop: Sequence[int]) -> list[ExportCheck]:
    """Writes the exports. ``prompts``: held-out ones; ``stop``: tokens that end an answer.

    Raises EXPORT_MISMATCH if an export cannot be reloaded or answers differently; it is then removed.
    """
    require_supported(source.config, source.plan, source.facts)
    model = trained_model(source.run, source.plan, source.facts, torch.float32)
    expected = _expected(source, model, prompts[:CHECK_PROMPTS], stop)
    checks, merged = [], False
    # Merging changes the module permanently, so exports of merged weights come last.
    for row in sorted(wanted(source.config, source.plan), key=lambda row: row.merged):
        if row.merged and not merged:
            adapters.merge(model.module)
            merged = True
        checks.append(_write(row, source, model.module, expected))
    return checks


def require_supported(config: Config, plan: Plan, facts: Facts) -> None:
    """Raises CONFIG_CONFLICT for an export or a bundle that cannot be written for this model, and MISSING_PACKAGE."""
    exports = wanted(config, plan)
    bundles.require_supported(config, {row.kind for row in exports}, plan, facts.model_type)
    for row in exports:
        if (reason := row.unsupported(facts)) is not None:
            raise ConfigError(
                "CONFIG_CONFLICT",
                f"the {row.kind} export cannot be written: {reason}.",
                where="export.to",
                fix=f"leave {row.kind} out of export.to.",
            )


def wanted(config: Config, plan: Plan) -> list[Export]:
    """The exports of a run; where all weights are trained, those with merged weights, at least the plain one."""
    chosen = [row for row in EXPORTS.values() if row.kind in config.export.to]
    if plan.adapter.kind == "none":
        return [row for row in chosen if row.merged] or [EXPORTS["merged"]]
    return chosen


def _write(row: Export, source: TrainedRun, module: PreTrainedModel, expected: Expected) -> ExportCheck:
    """Write an export and check it: what a run contains is complete and was checked."""
    folder, dtype = source.run.path / row.kind, row.dtype(source.config, source.facts)
    with replacing(folder) as temporary:
        with disk_errors(folder):
            row.write(source, module, temporary, dtype)
        check = _check(row, temporary, dtype, expected)
    return check.model_copy(update={"path": str(folder)})


def _expected(
    source: TrainedRun, model: LanguageModel, prompts: Sequence[CheckPrompt], stop: Sequence[int]
) -> Expected:
    given = [(p.conversation, p.ids) for p in prompts if p.conversation is not None]
    request = verify.VerifyRequest(
        prompts=[list(p.ids)[-CHECK_PROMPT_TOKENS:] for p in prompts],
        new_tokens=NEW_TOKENS,
        stop=list(stop),
        base=source.facts.path,
        base_sha256=source.facts.sha256,
        threads=source.plan.threads,
        conversations=[conversation for conversation, _ in given],
        template=source.template.kwargs,
    )
    return Expected(request, Answers(*verify.answers(model, request), [list(ids) for _, ids in given]))


def _check(row: Export, folder: Path, dtype: Dtype, expected: Expected) -> ExportCheck:
    """Raises EXPORT_MISMATCH if the export cannot be reloaded, encodes a prompt differently or answers differently."""
    actual, trained = _reloaded(row, folder, expected.request), expected.answers
    if actual.encoded != trained.encoded:
        raise _mismatch(row, folder, "its tokenizer or chat template encodes a prompt differently.")
    gap = float((actual.logits_NV - trained.logits_NV).abs().max())
    same = sum(a == b for a, b in zip(actual.greedy, trained.greedy, strict=True))
    if not gap <= row.tolerance[dtype]:  # also if it is NaN
        what = (
            f"a logit of the reloaded model differs from the trained model's by {gap:.2e} (allowed: "
            f"{row.tolerance[dtype]:g}); {same} of {len(trained.greedy)} greedy texts agree."
        )
        raise _mismatch(row, folder, what)
    return ExportCheck(
        kind=row.kind,
        path=str(folder),
        dtype=dtype,
        largest_difference=gap,
        same_texts=same,
        prompts=len(trained.greedy),
        encoded=len(trained.encoded),
        loaded_with=row.loaded_with,
    )


def _mismatch(row: Export, folder: Path, what: str) -> TrainError:
    run = folder.parent
    others = [kind for kind in EXPORTS if kind != row.kind]
    return TrainError(
        "EXPORT_MISMATCH",
        f"the {row.kind} export is rejected: {what}",
        where=str(run),
        fix=f"`tunewright export {run} export.to='[{', '.join(others)}]'` writes the others; please report this one.",
    )


def _reloaded(row: Export, folder: Path, request: verify.VerifyRequest) -> Answers:
    """The answers of the export, from a fresh process."""
    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as scratch:
        request_file, out = Path(scratch) / "request.json", Path(scratch) / "out.safetensors"
        request_file.write_text(request.to_json(), encoding="utf-8")
        command = [sys.executable, "-m", "tunewright.export.verify", row.kind, str(folder), str(request_file), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise _mismatch(row, folder, f"a fresh process could not load it: {last}")
        with safe_open(out, "pt") as file:
            facts = file.metadata()
            return Answers(file.get_tensor("logits"), json.loads(facts["greedy"]), json.loads(facts["encoded"]))
