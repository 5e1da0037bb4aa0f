"""Talk with the model of a run: the same rendering and decoding as in training and judging."""

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
class ChatModel:
    """A run's model, ready to answer. ``instruction`` is the system message that its training rows share."""

    model: LanguageModel
    template: Template
    instruction: str | None
    packable: bool


def load_run(run: Run) -> ChatModel:
    """Raises RUN_INCOMPLETE before training is done; MODEL_* when the base model has gone or changed."""
    run_folder.require(run, run.training, "train")
    config, plan, receipt = load(run.config), records.read(run.plan, Plan), records.read(run.receipt, Receipt)
    facts = read_facts(config.model)
    if facts.sha256 != receipt.model.sha256:
        raise RunError(
            "RESUME_MISMATCH",
            f"the base model has changed: {receipt.model.sha256[:12]} then, {facts.sha256[:12]} now.",
            where=facts.path,
        )
    model = export.trained_model(run, plan, facts, loading.torch_dtype(plan.dtype))
    return ChatModel(
        model, load_template(Path(facts.path), config.template, config.date), receipt.instruction, facts.packable
    )


def answer(
    who: ChatModel,
    message: str,
    *,
    history: Sequence[Message] = (),
    system: str | None = None,
    max_new_tokens: int = 256,
) -> str:
    """The greedy answer to ``message`` after ``history`` (user and assistant turns, without the system message)."""
    head = system if system is not None else who.instruction
    messages = [*([Message("system", head)] if head else []), *history, Message("user", message)]
    how = Decoding(max_new_tokens, stop_ids(who.model, who.template.eos), exact_batch=who.packable)
    return rendering.decode(who.template, greedy(who.model, [rendering.for_generation(who.template, messages)], how)[0])
