"""The adapter alone, in PEFT's format, with the tokenizer and the chat template of the run; users load it onto the base
model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.core.config import Config, Plan
from tunewright.core.records import AdapterNote
from tunewright.core.run_folder import disk_errors
from tunewright.export.kind import TOLERANCE, Base, Dtype, Export, Reloaded, TrainedRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def stored_dtype(config: Config, plan: Plan) -> Dtype:
    return "float32"


def write(source: TrainedRun, module: PreTrainedModel, folder: Path, dtype: Dtype) -> None:
    from tunewright.model import loading, peft_format

    facts = source.facts
    base = facts.path if facts.name == loading.EMBEDDED else facts.name
    note = AdapterNote(
        base=facts.name, base_sha256=facts.sha256, template_sha256=source.template.sha256, run=source.run.name, files={}
    )
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder):
        source.template.tokenizer.save_pretrained(folder)
    peft_format.save(module, source.plan.adapter, folder, base, note)


def reload(folder: Path, base: Base) -> Reloaded:
    import torch
    from transformers import AutoTokenizer

    from tunewright.model import loading, peft_format

    model = loading.load(base.path, torch.float32)
    peft_format.load(model.module, folder, base.sha256)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return Reloaded(model, tokenizer)


def snippet(path: str, base: str) -> list[str]:
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'tokenizer = AutoTokenizer.from_pretrained("{path}")',
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{path}")',
    ]


ADAPTER = Export(
    kind="adapter",
    library="peft",
    loaded_with="tunewright (base model and adapter)",
    merged=False,
    tolerance=TOLERANCE,
    dtype=stored_dtype,
    write=write,
    reload=reload,
    snippet=snippet,
)
