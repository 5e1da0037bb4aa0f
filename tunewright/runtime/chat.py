"""Chat with the model of a run: the same rendering and decoding as in training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunewright.core import records, run_folder
from tunewright.core.config import Plan, load
from tunewright.core.errors import RunError
from tunewright.core.records import Receipt
from tunewright.core.run_folder import Run
from tunewright.data.examples import Message
from tunewright.export import export
from tunewright.model import loading
from tunewright.model.facts import read_facts
from tunewright.model.generate import Decoding, greedy, stop_ids
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import rendering
from tunewright.tokens.template import Template, load_template


@dataclass(frozen=True)
class TunedModel:
    """A run's model, ready to answer. ``instruction`` is the most frequent system message of its training rows."""

    model: LanguageModel
    template: Template
    instruction: str | None
    packable: bool


def load_run(run: Run) -> TunedModel:
    """The tuned model of a run. Raises RUN_INCOMPLETE if it is not trained, MODEL_* or RESUME_MISMATCH if its base is
    missing or has changed."""
    run_folder.require(run, run.training, "train")
    config, plan, receipt = load(run.config), records.read(run.plan, Plan), records.read(run.receipt, Receipt)
    facts = read_facts(config.model)
    if facts.sha256 != receipt.model.sha256:
        raise RunError(
            "RESUME_MISMATCH",
            f"the base model has changed: its hash was {receipt.model.sha256[:12]}, is {facts.sha256[:12]}.",
            where=facts.path,
            fix="restore the base model that the run was trained on, or train again.",
        )
    model = export.trained_model(run, plan, facts, loading.torch_dtype(plan.dtype))
    return TunedModel(
        model, load_template(Path(facts.path), config.template, config.date), receipt.instruction, facts.packable
    )


def answer(
    model: TunedModel,
    message: str,
    *,
    history: Sequence[Message] = (),
    system: str | None = None,
    max_new_tokens: int = 256,
) -> str:
    """The greedy answer to ``message`` after ``history`` (user and assistant turns, without the system message)."""
    instruction = system if system is not None else model.instruction
    messages = [*([Message("system", instruction)] if instruction else []), *history, Message("user", message)]
    prompt = rendering.for_generation(model.template, messages)
    decoding = Decoding(max_new_tokens, stop_ids(model.model, model.template.eos), batchable=model.packable)
    return rendering.decode(model.template, greedy(model.model, [prompt], decoding)[0])
