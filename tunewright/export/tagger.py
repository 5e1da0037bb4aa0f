"""A model with a head at every token, as transformers' own class for token classification reads it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tunewright.core.config import Plan
from tunewright.export.kind import TrainedRun

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    from tunewright.model.language_model import LanguageModel

CLASS = "ForTokenClassification"
CLASSIFIERS = ("classifier", "score")  # names of the last layer of such classes


def unsupported(source: TrainedRun) -> str | None:
    """Why the run's model cannot be one of that class, or None; loads no weights."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source.facts.path, local_files_only=True, trust_remote_code=False)
    if is_exact(config, source.facts.encoder):
        return None
    return f"transformers' class for token classification with {config.model_type} has another head, or there is none"


def is_exact(config: PreTrainedConfig, encoder: bool) -> bool:
    """Whether a linear head at each token is one of that class: of a small model of this config."""
    import torch

    from tunewright.model import arch_probe
    from tunewright.model.encoders import folder
    from tunewright.model.heads.linear import head_of

    with arch_probe.quiet(), torch.no_grad():
        base = folder.small(config) if encoder else arch_probe.small(config).base_model
        draw, ids = torch.Generator().manual_seed(0), torch.tensor([[1, 2, 3, 4, 5]])
        head_CD = torch.randn(3, base.config.hidden_size, generator=draw)
        expected_BTC = base(ids).last_hidden_state @ head_CD.T
        made = with_head(base, head_CD)
        # The head of a decoder is read again under the name that ours has.
        named = made is not None and (encoder or head_of(made) is not None)
        return made is not None and named and torch.allclose(made(ids).logits, expected_BTC, rtol=1e-4, atol=1e-4)


def exported(model: LanguageModel, plan: Plan) -> LanguageModel:
    """The same weights as a module of that class. The module may no longer be used in another way."""
    from tunewright.model.heads.linear import NAME

    module = model.module
    name_labels(module.config, plan)
    head_CD = getattr(module, NAME).weight
    delattr(module, NAME)
    made = with_head(module.base_model, head_CD)
    assert made is not None, "`unsupported` has been asked"
    return replace(model, module=made)


def with_head(base: PreTrainedModel, head_CD: torch.Tensor) -> PreTrainedModel | None:
    """The base as a part of transformers' class, with this head; None if the class is built in another way."""
    import torch
    from transformers import AutoModelForTokenClassification

    made = without_weights(AutoModelForTokenClassification, base, len(head_CD))
    name = next((n for n in CLASSIFIERS if isinstance(getattr(made, n, None), torch.nn.Linear)), None)
    if made is None or name is None or type(made.base_model) is not type(base):
        return None
    setattr(made, name, linear(head_CD.detach(), getattr(made, name).bias is not None))
    setattr(made, made.base_model_prefix, base)
    return None if any(p.is_meta for p in made.parameters()) else made.eval().requires_grad_(False)


def name_labels(config: PreTrainedConfig, plan: Plan) -> None:
    """Write the names of the outputs into the config."""
    config.id2label = dict(enumerate(plan.labels))
    config.label2id = {label: n for n, label in enumerate(plan.labels)}


def without_weights(loader: type[_BaseAutoModelClass], base: PreTrainedModel, outputs: int) -> PreTrainedModel | None:
    """An empty model of transformers' class for this base, with so many outputs; None if there is no such class."""
    import torch

    config = copy.deepcopy(base.config)
    if len(config.id2label) != outputs:
        config.num_labels = outputs
    try:
        with torch.device("meta"):
            made: PreTrainedModel = loader.from_config(config)
    except ValueError:
        return None
    return made


def linear(weight_OI: torch.Tensor, bias: bool) -> nn.Linear:
    """A layer with this weight, and, if it has a ``bias``, one of zeros."""
    import torch

    outputs, inputs = weight_OI.shape
    layer = torch.nn.Linear(inputs, outputs, bias, device=weight_OI.device, dtype=weight_OI.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight_OI)
        if bias:
            layer.bias.zero_()
    return layer


def in_one_batch(prompts: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """What a model of transformers is called with for prompts that are padded on the right."""
    import torch

    longest = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[*p, *[pad] * (longest - len(p))] for p in prompts]),
        "attention_mask": torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts]),
    }


def batch_logits(module: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """logits_TC of each of the texts, read in one batch, as a user of that class computes them."""
    logits_BTC: torch.Tensor = module(**in_one_batch(prompts, module.config.pad_token_id or 0)).logits
    return [logits_BTC[n, : len(p)] for n, p in enumerate(prompts)]


def snippet(folder: str) -> list[str]:
    """Lines of Python that load it and print the tag of each word, for the card."""
    return [
        "import re",
        f"from transformers import AutoModel{CLASS}, AutoTokenizer",
        f'model = AutoModel{CLASS}.from_pretrained("{folder}", dtype="auto")',
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
        'text = "..."',
        'inputs = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")',
        'ends = inputs.pop("offset_mapping")[0, :, 1].tolist()  # the first token of a word is the first to end in it',
        'first = [next(i for i, end in enumerate(ends) if end > word.start()) for word in re.finditer(r"\\S+", text)]',
        "best = model(**inputs).logits[0].argmax(-1).tolist()",
        "print([model.config.id2label[best[i]] for i in first])",
    ]
