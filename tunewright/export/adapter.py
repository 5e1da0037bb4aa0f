"""The adapter alone, in PEFT's format, with the tokenizer and the chat template of the run; users load it onto the base
model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.core import records
from tunewright.core.records import AdapterNote, Receipt
from tunewright.core.run_folder import disk_errors
from tunewright.export import classifier, merged, portable
from tunewright.export.kind import TOLERANCE, Base, Export, Place, Reloaded, TrainedRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def stored_dtypes(source: TrainedRun) -> list[str]:
    return ["float32"]


def write(source: TrainedRun, module: PreTrainedModel, folder: Path, dtype: str) -> Path:
    from tunewright.model import peft_format

    facts = source.facts
    base = portable.base_name(facts.name)
    note = AdapterNote(
        base=base,
        base_sha256=facts.sha256,
        template_sha256=source.template.sha256,
        run=source.run.name,
        trained_as=source.plan.adapter.kind,
        start_sha256=records.read(source.run.receipt, Receipt).hashes["start"] if source.plan.adapter.start else None,
        files={},
    )
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder):
        tokenizer = classifier.tokenizer(source.template) if source.plan.labels else source.template.tokenizer
        tokenizer.save_pretrained(folder)
        portable.make_portable(folder)
    if not source.plan.labels:
        merged.write_generation(source, module, folder)
    peft_format.save(module, source.plan.adapter, folder, base, note)
    return folder


def reload(folder: Path, base: Base) -> Reloaded:
    import torch
    from transformers import AutoTokenizer

    from tunewright.model import loading, peft_format

    model = loading.load(base.path, torch.float32, packed=base.packed)
    peft_format.load(model.module, folder, base.sha256)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return Reloaded(model, tokenizer)


def snippet(place: Place) -> list[str]:
    from tunewright.model.loading import EMBEDDED

    base = portable.base_name(place.base)
    hub_id, _, revision = base.partition("@")
    if base == EMBEDDED or base.endswith(".gguf"):
        imports = ["from tunewright.model.loading import resolve  # pip install tunewright"]
        arguments = f'resolve("{base}")'
    elif "/" in base:
        imports, arguments = [], f'"{hub_id}", revision="{revision}"' if revision else f'"{hub_id}"'
    else:
        imports, arguments = [f"# {base}: the folder of the base model"], f'"{base}"'
    if place.nf4:
        imports = [*imports, "from transformers import BitsAndBytesConfig  # pip install bitsandbytes", "import torch"]
        in_4_bits = 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32'
        arguments += f", quantization_config=BitsAndBytesConfig({in_4_bits})"
    if place.labels:
        arguments += f", id2label={dict(enumerate(place.labels))}"
        return [
            "from peft import PeftModel",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            *imports,
            f'model = AutoModelForSequenceClassification.from_pretrained({arguments}, dtype="float32")',
            f'model = PeftModel.from_pretrained(model, "{place.folder}")',
        ]
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig",
        *imports,
        f'model = AutoModelForCausalLM.from_pretrained({arguments}, dtype="float32")',
        "# The base's own may set penalties and beams, and end answers elsewhere.",
        f'model.generation_config = GenerationConfig.from_pretrained("{place.folder}")',
        f'model = PeftModel.from_pretrained(model, "{place.folder}")',
    ]


def unsupported(source: TrainedRun) -> str | None:
    return classifier.unsupported(source) if source.plan.labels else None


ADAPTER = Export(
    kind="adapter",
    library="peft",
    loaded_with="tunewright (base model and adapter)",
    by_peft="PEFT (base model and adapter)",
    merged=False,
    tolerance=TOLERANCE,
    dtypes=stored_dtypes,
    write=write,
    reload=reload,
    snippet=snippet,
    unsupported=unsupported,
    has_head=True,
)
