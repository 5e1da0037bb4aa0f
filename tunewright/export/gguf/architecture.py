"""Architectures that are written as GGUF: their names in llama.cpp, the keys that describe a model of one, and what
llama.cpp takes for granted about them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gguf
    from torch import Tensor
    from transformers import PreTrainedConfig

# model_type -> the architecture's name in llama.cpp.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# Settings that GGUF has no key for, with the value that llama.cpp computes with.
ASSUMED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
ROPE = ("default", "llama3")


def unsupported(folder: str) -> str | None:
    """Why the model in this folder cannot be written, or None."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.model_type not in ARCHITECTURES:
        return f"the architecture {config.model_type} is none of {', '.join(ARCHITECTURES)}"
    for key, value in ASSUMED.items():
        if (actual := getattr(config, key, value)) != value:
            return f"llama.cpp computes with {key}={value}, and the model has {actual}"
    if (rope := config.rope_parameters["rope_type"]) not in ROPE:
        return f"its rotary embeddings are of the type {rope}, which is none of {', '.join(ROPE)}"
    return None


def write(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """The keys that describe the model. A sliding window has none for these architectures; within its length, a model
    with one computes the same as a model without, so that is the length of the context."""
    from tunewright.model.facts import window_of

    context, head = config.max_position_embeddings, getattr(config, "head_dim", None)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(min(context, window_of(config) or context))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if head is not None:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if writer.arch == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head or config.hidden_size // config.num_attention_heads)


def rope_factors(config: PreTrainedConfig) -> Tensor | None:
    """Llama 3's scaling of rotary embeddings: what each frequency is divided by. None if there is no scaling.

    Long wavelengths are stretched by ``factor``, short ones are kept, and those between are interpolated.
    """
    import torch

    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, head, 2, dtype=torch.float32) / head))
    turns = rope["original_max_position_embeddings"] / (2 * math.pi / frequencies)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    factors: Tensor = 1 / ((1 - kept) / rope["factor"] + kept)
    return factors
