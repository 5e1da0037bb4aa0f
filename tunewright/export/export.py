"""Write every export that the config asks for. An export is accepted only after a fresh process has loaded it and given
the same answers."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from tunewright.core import programs
from tunewright.core.chosen import chosen_scale
from tunewright.core.config import Plan
from tunewright.core.errors import ConfigError, TrainError
from tunewright.core.records import ExportCheck
from tunewright.core.run_folder import Run, disk_errors, replacing
from tunewright.export import EXPORTS, bundles, classifier, reload_check, unchanged, vectors
from tunewright.export.gguf import tensors
from tunewright.export.kind import QUANTISED, Export, TrainedRun
from tunewright.export.reload_check import CheckPrompt
from tunewright.judge.chat_model import ChatModel
from tunewright.judge.search.encoding import encode
from tunewright.model import adapters, loading
from tunewright.model.decoding.generate import Decoding
from tunewright.model.facts import Facts
from tunewright.model.heads import vectors as heads
from tunewright.model.language_model import LanguageModel
from tunewright.train import checkpoints

# (temporary folder of an export, its checks, the trained model, merged if the export is) -> the checks, with what else
# was found out. Writes what else belongs into the folder.
Finish = Callable[[Path, list[ExportCheck], LanguageModel], list[ExportCheck]]
CHECK_PROMPTS = 8
CHECK_PROMPT_TOKENS = 512
NEW_TOKENS = 24


@dataclass(frozen=True)
class Answers:
    """logits_NV after each prompt, greedy token ids, token ids of the prompts that were given as messages, and hashes
    of those of the texts. ``program``: what read the texts; "" if the export has no tokenizer, so none were read.
    ``weights``: hash of each parameter, where they are compared."""

    logits_NV: Tensor
    greedy: list[list[int]]
    encoded: list[list[int]]
    texts: list[str]
    program: str = ""
    weights: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """The request that the fresh process gets, and the trained model's answers to it."""

    source: TrainedRun
    request: reload_check.CheckRequest
    answers: Answers


def trained_model(run: Run, plan: Plan, facts: Facts, dtype: torch.dtype) -> LanguageModel:
    """The tuned model, from the run's own weights at its chosen scale, in ``dtype``."""
    model = loading.load(facts.path, dtype, packed=facts.packed)
    adapters.attach(model.module, plan.adapter, outputs=len(plan.labels))
    if plan.embed:
        heads.freeze_output_head(model.module)
    checkpoints.load_trained(run, model.module, chosen_scale(run))
    model = replace(model, pooling=plan.pooling)
    model.module.requires_grad_(False)
    if plan.adapter.kind == "none":
        model.module.to(dtype)
    return model


def accepted(folder: Path, checks: list[ExportCheck], model: LanguageModel) -> list[ExportCheck]:
    """For an export that needs nothing more."""
    return checks


def export(
    source: TrainedRun,
    prompts: Sequence[CheckPrompt],
    stop: Sequence[int],
    texts: Sequence[str] = (),
    finish: Finish = accepted,
    origin: str | None = None,
) -> list[ExportCheck]:
    """Writes the exports. ``prompts``: held-out ones; ``stop``: tokens that end an answer; ``texts``: what an export
    must split into the same tokens; ``finish``: see `Finish`; ``origin``: see `unchanged.made_from`.

    Raises EXPORT_MISMATCH if an export cannot be reloaded or answers differently. What was there before then stays. An
    export that is there already, made from the same and itself the same, is not written again.
    """
    require_supported(source)
    # Merging changes the module permanently, so exports of merged weights come last.
    rows = sorted(wanted(source), key=lambda row: row.merged)
    checks = {row.kind: unchanged.kept(row, source, origin) for row in rows}
    todo = [row for row in rows if not checks[row.kind]]
    if todo:
        model = trained_model(source.run, source.plan, source.facts, torch.float32)
        expected = _expected(source, model, prompts[:CHECK_PROMPTS], stop, texts)
    merged = False
    for row in todo:
        if row.merged and not merged:
            adapters.merge(model.module)
            if source.plan.labels:
                model = classifier.exported(model, source.plan, source.template)
            if source.plan.embed:
                model = vectors.without_head(model)
            merged = True
        checks[row.kind] = _write(row, model, expected, finish, origin)
        unchanged.remember(source.run, checks[row.kind])
    return [check for row in rows for check in checks[row.kind]]


def require_supported(source: TrainedRun) -> None:
    """Raises CONFIG_CONFLICT for an export or a bundle that cannot be written for this model, and MISSING_PACKAGE."""
    exports = wanted(source)
    bundles.require_supported(source, {row.kind for row in exports})
    for row in exports:
        what = "a head" if source.plan.labels else "how vectors are made of texts"
        no_head = f"it has no place for {what}" if source.plan.silent and not row.has_head else None
        if (reason := no_head or row.unsupported(source)) is not None:
            raise ConfigError(
                "CONFIG_CONFLICT",
                f"the {row.kind} export cannot be written: {reason}.",
                where="export.to",
                fix=f"leave {row.kind} out of export.to.",
            )


def wanted(source: TrainedRun) -> list[Export]:
    """The exports of a run; where all weights are trained, of an encoder, with tags, and of a model that gives vectors,
    those with merged weights, at least the plain one, unless export.to is empty."""
    chosen = [row for row in EXPORTS.values() if row.kind in source.config.export.to]
    plan = source.plan
    if chosen and (plan.adapter.kind == "none" or source.facts.encoder or plan.method == "tag" or plan.embed):
        return [row for row in chosen if row.merged] or [EXPORTS["merged"]]
    return chosen


def _write(
    row: Export, model: LanguageModel, expected: Expected, finish: Finish, origin: str | None
) -> list[ExportCheck]:
    """Write an export and check it: what a run contains is complete and was checked."""
    source, module, checks = expected.source, model.module, []
    folder = source.run.path / row.kind
    with replacing(folder) as temporary:
        for dtype in row.dtypes(source):
            with disk_errors(folder):
                path = row.write(source, module, temporary, dtype)
            stored = None if row.stored is None else row.stored(source, dtype)
            weights = {} if stored is None else reload_check.weights(module, stored)
            check = _check(row, path, dtype, replace(expected, answers=replace(expected.answers, weights=weights)))
            checks.append(check.model_copy(update={"file": None if path.is_dir() else tensors.described(path)}))
        checks = finish(temporary, checks, model)
        checks = [
            c.model_copy(update={"made_from": origin, "content": unchanged.content(Path(c.path))}) for c in checks
        ]
    return [c.model_copy(update={"path": str(folder / Path(c.path).relative_to(temporary))}) for c in checks]


def _expected(
    source: TrainedRun,
    model: LanguageModel,
    prompts: Sequence[CheckPrompt],
    stop: Sequence[int],
    texts: Sequence[str],
) -> Expected:
    given = [(p.conversation, p.ids) for p in prompts if p.conversation is not None]
    request = reload_check.CheckRequest(
        prompts=[list(p.ids)[-CHECK_PROMPT_TOKENS:] for p in prompts],
        new_tokens=NEW_TOKENS,
        stop=list(stop),
        base=source.facts.path,
        base_sha256=source.facts.sha256,
        base_packed=source.facts.packed,
        threads=source.plan.threads,
        batchable=source.facts.packable and source.facts.window is None,
        conversations=[conversation for conversation, _ in given],
        template=source.template.kwargs,
        texts=list(texts),
        every_token=source.plan.method == "tag",
    )
    hashes = reload_check.hashes(reload_check.token_ids(source.template.tokenizer, texts))
    if source.plan.embed:
        chat = ChatModel(model, source.template, Decoding(1, ()), source.plan)
        computed = vectors.answers(lambda t, kind: torch.from_numpy(encode(chat, t, kind)), request.conversations)
    else:
        computed = reload_check.answers(model, request)
    answers = Answers(*computed, [list(ids) for _, ids in given], hashes)
    return Expected(source, request, answers)


def _check(row: Export, path: Path, dtype: str, expected: Expected) -> ExportCheck:
    """Raises EXPORT_MISMATCH if the export cannot be reloaded, has other weights, encodes a text differently or answers
    differently."""
    actual, trained = _reloaded(row, path, expected), expected.answers
    if trained.weights and actual.weights != trained.weights:
        name = min(k for k, _ in actual.weights.items() ^ trained.weights.items())
        raise _mismatch(row, expected, f"its {name}, as {dtype}, is not the trained one.")
    if actual.program and actual.encoded != trained.encoded:
        raise _mismatch(row, expected, "its tokenizer or chat template encodes a prompt differently.")
    if actual.program and actual.texts != trained.texts:
        unequal = sum(a != b for a, b in zip(actual.texts, trained.texts, strict=True))
        raise _mismatch(row, expected, f"{actual.program} splits {unequal} of {len(trained.texts)} rows differently.")
    gap = float((actual.logits_NV - trained.logits_NV).abs().max())
    embeds = expected.source.plan.embed is not None
    kl = None if embeds else reload_check.mean_kl(trained.logits_NV, actual.logits_NV)
    same = sum(a == b for a, b in zip(actual.greedy, trained.greedy, strict=True))
    distance, limit = gap if kl is None or dtype not in QUANTISED else kl, row.tolerance[dtype]
    limit = vectors.TOLERANCE[dtype] if embeds else limit
    if not distance <= limit:  # also if it is NaN
        unit = "nats on average (KL)" if dtype in QUANTISED else f"in a {'vector' if embeds else 'logit'}"
        what = (
            f"the reloaded model differs from the trained one by {distance:.2e} {unit} (allowed: {limit:g}); "
            f"{same} of {len(trained.greedy)} greedy texts agree."
        )
        raise _mismatch(row, expected, what)
    return ExportCheck(
        kind=row.kind,
        path=str(path),
        dtype=dtype,
        largest_difference=gap,
        kl=kl,
        same_texts=same,
        prompts=len(trained.greedy),
        encoded=len(trained.encoded) if actual.program else 0,
        rows=len(trained.texts) if actual.program else 0,
        tokenizer=actual.program or None,
        loaded_with=(vectors.LOADED_WITH if embeds else "")
        or (row.by_peft if expected.source.plan.adapter.of_peft else "")
        or row.loaded_with,
    )


def _mismatch(row: Export, expected: Expected, what: str) -> TrainError:
    source = expected.source
    others = [other.kind for other in wanted(source) if other.kind != row.kind]
    command = f"`tunewright export {source.run.path} export.to='[{', '.join(others)}]'` writes the others; "
    return TrainError(
        "EXPORT_MISMATCH",
        f"the {row.kind} export is rejected: {what}",
        where=str(source.run.path),
        fix=f"{command if others else ''}please report this one.",
    )


def _reloaded(row: Export, path: Path, expected: Expected) -> Answers:
    """The answers of the export, from a fresh process."""
    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as scratch:
        request_file, out = Path(scratch) / "request.json", Path(scratch) / "out.safetensors"
        request_file.write_text(expected.request.to_json(), encoding="utf-8")
        command = [sys.executable, "-m", reload_check.__name__, row.kind, str(path), str(request_file), str(out)]
        if (last := programs.failure(command)) is not None:
            raise _mismatch(row, expected, f"a fresh process could not load it: {last}")
        with safe_open(out, "pt") as file:
            return Answers(file.get_tensor("logits"), **json.loads(file.metadata()["facts"]))
