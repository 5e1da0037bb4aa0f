"""Weights as GGUF: their names, the order of their rows, and the types in which they are stored; and the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.core.records import GgufFile
from tunewright.export.gguf.architecture import ARCHITECTURES

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig

# Type of the weights -> what a file is called whose weights are mostly of this type.
TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}


@contextmanager
def writing(file: Path, config: PreTrainedConfig, content: str) -> Iterator[gguf.GGUFWriter]:
    """The file is written at the end of the block. ``content``: model or adapter."""
    import gguf

    writer = gguf.GGUFWriter(file, ARCHITECTURES[config.model_type])
    writer.add_type(content)
    writer.add_name(file.stem)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def described(file: Path) -> GgufFile:
    from gguf import GGUFReader

    types = Counter(tensor.tensor_type.name for tensor in GGUFReader(file).tensors)
    return GgufFile(bytes=file.stat().st_size, tensors=dict(types.most_common()))


def names(config: PreTrainedConfig) -> Callable[[str], str]:
    """Name of a parameter of the module -> its name in GGUF."""
    import gguf

    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[ARCHITECTURES[config.model_type]]
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    return lambda parameter: table.mapping[parameter.rpartition(".")[0]][1] + "." + parameter.rpartition(".")[2]


def interleaved(name: str, rows: Tensor, config: PreTrainedConfig, back: bool = False) -> Tensor:
    """The rows of a weight, a bias or a LoRA B in the order of llama.cpp; ``back``: in the order of transformers.

    llama.cpp's Llama rotates queries and keys in pairs of neighbours, transformers in pairs half a head apart.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or ARCHITECTURES[config.model_type] != "llama":
        return rows
    half = rows.shape[0] // heads // 2
    pairs = (half, 2) if back else (2, half)
    return rows.reshape(heads, *pairs, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def encode(weight: Tensor, kind: str) -> tuple[NDArray[np.generic], gguf.GGMLQuantizationType]:
    """The bytes of a float32 weight, and their type: float32 for vectors; float16 for matrices whose rows cannot be cut
    into blocks, as in llama.cpp; otherwise ``kind``."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    chosen = GGMLQuantizationType[kind.upper() if weight.ndim > 1 else "F32"]
    if weight.shape[-1] % GGML_QUANT_SIZES[chosen][0]:
        chosen = GGMLQuantizationType.F16
    return quants.quantize(weight.contiguous().numpy(), chosen), chosen


def decoded(weight: Tensor, kind: str) -> Tensor:
    """What a float32 weight is after `encode`."""
    import torch
    from gguf import quants

    return torch.from_numpy(quants.dequantize(*encode(weight, kind)))
