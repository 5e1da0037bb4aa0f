"""What an architecture can do, tested on a small random model of it: no list of names, no weights loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters, fused_llama
from tunewright.model.attention import interface
from tunewright.model.encoders import folder
from tunewright.tokens.encoder_text import is_encoder
from tunewright.tokens.prefix_tree import build


@dataclass(frozen=True)
class Capabilities:
    """The result of the probe.

    ``leak``: for each layout, why rows cannot be computed together in it, or "". ``draws``: in training mode the model
    is random (it has dropout of its own), so no two passes are alike. ``fused``: `fused_llama` computes what its own
    modules do.
    """

    leak: dict[str, str]
    draws: bool
    fused: bool


def probe(config: Any, adapter: AdapterConfig | None = None, tolerance: float = 1e-4) -> Capabilities:
    """Probe a small model with the architecture's widths, one layer of each kind, and random weights. A state-space or
    linear attention layer, for example, carries its state from row to row, which shows as different logits.
    ``adapter``: one that PEFT computes, which the small model gets too. Raises CONFIG_CONFLICT if it cannot."""
    interface.register()
    if is_encoder(config):
        return _of_encoder(config)
    try:
        module = small(config)
    except (ValueError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        why = f"no small model of this architecture could be built ({type(error).__name__})"
        return Capabilities({"shared": why, "packed": why}, draws=False, fused=False)
    if adapter is not None:
        adapters.attach(module, adapter, 0)
        for p in adapters.trainable(module).values():
            p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    draw = np.random.default_rng(0).integers(0, int(module.config.get_text_config().vocab_size), (4, 20)).tolist()
    rows = [draw[0] + draw[1][:7], draw[2][:12], draw[0] + draw[3][:9]]
    with torch.no_grad(), quiet():
        alone = [module(torch.tensor([row])).logits[0] for row in rows]
        leak = {layout: _leak(module, rows, alone, layout == "shared", tolerance) for layout in ("shared", "packed")}
        first, second = (module.train()(torch.tensor([rows[0]])).logits for _ in range(2))
    fused = adapter is None and fused_llama.fits(module.eval())
    return Capabilities(leak, draws=not torch.equal(first, second), fused=fused)


def _of_encoder(config: Any) -> Capabilities:
    with quiet(), torch.no_grad():
        module = folder.small(config).train()
        first, second = (module(torch.tensor([[1, 2, 3, 4]])).last_hidden_state for _ in range(2))
    both = dict.fromkeys(("shared", "packed"), folder.READS_BOTH_SIDES)
    return Capabilities(both, draws=not torch.equal(first, second), fused=False)


def _leak(module: Any, rows: list[list[int]], alone: list[Tensor], shared: bool, tolerance: float) -> str:
    tree = build(rows, shared)
    ids, positions = torch.from_numpy(tree.ids_T)[None], torch.from_numpy(tree.positions_T)[None]
    try:
        with interface.attending(module, interface.TREE):
            logits = module(ids, position_ids=positions, segments=tree.segments, use_cache=False).logits[0]
    except (ValueError, TypeError, RuntimeError) as error:
        why = str(error).splitlines()[0][:80] if str(error) else ""
        return f"this architecture does not support the layout ({type(error).__name__}: {why})"
    gap = max(
        float((logits[at] - row).abs().max() / row.abs().max()) for at, row in zip(tree.place, alone, strict=True)
    )
    return (
        ""
        if gap < tolerance
        else f"rows see each other: a row's logits differ by {gap:.1e} (relative) from the row alone"
    )


def small(config: Any) -> Any:
    """A random model of the architecture, with its widths, one layer of each kind, and few words."""
    from transformers import AutoModelForCausalLM

    small = type(config).from_dict(config.to_dict())
    text = small.get_text_config()
    kinds = list(getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or [])
    keep = sorted({kinds.index(k) for k in kinds}) if kinds else []
    layers = max(2, (max(keep) + 1) if keep else 2)
    text.num_hidden_layers = min(layers, int(text.num_hidden_layers))
    if getattr(text, "layer_types", None):
        text.layer_types = kinds[: text.num_hidden_layers]
    text.vocab_size = min(int(text.vocab_size), 1024)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, 0)
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if getattr(text, name, None):
            setattr(text, name, min(4, int(getattr(text, name))))
    small.dtype = torch.float32
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, transformers and the Hub print neither messages nor progress bars."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
