"""The adapter merged into the base weights: a model folder that plain transformers loads, with its tokenizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.core.config import Config
from tunewright.export import portable
from tunewright.export.kind import TOLERANCE, Base, Dtype, Export, Reloaded, TrainedRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunewright.model.facts import Facts
    from tunewright.tokens.template import Template

LARGEST_FLOAT32 = 2e9  # bytes


def stored_dtype(config: Config, facts: Facts) -> Dtype:
    """As configured. Auto is float32, because an update is often smaller than the bfloat16 precision of the weight that
    it changes; above 2 GB, the base model's own dtype."""
    if config.export.dtype != "auto":
        return config.export.dtype
    of_base: dict[str, Dtype] = {"BF16": "bfloat16", "F16": "float16"}
    return "float32" if facts.parameters * 4 <= LARGEST_FLOAT32 else of_base.get(facts.dtype, "float32")


def stored_dtypes(config: Config, facts: Facts) -> list[str]:
    return [stored_dtype(config, facts)]


def write(source: TrainedRun, module: PreTrainedModel, folder: Path, dtype: str) -> Path:
    save(module, source.template, folder, dtype)
    return folder


def save(module: PreTrainedModel, template: Template, folder: Path, dtype: str) -> None:
    from tunewright.model import arch_probe, loading

    stored = module if dtype == "float32" else copy.deepcopy(module).to(loading.torch_dtype(dtype))
    with arch_probe.quiet():
        stored.save_pretrained(folder)
        template.tokenizer.save_pretrained(folder)
    portable.make_portable(folder)


def reload(folder: Path, base: Base) -> Reloaded:
    """Load it with transformers alone, without any of our code."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunewright.model import arch_probe
    from tunewright.model.language_model import LanguageModel

    with arch_probe.quiet():
        module = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return Reloaded(LanguageModel(module, plain_head=False), tokenizer)


def snippet(name: str, folder: str) -> list[str]:
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")',
    ]


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
)
