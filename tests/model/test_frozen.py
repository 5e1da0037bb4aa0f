"""Packed base weights compute what dense ones would, bit for bit, and hold nothing dense."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from build import LORA, gradients, rows, tiny_lm
from gguf import GGMLQuantizationType, quants

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters, forward, fused_llama, loading
from tunewright.model.decoding.generate import Decoding, complete
from tunewright.model.frozen import packing
from tunewright.model.frozen.gguf_blocks import Blocks
from tunewright.model.frozen.packed import PackedLinear, replace_module, weight_of
from tunewright.tokens import packing as tokens

KINDS = ["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K"]
pytest.importorskip("bitsandbytes")


def pair(
    kind: str = "llama", dtype: torch.dtype = torch.float32, adapter: AdapterConfig = LORA, how: str = "nf4"
) -> tuple[Any, Any]:
    """The same model twice: with its layers packed, and dense with the numbers that these stand for."""
    packed = tiny_lm(kind, torch.bfloat16 if how == "stored" else dtype, num_key_value_heads=2)
    packing.pack(packed.module, how, dtype)
    dense = dataclasses.replace(packed, module=copy.deepcopy(packed.module))
    for name, layer in list(dense.module.named_modules()):
        if isinstance(layer, PackedLinear):
            replace_module(dense.module, name, adapters._dense(layer, dtype))
    for model in (packed, dense):
        adapters.attach(model.module, adapter, 1)
        for p in adapters.trainable(model.module).values():
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    return packed, dense


@pytest.mark.parametrize("kernels", ["fused", "transformers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("how", ["nf4", "stored"])
def test_losses_and_gradients_are_those_of_dense_weights(how: str, kind: str, dtype: torch.dtype, kernels: str) -> None:
    """Bit for bit, with biases, and with layers recomputed."""
    packed, dense = (dataclasses.replace(m, kernels=kernels) for m in pair(kind, dtype, how=how))
    assert fused_llama.applies(packed.module)
    batch = tokens.to_microbatch(rows(5), "shared")
    for recompute in ("none", "layers"):
        (loss, grads), (expected, theirs) = (gradients(m, [batch], recompute) for m in (packed, dense))
        assert loss == expected
        assert all(torch.equal(grads[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "adapter",
    [
        LORA,
        AdapterConfig(kind="dora", rank=4),
        AdapterConfig(kind="rslora", rank=4),
        AdapterConfig(rank=4, init="pissa"),
        AdapterConfig(rank=4, init="olora"),
    ],
)
def test_answers_gradients_and_merged_weights_are_those_of_dense_weights(
    adapter: AdapterConfig, dtype: torch.dtype
) -> None:
    packed, dense = pair(dtype=dtype, adapter=adapter)
    batch = tokens.to_microbatch(rows(4), "shared")
    (loss, grads), (expected, theirs_) = (gradients(m, [batch]) for m in (packed, dense))
    assert loss == expected
    assert all(torch.equal(grads[name], theirs_[name]) for name in theirs_)
    prompts = [list(range(4, 20)), list(range(9, 40))]
    with adapters.off(packed.module), adapters.off(dense.module):
        assert complete(packed, prompts, Decoding(8, ())) == complete(dense, prompts, Decoding(8, ()))
    assert complete(packed, prompts, Decoding(8, ())) == complete(dense, prompts, Decoding(8, ()))
    for model in (packed, dense):
        adapters.merge(model.module)
    assert not any(isinstance(m, PackedLinear) for m in packed.module.modules())
    ours, theirs = packed.module.state_dict(), dense.module.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kernels", ["fused", "transformers"])
@pytest.mark.parametrize("adapter", [LORA, AdapterConfig(rank=4, targets=["q_proj"])])
def test_no_dense_weight_is_kept_for_the_backward_pass(adapter: AdapterConfig, kernels: Any) -> None:
    """Of layers with and without an adapter."""
    packed = pair(adapter=adapter)[0]
    packed = dataclasses.replace(packed, kernels=kernels if fused_llama.applies(packed.module) else "transformers")
    shapes = {m.shape for m in packed.module.modules() if isinstance(m, PackedLinear)}
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    batch = tokens.to_microbatch(rows(3), "shared")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward.loss(packed, batch).backward()
    assert kept
    assert not shapes & set(kept)


def test_a_change_of_dtype_leaves_packed_weights_as_they_are() -> None:
    packed, _ = pair()
    layer = next(m for m in packed.module.modules() if isinstance(m, PackedLinear))
    before = weight_of(layer, torch.float32)
    packed.module.to(torch.bfloat16)
    assert torch.equal(weight_of(layer, torch.float32), before)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_unpacked_as_llama_cpps_own_code_does(kind: str) -> None:
    """From random bytes, with gguf's implementation as oracle."""
    number = GGMLQuantizationType[kind]
    block, size = quants.GGML_QUANT_SIZES[number]
    draw = np.random.default_rng(0)
    data = (
        quants.quantize(draw.normal(0, 0.02, (6, 512)).astype(np.float32), number)
        if kind < "Q4_2" or (kind == "Q8_0")
        else draw.integers(0, 120, (6, 512 // block * size), dtype=np.uint8)
    )
    expected = quants.dequantize(data, number)
    actual = Blocks(int(number)).unpack({"blocks": torch.from_numpy(data)}, (6, 512))
    assert np.array_equal(actual.numpy(), expected, equal_nan=True)


def test_the_real_models_blocks_are_kept_and_compute_the_same() -> None:
    """SmolLM2 is a GGUF file in Q4_1: all 210 layers keep their blocks."""
    folder = loading.resolve(loading.EMBEDDED)
    file = loading.gguf_file(loading.EMBEDDED)
    dense, packed = loading.load(folder, torch.float32), loading.load(folder, torch.float32, packed=str(file))
    layers = [m for m in packed.module.modules() if isinstance(m, PackedLinear)]
    assert len(layers) == 210
    assert sum(b.nbytes for layer in layers for b in layer.buffers()) < 0.17 * 4 * 106_168_320
    ids = torch.tensor([[1, 4093, 198, 1780, 314, 260, 3575, 47, 2]])
    with torch.no_grad():
        assert torch.equal(packed.module(ids).logits, dense.module(ids).logits)


def test_blocks_of_another_file_are_not_used(tmp_path: Path) -> None:
    """The weights of the folder count, and layers that are none of the file's stay dense."""
    module = loading.load(loading.resolve(loading.EMBEDDED), torch.float32).module
    with torch.no_grad():
        module.model.layers[3].self_attn.q_proj.weight[5, 7] += 1e-3
    before = module.model.layers[3].self_attn.q_proj.weight.clone()
    packing.pack(module, str(loading.gguf_file(loading.EMBEDDED)), torch.float32)
    assert torch.equal(module.model.layers[3].self_attn.q_proj.weight, before)
    assert sum(isinstance(m, PackedLinear) for m in module.modules()) == 209


def test_stored_weights_are_those_of_the_dense_model_and_stay_in_the_file(tmp_path: Path) -> None:
    """In float32 from a file of 16 bits; loading touches memory for no layer."""
    tiny_lm("llama", torch.bfloat16, num_key_value_heads=2).module.save_pretrained(tmp_path)
    dense, stored = (loading.load(tmp_path, torch.float32, packed=how).module for how in ("", "stored"))
    ids = torch.arange(20)[None]
    assert torch.equal(dense(ids).logits, stored(ids).logits)
    layers = {n: m for n, m in stored.named_modules() if isinstance(m, PackedLinear)}
    assert len(layers) == 14
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "model.safetensors" in line]
    ends = [tuple(int(x, 16) for x in line[0].split("-")) for line in maps]
    for layer in layers.values():
        assert any(low <= layer.weight.data_ptr() < high for low, high in ends), "not in the mapped file"
