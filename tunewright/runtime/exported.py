"""What exports answer, once they are written: rows of the verdict again; and what the types of GGUF files cost, on dev
rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from tunewright.core.records import ExportCheck, Loss, Reproduced
from tunewright.data.scores import Score, mean
from tunewright.export import EXPORTS
from tunewright.export.kind import Base
from tunewright.judge.arms.arm import Model
from tunewright.judge.evaluate import score_arm
from tunewright.judge.search.stored_vectors import StoredVectors
from tunewright.model import kl, loading
from tunewright.model.language_model import LanguageModel
from tunewright.runtime import weights
from tunewright.runtime.context import Work
from tunewright.tokens.sequences import flat


def measured(work: Work, check: ExportCheck, trained: LanguageModel) -> ExportCheck:
    """The check, with what the export answered. ``trained``: the run's model in float32, for what GGUF files lost."""
    import torch

    try:
        return _measured(work, check, trained)
    except torch.OutOfMemoryError:
        work.console.warn(f"export: the memory of the GPU is too small to answer rows with {check.kind}: not measured")
        return check
    finally:
        trained.module.to("cpu")


def _measured(work: Work, check: ExportCheck, trained: LanguageModel) -> ExportCheck:
    facts, results = work.inputs.facts, dict[str, object]()
    rows, lossy = work.inputs.test[: work.config.export.rows], check.kind == "gguf" and bool(work.inputs.dev)
    if not rows and not lossy:
        return check
    reloaded = EXPORTS[check.kind].reload(Path(check.path), Base(facts.path, facts.sha256, facts.packed))
    model = reloaded.model
    name = f"{check.kind} {check.dtype}"
    if lossy:
        for both in (model, trained):
            both.module.to(work.inputs.machine.device)
        results["loss"] = _loss(work, model, trained, name)
        trained.module.to("cpu")
    if rows:
        dtype = check.dtype if check.kind == "merged" else "float32"  # what its users compute in
        model.module.to(work.inputs.machine.device, loading.torch_dtype(dtype))
        work.run.event("test_read", rows=len(rows), export=check.kind)
        answering = cast(Model, work.answers.answering(model))
        if (encode := reloaded.embed) is not None:
            answering = cast(Model, StoredVectors(lambda texts, kind: encode(texts, kind).numpy()))
        results["reproduced"] = _reproduced(work, answering, rows, dtype, name)
    return check.model_copy(update=results)


def _reproduced(work: Work, model: Model, rows: Sequence[int], dtype: str, name: str) -> Reproduced:
    """Its answers, compared with those of the verdict to the same rows."""
    tuned = weights.at_chosen_scale(work.run, work.plan)
    judged = work.answers.of(work.tuned, "test", tuned)[: len(rows)]
    answered = _scores(work, model, rows, name)
    same = sum(a.answer.text == b.answer.text for a, b in zip(answered, judged, strict=True))
    return Reproduced(
        rows=len(rows),
        same=same if work.data.task.kind.prompted else None,
        score=mean(answered),
        verdict=mean(judged),
        dtype=dtype,
        judged=work.plan.dtype,
    )


def _loss(work: Work, model: LanguageModel, trained: LanguageModel, name: str) -> Loss:
    rows, tuned = work.inputs.dev, weights.at_chosen_scale(work.run, work.plan)
    chosen = set(rows)
    sequences = [sequence for sequence in flat(work.inputs.rows["dev"]) if sequence.row in chosen]
    with work.console.bar(f"{name}, predictions", len(sequences), unit="rows") as tick:
        d = kl.measure(model, sequences, [1.0], work.plan.layout, tick, trained)
    answered = _scores(work, work.answers.answering(model), rows, name)
    judged = work.answers.of(work.tuned, "dev", tuned)
    clusters, tokens = [work.data.cluster[i] for i in rows], int(d.tokens_R.sum())
    compared = work.protocol.compare([s.score for s in answered], [s.score for s in judged], clusters)
    return Loss(
        tokens=tokens,
        kl=float(d.kl_SR[0].sum() / tokens),
        same_likeliest=float(d.same_SR[0].sum() / tokens),
        rows=len(rows),
        score=mean(answered),
        difference=compared.difference,
        interval=compared.interval,
        verdict=compared.verdict,
    )


def _scores(work: Work, model: Model, rows: Sequence[int], name: str) -> list[Score]:
    examples = [work.data.examples[i] for i in rows]
    with work.console.bar(f"{name}, answers", len(rows), unit="rows") as tick:
        return score_arm(work.tuned, examples, work.data.task, model, tick)
