"""An encoder with or without a head, as a folder that others read.

- A head on the first token, of an encoder whose class for sequence classification has a layer and a tanh between that
  token and its classifier (BERT, RoBERTa, XLM-R, MPNet): that class. The layer becomes the identity times `SMALL`,
  where tanh(x) is x, and the classifier is divided by it; whether that is exact is asked of a small model.
- Any other head of rows: the format of sentence-transformers, whose last module is the head.
- Without a head: the same format, without that module.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.core.config import Plan
from tunewright.core.run_folder import read_json, write_json
from tunewright.export.tagger import CLASS, linear, name_labels, without_weights

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tunewright.model.encoders.folder import Pooling
    from tunewright.model.language_model import LanguageModel

# A power of two, so that scaling rounds nothing; tanh(x) - x is x**3 / 3: 5e-7 of a hidden state of 5.
SMALL = 2.0**-12
PROBLEMS = {
    "classify": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regress": "regression",
    "reward_model": "regression",
}
MODULES, POOL, DENSE = "modules.json", "1_Pooling", "2_Dense"
MODES = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}  # in the file of every version


def exported(model: LanguageModel, plan: Plan) -> LanguageModel:
    """The model as it is exported: with its head in transformers' class, where that is exact; otherwise itself. The
    module may no longer be used in another way."""
    from tunewright.model.heads.linear import NAME

    module, config = model.module, model.module.config
    name_labels(config, plan)
    if plan.pooling != "cls" or not is_exact(config):
        return model
    config.problem_type = PROBLEMS[plan.method]
    head_CD = getattr(module, NAME).weight
    delattr(module, NAME)
    made = with_head(module, head_CD)
    assert made is not None, "a small model has been asked"
    return replace(model, module=made, pooling=None)


def is_exact(config: PreTrainedConfig) -> bool:
    """Whether a linear head on the first token is one of transformers' class for sequence classification: of a small
    model of this config."""
    import torch

    from tunewright.model import arch_probe
    from tunewright.model.encoders import folder

    with arch_probe.quiet(), torch.no_grad():
        module, ids = folder.small(config), torch.tensor([[1, 2, 3, 4, 5]])
        head_CD = torch.randn(3, module.config.hidden_size, generator=torch.Generator().manual_seed(0))
        expected_BC = module(ids).last_hidden_state[:, 0] @ head_CD.T
        made = with_head(module, head_CD)
        return made is not None and torch.allclose(made(ids).logits, expected_BC, rtol=1e-4, atol=1e-4)


def with_head(module: PreTrainedModel, head_CD: torch.Tensor) -> PreTrainedModel | None:
    """The encoder as a part of transformers' class, with this head; None if the class is built in another way."""
    import torch
    from transformers import AutoModelForSequenceClassification

    made = without_weights(AutoModelForSequenceClassification, module, len(head_CD))
    if made is None:
        return None
    pooler, head = getattr(made.base_model, "pooler", None), getattr(made, "classifier", None)
    inner = linear(SMALL * torch.eye(head_CD.shape[1], dtype=head_CD.dtype, device=head_CD.device), True)
    outer = linear(head_CD.detach() / SMALL, True)
    if isinstance(head, torch.nn.Linear) and pooler is not None and hasattr(pooler, "dense"):
        pooler.dense, made.classifier = inner, outer
        module.pooler = pooler
    elif head is not None and hasattr(head, "dense") and hasattr(head, "out_proj"):
        head.dense, head.out_proj = inner, outer
    else:
        return None
    setattr(made, made.base_model_prefix, module)
    return made.eval().requires_grad_(False)


@dataclass(frozen=True)
class Layout:
    """``pooling``: None for a module whose class has a head of its own; others are written in the format of
    sentence-transformers. ``longest``: text in tokens; ``dtype``: of the weights."""

    pooling: Pooling | None
    longest: int
    dtype: str = "float32"


def save(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, layout: Layout) -> None:
    """Write the encoder, its tokenizer and, if it has one, its head."""
    from tunewright.export import portable
    from tunewright.model import arch_probe, loading
    from tunewright.model.heads.linear import NAME, head_of

    dtype = loading.torch_dtype(layout.dtype)
    stored = module if layout.dtype == "float32" else copy.deepcopy(module).to(dtype)
    head, kept = head_of(stored), {k: v for k, v in stored.state_dict().items() if not k.startswith(f"{NAME}.")}
    with arch_probe.quiet():
        stored.save_pretrained(folder, state_dict=kept)
        tokenizer.save_pretrained(folder)
    portable.make_portable(folder)
    if layout.pooling is not None:
        _save_modules(folder, layout, int(module.config.hidden_size), head)


def _save_modules(folder: Path, layout: Layout, width: int, head: nn.Linear | None) -> None:
    """What sentence-transformers reads besides the encoder."""
    from safetensors.torch import save_file

    assert layout.pooling is not None
    write_modules(folder, layout.pooling, layout.longest, width, [] if head is None else [(DENSE, "Dense")])
    if head is not None:
        (folder / DENSE).mkdir()
        described = {"in_features": width, "out_features": head.out_features, "bias": False}
        write_json(
            folder / DENSE / "config.json", {**described, "activation_function": "torch.nn.modules.linear.Identity"}
        )
        save_file({"linear.weight": head.weight.detach().contiguous()}, folder / DENSE / "model.safetensors")


def write_modules(folder: Path, pooling: Pooling, longest: int, width: int, more: Sequence[tuple[str, str]]) -> None:
    """The files by which sentence-transformers knows a folder: a model, its pooling, and ``more`` modules, each with
    its folder and its class. ``longest``: text in tokens; ``width``: of the model's hidden states."""
    modules = [("", "Transformer"), (POOL, "Pooling"), *more]
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{name}"}
        for n, (path, name) in enumerate(modules)
    ]
    modes = {f"pooling_mode_{name}": mode == pooling for mode, name in MODES.items()}
    (folder / POOL).mkdir(exist_ok=True)
    write_json(folder / MODULES, listed)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    write_json(folder / POOL / "config.json", {"word_embedding_dimension": width, **modes})


def load(folder: Path) -> LanguageModel:
    """What `save` wrote, in float32, by transformers' own classes; pooling and head of the format of
    sentence-transformers as that library computes them."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    from tunewright.model import arch_probe
    from tunewright.model.encoders import folder as encoders
    from tunewright.model.heads.linear import NAME, attach_head
    from tunewright.model.language_model import LanguageModel

    if (folder / MODULES).is_file():
        with arch_probe.quiet():
            module, _ = encoders.load(folder, torch.float32)
        if (folder / DENSE).is_dir():
            head_CD = load_file(folder / DENSE / "model.safetensors")["linear.weight"].float()
            attach_head(module, len(head_CD))
            getattr(module, NAME).weight.data.copy_(head_CD)
        return LanguageModel(module.eval(), encoder=True, pooling=encoders.own_pooling(folder))
    tags = read_json(folder / "config.json")["architectures"][0].endswith(CLASS)
    loader = AutoModelForTokenClassification if tags else AutoModelForSequenceClassification
    with arch_probe.quiet():
        classifier = loader.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    return LanguageModel(classifier.eval(), encoder=True)


def snippet(folder: str, in_modules: bool, plan: Plan) -> list[str]:
    """Lines of Python that load it and use its head, for the card."""
    if in_modules:
        lines = [
            "from sentence_transformers import SentenceTransformer",
            f'model = SentenceTransformer("{folder}")  # the last of its modules is the head',
            'logits, labels = model.encode(["..."], convert_to_tensor=True), model[0].auto_model.config.id2label',
        ]
    else:
        lines = [
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            f'model = AutoModelForSequenceClassification.from_pretrained("{folder}", dtype="auto")',
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
            'logits = model(**tokenizer(["..."], padding=True, return_tensors="pt")).logits',
            "labels = model.config.id2label",
        ]
    if plan.standardised:
        mean, deviation = plan.standardised
        return [*lines, f"print([{mean} + {deviation} * value for (value,) in logits.tolist()])"]
    if plan.method == "multilabel":
        return [*lines, "print([[labels[n] for n, x in enumerate(row) if x > 0] for row in logits.tolist()])"]
    return [*lines, "print([labels[n] for n in logits.argmax(-1).tolist()])"]
