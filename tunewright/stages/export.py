"""Export: writes the model in every form of `export.to`, each reloaded and compared in a fresh process, with a card."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tunewright.core.records import ExportCheck
from tunewright.data.messages import Prompt
from tunewright.export import bundles, card
from tunewright.export import export as exporting
from tunewright.export.kind import TrainedRun
from tunewright.export.verify import CheckPrompt
from tunewright.model.generate import stop_ids
from tunewright.runtime import weights
from tunewright.runtime.context import Work
from tunewright.stages.stage import Stage
from tunewright.tokens import rendering
from tunewright.tokens.sequences import flat
from tunewright.tokens.template import Template

DOCUMENT_TOKENS = 128


def export(work: Work) -> list[ExportCheck]:
    """Writes a folder for each export, with its card, and one for each bundle."""
    work.console.say("export: writing, reloading in a fresh process, comparing")
    template = work.inputs.template
    with work.models.at(weights.base(work.plan)) as model:
        stop = stop_ids(model, template.eos)
    source = TrainedRun(work.run, work.config, work.plan, work.inputs.facts, template)
    checks = exporting.export(source, _check_prompts(work), stop)
    card.write(work.run, checks)
    bundles.write(source, stop)
    return checks


def _check_prompts(work: Work) -> list[CheckPrompt]:
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


def lines(checks: Sequence[ExportCheck]) -> Sequence[str]:
    return [
        f"  {c.kind}: largest logit difference {c.largest_difference:.1e}, {c.same_texts} of {c.prompts} greedy texts "
        f"identical; {c.path}"
        for c in checks
    ]


STAGE = Stage(name="export", run=lambda inputs: export(inputs.work()), lines=lines)
