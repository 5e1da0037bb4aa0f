"""The merged model as GGUF files, for llama.cpp and the programs built on it: one file for each type of weights."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.export.gguf import architecture, llama_cpp, tensors, vocabulary
from tunewright.export.kind import QUANTISED, TOLERANCE, Base, Export, Place, Reloaded, TrainedRun, sampling

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# The type that `auto` writes: up to so many parameters. Larger models lose less by rounding.
SIZES = ((1e9, "f16"), (4e9, "q8_0"), (math.inf, "q4_k_m"))
# What is written instead of a type that changes too much.
MORE_PRECISE = {"q4_k_m": "q8_0", "q8_0": "f16"}
FLOATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def types(source: TrainedRun) -> list[str]:
    if source.config.export.gguf != "auto":
        return list(dict.fromkeys(source.config.export.gguf))
    kind = next(kind for limit, kind in SIZES if source.facts.parameters < limit)
    made = (kind not in llama_cpp.FILE_TYPES or llama_cpp.installed()) and source.facts.packed != "nf4"
    return [kind if made else MORE_PRECISE[kind]]


def unsupported(source: TrainedRun) -> str | None:
    """Raises MISSING_PACKAGE for a type that only llama.cpp can make."""
    for kind in types(source):
        llama_cpp.require(kind)
    if source.facts.packed == "nf4" and (kinds := [kind for kind in types(source) if kind.startswith("q4")]):
        return (
            f"{kinds[0]} has 4 bits: what was trained on a base in 4 bits is smaller than their rounding, and would be "
            "lost (export.gguf=q8_0 keeps it)"
        )
    folder, reason = source.config.export.llama_cpp, _unsupported_by_us(source)
    if reason is None or (folder is not None and llama_cpp.converter(folder).is_file()):
        return None
    return f"{reason}; export.llama_cpp=FOLDER, with llama.cpp's source, may help"


def _unsupported_by_us(source: TrainedRun) -> str | None:
    return architecture.unsupported(source.facts.path) or vocabulary.unsupported(source)


def write(source: TrainedRun, module: PreTrainedModel, folder: Path, kind: str) -> Path:
    file = folder / f"{source.run.name}-{kind.upper()}.gguf"
    if kind in llama_cpp.FILE_TYPES:
        with tempfile.TemporaryDirectory(dir=folder) as aside:  # the float32 file may itself be wanted
            llama_cpp.quantise(write(source, module, Path(aside), "f32"), file, kind)
    elif _unsupported_by_us(source) is not None:
        llama_cpp.convert(source, module, file, kind)
    else:
        _write(source, module, file, kind)
    return file


def _write(source: TrainedRun, module: PreTrainedModel, file: Path, kind: str) -> None:
    """Our own writer."""
    import gguf

    config, name_of = module.config, tensors.names(module.config)
    with tensors.writing(file, config, gguf.GGUFType.MODEL) as writer:
        writer.add_file_type(gguf.LlamaFileType[tensors.TYPES[kind.upper()]])
        architecture.write(writer, config)
        vocabulary.write(writer, source, config)
        for key, value in sampling(source.run).gguf.items():
            add = writer.add_int32 if isinstance(value, int) else writer.add_float32
            add(f"general.sampling.{key}", value)
        if (factors := architecture.rope_factors(config)) is not None:
            writer.add_tensor("rope_freqs.weight", factors.numpy())
        for name, parameter in module.named_parameters():
            data, chosen = tensors.encode(tensors.interleaved(name, parameter.detach().float(), config), kind)
            writer.add_tensor(name_of(name), data, raw_dtype=chosen)


def stored(source: TrainedRun, kind: str) -> Callable[[Tensor], Tensor] | None:
    """What our own writer makes of a weight; what llama.cpp makes of it is not known."""
    known = kind.upper() in tensors.TYPES and _unsupported_by_us(source) is None
    return partial(tensors.decoded, kind=kind) if known else None


def reload(file: Path, base: Base) -> Reloaded:
    """Load it with transformers' own reader of GGUF files; texts are split by llama.cpp where it is installed."""
    from tunewright.model import loading
    from tunewright.model.language_model import LanguageModel

    module, tokenizer = loading.read_gguf(file)
    encode = llama_cpp.tokenizer(file)
    model = LanguageModel(module.eval(), plain_head=False)
    return Reloaded(model, tokenizer, encode, "transformers" if encode is None else "llama.cpp", has_arguments=True)


def snippet(place: Place) -> list[str]:
    loaded = f'Llama.from_pretrained("{place.repo}", ' if place.repo else "Llama("
    return [
        "from llama_cpp import Llama  # pip install llama-cpp-python",
        f'model = {loaded}"{place.file}", {place.llama_cpp})',
    ]


def llama_server(place: Place) -> list[str]:
    return ["-hf", place.repo, "-hff", place.file] if place.repo else ["-m", place.file]


GGUF = Export(
    kind="gguf",
    library="gguf",
    loaded_with="transformers' GGUF reader",
    merged=True,
    tolerance=QUANTISED | {kind: TOLERANCE[dtype] for kind, dtype in FLOATS.items()},
    dtypes=types,
    write=write,
    reload=reload,
    snippet=snippet,
    llama_server=llama_server,
    unsupported=unsupported,
    stored=stored,
)
