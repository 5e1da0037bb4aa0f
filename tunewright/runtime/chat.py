"""Chat with the model of a run: the same rendering and decoding as in training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunewright.core import records, run_folder
from tunewright.core.chosen import chosen_decoding
from tunewright.core.config import RANKERS, Config, Plan, load
from tunewright.core.errors import ConfigError, RunError
from tunewright.core.records import Receipt
from tunewright.core.run_folder import Run
from tunewright.core.sampling import DECODINGS, GREEDY, Sampling
from tunewright.data.messages import Message, Prompt, Tool
from tunewright.export import export
from tunewright.judge.chat_model import ChatModel
from tunewright.model import loading
from tunewright.model.decoding.drafts import ORDER, Drafts
from tunewright.model.decoding.generate import Decoding, complete, stop_ids
from tunewright.model.facts import Facts, read_facts
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import render_cache, rendering
from tunewright.tokens.template import Template, fitted, for_method, hashed_as, load_template

MOST_DRAFTS = 2000  # training sequences that guesses are made from


@dataclass(frozen=True)
class TunedModel:
    """A run's model, ready to answer. ``instruction`` and ``tools`` are the most frequent ones of its training rows;
    ``packable`` and ``window`` are those of its `Facts`; ``plan``: of a run whose model answers with a head."""

    model: LanguageModel
    template: Template
    instruction: str | None
    tools: tuple[Tool, ...]
    packable: bool
    window: int | None
    sampling: Sampling = GREEDY
    drafts: Drafts | None = None
    plan: Plan | None = None


def load_run(run: Run) -> TunedModel:
    """The tuned model of a run. Raises RUN_INCOMPLETE if it is not trained, MODEL_* or RESUME_MISMATCH if its base is
    missing or has changed."""
    run_folder.require(run, run.training, "train")
    if records.read(run.plan, Plan).embed:
        message = "the model gives vectors of texts, and writes no answers."
        fix = "search with them: load the merged export with sentence-transformers (its README.md has the code)."
        raise ConfigError("CONFIG_CONFLICT", message, where=str(run.path), fix=fix)
    config, plan, receipt = load(run.config), records.read(run.plan, Plan), records.read(run.receipt, Receipt)
    if plan.method in RANKERS:
        message, fix = "the run's model gives answers a score, and writes none.", "load its export (README.md in it)."
        raise ConfigError("CONFIG_CONFLICT", message, where=str(run.path), fix=fix)
    facts, template = base_of(config, plan, receipt)
    model = export.trained_model(run, plan, facts, loading.torch_dtype(plan.dtype))
    sampling = DECODINGS[chosen_decoding(run)]
    return TunedModel(
        model,
        template,
        receipt.instruction,
        receipt.tools or (),
        facts.packable,
        facts.window,
        sampling,
        None if plan.labels else _drafts(run),
        plan if plan.labels else None,
    )


def base_of(config: Config, plan: Plan, receipt: Receipt) -> tuple[Facts, Template]:
    """The base model that a run was trained on, and the template of its rows. Raises MODEL_* or RESUME_MISMATCH if the
    base is missing or has changed."""
    facts = read_facts(config.model, config.quantise, config.adapter)
    if facts.sha256 != receipt.model.sha256:
        raise RunError(
            "RESUME_MISMATCH",
            f"the base model has changed: its hash was {receipt.model.sha256[:12]}, is {facts.sha256[:12]}.",
            where=facts.path,
            fix="restore the base model that the run was trained on, or train again.",
        )
    loaded = for_method(load_template(Path(facts.path), config.template, config.date), plan.method)
    return facts, trained_with(receipt, loaded)


def _drafts(run: Run) -> Drafts | None:
    """Guesses from the answers that the model was trained on."""
    trained = [sequence for sequence in render_cache.stored(run.audit.parent)[:MOST_DRAFTS] if any(sequence.weights)]
    answers = [s.ids[max(0, s.weights.index(next(filter(None, s.weights))) - ORDER) :] for s in trained]
    return Drafts(answers) if answers else None


def trained_with(receipt: Receipt, template: Template) -> Template:
    """The template as the training rows were rendered: its arguments depend on whether they have thoughts."""
    template = hashed_as(template, receipt.hashes["template"])
    same = template.encoder or template.sha256 == receipt.hashes["template"]
    return template if same else fitted(template, thoughts=True)


def answer(
    model: TunedModel,
    message: str,
    *,
    history: Sequence[Message] = (),
    system: str | None = None,
    max_new_tokens: int = 256,
) -> str:
    """The answer to ``message`` after ``history`` (all turns but the system message), as text."""
    turns = (*history, Message("user", message))
    return reply(model, turns, system=system, max_new_tokens=max_new_tokens).text


def reply(
    model: TunedModel, turns: Sequence[Message], *, system: str | None = None, max_new_tokens: int = 256
) -> Message:
    """The answer to a conversation without its system message: content, thoughts and tool calls; of a model with a
    head, what the head answers."""
    prompt = rendering.for_generation(model.template, prompt_of(model, turns, system))
    if model.plan is not None:
        answering = ChatModel(model.model, model.template, Decoding(1, ()), model.plan)
        return Message("assistant", answering.by_head([prompt_of(model, turns, system)])[0].text)
    stop = stop_ids(model.model, model.template.eos)
    decoding = Decoding(
        max_new_tokens,
        stop,
        batchable=model.packable,
        window=model.window,
        sampling=model.sampling,
        drafts=model.drafts,
    )
    message = rendering.read_answer(model.template, complete(model.model, [prompt], decoding)[0], model.tools)
    # Texts have no ids; some templates require them, of nine letters and digits.
    before = sum(len(turn.tool_calls) for turn in turns)
    calls = tuple(replace(c, id=f"call{before + n:05d}") for n, c in enumerate(message.tool_calls, 1))
    return replace(message, tool_calls=calls)


def prompt_of(model: TunedModel, turns: Sequence[Message], system: str | None = None) -> Prompt:
    """The turns as in training: after the instruction (``system`` replaces it) and with the tools of the training
    rows."""
    instruction = system if system is not None else model.instruction
    head = [Message("system", instruction)] if instruction else []
    return Prompt((*head, *turns), model.tools)
