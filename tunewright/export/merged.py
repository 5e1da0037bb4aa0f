"""The adapter merged into the base weights: a model folder that plain transformers loads, with its tokenizer."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tunewright.core.config import Config, Plan
from tunewright.core.run_folder import disk_errors
from tunewright.export.kind import TOLERANCE, Base, Dtype, Export, TrainedRun
from tunewright.model import adapters, arch_probe, loading
from tunewright.model.facts import Facts
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST_FLOAT32 = 2e9  # bytes


def wanted(config: Config, plan: Plan) -> bool:
    return config.export.merged or plan.adapter.kind == "none"


def stored_dtype(config: Config, facts: Facts) -> Dtype:
    """As configured. Auto is float32, because an update is often smaller than the bfloat16 precision of the weight that
    it changes; above 2 GB, the base model's own dtype."""
    if config.export.dtype != "auto":
        return config.export.dtype
    of_base: dict[str, Dtype] = {"BF16": "bfloat16", "F16": "float16"}
    return "float32" if facts.parameters * 4 <= LARGEST_FLOAT32 else of_base.get(facts.dtype, "float32")


def write(source: TrainedRun, module: PreTrainedModel, folder: Path, dtype: Dtype) -> None:
    """Merges the adapter into ``module`` and casts it to ``dtype``, both permanently."""
    adapters.merge(module)
    save(module, source.template, folder, loading.torch_dtype(dtype))


def save(module: PreTrainedModel, template: Template, folder: Path, dtype: torch.dtype) -> None:
    """Write to a temporary folder and rename it, so that ``folder`` always holds a complete model."""
    for leftover in folder.parent.glob(".merged-*"):  # of a process that was killed here
        shutil.rmtree(leftover)
    temporary = Path(tempfile.mkdtemp(prefix=".merged-", dir=folder.parent))
    try:
        with disk_errors(folder), arch_probe.quiet():
            module.to(dtype).save_pretrained(temporary)
            template.tokenizer.save_pretrained(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def reload(folder: Path, base: Base) -> LanguageModel:
    """Load it with transformers alone, without any of our code."""
    from transformers import AutoModelForCausalLM

    with arch_probe.quiet():
        module = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).eval()
    return LanguageModel(module, plain_head=False)


def snippet(path: str, base: str) -> list[str]:
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'tokenizer = AutoTokenizer.from_pretrained("{path}")',
        f'model = AutoModelForCausalLM.from_pretrained("{path}")',
    ]


MERGED = Export(
    kind="merged",
    library="transformers",
    loaded_with="transformers alone",
    tolerance=TOLERANCE,
    folder=lambda run: run.merged,
    wanted=wanted,
    dtype=stored_dtype,
    write=write,
    reload=reload,
    snippet=snippet,
)
