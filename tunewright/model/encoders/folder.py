"""What an encoder's folder says of it, and its module: BERT, RoBERTa, MPNet, DistilBERT, ModernBERT and others that
transformers' AutoModel loads."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Pooling = Literal["cls", "mean", "last"]
POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "last": "last"}
# sentence-transformers' names in 1_Pooling/config.json, those of its version 5.7 last.
THEIRS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "cls": "cls",
    "mean": "mean",
    "lasttoken": "last",
}
READS_BOTH_SIDES = "an encoder's tokens see the whole row, so rows are computed one below another"


def load(folder: str | Path, dtype: torch.dtype | Literal["auto"]) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """The encoder alone, without a pooler or a head, and what transformers reports about the tensors of its files: of
    the unexpected ones only those that are named like a part of the encoder. Heads of its pre-training are left."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    module, loaded = AutoModel.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **without_pooler(config),
    )
    prefix, own = f"{module.base_model_prefix}.", {name for name, _ in module.named_children()} - {"pooler"}
    parts = {key: key.removeprefix(prefix).partition(".")[0] for key in loaded["unexpected_keys"]}
    unexpected = [k for k, part in parts.items() if part in own and not k.endswith("position_ids")]
    return module, {**loaded, "unexpected_keys": unexpected}


def without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """The argument that leaves out the pooler of this config's class, if the class has one."""
    from transformers import MODEL_MAPPING

    accepted = inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}


def small(config: PreTrainedConfig) -> PreTrainedModel:
    """A random encoder with the architecture's widths, two layers and few words."""
    from transformers import AutoModel

    made = type(config).from_dict(config.to_dict())
    kinds = list(getattr(made, "layer_types", None) or [])
    made.num_hidden_layers = max(2, 1 + max((kinds.index(kind) for kind in set(kinds)), default=0))
    if kinds:
        made.layer_types = kinds[: made.num_hidden_layers]
    made.vocab_size = min(int(made.vocab_size), 1024)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if (getattr(made, name, None) or 0) >= made.vocab_size:
            setattr(made, name, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: PreTrainedModel = AutoModel.from_config(made, dtype=torch.float32, **without_pooler(made))
    return module.eval()


def positions(config: PreTrainedConfig) -> int:
    """The longest text that its positions number, in tokens. RoBERTa and its relatives count from behind the number of
    the padding token, so theirs is shorter than config.json says."""
    most = int(getattr(config, "max_position_embeddings", 0) or 1_000_000)
    tables = (
        m for n, m in small(config).named_modules() if n.endswith("position_embeddings") and isinstance(m, nn.Embedding)
    )
    first = next((m.padding_idx for m in tables if m.padding_idx is not None and m.num_embeddings == most), None)
    return most if first is None else most - first - 1


def own_pooling(folder: Path) -> Pooling | None:
    """How sentence-transformers pools this model, if its folder says so in one of our ways."""
    try:
        modes = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(modes, dict):
        return None
    if "pooling_mode" in modes:
        return THEIRS.get(str(modes["pooling_mode"]))
    given = [name for name, on in modes.items() if name.startswith("pooling_mode_") and on is True]
    return THEIRS.get(given[0]) if len(given) == 1 else None
