"""Export: writes the model in every form of `export.to`, each reloaded and compared in a fresh process, with a card."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tunewright.core import records
from tunewright.core.config import RANKERS
from tunewright.core.records import ExportCheck, Loss, Reproduced
from tunewright.core.run_folder import write_atomic
from tunewright.core.words import counted
from tunewright.data.messages import Prompt, Text
from tunewright.export import bundles, card, portable, unchanged
from tunewright.export import export as exporting
from tunewright.export.gguf.model import MORE_PRECISE
from tunewright.export.kind import TrainedRun
from tunewright.export.reload_check import CheckPrompt
from tunewright.export.vectors import LOADED_WITH
from tunewright.model.decoding.generate import stop_ids
from tunewright.model.language_model import LanguageModel
from tunewright.runtime import exported, weights
from tunewright.runtime.context import Work
from tunewright.runtime.receipt import code_sha256
from tunewright.stages.stage import Stage
from tunewright.tokens import encoder_text, rendering
from tunewright.tokens.sequences import flat
from tunewright.tokens.template import Template, render
from tunewright.tokens.texts import text_ids

DOCUMENT_TOKENS = 128


def export(work: Work) -> list[ExportCheck]:
    """Writes a folder for each export, with its card, and one for each bundle."""
    work.console.say("export: writing, reloading in a fresh process, comparing")
    template = work.inputs.template
    with work.models.at(weights.base(work.plan)) as model:
        stop = stop_ids(model, template.eos)
    work.models.release()
    source = TrainedRun(work.run, work.config, work.plan, work.inputs.facts, template)
    prompts, texts = check_prompts(work), _texts(work)

    def finish(folder: Path, checks: list[ExportCheck], model: LanguageModel) -> list[ExportCheck]:
        measured = [exported.measured(work, check, model) for check in checks]
        write_atomic(folder / "README.md", card.text(work.run, measured))
        portable.let_others_read(folder)
        return measured

    origin = unchanged.made_from(source, [p.ids for p in prompts], code_sha256())

    def write(source: TrainedRun) -> list[ExportCheck]:
        return exporting.export(source, prompts, stop, texts, finish, origin)

    before = unchanged.recorded(work.run)
    checks = _in_a_type_that_passes(work, source, write)
    if work.run.verify.exists():  # what other programs answered with exports that are no longer the same is over
        records.write(work.run.verify, unchanged.answered(work.run, before, checks))
    bundles.write(source, stop)
    card.write(work.run, checks)
    for kind in {check.kind for check in checks}:
        portable.let_others_read(work.run.path / kind)
    unchanged.earlier(work.run).unlink(missing_ok=True)
    return checks


def _in_a_type_that_passes(
    work: Work, source: TrainedRun, write: Callable[[TrainedRun], list[ExportCheck]]
) -> list[ExportCheck]:
    """The checks of ``write``. If the GGUF type that `auto` chose changes too much, a more precise one is written."""
    checks, settings = write(source), source.config.export
    while settings.gguf == "auto" and (lossy := [c for c in checks if c.loss is not None and not c.loss.passes]):
        (check,) = lossy
        if check.dtype not in MORE_PRECISE:
            break
        other = MORE_PRECISE[check.dtype]
        work.console.warn(f"export: {check.dtype} changes too much ({_lost(check.loss)}), so {other} is written")
        only = settings.model_copy(update={"to": ["gguf"], "gguf": [other]})
        again = write(replace(source, config=source.config.model_copy(update={"export": only})))
        checks = [*(c for c in checks if c is not check), *again]
    return checks


def check_prompts(work: Work) -> list[CheckPrompt]:
    """Held-out prompts, or the beginnings of held-out documents; or held-out queries with their documents."""
    rows, template = work.data.sample(exporting.CHECK_PROMPTS), work.inputs.template
    if work.plan.method in RANKERS:  # which read conversations, without the place where the head answers
        pairs = {r.row: r for r in work.inputs.rows["test"]}
        return [CheckPrompt(list(pairs[i].sequences[n % 2].ids[:-1])) for n, i in enumerate(rows) if i in pairs]
    if work.plan.embed:
        asked = [work.data.examples[i] for i in rows]
        return [
            CheckPrompt(text_ids(template, e.question, "query"), {"query": e.question, "document": e.target})
            for e in asked
        ]
    if work.data.task.kind.prompted:
        prompts = [work.data.examples[i].prompt for i in rows]
        return [CheckPrompt(rendering.for_generation(template, p), _conversation(p, template)) for p in prompts]
    pieces = flat(work.inputs.rows["test"])
    return [CheckPrompt(list(next(p.ids for p in pieces if p.row == i))[:DOCUMENT_TOKENS]) for i in rows]


def _conversation(prompt: Prompt, template: Template) -> dict[str, object] | None:
    """The arguments of a chat template; None if the prompt spells a special token."""
    if template.encoder:
        given: dict[str, object] = {"texts": list(encoder_text.texts(prompt))}
        return None if encoder_text.spells_special(template.tokenizer, prompt) else given
    special = [token for token in template.tokenizer.all_special_tokens if len(token) > 1]
    given = {"conversation": [m.to_json(template.text_arguments) for m in prompt.messages]}
    if prompt.tools:
        given["tools"] = list(prompt.tools)
    text = json.dumps(given, ensure_ascii=False)
    return None if any(token in text for token in special) else given


def _texts(work: Work) -> list[str]:
    """Every row as one text: its document, or its conversation as the chat template writes it."""
    template = work.inputs.template
    if (corpus := work.data.task.corpus) is not None:
        return [*corpus.documents, *(e.question for e in work.data.examples)]
    if template.encoder:
        return [text for e in work.data.examples for text in encoder_text.texts(e.prompt)]
    return [
        e.text if isinstance(e, Text) else render(template, e.before(len(e.messages)), False)
        for e in work.data.examples
    ]


def lines(checks: Sequence[ExportCheck]) -> Sequence[str]:
    return [
        f"  {c.kind}: largest {_compared(c)[0]} difference {c.largest_difference:.1e}, {c.same_texts} of {c.prompts} "
        f"{_compared(c)[1]} identical; {_answers(c.reproduced)}{_lost(c.loss)}{'; ' if c.loss else ''}{c.path}"
        for c in checks
    ]


def _compared(check: ExportCheck) -> tuple[str, str]:
    return ("vector", "nearest documents") if check.loaded_with == LOADED_WITH else ("logit", "short answers")


def _answers(r: Reproduced | None) -> str:
    if r is None:
        return ""
    same = "" if r.same is None else f"{r.same} of {r.rows} answers equal to the verdict's, "
    return f"{same}score {r.score:.4f} (verdict: {r.verdict:.4f}); "


def _lost(loss: Loss | None) -> str:
    if loss is None:
        return ""
    return (
        f"on {counted(loss.rows, 'dev row')}: KL {loss.kl:.1e} nats, top-1 agreement {loss.same_likeliest:.1%}, "
        f"score {loss.difference:+.4f} {loss.interval:+.4f}"
    )


STAGE = Stage(name="export", run=lambda inputs: export(inputs.work()), lines=lines)
