"""Supervised fine-tuning as a branch of a run with another method, which is compared with it: the same rows, steps and
batches, at the rate for fine-tuning.
"""

from __future__ import annotations

from tunewright.core.config import MethodOptions
from tunewright.core.records import Side
from tunewright.core.words import counted
from tunewright.methods import METHODS
from tunewright.runtime.branches import Branch
from tunewright.runtime.context import Work
from tunewright.tokens import render_cache
from tunewright.tokens.render_cache import RowRenderer
from tunewright.tokens.sequences import TrainRow
from tunewright.train import recipe
from tunewright.train.recipe import PlanInputs, RowStats

Rows = tuple[TrainRow, ...]


def branch(work: Work, name: str, train: Rows, dev: Rows) -> Branch:
    """Fine-tuning on these rows."""
    settings = work.config.train.model_copy(update={"method": "sft", "lr": "auto", "lr_multiplier": 1.0})
    config = work.config.model_copy(update={"train": settings})
    inputs = work.inputs
    given = PlanInputs(config, inputs.facts, RowStats.of(train), inputs.machine, work.data.task.kind.name)
    rate, batch = recipe.learning_rate(given), min(work.plan.batch_size, len(train))
    plan = work.plan.model_copy(
        update={
            "method": "sft",
            "lr": rate.value,
            "reasons": {**work.plan.reasons, "lr": rate.reason},
            "options": MethodOptions(),
            "labels": (),
            "standardised": None,
            "teacher": None,
            "rows": len(train),
            "batch_size": batch,
            "epochs": round(work.plan.steps / -(-len(train) // batch), 3),
            "tokens": given.sizes.tokens,
            "supervised_tokens": given.sizes.supervised,
        }
    )
    return Branch(name, plan, train, dev, scale=1.0)  # the run's was chosen for its own update


def answers(work: Work) -> Branch:
    """Fine-tuning to write the answers of the run's rows. Where these are prompts, which a head reads, their answers
    make them longer than train.max_length allows: they are trained on all the same, if the model can read them."""
    data, inputs = work.data, work.inputs
    sides: tuple[Side, ...] = ("train", "dev")
    rows: dict[Side, Rows] = {}
    limit = inputs.facts.context if work.plan.labels else inputs.limit
    renderer = RowRenderer(inputs.template, METHODS["sft"].prepare, limit, "drop")
    for side in sides:
        chosen = inputs.short_enough(data.side(side))
        rendered = render_cache.cached_rows(renderer, data.examples, chosen, work.run.path / "data")
        if rendered.dropped:
            what = counted(len(rendered.dropped), f"{side} row")
            work.console.warn(f"  fine-tuning leaves out {what}: with the answer, longer than the model's context")
        rows[side] = tuple(rendered.rows)
    return branch(work, "sft", rows["train"], rows["dev"])
