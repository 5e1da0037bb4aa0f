"""What an architecture can do, asked of a small twin with random weights: no list of names, no weights loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunewright.model import attention, fused_llama
from tunewright.tokens.prefix_tree import build


@dataclass(frozen=True)
class Capabilities:
    """What a twin of the model showed. ``leak``: for each layout, why rows cannot be computed together in it, or "".
    ``draws``: in training mode the model itself draws at random (dropout of its own), so no two passes are alike.
    ``fused``: `fused_llama` computes what its own modules do."""

    leak: dict[str, str]
    draws: bool
    fused: bool


def probe(config: Any, tolerance: float = 1e-4) -> Capabilities:
    """Ask a twin, not a list of names. It keeps the architecture's widths and one layer of each kind, with random
    weights. A state-space or linear attention layer, say, carries its state from row to row, which shows as different
    logits."""
    attention.register()
    try:
        twin = _twin(config)
    except (ValueError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        why = f"no twin of this architecture could be built ({type(error).__name__})"
        return Capabilities({"shared": why, "packed": why}, draws=False, fused=False)
    draw = np.random.default_rng(0).integers(0, int(twin.config.get_text_config().vocab_size), (4, 20)).tolist()
    rows = [draw[0] + draw[1][:7], draw[2][:12], draw[0] + draw[3][:9]]
    with torch.no_grad(), quiet():
        alone = [twin(torch.tensor([row])).logits[0] for row in rows]
        leak = {layout: _leak(twin, rows, alone, layout == "shared", tolerance) for layout in ("shared", "packed")}
        first, second = (twin.train()(torch.tensor([rows[0]])).logits for _ in range(2))
    return Capabilities(leak, draws=not torch.equal(first, second), fused=fused_llama.fits(twin.eval()))


def _leak(twin: Any, rows: list[list[int]], alone: list[Tensor], share: bool, tolerance: float) -> str:
    tree = build(rows, share)
    ids, positions = torch.from_numpy(tree.ids_T)[None], torch.from_numpy(tree.positions_T)[None]
    try:
        with attention.attending(twin, attention.TREE):
            logits = twin(ids, position_ids=positions, segments=tree.segments, use_cache=False).logits[0]
    except (ValueError, TypeError, RuntimeError) as error:
        said = str(error).splitlines()[0][:80] if str(error) else ""
        return f"this architecture does not take the layout of its rows ({type(error).__name__}: {said})"
    gap = max(
        float((logits[at] - row).abs().max() / row.abs().max()) for at, row in zip(tree.place, alone, strict=True)
    )
    return (
        ""
        if gap < tolerance
        else f"rows see each other: logits of a row differ by {gap:.1e} of their size from the row alone"
    )


def _twin(config: Any) -> Any:
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
    """transformers' and the Hub's own talk and bars are off; ours say what matters."""
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
