"""The adapter merged into the base weights: a model folder that plain transformers loads, with its tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.core.run_folder import write_json
from tunewright.export import classifier, encoder_folder, portable, tagger, vectors
from tunewright.export.encoder_folder import Layout
from tunewright.export.kind import TOLERANCE, Base, Export, Place, Reloaded, TrainedRun, sampling

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from tunewright.tokens.template import Template

GENERATION = "generation_config.json"
TOKENS = ("bos_token_id", "pad_token_id", "transformers_version")  # what is kept of it


def stored_dtypes(source: TrainedRun) -> list[str]:
    """As configured, or the dtype in which the model was judged."""
    dtype = source.config.export.dtype
    return [source.plan.dtype if dtype == "auto" else dtype]


def write(source: TrainedRun, module: PreTrainedModel, folder: Path, dtype: str) -> Path:
    if source.plan.embed:
        return vectors.write(source, module, folder, dtype)
    if source.facts.encoder:
        layout = Layout(None if classifier.has_own_head(module) else source.plan.pooling, source.facts.context, dtype)
        encoder_folder.save(module, source.template.tokenizer, folder, layout)
        return folder
    save(module, source.template, folder, dtype)
    if (folder / GENERATION).is_file():
        write_generation(source, module, folder)
    return folder


def write_generation(source: TrainedRun, module: PreTrainedModel, folder: Path) -> None:
    """Programs decode by this file, unless they are asked otherwise: as the run was judged, until one of the tokens
    that ended its answers, and not by the base model's own settings."""
    from tunewright.model.decoding.generate import stop_ids
    from tunewright.model.language_model import LanguageModel

    own, stop = module.generation_config.to_dict(), stop_ids(LanguageModel(module), source.template.eos)
    tokens = {key: own[key] for key in TOKENS if own.get(key) is not None}
    ends = {"eos_token_id": list(stop) if len(stop) > 1 else stop[0]}
    write_json(folder / GENERATION, {**tokens, **ends, **sampling(source.run).generation_config})


def save(module: PreTrainedModel, template: Template, folder: Path, dtype: str) -> None:
    from tunewright.model import arch_probe, loading
    from tunewright.model.heads.linear import head_of

    tokenizer = template.tokenizer if head_of(module) is None else classifier.tokenizer(template)
    stored = module if dtype == "float32" else copy.deepcopy(module).to(loading.torch_dtype(dtype))
    with arch_probe.quiet():
        stored.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    portable.make_portable(folder)


def stored(source: TrainedRun, dtype: str) -> Callable[[Tensor], Tensor]:
    from tunewright.model import loading

    return lambda weight: weight.to(loading.torch_dtype(dtype))


def reload(folder: Path, base: Base) -> Reloaded:
    """Load it with transformers alone, without any of our code."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )

    from tunewright.model import arch_probe
    from tunewright.model.language_model import LanguageModel
    from tunewright.tokens.encoder_text import is_encoder_folder

    if vectors.is_embedder(folder):
        return vectors.reload(folder)
    if is_encoder_folder(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return Reloaded(encoder_folder.load(folder), tokenizer)
    loaders = {classifier.CLASS: AutoModelForSequenceClassification, tagger.CLASS: AutoModelForTokenClassification}
    name = classifier.architecture(folder)
    loader = next((loader for end, loader in loaders.items() if name.endswith(end)), AutoModelForCausalLM)
    with arch_probe.quiet():
        module = loader.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return Reloaded(LanguageModel(module, plain_head=False), tokenizer)


def snippet(place: Place) -> list[str]:
    if place.embeds:
        return vectors.snippet(place)
    loader = "AutoModelForSequenceClassification" if place.labels else "AutoModelForCausalLM"
    return [
        f"from transformers import {loader}, AutoTokenizer",
        f'model = {loader}.from_pretrained("{place.folder}", dtype="auto")',
    ]


def unsupported(source: TrainedRun) -> str | None:
    if source.plan.embed:
        vectors.require_package()
    return classifier.unsupported(source) if source.plan.labels else None


MERGED = Export(
    kind="merged",
    library="transformers",
    loaded_with="transformers alone",
    merged=True,
    tolerance=TOLERANCE,
    dtypes=stored_dtypes,
    write=write,
    reload=reload,
    snippet=snippet,
    unsupported=unsupported,
    stored=stored,
    has_head=True,
)
