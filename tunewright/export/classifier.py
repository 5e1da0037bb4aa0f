"""A model with a classification head, as transformers' own class for sequence classification reads it.

That class reads the last token of each row that is not the token for padding. Ours is the last token of the prompt (of
the conversation, in a reward model), so the token for padding must be another one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.core.config import Plan
from tunewright.core.run_folder import read_json
from tunewright.data.messages import Chat, Message, question
from tunewright.export import encoder_folder, tagger
from tunewright.export.encoder_folder import PROBLEMS
from tunewright.export.kind import TrainedRun
from tunewright.model.heads.linear import NAME
from tunewright.tokens import rendering

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunewright.model.language_model import LanguageModel
    from tunewright.tokens.template import Template

CLASS = "ForSequenceClassification"


def unsupported(source: TrainedRun) -> str | None:
    """Why the run's model cannot be one of that class, or None; loads no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    if source.plan.method == "tag":
        return tagger.unsupported(source)
    if source.facts.encoder:
        return None
    if _padding(source.template) is None:
        return "the tokenizer has no token for padding other than the one that ends a prompt"
    config = AutoConfig.from_pretrained(source.facts.path, local_files_only=True, trust_remote_code=False)
    try:
        with torch.device("meta"):
            made = AutoModelForSequenceClassification.from_config(config)
            ours = AutoModelForCausalLM.from_config(config)
    except ValueError:
        return f"transformers has no class for sequence classification with {config.model_type}"
    head, same = getattr(made, NAME, None), type(made.base_model) is type(ours.base_model)
    if not (same and isinstance(head, torch.nn.Linear) and getattr(head, "bias", None) is None):
        return f"transformers' class for sequence classification with {config.model_type} has another head"
    return None


def exported(model: LanguageModel, plan: Plan, template: Template) -> LanguageModel:
    """The model as others read it, with its head. The module may no longer be used in another way."""
    if plan.method == "tag":
        return tagger.exported(model, plan)
    if model.encoder:
        return encoder_folder.exported(model, plan)
    return replace(model, module=classifier(model.module, plan, template))


def classifier(module: PreTrainedModel, plan: Plan, template: Template) -> PreTrainedModel:
    """The same weights as a module of that class."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(module.config)
    tagger.name_labels(config, plan)
    config.problem_type = PROBLEMS[plan.method]
    config.pad_token_id = config.get_text_config().pad_token_id = _padding(template)
    with torch.device("meta"):
        made = AutoModelForSequenceClassification.from_config(config)
    setattr(made, made.base_model_prefix, module.base_model)
    setattr(made, NAME, getattr(module, NAME))
    return made.eval()


def tokenizer(template: Template) -> PreTrainedTokenizerBase:
    """The run's tokenizer, which pads on the right, with a token that ends no prompt."""
    made = copy.deepcopy(template.tokenizer)
    made.pad_token, made.padding_side = made.convert_ids_to_tokens(_padding(template)), "right"
    return made


def architecture(folder: Path) -> str:
    """The class of a folder's model."""
    return str((read_json(folder / "config.json").get("architectures") or [""])[0])


def has_own_head(module: PreTrainedModel) -> bool:
    """Whether the module's class is one of transformers' for classification."""
    return type(module).__name__.endswith((CLASS, tagger.CLASS))


def batch_logits(module: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """logits_NC of prompts in one batch, as a user of that class computes them."""
    batch = tagger.in_one_batch(prompts, module.config.pad_token_id)
    logits_NC: torch.Tensor = module(**batch, use_cache=False).logits
    return logits_NC


def _padding(template: Template) -> int | None:
    """The tokenizer's own token for padding, or another special one, that ends neither a prompt nor a conversation."""
    given, asked = template.tokenizer, question("?")
    answered = Chat((*asked.messages, Message("assistant", "!")), "")
    last = rendering.for_generation(template, asked)[-1], rendering.for_training(template, answered)[-1].ids[-1]
    known = [given.pad_token_id, *given.all_special_ids]
    return next((i for i in known if i is not None and i not in last), None)
