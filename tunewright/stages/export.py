"""Export: writes the model in every form of `export.to`, each reloaded and compared in a fresh process, with a card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tunewright.core.records import ExportCheck, Reproduced
from tunewright.core.words import counted
from tunewright.data.messages import Prompt, Text
from tunewright.data.scores import mean
from tunewright.export import EXPORTS, KINDS, bundles, card, portable
from tunewright.export import export as exporting
from tunewright.export.kind import Base, TrainedRun
from tunewright.export.verify import CheckPrompt
from tunewright.judge.evaluate import score_arm
from tunewright.model import loading
from tunewright.model.generate import stop_ids
from tunewright.runtime import weights
from tunewright.runtime.context import Work
from tunewright.stages.stage import Stage
from tunewright.tokens import rendering
from tunewright.tokens.sequences import flat
from tunewright.tokens.template import Template, render

DOCUMENT_TOKENS = 128


def export(work: Work) -> list[ExportCheck]:
    """Writes a folder for each export, with its card, and one for each bundle."""
    work.console.say("export: writing, reloading in a fresh process, comparing")
    template = work.inputs.template
    with work.models.at(weights.base(work.plan)) as model:
        stop = stop_ids(model, template.eos)
    source = TrainedRun(work.run, work.config, work.plan, work.inputs.facts, template)
    checks = exporting.export(source, check_prompts(work), stop, _texts(work))
    if rows := work.inputs.test[: work.config.export.rows]:
        work.console.say(f"export: answering {counted(len(rows), 'row')} of the verdict again")
        checks = [c.model_copy(update={"reproduced": _reproduced(work, c, rows)}) for c in checks]
    card.write(work.run, checks)
    bundles.write(source, stop)
    for folder in filter(Path.is_dir, (work.run.path / kind for kind in KINDS)):
        portable.let_others_read(folder)
    return checks


def _reproduced(work: Work, check: ExportCheck, rows: Sequence[int]) -> Reproduced:
    """The answers of an export, loaded as its card says, compared with those of the verdict to the same rows."""
    facts, tuned = work.inputs.facts, work.inputs.tuned
    judged = work.answers.of(tuned, "test", weights.at_chosen_scale(work.run, work.plan))[: len(rows)]
    model = EXPORTS[check.kind].reload(Path(check.path), Base(facts.path, facts.sha256)).model
    dtype = check.dtype if check.kind == "merged" else "float32"  # what its users compute in
    model.module.to(loading.torch_dtype(dtype))
    examples = [work.data.examples[i] for i in rows]
    answered = score_arm(tuned, examples, work.data.task, work.answers.answering(model))
    same = sum(a.answer.text == b.answer.text for a, b in zip(answered, judged, strict=True))
    return Reproduced(
        rows=len(rows),
        same=same if work.data.task.kind.prompted else None,
        score=mean(answered),
        verdict=mean(judged),
        dtype=dtype,
        judged=work.plan.dtype,
    )


def check_prompts(work: Work) -> list[CheckPrompt]:
    """Held-out prompts, or the beginnings of held-out documents."""
    rows, template = work.data.sample(exporting.CHECK_PROMPTS), work.inputs.template
    if work.data.task.kind.prompted:
        prompts = [work.data.examples[i].prompt for i in rows]
        return [CheckPrompt(rendering.for_generation(template, p), _conversation(p, template)) for p in prompts]
    pieces = flat(work.inputs.rows["test"])
    return [CheckPrompt(list(next(p.ids for p in pieces if p.row == i))[:DOCUMENT_TOKENS]) for i in rows]


def _conversation(prompt: Prompt, template: Template) -> dict[str, object] | None:
    """The arguments of a chat template; None if the prompt spells a special token."""
    special = [token for token in template.tokenizer.all_special_tokens if len(token) > 1]
    given: dict[str, object] = {"conversation": [m.to_json(template.text_arguments) for m in prompt.messages]}
    if prompt.tools:
        given["tools"] = list(prompt.tools)
    text = json.dumps(given, ensure_ascii=False)
    return None if any(token in text for token in special) else given


def _texts(work: Work) -> list[str]:
    """Every row as one text: its document, or its conversation as the chat template writes it."""
    template = work.inputs.template
    return [
        e.text if isinstance(e, Text) else render(template, e.before(len(e.messages)), False)
        for e in work.data.examples
    ]


def lines(checks: Sequence[ExportCheck]) -> Sequence[str]:
    return [
        f"  {c.kind}: largest logit difference {c.largest_difference:.1e}, {c.same_texts} of {c.prompts} greedy texts "
        f"identical; {_answers(c.reproduced)}{c.path}"
        for c in checks
    ]


def _answers(r: Reproduced | None) -> str:
    if r is None:
        return ""
    same = "" if r.same is None else f"{r.same} of {r.rows} answers of the verdict, "
    return f"{same}score {r.score:.4f} (verdict: {r.verdict:.4f}); "


STAGE = Stage(name="export", run=lambda inputs: export(inputs.work()), lines=lines)
