"""A base model that the server answers with: its engine, template and facts, loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from tunewright.core.errors import MissingExtra, ModelError
from tunewright.data.messages import Message, Prompt
from tunewright.export.consumers import openai_server
from tunewright.model import loading
from tunewright.model.decoding.generate import stop_ids
from tunewright.model.facts import Facts, read_facts
from tunewright.model.language_model import LanguageModel
from tunewright.runtime import verification
from tunewright.runtime.verification import Reference
from tunewright.server.engine.engine import Engine
from tunewright.server.engine.grammar import Grammars
from tunewright.server.engine.remote import RemoteEngine
from tunewright.server.engine.requests import Backend, Limits
from tunewright.server.engine.vllm import Remote, base_of
from tunewright.system import crowding, machine
from tunewright.tokens import rendering
from tunewright.tokens.template import Template, load_template

Dtype = Literal["auto", "float32", "bfloat16"]
QUESTIONS = (
    "What is the capital of Norway?",
    "Write a haiku about rain in the mountains.",
    "Sort these numbers: 17, 4, 2023, 9.",
    "Explain to a child, in three sentences, why the sky is blue and the sunset is red.",
)


@dataclass(frozen=True)
class Base:
    """``setting``: as `model` of a config names it."""

    name: str
    setting: str
    facts: Facts
    template: Template
    engine: Backend
    grammars: Grammars
    stop: frozenset[int]
    dtype: str


def name_of(setting: str) -> str:
    """The name under which a model is served: the last part of its path or Hub id."""
    return Path(setting.partition("@")[0]).name.removesuffix(".gguf")


def load(setting: str, dtype: Dtype, limits: Limits) -> Base:
    """A base that our engine answers for. Raises MODEL_*, MISSING_PACKAGE, and MODEL_UNSUPPORTED for a model whose
    steps need its modules."""
    facts = _writing(setting)
    chosen = dtype
    if dtype == "auto":
        chosen = machine.measure().dtype
    model = loading.load(facts.path, loading.torch_dtype(chosen))
    if model.decoding == "modules" or facts.window is not None:
        raise ModelError(
            "MODEL_UNSUPPORTED",
            f"the server's engine cannot compute the layers of {facts.model_type}.",
            where=setting,
            fix="serve it with vLLM, and put tunewright before it: --engine URL.",
        )
    template = load_template(Path(facts.path))
    stop = stop_ids(model, template.eos)
    grammars = _grammars(template, model, stop)
    torch.set_num_threads(machine.cores())
    engine = Engine(model, replace(limits, context=min(limits.context, facts.context)), grammars)
    return Base(name_of(setting), setting, facts, template, engine, grammars, frozenset(stop), chosen)


def _writing(setting: str) -> Facts:
    facts = read_facts(setting)
    if facts.encoder:
        message, fix = "an encoder does not write, and the server is for models that do.", "serve a model that writes."
        raise ModelError("MODEL_UNSUPPORTED", message, where=setting, fix=fix)
    return facts


def load_remote(setting: str, remote: Remote, limits: Limits) -> Base:
    """A base that another program answers for, after its answers have been compared with the base's own. Raises
    MODEL_*, MISSING_PACKAGE, REMOTE_FAILED, CONSUMER_DIFFERS."""
    facts = _writing(setting)
    name, most = base_of(remote)
    context = min(most or facts.context, facts.context)
    template = load_template(Path(facts.path))
    model = loading.load(facts.path, torch.float32)  # until it is compared
    stop = stop_ids(model, template.eos)
    grammars = _grammars(template, model, stop)
    reference = Reference(facts.name, model.module, stop, facts.vocabulary)
    with openai_server.connect(remote.endpoint(name), lambda: template.tokenizer) as server, crowding.giving_way():
        verification.require(server, reference, questions(template), remote.dtype)
    engine = RemoteEngine(replace(remote, model=name), context, limits)
    return Base(name_of(setting), setting, facts, template, engine, grammars, frozenset(stop), remote.dtype)


def questions(template: Template) -> list[list[int]]:
    """Prompts whose answers show which model answers."""
    return [rendering.for_generation(template, Prompt((Message("user", text),))) for text in QUESTIONS]


def _grammars(template: Template, model: LanguageModel, stop: Sequence[int]) -> Grammars:
    try:
        return Grammars(template.tokenizer, len(model.head_VD), stop)
    except ImportError:
        raise MissingExtra("llguidance", "serving", "pip install 'tunewright[serve]'") from None
