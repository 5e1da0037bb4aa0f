"""The adapter as a GGUF file, which llama.cpp adds to a GGUF file of the base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.core.config import AdapterConfig
from tunewright.export.adapter import stored_dtypes
from tunewright.export.gguf import architecture, tensors
from tunewright.export.kind import TOLERANCE, Base, Export, Place, Reloaded, TrainedRun
from tunewright.export.portable import base_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALPHA = "adapter.lora.alpha"


def unsupported(source: TrainedRun) -> str | None:
    if source.plan.adapter.kind == "dora":
        return "llama.cpp has no DoRA; the gguf export contains it merged"
    if source.plan.adapter.of_peft:
        return "llama.cpp has only LoRA; the gguf export contains the adapter merged"
    if not source.plan.adapter.uniform:
        return "tunewright writes such a file with one alpha and rank for all layers; the gguf export is merged"
    if source.facts.packed == "nf4":
        return "llama.cpp has no NF4, so no file of the base has the weights that the adapter was trained on"
    return architecture.unsupported(source.facts.path)


def write(source: TrainedRun, module: PreTrainedModel, folder: Path, dtype: str) -> Path:
    """llama.cpp divides alpha by the rank, for rsLoRA too: alpha is written as scaling factor times rank."""
    from tunewright.model import adapters

    file = folder / f"{source.run.name}-lora-F32.gguf"
    config, name_of, layers = module.config, tensors.names(module.config), adapters.adapted(module)
    with tensors.writing(file, config, "adapter") as writer:
        writer.add_string("adapter.type", "lora")
        writer.add_float32(ALPHA, next(layer.scaling * len(layer.factors()[0]) for layer in layers.values()))
        writer.add_string("tunewright.base_sha256", source.facts.sha256)
        for name in (f"{layer}.weight" for layer in layers):
            a_RI, b_OR = layers[name.removesuffix(".weight")].factors()
            for end, matrix in (("a", a_RI), ("b", tensors.interleaved(name, b_OR, config))):
                writer.add_tensor(f"{name_of(name)}.lora_{end}", matrix.detach().float().contiguous().numpy())
    return file


def reload(file: Path, base: Base) -> Reloaded:
    """Read the adapter onto the base model. It has no tokenizer: that is in the base's file."""
    import torch
    from gguf import GGUFReader

    from tunewright.model import adapters, loading
    from tunewright.model.frozen.packed import Linear

    reader, model = GGUFReader(file), loading.load(base.path, torch.float32, packed=base.packed)
    data = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    config, name_of = model.module.config, tensors.names(model.module.config)
    linear = [f"{n}.weight" for n, m in model.module.named_modules() if isinstance(m, Linear)]
    names = {n.removesuffix(".weight"): name_of(n) for n in linear if f"{name_of(n)}.lora_a" in data}
    rank = next(matrix.shape[0] for name, matrix in data.items() if name.endswith(".lora_a"))
    alpha = float(reader.get_field(ALPHA).contents())
    adapters.attach(model.module, AdapterConfig(rank=rank, alpha=alpha, targets=list(names)))
    with torch.no_grad():
        for name, layer in adapters.adapted(model.module).items():
            layer.lora_A.copy_(data[f"{names[name]}.lora_a"])
            layer.lora_B.copy_(tensors.interleaved(f"{name}.weight", data[f"{names[name]}.lora_b"], config, back=True))
    return Reloaded(model, None)


def snippet(place: Place) -> list[str]:
    return [
        "from llama_cpp import Llama  # pip install llama-cpp-python",
        f"# base.gguf: {base_name(place.base)}, made by llama.cpp's convert_hf_to_gguf.py",
        f'model = Llama("base.gguf", lora_path="{place.file}", {place.llama_cpp})',
    ]


def llama_server(place: Place) -> list[str]:
    return ["-m", "base.gguf", "--lora", place.file]


LORA_GGUF = Export(
    kind="lora-gguf",
    library="gguf",
    loaded_with="tunewright (base model and the file's matrices)",
    merged=False,
    tolerance=TOLERANCE,
    dtypes=stored_dtypes,
    write=write,
    reload=reload,
    snippet=snippet,
    llama_server=llama_server,
    unsupported=unsupported,
)
