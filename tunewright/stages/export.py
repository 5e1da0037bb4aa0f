"""Export: writes adapter and merged model, reloads and compares them in a fresh process, then writes their cards."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.core.records import ExportCheck
from tunewright.export import card
from tunewright.export import export as exporting
from tunewright.export.kind import TrainedRun
from tunewright.model.generate import stop_ids
from tunewright.runtime import weights
from tunewright.runtime.context import Work
from tunewright.stages.stage import Stage
from tunewright.tokens import rendering
from tunewright.tokens.sequences import flat

DOCUMENT_TOKENS = 128


def export(work: Work) -> list[ExportCheck]:
    """Writes adapter/ and merged/ with their cards."""
    work.console.say("export: writing, reloading in a fresh process, comparing")
    template = work.inputs.template
    with work.models.at(weights.base(work.plan)) as model:
        stop = stop_ids(model, template.eos)
    source = TrainedRun(work.run, work.config, work.plan, work.inputs.facts, template)
    checks = exporting.export(source, _check_prompts(work), stop)
    card.write(work.run, checks)
    return checks


def _check_prompts(work: Work) -> list[list[int]]:
    """Held-out prompts, or the beginnings of held-out documents."""
    rows = work.data.sample(exporting.CHECK_PROMPTS)
    if work.data.task.kind.prompted:
        return [rendering.for_generation(work.inputs.template, work.data.examples[i].prompt) for i in rows]
    pieces = flat(work.inputs.rows["test"])
    return [list(next(p.ids for p in pieces if p.row == i))[:DOCUMENT_TOKENS] for i in rows]


def lines(checks: Sequence[ExportCheck]) -> Sequence[str]:
    return [
        f"  {c.kind}: largest logit difference {c.largest_difference:.1e}, {c.same_texts} of {c.canaries} greedy texts "
        f"identical; {c.path}"
        for c in checks
    ]


STAGE = Stage(name="export", run=lambda inputs: export(inputs.work()), lines=lines)
