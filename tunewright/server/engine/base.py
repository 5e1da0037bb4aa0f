"""A base model that the server answers with: its engine, template and facts, loaded once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from tunewright.core.errors import MissingExtra, ModelError
from tunewright.model import loading
from tunewright.model.decoding.generate import stop_ids
from tunewright.model.facts import Facts, read_facts
from tunewright.server.engine.engine import Engine
from tunewright.server.engine.grammar import Grammars
from tunewright.server.engine.requests import Limits
from tunewright.system import machine
from tunewright.tokens.template import Template, load_template

Dtype = Literal["auto", "float32", "bfloat16"]
FASTER = 1.3  # bfloat16 is used where it is so much faster, as in a plan


@dataclass(frozen=True)
class Base:
    """``setting``: as `model` of a config names it."""

    name: str
    setting: str
    facts: Facts
    template: Template
    engine: Engine
    grammars: Grammars
    stop: frozenset[int]
    dtype: str


def name_of(setting: str) -> str:
    """The name under which a model is served: the last part of its path or Hub id."""
    return Path(setting.partition("@")[0]).name.removesuffix(".gguf")


def load(setting: str, dtype: Dtype, limits: Limits) -> Base:
    """Raises MODEL_*, MISSING_PACKAGE, and MODEL_UNSUPPORTED for a model whose steps need its modules."""
    facts = read_facts(setting)
    chosen = dtype
    if dtype == "auto":
        speed = machine.measure()
        chosen = "bfloat16" if speed.bf16_gflops > FASTER * speed.fp32_gflops else "float32"
    model = loading.load(facts.path, loading.torch_dtype(chosen))
    if model.decoding == "modules" or facts.window is not None:
        raise ModelError(
            "MODEL_UNSUPPORTED",
            f"the server's engine cannot compute the layers of {facts.model_type}.",
            where=setting,
            fix="serve it with another program, and put tunewright before it: --engine URL.",
        )
    template = load_template(Path(facts.path))
    stop = stop_ids(model, template.eos)
    try:
        grammars = Grammars(template.tokenizer, len(model.head_VD), stop)
    except ImportError:
        raise MissingExtra("llguidance", "serving", "pip install 'tunewright[serve]'") from None
    torch.set_num_threads(machine.cores())
    engine = Engine(model, replace(limits, context=min(limits.context, facts.context)), grammars)
    return Base(name_of(setting), setting, facts, template, engine, grammars, frozenset(stop), chosen)
